"""Filters that Qdrant answers with exactly the meaning that they have elsewhere.

Each name with its value, as :func:`clf_serve.gallery.metadata.facts` lists them, is kept with the row as a *mark*: a
digest of both, so that Qdrant compares nothing but equal texts, whatever it makes of true and 1, of large numbers or
of names with dots. Filters that ask for more than equality are found out by reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from qdrant_client import models

from clf_serve.gallery.filters import AnyOf, Comparison, Node, Not, Scalar
from clf_serve.gallery.metadata import MEMBER, TEXT, facts, scalar
from clf_serve.stores.rows import item_of
from clf_serve.stores.vector_store import Row

FIELD = "marks"
_EXISTS = -1  # a kind of our own: the name is there
_KEPT = "@folder"  # the one fact of an image that has marks


def marks_of(row: Row) -> list[str]:
    """Raises ValueError: the row is none of a gallery."""
    item = item_of(row)
    found = {_mark(_KEPT, TEXT, item.folder)}
    for name, kind, value in facts(item.metadata):
        found.add(_mark(name, kind, value))
        if kind < MEMBER:
            found.add(_mark(name, _EXISTS, ""))
    return sorted(found)


def condition(node: Node) -> models.Condition | None:
    """What is true of the same rows; None: marks do not tell."""
    if isinstance(node, Comparison):
        return _test(node)
    if isinstance(node, Not):
        inner = condition(node.part)
        return None if inner is None else models.Filter(must_not=[inner])
    parts = [condition(part) for part in node.parts]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not parts:
        return None
    return models.Filter(should=known) if isinstance(node, AnyOf) else models.Filter(must=known)


def _test(test: Comparison) -> models.Condition | None:
    if test.name.startswith("@") and (test.name != _KEPT or test.operator not in ("$eq", "$in")):
        return None
    if test.operator == "$exists":
        there = _any([_mark(test.name, _EXISTS, "")])
        return there if test.value else models.Filter(must_not=[there])
    if test.operator == "$eq":
        return _any(_of_values(test.name, [test.value]))
    if test.operator == "$in" and isinstance(test.value, tuple) and test.value:
        return _any(_of_values(test.name, test.value))
    if test.operator == "$contains" and not isinstance(test.value, str | tuple):
        return _any(_of_values(test.name, [test.value], of=MEMBER))
    return None


def _of_values(name: str, values: Sequence[Scalar | tuple[Scalar, ...]], of: int = 0) -> list[str]:
    kinds = [fact for value in values if (fact := scalar(value)) is not None]
    return [_mark(name, of + kind, value) for kind, value in kinds]


def _any(marks: list[str]) -> models.Condition:
    return models.FieldCondition(key=FIELD, match=models.MatchAny(any=marks))


def _mark(name: str, kind: int, value: Any) -> str:
    """Neither names nor texts hold a NUL. 1 and 1.0 are one value."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return blake2b(f"{kind}\0{name}\0{value}".encode(), digest_size=16).hexdigest()
