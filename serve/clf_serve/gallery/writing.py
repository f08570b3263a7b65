"""Changes to a gallery's rows, inside one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sqlite3 import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clf_serve.gallery.metadata import EntryError, check_text, decode, encode, merged
from clf_serve.gallery.schema import add_facts, remove_facts
from clf_serve.gallery.store import Entry, Moved

_UPSERT = (
    "INSERT INTO images (id, key, uri, size, mtime_ns, sha256, width, height, folder, metadata)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET uri = excluded.uri, size = excluded.size,"
    " mtime_ns = excluded.mtime_ns, sha256 = excluded.sha256, width = excluded.width, height = excluded.height,"
    " folder = excluded.folder, metadata = excluded.metadata RETURNING id"
)
MAX_TEXT = 8192
"""Characters of a key, a URI or a folder."""
MAX_THUMBNAIL = 16 << 20


def row_of(entry: Entry) -> tuple[Any, ...]:
    """What :func:`upsert` binds, checked.

    Raises:
        EntryError: a text, a number or the metadata cannot be kept.
    """
    if not entry.key:
        raise EntryError("an entry needs a key")
    for name in ("key", "uri", "folder", "sha256"):
        _text(getattr(entry, name), name)
    for name in ("size", "mtime_ns", "width", "height"):
        _number(getattr(entry, name), name)
    if len(entry.thumbnail) > MAX_THUMBNAIL:
        raise EntryError(f"the thumbnail of {entry.uri} has {len(entry.thumbnail)} bytes, more than {MAX_THUMBNAIL}")
    facts = (entry.key, entry.uri, entry.size, entry.mtime_ns, entry.sha256, entry.width, entry.height, entry.folder)
    try:
        return *facts, encode(entry.metadata)
    except EntryError as error:
        raise EntryError(f"{entry.uri[:200]}: {error}") from error


def upsert(
    connection: Connection,
    generation: int,
    entries: Sequence[tuple[tuple[Any, ...], bytes, NDArray[np.float32]]],
    wanted: Sequence[int | None],
) -> list[int]:
    """Args: entries: rows of :func:`row_of`, thumbnails, and vectors (D,). wanted: ids of new keys; None: a new one."""
    names: dict[str, int] = {}
    ids = []
    for new_id, (row, thumbnail, vector) in zip(wanted, entries, strict=True):
        old = connection.execute("SELECT id, metadata FROM images WHERE key = ?", row[:1]).fetchone()
        id_ = int(connection.execute(_UPSERT, (new_id, *row)).fetchone()[0])
        if old is None or old[1] != row[-1]:
            if old is not None:
                remove_facts(connection, id_, old[1])
            add_facts(connection, id_, row[-1], names)
        connection.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", (id_, vector.tobytes(), generation))
        connection.execute("INSERT OR REPLACE INTO thumbnails VALUES (?, ?)", (id_, thumbnail))
        ids.append(id_)
    return ids


def delete(connection: Connection, generation: int, ids: Sequence[int]) -> int:
    count = 0
    for id_ in ids:
        gone = connection.execute("DELETE FROM images WHERE id = ? RETURNING metadata", (id_,)).fetchall()
        for (metadata,) in gone:
            remove_facts(connection, id_, metadata)
            connection.execute("DELETE FROM vectors WHERE id = ?", (id_,))
            connection.execute("DELETE FROM thumbnails WHERE id = ?", (id_,))
            connection.execute("INSERT OR REPLACE INTO deleted VALUES (?, ?)", (id_, generation))
        count += len(gone)
    return count


def relocate(connection: Connection, generation: int, moves: Sequence[Moved]) -> int:
    """Two files may have changed places, so all that move are taken out of each other's way first.

    Raises:
        EntryError: two get the same key, or a text or number cannot be kept.
    """
    check_moves(moves)
    there = [
        move
        for move in moves
        if connection.execute("UPDATE images SET key = ? WHERE id = ?", (f"\0{move.id}", move.id)).rowcount
    ]
    for move in there:
        taken = connection.execute("SELECT id FROM images WHERE key = ?", (move.key,)).fetchone()
        if taken:
            delete(connection, generation, [taken[0]])
        connection.execute(
            "UPDATE images SET key = ?, uri = ?, size = ?, mtime_ns = ?, folder = ? WHERE id = ?",
            (move.key, move.uri, move.size, move.mtime_ns, move.folder, move.id),
        )
    return len(there)


def check_moves(moves: Sequence[Moved]) -> None:
    """Raises EntryError: two have the same id or go to the same key, or a text or number cannot be kept."""
    if len({move.key for move in moves}) < len(moves) or len({move.id for move in moves}) < len(moves):
        raise EntryError("two of the moves have the same id, or go to the same key")
    for move in moves:
        for name in ("key", "uri", "folder"):
            _text(getattr(move, name), name)
        for name in ("size", "mtime_ns"):
            _number(getattr(move, name), name)


def set_metadata(connection: Connection, changes: Mapping[int, Mapping[str, Any] | None], merge: bool) -> int:
    """Raises EntryError for metadata that cannot be kept."""
    names: dict[str, int] = {}
    count = 0
    for id_, change in changes.items():
        row = connection.execute("SELECT metadata FROM images WHERE id = ?", (id_,)).fetchone()
        if row is None:
            continue
        count += 1
        if change is not None and not isinstance(change, Mapping):
            raise EntryError(f"metadata must be an object of names and values, not {type(change).__name__}")
        new = encode({} if change is None else merged(decode(row[0], id_), change) if merge else change)
        if new != row[0]:
            remove_facts(connection, id_, row[0])
            add_facts(connection, id_, new, names)
            connection.execute("UPDATE images SET metadata = ? WHERE id = ?", (new, id_))
    return count


def _text(text: str, name: str) -> None:
    if len(text) > MAX_TEXT:
        raise EntryError(f"{name}: {len(text)} characters, more than the {MAX_TEXT} that are kept ({text[:60]}...)")
    check_text(text, name)


def _number(number: int, name: str) -> None:
    if not -(2**63) <= number < 2**63:
        raise EntryError(f"{name}: {number} does not fit into 64 bits")
