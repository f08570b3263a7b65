"""``clf gallery copy`` and ``clf gallery diff``. Heavy packages are imported inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clf_serve.commands.options import GALLERY, AsJson
from clf_serve.commands.terminal import Bar, bar, console, print_json, readable
from clf_serve.place import Place

if TYPE_CHECKING:
    from clf_serve.copying import Compared, Copied, Steps

_DIFFERENT = 1
_INTERRUPTED = 130

Source = Annotated[Place, typer.Argument(metavar="SOURCE", help=GALLERY, parser=Place.of, show_default=False)]
New = Annotated[
    Place,
    typer.Argument(
        metavar="NEW", help="A folder, or the URL of a store, where none is yet.", parser=Place.of, show_default=False
    ),
]
First = Annotated[Place, typer.Argument(metavar="A", help=GALLERY, parser=Place.of, show_default=False)]
Second = Annotated[Place, typer.Argument(metavar="B", help="The same.", parser=Place.of, show_default=False)]


def copy(source: Source, new: New, as_json: AsJson = False) -> None:
    """Copy a gallery from a folder or a store to another, and compare the two row by row and search by search.

    NEW is there only when it is whole and compared. Stopped or killed, the same command goes on from there.
    """
    from clf_serve.copying import copy as copy_gallery

    with bar("copying") as shown, resumable():
        report = copy_gallery(source, new, steps_of(shown))
    tell_copied(report, {"source": str(source)}, new, str(source), as_json)


def diff(a: First, b: Second, as_json: AsJson = False) -> None:
    """Compare two galleries: ids, keys, facts, metadata, vectors, thumbnails, and what they find. Changes nothing.

    Exit status: 0 they are the same, 1 they differ, 2 a mistake in what was given.
    """
    from clf_serve.copying import diff as compare

    with bar("comparing") as shown:
        found = compare(a, b, steps_of(shown))
    if as_json:
        counts: dict[str, Any] = {"images": list(found.images), "searches": found.searches}
        print_json({"a": str(a), "b": str(b), "same": found.same, **counts, **_compared(found.compared)})
    else:
        out = console()
        for each in found.compared.first:
            out.print(each.text)
        if more := found.compared.different - len(found.compared.first):
            out.print(f"and {more} more")
        images = f"{found.images[0]} images in {a} (the first), {found.images[1]} in {b} (the second)"
        n = found.compared.different
        verdict = "the same" if found.same else f"{n} difference{'s' * (n > 1)}"
        out.print(f"{images}: {verdict}. Compared: {_words(found.compared, found.searches)}")
    raise typer.Exit(0 if found.same else _DIFFERENT)


def tell_copied(report: Copied, origin: dict[str, str], new: Place, named: str, as_json: bool) -> None:
    """Args: origin: what it was made of, for JSON. named: the same for people."""
    if report.note:
        console(stderr=True).print(report.note)
    if as_json:
        counts = {name: getattr(report, name) for name in ("images", "resumed", "caught_up", "searches")}
        print_json({**origin, "gallery": str(new), **counts, **_compared(report.compared)})
        return
    out = console()
    resumed = f" ({report.resumed} of them by an earlier run)" if report.resumed else ""
    out.print(f"{report.images} images of {named} \u2192 {new}{resumed}")
    if report.caught_up:
        out.print(f"{report.caught_up} of them changed while they were copied, and were copied again")
    out.print(f"compared after that: {_words(report.compared, report.searches)}; no difference")


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C is no loss, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        text = "stopped; what was written is kept, unfinished: run the same command again to go on from there"
        console(stderr=True).print(text)
        raise typer.Exit(_INTERRUPTED) from None


def steps_of(shown: Bar) -> Steps:
    from clf_serve.copying import Steps

    return Steps(shown.begin_stage, shown.advance, shown.building)


def _compared(found: Compared) -> dict[str, Any]:
    differences = [{"id": each.id, "part": each.part, "text": each.text} for each in found.first]
    return {
        "compared": {"rows": found.rows, "thumbnails": found.thumbnails, "bytes": found.bytes},
        "different": found.different,
        "first": differences,
    }


def _words(found: Compared, searches: int) -> str:
    parts = f"{found.rows} ids, keys, facts and vectors, {found.thumbnails} thumbnails ({readable(found.bytes)})"
    return f"{parts}, and {searches} exact searches"
