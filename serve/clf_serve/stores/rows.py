"""Images as rows of a store, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clf_serve.gallery.metadata import encode
from clf_serve.gallery.store import Entry, Item, Moved
from clf_serve.gallery.vectors import Vectors
from clf_serve.gallery.writing import row_of
from clf_serve.stores.vector_store import Row

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_LONG = re.compile(r"\d{20}|9\d{18}")  # where a number may be that does not fit into 64 bits
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


def row_of_text(item: Item, metadata: str, vector: Vectors, thumbnail: bytes) -> Row:
    """Args: metadata: as it was encoded, in the place of that of ``item``. vector: (D,), checked."""
    return Row(item.id, item.key, _facts(item, metadata), vector, thumbnail)


def entry_of(row: Row) -> Entry:
    """What a row holds, as a gallery is given it. Raises ValueError as :func:`item_of`."""
    item = item_of(row)
    facts = {name: getattr(item, name) for name in _TYPES}
    return Entry(key=row.key, vector=row.vector, thumbnail=bytes(row.thumbnail), **facts)


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
        facts = loads(row.facts)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"the facts of row {row.id} are no JSON") from None
    if not isinstance(row.key, str) or not isinstance(facts, dict) or facts.keys() != _TYPES.keys():
        raise ValueError(f"the facts of row {row.id} are not those that were written")
    for name, type_ in _TYPES.items():
        if type(facts[name]) is not type_:
            raise ValueError(f"{name} of row {row.id} is a {type(facts[name]).__name__}")
    return Item(row.id, row.key, **facts)


def same_facts(one: Row, other: Row) -> bool:
    """Whether they mean the same: stores may turn names round, and give 1e300 with all its digits.

    Raises ValueError as :func:`item_of`.
    """
    if one.facts == other.facts:
        return True
    a, b = item_of(one), item_of(other)
    return all(same(getattr(a, name), getattr(b, name)) for name in _TYPES)


def loads(facts: str) -> Any:
    """What a row's facts say. Raises TypeError, ValueError or RecursionError."""
    return json.loads(facts, parse_int=_whole if _LONG.search(facts) else None)


def same(one: Any, other: Any) -> bool:
    """Of values of JSON: true is not 1, and 1.0 is."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and (type(one) is type(other) or {type(one), type(other)} == {int, float})


def _whole(digits: str) -> int | float:
    """A number without a point. Metadata hold whole ones of 64 bits: a greater one was written as 1e300."""
    found = int(digits)
    return found if -(2**63) <= found < 2**63 else float(digits)


def _facts(of: Entry | Item, metadata: str) -> str:
    """Args: metadata: as it was encoded, which is not read again."""
    head = {name: type_(getattr(of, name)) for name, type_ in _TYPES.items() if name != "metadata"}
    return f'{_ENCODER.encode(head)[:-1]},"metadata":{metadata}}}'
