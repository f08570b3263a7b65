"""What a gallery says about itself: its size, its index, and what its metadata holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from clf.manifest import Manifest
from clf_serve.gallery.metadata import BOOL, LIST, MEMBER, NUMBER, TEXT
from clf_serve.index import IndexInfo

SHOWN = 50
"""Values of a name that are listed."""
_LOOKED_AT = 2_000_000  # facts; of a larger table, only those of every n-th image
TYPES = {BOOL: "bool", NUMBER: "number", TEXT: "text", LIST: "list"}

Value = str | int | float | bool


@dataclass(frozen=True)
class Identity:
    """The model whose vectors a gallery holds; vectors of different models must never meet."""

    name: str
    sha256: str
    dim: int

    @classmethod
    def of(cls, manifest: Manifest) -> Identity:
        return cls(manifest.name, manifest.sha256, manifest.dim)

    def __str__(self) -> str:
        return f"{self.name} ({self.sha256[:12]}, {self.dim} dimensions)"


@dataclass(frozen=True)
class FieldFacts:
    """What a metadata name holds, for forms and colours."""

    type: str
    """text, number, bool, list, or mixed."""
    entries: int
    """How many of the images looked at have it."""
    values: tuple[tuple[Value, int], ...]
    """The most frequent values and how many images have each, most frequent first; of a list, its members."""
    distinct: int
    """Different values; of a list, different members."""
    sampled: bool = False
    """Whether only every n-th image of a large gallery was looked at."""


@dataclass(frozen=True)
class GalleryFacts:
    """What ``clf gallery info`` shows."""

    images: int
    dim: int
    model: Identity
    model_path: Path
    format: int
    generation: int
    bytes: int
    """On disk, the index included; 0 where a store cannot tell."""
    index: IndexInfo


def fields(connection: Connection) -> dict[str, FieldFacts]:
    """Of all metadata names, and of ``@folder``, in the transaction of ``connection``."""
    total = connection.execute("SELECT count(*) FROM facts").fetchone()[0]
    step = -(-max(total, 1) // _LOOKED_AT)
    sampled = step > 1
    found = {"@folder": _folders(connection)}
    for number, name in connection.execute("SELECT id, name FROM names ORDER BY name").fetchall():
        counts = connection.execute(
            "SELECT kind, count(*) FROM facts WHERE name = ? AND id % ? = 0 GROUP BY kind", (number, step)
        ).fetchall()
        kinds = {kind: count for kind, count in counts if kind < MEMBER and kind in TYPES}
        if kinds:
            values = _values(connection, number, step)
            kind = TYPES[next(iter(kinds))] if len(kinds) == 1 else "mixed"
            found[name] = FieldFacts(kind, sum(kinds.values()), values[:SHOWN], len(values), sampled)
    return found


def _values(connection: Connection, name: int, step: int) -> tuple[tuple[Value, int], ...]:
    rows = connection.execute(
        "SELECT value, kind % ?, count(*) FROM facts WHERE name = ? AND id % ? = 0 AND kind % ? IN (?, ?, ?)"
        " GROUP BY kind % ?, value ORDER BY count(*) DESC, value",
        (MEMBER, name, step, MEMBER, BOOL, NUMBER, TEXT, MEMBER),
    )
    return tuple((bool(value) if kind == BOOL else value, count) for value, kind, count in rows)


def _folders(connection: Connection) -> FieldFacts:
    rows: list[tuple[Any, int]] = connection.execute(
        "SELECT folder, count(*) FROM images GROUP BY folder ORDER BY count(*) DESC, folder"
    ).fetchall()
    return FieldFacts("text", sum(count for _, count in rows), tuple(rows[:SHOWN]), len(rows))


def written(folder: Path) -> str:
    """Of the database or its log, whichever is later, as ISO 8601 in UTC."""
    paths = (folder / "gallery.sqlite", folder / "gallery.sqlite-wal")
    times = [path.stat().st_mtime for path in paths if path.exists() and path.stat().st_size]
    return in_utc(max(times))


def in_utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def bytes_on_disk(folder: Path) -> int:
    """Of the files of a gallery; one that goes away meanwhile counts nothing."""
    total = 0
    for path in (*folder.glob("*"), *folder.glob("index/*")):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
