"""What commands show on a terminal: progress, JSON, and sizes that people write and read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from clf.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*((?:[kmg]i?)?)b?\s*", re.IGNORECASE)


def size_in_bytes(text: str) -> int:
    """``700MiB`` or ``1.5GB`` as a number of at least 1, or a plain 0. Raises ConfigError."""
    found = _SIZE.fullmatch(text)
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size < 1 and text.strip() != "0":
        raise ConfigError(f"{text!r} is no size; write one like 700MiB or 2GB")
    return size


def readable(size: int) -> str:
    """``700.0 MiB``."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def printable(text: str) -> str:
    """On one line, with ``\\x1b`` for what a terminal would act on: names of files may hold anything but zero bytes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value))


class Bar:
    """How much of a work is done."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=None)

    def begin(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def begin_stage(self, label: str, total: int | None) -> None:
        """Another work in its place, of so many images; None where nobody knows."""
        self._progress.reset(self._task, description=label, total=total)

    def advance(self, done: int) -> None:
        self._progress.update(self._task, advance=done)

    def stage(self, label: str, done: float) -> None:
        """Args: done: of the stage, in [0, 1]."""
        self._progress.update(self._task, description=label, total=1.0, completed=done)

    def building(self, stage: str, done: float) -> None:
        """What a gallery is to call while it builds its search index; a sentence comes first where that takes long."""
        label, task = f"search index: {stage}", self._progress.tasks[0]
        if task.description != label:
            if stage == "sampling":  # of kinds that are more than all vectors in a row
                self._progress.console.print("building the search index, which may take minutes")
            self._progress.reset(self._task, description=label)
        self._progress.update(self._task, completed=done * (task.total or 1))


@contextmanager
def bar(label: str, *, counted: bool = True) -> Iterator[Bar]:
    """A bar on standard error, if that is a terminal, and gone when the work is.

    Args:
        counted: of images, with their number and images a second; else a share of the work.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} images/s" if speed else "")

    middle = (MofNCompleteColumn(), Rate()) if counted else (TaskProgressColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *middle, TimeRemainingColumn())
    out = console(stderr=True)
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        yield Bar(progress, label)
