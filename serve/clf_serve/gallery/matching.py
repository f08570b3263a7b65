"""Which images a filter lets through, as sorted arrays of ids from the table of facts."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import reduce
from sqlite3 import Connection
from typing import Any

import numpy as np

from clf_serve.gallery.filters import FACTS, AnyOf, Comparison, Node, Not, Scalar, Where
from clf_serve.gallery.metadata import MEMBER, NUMBER, TEXT, scalar
from clf_serve.gallery.vectors import Ids

_CACHE_BYTES = 64 << 20
_COMPARE = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_COLUMNS = {name: name[1:] for name in FACTS} | {"@mtime": "mtime_ns / 1e9"}


class Matching:
    """Remembers what filters matched, for as long as the gallery is not written to. Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, str], Ids] = OrderedDict()
        self._latest = 0
        self._lock = threading.Lock()

    def ids(self, connection: Connection, generation: int, where: Where | None) -> Ids:
        """(n,), rising: the ids that ``where`` lets through, or all, in the transaction of ``connection``.

        Args:
            generation: of the state that the transaction sees.
        """
        key = (generation, "" if where is None else where.json)
        with self._lock:
            if generation < self._latest:  # perhaps a database that was put back, whose generations mean others now
                self._kept.clear()
            self._latest = generation
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept
        found = self._all(connection) if where is None else self._of(connection, generation, where.node)
        found.setflags(write=False)
        self._keep(key, found)
        return found

    def _keep(self, key: tuple[int, str], ids: Ids) -> None:
        with self._lock:
            for old in [other for other in self._kept if other[0] < key[0]]:
                del self._kept[old]
            self._kept[key] = ids
            size = sum(_bytes(*each) for each in self._kept.items())
            while size > _CACHE_BYTES and len(self._kept) > 1:
                size -= _bytes(*self._kept.popitem(last=False))

    def _of(self, connection: Connection, generation: int, node: Node) -> Ids:
        if isinstance(node, Comparison):
            return _test(connection, node, lambda: self.ids(connection, generation, None))
        if isinstance(node, Not):
            everything = self.ids(connection, generation, None)
            return np.setdiff1d(everything, self._of(connection, generation, node.part), assume_unique=True)
        parts = (self._of(connection, generation, part) for part in node.parts)
        if isinstance(node, AnyOf):
            return reduce(np.union1d, parts)
        if not node.parts:
            return self.ids(connection, generation, None).copy()
        return reduce(lambda one, other: np.intersect1d(one, other, assume_unique=True), parts)

    @staticmethod
    def _all(connection: Connection) -> Ids:
        return _ids(connection, "images", "TRUE", ())


def _bytes(key: tuple[int, str], ids: Ids) -> int:
    """What an answer takes, the filter's own text and the dictionary's share included."""
    return ids.nbytes + 4 * len(key[1]) + 500


def _test(connection: Connection, test: Comparison, everything: Any) -> Ids:
    if test.operator == "$exists":
        wanted = bool(test.value)
        if test.name.startswith("@"):
            return everything().copy() if wanted else np.empty(0, np.int64)
        there = _facts(connection, test.name, f"kind < {MEMBER}", ())
        return there if wanted else np.setdiff1d(everything(), there, assume_unique=True)
    conditions = _columns(test) if test.name.startswith("@") else _values(test)
    parts = [
        _ids(connection, "images", *condition)
        if test.name.startswith("@")
        else _facts(connection, test.name, *condition)
        for condition in conditions
    ]
    return reduce(np.union1d, parts, np.empty(0, np.int64))


def _values(test: Comparison) -> list[tuple[str, Sequence[Any]]]:
    """Conditions on ``kind`` and ``value`` of a fact, any of which is enough."""
    kind, value = _bound(test.value)
    if test.operator == "$eq":
        return [("kind = ? AND value = ?", (kind, value))]
    if test.operator == "$in":
        return _choices(test.value, "kind = {} AND value IN ({})")
    if test.operator == "$contains":
        member = ("kind = ? AND value = ?", (MEMBER + kind, value))
        return [member, (f"kind = {TEXT} AND instr(value, ?) > 0", (value,))] if kind == TEXT else [member]
    condition, values = _range(test.operator, value, "value")
    return [(f"kind = {kind} AND {condition}", values)]


def _columns(test: Comparison) -> list[tuple[str, Sequence[Any]]]:
    """Conditions on the columns of an image, any of which is enough; none for a value of another type."""
    column, own = _COLUMNS[test.name], TEXT if FACTS[test.name] is str else NUMBER
    kind, value = _bound(test.value)
    if test.operator == "$in":
        return _choices(test.value, f"{{}} = {own} AND {column} IN ({{}})", own)
    if kind != own:
        return []
    if test.operator == "$eq":
        return [(f"{column} = ?", (value,))]
    if test.operator == "$contains":
        return [(f"instr({column}, ?) > 0", (value,))] if own == TEXT else []
    return [_range(test.operator, value, column)]


def _bound(value: Scalar | tuple[Scalar, ...]) -> tuple[int, Any]:
    return (-1, None) if isinstance(value, tuple) else scalar(value) or (-1, None)


def _choices(value: Any, template: str, only: int | None = None) -> list[tuple[str, Sequence[Any]]]:
    by_kind: dict[int, list[Any]] = {}
    for choice in value:
        kind, bound = _bound(choice)
        if only in (None, kind):
            by_kind.setdefault(kind, []).append(bound)
    return [(template.format(kind, ", ".join("?" * len(bound))), bound) for kind, bound in by_kind.items()]


def _range(operator: str, value: Any, column: str) -> tuple[str, Sequence[Any]]:
    if operator in _COMPARE:
        return f"{column} {_COMPARE[operator]} ?", (value,)
    end = _after(value)
    return (f"{column} >= ? AND {column} < ?", (value, end)) if end else (f"{column} >= ?", (value,))


def _after(prefix: str) -> str:
    """The least text greater than all that begin so, by code points; empty where there is none."""
    letters = prefix.rstrip("\U0010ffff")
    if not letters:
        return ""
    following = ord(letters[-1]) + 1
    return letters[:-1] + chr(0xE000 if following == 0xD800 else following)  # surrogates are no characters


def _facts(connection: Connection, name: str, condition: str, values: Sequence[Any]) -> Ids:
    row = connection.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()
    if row is None:
        return np.empty(0, np.int64)
    return _ids(connection, "facts", f"name = {row[0]} AND {condition}", values)


def _ids(connection: Connection, table: str, condition: str, values: Sequence[Any]) -> Ids:
    """One long text of numbers: handing over a row for each costs five times as long."""
    text = connection.execute(f"SELECT group_concat(id) FROM {table} WHERE {condition}", values).fetchone()[0]
    return np.unique(np.fromstring(text, np.int64, sep=",")) if text else np.empty(0, np.int64)
