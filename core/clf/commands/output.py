"""Tables: drawn by rich on a terminal, aligned plain lines elsewhere, so that ``grep`` and ``cut`` see whole values."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints rows under their column names; nothing is cut off where standard output is not a terminal."""
    lines = [[_cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for line in lines:
            table.add_row(*map(Text, line))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    for line in [list(columns), *lines]:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())


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
