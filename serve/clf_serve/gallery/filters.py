"""Filters over the metadata and the facts of a gallery's images, as JSON.

``{"label": "cat", "year": {"$gte": 2020}}``. Metadata is read as one flat list of dotted names: ``{"camera": {"iso":
100}}`` holds the name ``camera.iso`` (and ``camera``, which exists and equals nothing). Names that begin with ``@`` are
facts of the image. Values compare as JSON does: numbers with numbers, text with text by code points, true and false and
null only with themselves. What is missing, or of another type, never satisfies a test; ``$ne``, ``$nin`` and ``$not``
are the exact opposites of ``$eq``, ``$in`` and what they enclose, so they hold for what is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clf.errors import ClfError

Scalar = str | int | float | bool | None

FACTS: Mapping[str, type] = {
    "@id": int,
    "@uri": str,
    "@key": str,
    "@folder": str,
    "@width": int,
    "@height": int,
    "@size": int,
    "@mtime": float,
    "@sha256": str,
}
"""Facts of an image and their type; ``@mtime`` is in seconds since 1970."""

MAX_DEPTH = 12
MAX_TESTS = 200
MAX_CHOICES = 10_000
MAX_TEXT = 4096


class FilterError(ClfError):
    """A filter that says nothing a gallery understands; the text names the place in it."""


@dataclass(frozen=True)
class Comparison:
    """One name, one operator (without ``$ne`` and ``$nin``, which are parsed as the opposite of another), one value."""

    name: str
    operator: str
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True)
class AllOf:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class AnyOf:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Not:
    part: Node


Node = Comparison | AllOf | AnyOf | Not


@dataclass(frozen=True)
class Where:
    """A filter. Equal ones have the same canonical text, whatever the order of the names they were written in."""

    json: str
    """Canonical JSON text: sorted names, no spaces."""
    node: Node

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Where) and self.json == other.json

    def __hash__(self) -> int:
        return hash(self.json)

    def __str__(self) -> str:
        return self.json

    @classmethod
    def parse(cls, value: Any) -> Where:
        """A filter from a JSON value, as :func:`json.loads` gives it.

        Raises:
            FilterError: it is no filter, or too large a one; the text names the place.
        """
        node = _Parser().condition(value, "where", 0)
        return cls(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False), node)

    @classmethod
    def parse_text(cls, text: str) -> Where:
        """A filter from JSON text. Raises FilterError."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FilterError(f'where: this is no JSON ({error}); write one like {{"label": "cat"}}') from error
        return cls.parse(value)


class _Parser:
    """Counts the tests as it goes."""

    def __init__(self) -> None:
        self._tests = 0

    def condition(self, value: Any, place: str, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise FilterError(f"{place}: conditions lie in each other deeper than {MAX_DEPTH}; write them flatter")
        if not isinstance(value, dict):
            raise FilterError(f'{place}: expected an object like {{"label": "cat"}}, not {_shown(value)}')
        parts: list[Node] = []
        for name, inner in value.items():
            if not isinstance(name, str):
                raise FilterError(f"{place}: a name must be text, not {_shown(name)}")
            parts.append(self._named(name, inner, f"{place}.{_short(name)}", depth))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _named(self, name: str, inner: Any, place: str, depth: int) -> Node:
        if name in ("$and", "$or"):
            if not isinstance(inner, list) or not inner:
                raise FilterError(f"{place}: expected a list of conditions, not {_shown(inner)}")
            parts = tuple(self.condition(part, f"{place}[{i}]", depth + 1) for i, part in enumerate(inner))
            return AllOf(parts) if name == "$and" else AnyOf(parts)
        if name == "$not":
            return Not(self.condition(inner, place, depth + 1))
        if name.startswith("$"):
            known = "a name, $and, $or or $not"
            if name in _OPERATORS:
                raise FilterError(f'{place}: {name} belongs to a name: {{"NAME": {{"{name}": ...}}}}')
            raise FilterError(f"{place}: there is no {_short(name)} here; expected {known}")
        if name.startswith("@") and name not in FACTS:
            raise FilterError(f"{place}: there is no such fact; there are {', '.join(FACTS)}")
        _text(name, place)
        return self._tests_of(name, inner, place)

    def _tests_of(self, name: str, inner: Any, place: str) -> Node:
        if not isinstance(inner, dict):
            return self._test(name, "$eq", inner, place)
        if not inner:
            raise FilterError(f'{place}: an empty object tests nothing; write {{"$exists": true}}, or a value')
        parts = []
        for operator, value in inner.items():
            inside = f"{place}.{_short(str(operator))}"
            if operator not in _OPERATORS:
                known = f"expected one of {', '.join(_OPERATORS)}"
                if isinstance(operator, str) and not operator.startswith("$"):
                    known = f'to reach into an object, write "{_short(name)}.{_short(operator)}"'
                raise FilterError(f"{inside}: there is no such operator; {known}")
            parts.append(self._test(name, operator, value, inside))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _test(self, name: str, operator: str, value: Any, place: str) -> Node:
        self._tests += 1
        if self._tests > MAX_TESTS:
            raise FilterError(f"{place}: more than {MAX_TESTS} tests; a list of values goes into one $in")
        checked = _OPERATORS[operator](value, place)
        if operator in ("$ne", "$nin"):
            return Not(Comparison(name, "$eq" if operator == "$ne" else "$in", checked))
        return Comparison(name, operator, checked)


def _scalar(value: Any, place: str) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, place)
    if isinstance(value, int | float):
        return _number(value, place)
    if isinstance(value, list):
        raise FilterError(
            f'{place}: a list; write {{"$in": [...]}} for one of several, {{"$contains": ...}} for a member'
        )
    raise FilterError(f"{place}: expected text, a number, true, false or null, not {_shown(value)}")


def _number(value: float, place: str) -> int | float:
    if isinstance(value, float) and not math.isfinite(value):
        raise FilterError(f"{place}: {value} is no number of JSON")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise FilterError(f"{place}: the number does not fit into 64 bits")
    return value


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise FilterError(f"{place}: expected text, not {_shown(value)}")
    if len(value) > MAX_TEXT:
        raise FilterError(f"{place}: a text of more than {MAX_TEXT} characters")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise FilterError(f"{place}: the text holds a NUL or half a surrogate pair, which no metadata can")
    return value


def _ordered(value: Any, place: str) -> str | int | float:
    if isinstance(value, str):
        return _text(value, place)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, place)
    raise FilterError(f"{place}: expected a number or text, not {_shown(value)}")


def _choices(value: Any, place: str) -> tuple[Scalar, ...]:
    if not isinstance(value, list):
        raise FilterError(f"{place}: expected a list of values, not {_shown(value)}")
    if len(value) > MAX_CHOICES:
        raise FilterError(f"{place}: more than {MAX_CHOICES} values")
    return tuple(_scalar(one, f"{place}[{i}]") for i, one in enumerate(value))


def _flag(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise FilterError(f"{place}: expected true or false, not {_shown(value)}")
    return value


_OPERATORS: Mapping[str, Callable[[Any, str], Any]] = {
    "$eq": _scalar,
    "$ne": _scalar,
    "$gt": _ordered,
    "$gte": _ordered,
    "$lt": _ordered,
    "$lte": _ordered,
    "$in": _choices,
    "$nin": _choices,
    "$exists": _flag,
    "$contains": _scalar,
    "$prefix": _text,
}


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return _short(json.dumps(value)) if value is None or isinstance(value, str | int | float) else type(value).__name__


def _short(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return printable if len(printable) <= 60 else printable[:57] + "..."
