"""Rows of a gallery's database as what callers see, read in one transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from sqlite3 import Connection
from typing import Any

from clf_serve.gallery.faults import DamageError
from clf_serve.gallery.metadata import decode
from clf_serve.gallery.store import Item, Known

_COLUMNS = "id, key, uri, metadata, sha256, width, height, size, mtime_ns, folder"
_TYPES = [int, str, str, str, str, int, int, int, int, str]  # SQLite keeps to none


def _item(row: tuple[Any, ...]) -> Item:
    """Raises DamageError."""
    id_, key, uri, metadata, *rest = row
    if list(map(type, row)) != _TYPES:
        raise DamageError(f"a fact of image {id_} has the wrong type")
    return Item(id_, key, uri, {} if metadata == "{}" else decode(metadata, id_), *rest)


def picture(data: Any, id_: int) -> bytes:
    """A stored thumbnail. Raises DamageError."""
    if not isinstance(data, bytes):
        raise DamageError(f"the thumbnail of image {id_} has the wrong type")
    return data


def by_ids(connection: Connection, ids: Collection[int]) -> dict[int, Item]:
    """Those that exist, by id."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM images WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps([int(id_) for id_ in ids]),),
    )
    return {row[0]: _item(row) for row in rows}


def by_key(connection: Connection, key: str) -> Item | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM images WHERE key = ?", (key,)).fetchone()
    return _item(row) if row else None


def in_order(connection: Connection, after: int, limit: int) -> Iterable[Item]:
    """By rising id, from the first that is greater than ``after``."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM images WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
    return map(_item, rows)


def listing(connection: Connection) -> dict[str, Known]:
    rows = connection.execute("SELECT key, id, size, mtime_ns, sha256 FROM images")
    return {key: Known(*rest) for key, *rest in rows}
