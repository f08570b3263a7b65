"""Tables: drawn by rich on a terminal, aligned plain lines elsewhere, so that ``grep`` and ``cut`` see whole values."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

NARROW = 24
"""Columns of a terminal below which a cell of sentences is no longer read with ease."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], wraps: str = "") -> None:
    """Prints rows under their column names; nothing is cut off where standard output is not a terminal.

    Args:
        wraps: the last column, when it holds sentences. On a terminal only that one is wrapped, and where the others
            leave it little room, each sentence is printed under its row.
    """
    lines = [[_cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        console = Console()
        for each in _tables(columns, lines, wraps, console.width):
            console.print(each)
        return
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    for line in [list(columns), *lines]:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())


def _tables(columns: Sequence[str], lines: Sequence[list[str]], wraps: str, width: int) -> Iterator[Table | Padding]:
    sizes = [max(map(cell_len, column)) for column in zip(columns, *lines, strict=True)]
    room = width - sum(sizes[:-1]) - 2 * len(sizes[:-1])
    below = wraps != "" and room < min(NARROW, sizes[-1])
    shown = columns[:-1] if below else columns
    fixed = wraps != "" and (not below or room > -2)
    heads = [Column(name, no_wrap=fixed and name != wraps, overflow="fold") for name in shown]
    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for line in lines:
        table.add_row(*map(Text, line[: len(shown)]))
    yield table
    if below:
        yield from (
            Padding(Text(f"{line[0]}: {line[-1]}"), (0, 0, 0, 2)) for line in lines if line[-1] not in ("-", "")
        )


def print_text(text: str) -> None:
    """Prints text as it is: no markup is read in it, and lines are wrapped by the terminal only."""
    Console(highlight=False, soft_wrap=True).print(Text(text))


def print_json(content: Any) -> None:
    """Prints dataclasses, mappings and lists of them as JSON, for other programs."""
    print(json.dumps(content, indent=2, ensure_ascii=False, default=_plain))


def is_main_rank() -> bool:
    """Whether this process is the one that speaks, under ``torchrun`` or alone."""
    return os.environ.get("RANK", "0") == "0"


def _plain(value: object) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())
