"""The commands of ``clf gallery`` that make another gallery or file. Heavy packages are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clf.errors import ConfigError
from clf_serve.commands.gallery_copying import resumable, steps_of, tell_copied
from clf_serve.commands.options import (
    AsJson,
    BatchSize,
    Gallery,
    Model,
    Provider,
    ProviderOption,
    Variant,
    VariantOption,
    open_engine,
)
from clf_serve.commands.skipped import list_skipped, reasons
from clf_serve.commands.terminal import bar, console, print_json, readable
from clf_serve.place import Place

New = Annotated[
    Place,
    typer.Option(
        "--output", "-o", metavar="NEW", help="Folder of the new gallery, or the URL of a store.", parser=Place.of
    ),
]


def backup(
    gallery: Gallery,
    file: Annotated[Path, typer.Argument(help="The file to write; an earlier one is replaced.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Copy a gallery to one file, while it is served and written to.

    The file holds everything that was written when the copy began. It is checked before it takes its name.
    """
    from clf_serve.moving import backup as write_backup

    folder = gallery.require_folder("clf gallery backup")
    copied = write_backup(folder, file)
    if as_json:
        print_json({"gallery": str(folder), "file": str(file), "images": copied.images, "bytes": copied.bytes})
        return
    console().print(f"{copied.images} images of {folder} → {file} ({readable(copied.bytes)})")


def restore(
    file: Annotated[Path, typer.Argument(help="File written by clf gallery backup.", show_default=False)],
    output: New,
    replace: Annotated[
        bool, typer.Option("--replace", help="In place of a gallery that is there, once the new one is whole.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a gallery of a backup. With --replace a server goes on with the old one until it reloads."""
    from clf_serve.moving import restore as read_backup

    if output.folder is None:
        _restore_into(file, output, replace, as_json)
        return
    with bar("restoring", counted=False) as shown:
        copied = read_backup(file, output.folder, replace=replace, progress=shown.stage)
    if as_json:
        print_json({"file": str(file), "gallery": str(output), "images": copied.images, "bytes": copied.bytes})
        return
    console().print(f"{copied.images} images → {output} ({readable(copied.bytes)})")


def _restore_into(file: Path, store: Place, replace: bool, as_json: bool) -> None:
    from clf_serve.copying.files import restore_into

    if replace:
        raise ConfigError(f"--replace is for galleries in folders, and {store} is in a store; name a new place")
    with bar("restoring") as shown, resumable():
        report = restore_into(file, store, steps_of(shown))
    tell_copied(report, {"file": str(file)}, store, str(file), as_json)


def export(
    gallery: Gallery,
    file: Annotated[Path, typer.Argument(help="FILE.parquet, FILE.npz, FILE.jsonl or FILE.csv.", show_default=False)],
    where: Annotated[
        str | None, typer.Option(help='Filter in JSON, such as \'{"label": "cat"}\'.', show_default=False)
    ] = None,
    no_vectors: Annotated[bool, typer.Option("--no-vectors", help="Only facts and metadata.")] = False,
    thumbnails: Annotated[bool, typer.Option("--thumbnails", help="The small pictures too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write vectors, facts and metadata of a gallery, or of a part of it, to a file for other programs."""
    from clf_serve.gallery import Where
    from clf_serve.transfer.export import export_gallery
    from clf_serve.transfer.plan import Parts

    condition = None if where is None else Where.parse_text(where)
    parts = Parts(vectors=not no_vectors, thumbnails=thumbnails)
    with bar("exporting") as shown:
        count = export_gallery(gallery, file, parts, condition, begin=shown.begin, progress=shown.advance)
    size = file.stat().st_size
    if as_json:
        print_json({"gallery": str(gallery), "file": str(file), "images": count, "bytes": size})
        return
    console().print(f"{count} images of {gallery} → {file} ({readable(size)})")


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="FILE.parquet or FILE.npz of clf gallery export, or the folder or URL where clf embed wrote shards.",
            show_default=False,
        ),
    ],
    output: New,
    model: Annotated[Path, typer.Option(help="Folder of the model that the vectors are of.", show_default=False)],
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Of shards: read the images again for the small pictures.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a gallery of vectors: of clf gallery export, with ids, keys and metadata, or of clf embed."""
    from clf_serve.copying.files import import_file
    from clf_serve.copying.shards import import_shards, is_shards
    from clf_serve.transfer.export import import_gallery

    if is_shards(source):
        with bar("importing") as shown, resumable():
            report = import_shards(source, output, model, thumbnails=thumbnails, steps=steps_of(shown))
        tell_copied(report, {"file": str(Place.of(source))}, output, str(Place.of(source)), as_json)
        return
    if thumbnails:
        raise ConfigError(f"--thumbnails is for the shards of clf embed, and {source} is a file; an export has its own")
    file = Path(source)
    if (folder := output.folder) is None:
        with bar("importing") as shown, resumable():
            report = import_file(file, output, model, steps_of(shown))
        tell_copied(report, {"file": str(file)}, output, str(file), as_json)
        return
    with bar("importing") as shown:
        count = import_gallery(file, folder, model, begin=shown.begin, progress=shown.advance, building=shown.building)
    if as_json:
        print_json({"file": str(file), "gallery": str(output), "images": count})
        return
    console().print(f"{count} images → {output}")


def reembed(
    gallery: Gallery,
    model: Model,
    output: New,
    from_thumbnails: Annotated[
        bool,
        typer.Option(
            "--from-thumbnails",
            help="Of a file that cannot be read, embed the stored thumbnail (256 pixels); its vector differs a little.",
        ),
    ] = False,
    batch_size: BatchSize = 32,
    provider: ProviderOption = Provider.auto,
    variant: VariantOption = Variant.fp32,
    as_json: AsJson = False,
) -> None:
    """Make a gallery of the same images with another model: same ids, keys and metadata, new vectors.

    It can be stopped and run again, and is there only when it is whole.
    """
    from clf_serve.reembedding import reembed as embed_again

    engine = open_engine(model, provider, variant)
    with bar("embedding") as shown, resumable():
        report = embed_again(
            gallery,
            engine,
            output,
            from_thumbnails=from_thumbnails,
            batch_size=batch_size,
            begin=shown.begin,
            progress=shown.advance,
            building=shown.building,
        )
    if as_json:
        counts = {name: getattr(report, name) for name in ("images", "resumed", "from_thumbnails", "changed")}
        print_json({"gallery": str(output), **counts, "skipped": reasons(report.skipped)})
        return
    terminal = console()
    terminal.print(f"{report.images} images of {gallery} → {output}")
    if report.from_thumbnails:
        terminal.print(f"{report.from_thumbnails} of them embedded from their thumbnails, as the files cannot be read")
    if report.changed:
        terminal.print(f"{report.changed} of them from files that have changed since they were indexed")
    list_skipped(terminal, report.skipped)
    if report.skipped and not from_thumbnails:
        terminal.print("--from-thumbnails embeds the stored pictures of files that cannot be read")
