"""``clf embed``. Heavy packages are imported inside."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clf.errors import ClfError, ConfigError
from clf_serve.commands.options import (
    AsJson,
    BatchSize,
    Model,
    Provider,
    ProviderOption,
    Variant,
    VariantOption,
    open_engine,
)
from clf_serve.commands.skipped import list_skipped, reasons
from clf_serve.commands.terminal import Bar, bar, console, print_json, printable

if TYPE_CHECKING:
    from clf_serve.bulk.running import Bulk, BulkReport
    from clf_serve.bulk.sources import Source

_SHARDS = "Output in shards"
_INTERRUPTED = 130
_SHOWN = 10


class Form(StrEnum):
    parquet = "parquet"
    npy = "npy"


def embed(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            help="An image, a folder of images, tar files ('x-{000..099}.tar'), or URLs of folders or tars.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|FOLDER|URL",
            help="FILE.npz, FILE.npy (+ FILE.json) or FILE.jsonl; or a folder or URL, for shards.",
            show_default=False,
        ),
    ],
    batch_size: BatchSize = 32,
    provider: ProviderOption = Provider.auto,
    variant: VariantOption = Variant.fp32,
    form: Annotated[
        Form | None,
        typer.Option(
            "--format", help="Of the shards; parquet unless given.", show_default=False, rich_help_panel=_SHARDS
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images in one; 8192 unless given.", show_default=False, rich_help_panel=_SHARDS),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Remove what is there, and begin anew.", rich_help_panel=_SHARDS)
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            help="What does the work: local (this process), ray (Ray Data, extra ray), or an installed one.",
            show_default=False,
            rich_help_panel=_SHARDS,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes at a time; not for local.", show_default=False, rich_help_panel=_SHARDS),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of a cluster that runs; this machine unless given.", show_default=False, rich_help_panel=_SHARDS
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn images into vectors and write them to a file, or shard by shard into a folder or an object store.

    Shards can be gone on with: the same command again makes only those that are missing.
    """
    if in_shards(output):
        job = _Job(model, output, provider, variant, batch_size, shard_size or 8192, form or Form.parquet, as_json)
        job.run(images, engine or "local", workers, address, restart=restart)
        return
    given = {"--format": form, "--shard-size": shard_size, "--workers": workers, "--address": address}
    given |= {"--restart": restart or None, "--engine": None if engine == "local" else engine}
    if stray := next((name for name, value in given.items() if value is not None), None):
        raise ConfigError(f"{stray} is about shards, and {output} is one file; name a folder with -o")
    _into_file(model, images, Path(output), provider, variant, batch_size, as_json=as_json)


def in_shards(output: str) -> bool:
    """Whether an output is a folder of shards: a URL, a name that ends in / or has no suffix, or one that is begun."""
    path = Path(output)
    known = path.suffix in (".npz", ".npy", ".jsonl")
    return "://" in output or output.endswith(("/", os.sep)) or not path.suffix or (not known and path.is_dir())


def _into_file(
    model: Path,
    images: list[str],
    output: Path,
    provider: Provider,
    variant: Variant,
    batch_size: int,
    *,
    as_json: bool,
) -> None:
    from clf_serve.output import writer
    from clf_serve.sync.indexing import list_images

    write = writer(output)
    if len(images) > 1 or "://" in images[0]:
        raise ConfigError(f"{output} takes one image or folder; for tars and URLs name a folder with -o")
    loaded = open_engine(model, provider, variant)
    paths = list_images(Path(images[0]))
    with bar("embedding") as shown:
        shown.begin(len(paths))
        vectors, kept, skipped = loaded.embed_files(paths, batch_size, shown.advance)
    write(vectors, kept, loaded.manifest)
    if as_json:
        print_json({"embedded": len(kept), "dim": loaded.dim, "output": str(output), "skipped": reasons(skipped)})
        return
    out = console()
    out.print(f"{len(kept)} images, {loaded.dim} numbers each → {output}")
    list_skipped(out, skipped)


