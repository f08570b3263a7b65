"""``clf duplicates``. Heavy packages are imported inside."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clf.errors import DataError
from clf_serve.commands.options import Gallery
from clf_serve.duplicates.groups import Level

if TYPE_CHECKING:
    from clf_serve.duplicates.finding import Found, Progress
    from clf_serve.gallery import Where
    from clf_serve.stores import AnyGallery


def duplicates(
    gallery: Gallery,
    level: Annotated[
        Level | None,
        typer.Option(
            help="How far to go: equal files; pictures re-encoded or resized, too; near ones, too (default).",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Cosine from which two pictures are near; derived from the gallery.", show_default=False),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Only images whose metadata fits, as JSON.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with pictures to this file.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    paths: Annotated[
        bool, typer.Option("--paths", help="Print the files that could go, one a line; wants --level.")
    ] = False,
    null: Annotated[bool, typer.Option("--null", "-0", help="End each path with a zero byte, not a line.")] = False,
) -> None:
    """Find images that are in a gallery more than once. Nothing is deleted.

    Of each group one is proposed to be kept: the one of most pixels, then of most bytes, then the oldest.
    """
    from clf_serve.duplicates import text as duplicates_text
    from clf_serve.duplicates.finding import find
    from clf_serve.stores import open_gallery

    _check(level, threshold, as_json, paths, null)
    chosen = _where(where)
    with open_gallery(gallery) as opened, _progress() as progress:
        found = find(opened, level or Level.near, threshold=threshold, where=chosen, progress=progress)
        if html is not None:
            _write_page(html, opened, found)
    if paths:
        lines, notes = duplicates_text.paths_to_go(found, null)
        _write("".join(lines))
        for note in notes:
            typer.echo(note, err=True)
    elif as_json:
        typer.echo(json.dumps(duplicates_text.as_json(found, gallery, level or Level.near)))
    else:
        duplicates_text.print_found(found, gallery, html)


def _check(level: Level | None, threshold: float | None, as_json: bool, paths: bool, null: bool) -> None:
    if threshold is not None and not 0 < threshold <= 1:
        raise DataError(f"--threshold {threshold} is no cosine above 0 and up to 1; 0.95, say")
    if threshold is not None and level not in (None, Level.near):
        raise DataError(f"--threshold is of the near level only; leave it out with --level {level}")
    if paths and as_json:
        raise DataError("--paths and --json both write to standard output; choose one")
    if paths and level is None:
        raise DataError(
            "--paths wants --level, because a script may delete what it lists: --level bytes lists exact copies only, "
            "picture those that were re-encoded too, near whatever the encoder finds alike"
        )
    if null and not paths:
        raise DataError("-0 is how --paths ends a path; give --paths too")


def _where(text: str | None) -> Where | None:
    from clf_serve.gallery import Where

    if text is None:
        return None
    try:
        return Where.parse(json.loads(text))
    except json.JSONDecodeError as error:
        raise DataError(f"--where is not JSON ({error}); for example --where '{{\"year\": 2024}}'") from error


def _write(text: str) -> None:
    """To standard output as it is: names may hold what a terminal would act on, and any Unicode."""
    sys.stdout.flush()
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.buffer.write(os.fsencode(text))
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write(text)


@contextmanager
def _progress() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    from clf_serve.duplicates.finding import Progress

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "")

    console = Console(stderr=True)
    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:

        def begin(stage: str, total: int, unit: str) -> None:
            for task in bars.tasks:
                bars.update(task.id, visible=False)
            bars.add_task(stage, total=total, unit=unit)

        yield Progress(begin, lambda done: bars.advance(bars.task_ids[-1], done))


def _write_page(path: Path, gallery: AnyGallery, found: Found) -> None:
    from clf_serve.duplicates.page import duplicates_page
    from clf_serve.report import write_whole

    def thumbnail(id_: int) -> bytes:
        stored = gallery.thumbnail(id_)
        return stored.data if stored else b""

    write_whole(path, duplicates_page(found, str(gallery.place), thumbnail))
