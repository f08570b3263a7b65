"""Docstrings as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from textwrap import dedent

_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
_LISTED = ("Args:", "Raises:")
_TOLD = ("Returns:", "Yields:")


def prose(docstring: str) -> str:
    """Roles and double back-ticks become code, the sections on arguments and errors become lists."""
    text = _ROLE.sub(r"`\1`", docstring).replace("``", "`")
    return "\n\n".join(map(_block, re.split(r"\n\n(?! )", text)))


def first_line(docstring: str) -> str:
    """The first paragraph, in one line."""
    return " ".join(prose(docstring.partition("\n\n")[0]).split())


def code(text: str) -> str:
    return f"```python\n{text}\n```"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells in Markdown; a bar in one is escaped."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *lines])


def _block(text: str) -> str:
    head, _, rest = text.partition("\n")
    if text.rstrip().endswith("::") or "::\n" in text:
        before, _, shown = text.partition("::\n")
        return f"{before}:\n\n{code(dedent(shown).strip())}"
    if head in _TOLD:
        return f"*{head}* {' '.join(rest.split())}"
    if head in _LISTED:
        entries = re.split(r"\n(?! )", dedent(rest))
        return f"*{head}*\n\n" + "\n".join(f"- {_entry(' '.join(entry.split()))}" for entry in entries)
    return text


def _entry(text: str) -> str:
    names, colon, said = text.partition(": ")
    return f"{', '.join(f'`{name}`' for name in names.split(', '))}: {said}" if colon else text