class _Job:
    """Embeds into shards."""

    def __init__(
        self,
        model: Path,
        output: str,
        provider: Provider,
        variant: Variant,
        batch_size: int,
        shard_size: int,
        form: Form,
        as_json: bool,
    ) -> None:
        self._model, self._output, self._as_json = model, output, as_json
        self._provider, self._variant = provider, variant
        self._batch_size, self._shard_size, self._form = batch_size, shard_size, form
        self._made = 0

    def run(self, images: list[str], name: str, workers: int | None, address: str | None, *, restart: bool) -> None:
        from clf_serve.bulk.engine import Options, load_engine, make_engine
        from clf_serve.bulk.parts import check_form
        from clf_serve.bulk.running import Watch, run
        from clf_serve.bulk.sources import find_source

        engine = make_engine(load_engine(name), name, Options(workers, address))
        check_form(self._form.value)
        source = find_source(images)
        start = time.monotonic()
        with bar("listing") as shown:
            watch = Watch(
                found=lambda count: shown.begin_stage(f"listing {count}", None),
                begin=lambda total: shown.begin_stage("embedding", total),
                progress=lambda done: self._advance(done, shown),
                note=lambda text: console(stderr=True).print(text),
            )
            try:
                bulk = self._prepare(source, watch, restart=restart)
                start = time.monotonic()
                report = run(bulk, engine, name, watch)
            except KeyboardInterrupt:
                console(stderr=True).print(
                    f"stopped: {self._made} images embedded. Whole shards are kept; run the same command again to go "
                    "on from there"
                )
                raise typer.Exit(_INTERRUPTED) from None
            except ClfError as error:
                if self._made:
                    raise type(error)(
                        f"{error}. Whole shards are kept; the same command again goes on from there"
                    ) from error
                raise
        self._print(bulk, report, name, time.monotonic() - start)

    def _advance(self, done: int, shown: Bar) -> None:
        self._made += done
        shown.advance(done)

    def _prepare(self, source: Source, watch: Any, *, restart: bool) -> Bulk:
        from clf.manifest import read_manifest, variant_file, variant_sha256
        from clf_serve.bulk.encoder import OpenModel
        from clf_serve.bulk.plan import Settings
        from clf_serve.bulk.running import prepare

        manifest = read_manifest(self._model)
        variant_file(self._model, manifest, self._variant.value)
        sha256 = variant_sha256(manifest, self._variant.value)
        settings = Settings(
            manifest.name,
            sha256,
            manifest.dim,
            self._variant.value,
            manifest.preprocessing,
            self._provider.value,
            self._batch_size,
            self._shard_size,
            self._form.value,
        )
        folder = self._model.absolute()
        encoder = OpenModel(folder, sha256, self._variant.value, self._provider.value, self._batch_size)
        return prepare(source, self._output, settings, encoder, restart=restart, watch=watch)

    def _print(self, bulk: Bulk, report: BulkReport, name: str, seconds: float) -> None:
        rate = report.made / max(seconds, 1e-9)
        if self._as_json:
            skipped = [{"path": key, "reason": reason} for key, reason in report.some]
            print_json(
                {
                    "embedded": report.images,
                    "dim": bulk.plan.settings.dim,
                    "output": bulk.folder.shown,
                    "shards": report.shards,
                    "engine": name,
                    "made": report.made,
                    "images_per_second": round(rate, 1),
                    "skipped_total": report.skipped,
                    "left_out": report.left_out,
                    "skipped": skipped,
                }
            )
            return
        out = console()
        done = f"{report.made} images now, {rate:.1f} images/s" if bulk.left else "all of it was there"
        shards = f"{report.shards} shard{'s' if report.shards != 1 else ''}"
        out.print(
            f"{report.images} images, {bulk.plan.settings.dim} numbers each, {shards} → {bulk.folder.shown} ({done})"
        )
        if report.left_out:
            out.print(f"{report.left_out} further images of samples that have several were left out")
        if report.skipped:
            out.print(f"{report.skipped} skipped, all in {bulk.folder.shown}/skipped-*.jsonl:")
            for _, reason in report.some[:_SHOWN]:
                out.print(f"  {printable(reason)}")
            if report.skipped > _SHOWN:
                out.print(f"  and {report.skipped - _SHOWN} more")
