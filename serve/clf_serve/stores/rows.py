"""Images as rows of a store, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clf_serve.gallery.metadata import encode
from clf_serve.gallery.store import Entry, Item, Moved
from clf_serve.gallery.vectors import Vectors
from clf_serve.gallery.writing import row_of
from clf_serve.stores.vector_store import Row

_TYPES: dict[str, type] = {
    "uri": str,
    "size": int,
    "mtime_ns": int,
    "sha256": str,
    "width": int,
    "height": int,
    "folder": str,
    "metadata": dict,
}


def row_from(id_: int, entry: Entry, vector: Vectors) -> Row:
    """Raises EntryError for what cannot be kept. Args: vector: (D,), checked."""
    return Row(id_, entry.key, _facts(entry, row_of(entry)[-1]), vector, bytes(entry.thumbnail))


def moved(row: Row, item: Item, move: Moved) -> Row:
    """The same image at another place. Args: item: what the row holds."""
    there = replace(item, uri=move.uri, size=int(move.size), mtime_ns=int(move.mtime_ns), folder=move.folder)
    return replace(row, key=move.key, facts=_facts(there, encode(item.metadata)))


def described(row: Row, item: Item, metadata: Mapping[str, Any]) -> Row:
    """The same image with other metadata. Raises EntryError."""
    return replace(row, facts=_facts(item, encode(metadata)))


def item_of(row: Row) -> Item:
    """Raises ValueError: the facts are not those that were written."""
    try:
        facts = json.loads(row.facts)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"the facts of row {row.id} are no JSON") from None
    if not isinstance(row.key, str) or not isinstance(facts, dict) or facts.keys() != _TYPES.keys():
        raise ValueError(f"the facts of row {row.id} are not those that were written")
    for name, type_ in _TYPES.items():
        if type(facts[name]) is not type_:
            raise ValueError(f"{name} of row {row.id} is a {type(facts[name]).__name__}")
    return Item(row.id, row.key, **facts)


def _facts(of: Entry | Item, metadata: str) -> str:
    """Args: metadata: as it was encoded, which is not read again."""
    head = {name: type_(getattr(of, name)) for name, type_ in _TYPES.items() if name != "metadata"}
    return f'{json.dumps(head, ensure_ascii=False, separators=(",", ":"))[:-1]},"metadata":{metadata}}}'
