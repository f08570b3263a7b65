"""``clf embed``. Heavy packages are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clf_serve.commands.options import (
    AsJson,
    BatchSize,
    Images,
    Model,
    Provider,
    ProviderOption,
    Variant,
    VariantOption,
    open_engine,
)
from clf_serve.commands.skipped import list_skipped, reasons
from clf_serve.commands.terminal import bar, console, print_json


def embed(
    model: Model,
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.npz, FILE.npy (+ FILE.json) or FILE.jsonl.")],
    batch_size: BatchSize = 32,
    provider: ProviderOption = Provider.auto,
    variant: VariantOption = Variant.fp32,
    as_json: AsJson = False,
) -> None:
    """Turn images into vectors and write them to a file."""
    from clf_serve.output import writer
    from clf_serve.sync.indexing import list_images

    write = writer(output)
    engine = open_engine(model, provider, variant)
    paths = list_images(images)
    with bar("embedding") as shown:
        shown.begin(len(paths))
        vectors, kept, skipped = engine.embed_files(paths, batch_size, shown.advance)
    write(vectors, kept, engine.manifest)
    if as_json:
        print_json({"embedded": len(kept), "dim": engine.dim, "output": str(output), "skipped": reasons(skipped)})
        return
    out = console()
    out.print(f"{len(kept)} images, {engine.dim} numbers each → {output}")
    list_skipped(out, skipped)
