"""``clf gallery``: what can be done to a gallery as a whole. Heavy packages are imported inside."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clf.errors import ConfigError
from clf_serve.commands import gallery_copies as copies
from clf_serve.commands.gallery_copying import copy, diff
from clf_serve.commands.gallery_stores import check_store
from clf_serve.commands.options import AsJson, Gallery
from clf_serve.commands.terminal import bar, console, print_json, readable, size_in_bytes
from clf_serve.place import Place

gallery = typer.Typer(
    no_args_is_help=True, help="Look into a gallery, check it, back it up, copy it, move it, export it, embed it anew."
)

UNSOUND = 1
"""Exit status of a check that found something wrong, and of a removal that was declined."""


class Kind(StrEnum):
    auto = "auto"
    flat = "flat"
    hnsw = "hnsw"
    ivf = "ivf"


@gallery.command()
def info(place: Gallery, as_json: AsJson = False) -> None:
    """Show what a gallery holds, with which model it was made, and what its index is like."""
    from clf_serve.commands.gallery_info import facts_of, lines_of

    facts = facts_of(place)
    if as_json:
        print_json(facts)
        return
    _print_facts(lines_of(facts))


@gallery.command()
def check(
    place: Gallery,
    every: Annotated[bool, typer.Option("--all", help="Decode every thumbnail, not 10,000 of them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read a gallery from beginning to end, and compare its index with it.

    Exit status: 0 it is sound, 1 something is wrong, 2 a mistake in what was given.
    """
    from clf_serve.checking import check as check_gallery

    with bar("checking", counted=False) as shown:
        findings = check_gallery(place, all_pictures=every, progress=shown.stage)
    sound = all(finding.sound for finding in findings)
    if as_json:
        rows = [
            {"part": one.part, "sound": one.sound, "what": one.what, "remedy": one.remedy or None} for one in findings
        ]
        print_json({"gallery": str(place), "sound": sound, "findings": rows})
    else:
        terminal = console()
        for one in findings:
            terminal.print(f"{one.part:<11} {'ok     ' if one.sound else 'WRONG  '} {one.what}")
            if one.remedy:
                terminal.print(f"{'':<20}{one.remedy}")
    raise typer.Exit(0 if sound else UNSOUND)


@gallery.command()
def optimize(
    place: Gallery,
    index: Annotated[
        Kind | None, typer.Option(help="auto chooses by size and memory. Kept for later.", show_default=False)
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="The index may take so much, such as 700MiB; 0 for no limit. Kept for later.")
    ] = None,
    recall: Annotated[
        float | None, typer.Option(min=0.5, max=1.0, help="Share of the true 10 nearest to reach. Kept for later.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build the index of a gallery anew, and give room that deleted images left back to the disk."""
    from clf_serve.commands.gallery_info import compact, index_facts, index_lines
    from clf_serve.gallery import Gallery as FolderGallery
    from clf_serve.stores import open_gallery

    budget = None if memory is None else size_in_bytes(memory)
    with bar("building the index", counted=False) as shown, open_gallery(place, write=True) as opened:
        opened.optimize(None if index is None else index.value, memory=budget, recall=recall, progress=shown.stage)
        note, facts = opened.cache_note, index_facts(opened.facts().index, place)
        freed = compact(opened) if isinstance(opened, FolderGallery) else 0
    if note:
        console(stderr=True).print(note)
    if as_json:
        print_json({"gallery": str(place), "index": facts, "freed": freed})
        return
    _print_facts([*index_lines(facts), ("freed", readable(freed))])


@gallery.command()
def move(
    place: Gallery,
    old: Annotated[Path, typer.Argument(help="The folder where the photos lay.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="The folder where they lie now.", show_default=False)],
    missing_too: Annotated[
        bool, typer.Option("--missing-too", help="Even if not one of the files is at its new place.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell a gallery that its photos lie in another folder now. The photos are not touched.

    All images below OLD get their path below NEW, or none does. Nothing is embedded again.
    """
    from clf_serve.moving import move as move_images

    moved, missing = move_images(place, old, new, missing_too=missing_too)
    if as_json:
        print_json({"gallery": str(place), "moved": moved, "missing": missing})
        return
    console().print(
        f"{moved} images of {place} lie below {new} now" + (f"; {missing} files are not there" * bool(missing))
    )


@gallery.command()
def delete(
    place: Gallery,
    where: Annotated[
        str | None, typer.Option(help='Filter in JSON, such as \'{"label": "cat"}\'.', show_default=False)
    ] = None,
    ids: Annotated[list[int] | None, typer.Option("--id", help="Of an image; may be repeated.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove images from a gallery. Their files stay, and the next clf index of their folder adds them again."""
    from clf_serve.gallery import Where
    from clf_serve.stores import open_gallery

    if (where is None) == (not ids):
        raise ConfigError("say which images: either --where FILTER or --id N")
    condition = None if where is None else Where.parse_text(where)
    wanted = sorted(set(ids or []))
    with open_gallery(place) as opened:  # for reading, so that nobody waits for an answer
        found = opened.ids(condition).tolist() if condition else [item.id for item in opened.items(wanted)]
        total = len(opened)
    if found and not yes and not typer.confirm(f"Remove {len(found)} of {total} images from {place}?", err=True):
        raise typer.Exit(UNSOUND)
    removed = _remove(place, found) if found else 0
    if as_json:
        print_json({"gallery": str(place), "removed": removed})
        return
    console().print(f"{removed} images removed from {place}")


def _remove(place: Place, ids: list[int]) -> int:
    from clf_serve.stores import open_gallery

    with open_gallery(place, write=True) as opened:
        removed = opened.delete(ids)
        opened.save_index()
    return removed


def _print_facts(lines: list[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in lines:
        table.add_row(Text(name, style="bold"), Text(value))
    console().print(table)


for _command in (copies.backup, copies.restore, copy, diff, copies.export, copies.reembed):
    gallery.command()(_command)
gallery.command("import")(copies.import_)
gallery.command("check-store")(check_store)
