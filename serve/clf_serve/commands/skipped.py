"""Files that could not be used, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clf_serve.commands.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console

    from clf_serve.files import Skipped

_SHOWN = 10


def reasons(skipped: Sequence[Skipped]) -> list[dict[str, str]]:
    """As JSON."""
    return [{"path": str(path), "reason": reason} for path, reason in skipped]


def list_skipped(out: Console, skipped: Sequence[Skipped]) -> None:
    """The first ten with their reasons."""
    if not skipped:
        return
    out.print(f"{len(skipped)} file{'s' if len(skipped) > 1 else ''} skipped:")
    for _, reason in skipped[:_SHOWN]:
        out.print(f"  {printable(reason)}")
    if len(skipped) > _SHOWN:
        out.print(f"  and {len(skipped) - _SHOWN} more; --json lists them all")
