"""What filters mean and metadata holds, by looking at images one after another; equal to what the folder gallery finds
in its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from operator import ge, gt, le, lt
from typing import Any

from clf_serve.gallery.facts import SHOWN, TYPES, FieldFacts, Value
from clf_serve.gallery.filters import FACTS, AnyOf, Comparison, Node, Not, Scalar, Where
from clf_serve.gallery.metadata import BOOL, MEMBER, NUMBER, TEXT, facts, scalar
from clf_serve.gallery.store import Item

_Values = Collection[tuple[int, Any]]
"""What an image has under a name: kind and value of each; of a list, the kinds of its members plus MEMBER."""
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}


def lets_through(where: Where, item: Item) -> bool:
    """Whether an image satisfies a filter."""
    named: dict[str, set[tuple[int, Any]]] = {}
    for name, kind, value in facts(item.metadata):
        named.setdefault(name, set()).add((kind, value))
    return _holds(where.node, item, named)


def _holds(node: Node, item: Item, named: dict[str, set[tuple[int, Any]]]) -> bool:
    if isinstance(node, Not):
        return not _holds(node.part, item, named)
    if isinstance(node, Comparison):
        values = [_fact(item, node.name)] if node.name.startswith("@") else named.get(node.name, ())
        return _passes(node, values)
    if isinstance(node, AnyOf):
        return any(_holds(part, item, named) for part in node.parts)
    return all(_holds(part, item, named) for part in node.parts)


def _fact(item: Item, name: str) -> tuple[int, Any]:
    value = item.mtime_ns / 1e9 if name == "@mtime" else getattr(item, name[1:])
    return (TEXT if FACTS[name] is str else NUMBER), value


def _passes(test: Comparison, values: _Values) -> bool:
    if test.operator == "$exists":
        return any(kind < MEMBER for kind, _ in values) == test.value
    if test.operator == "$in":
        choices = test.value if isinstance(test.value, tuple) else ()
        return any(_equals(choice, values) for choice in choices)
    assert not isinstance(test.value, tuple)
    if test.operator == "$eq":
        return _equals(test.value, values)
    if (bound := scalar(test.value)) is None:
        return False
    kind, wanted = bound
    if test.operator == "$contains":
        within = kind == TEXT and any(own == TEXT and wanted in value for own, value in values)
        return within or (MEMBER + kind, wanted) in values
    if test.operator == "$prefix":
        return any(own == TEXT and value.startswith(wanted) for own, value in values)
    compare = _COMPARE[test.operator]
    return any(own == kind and compare(value, wanted) for own, value in values)


def _equals(wanted: Scalar, values: _Values) -> bool:
    return scalar(wanted) in values


def field_facts(items: Iterable[Item]) -> dict[str, FieldFacts]:
    """Of all metadata names, and of ``@folder``."""
    folders: Counter[str] = Counter()
    kinds: dict[str, Counter[int]] = {}
    values: dict[str, Counter[tuple[int, Any]]] = {}
    for item in items:
        folders[item.folder] += 1
        for name, kind, value in set(facts(item.metadata)):
            if kind < MEMBER and kind in TYPES:
                kinds.setdefault(name, Counter())[kind] += 1
            if kind % MEMBER in (BOOL, NUMBER, TEXT):
                values.setdefault(name, Counter())[kind % MEMBER, value] += 1
    found = {"@folder": _field("text", folders.total(), {(TEXT, name): n for name, n in folders.items()})}
    for name in sorted(kinds):
        own = kinds[name]
        type_ = TYPES[next(iter(own))] if len(own) == 1 else "mixed"
        found[name] = _field(type_, own.total(), values.get(name, {}))
    return found


def _field(type_: str, entries: int, counts: dict[tuple[int, Any], int]) -> FieldFacts:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0][0] == TEXT, pair[0][1]))
    shown: tuple[tuple[Value, int], ...] = tuple(
        (bool(value) if kind == BOOL else value, count) for (kind, value), count in ordered[:SHOWN]
    )
    return FieldFacts(type_, entries, shown, len(ordered))
