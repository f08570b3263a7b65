"""Filters as SQL: each one a query of ids, with the meaning of :mod:`clf_serve.stores.matching`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from clf_serve.gallery.filters import FACTS, AnyOf, Comparison, Node, Not, Scalar
from clf_serve.gallery.metadata import MEMBER, NULL, NUMBER, TEXT, scalar
from clf_serve.stores.postgres.binary import as_uuid, digest
from clf_serve.stores.postgres.schema import HEAD

Query = tuple[str, list[Any]]
"""SQL and what it is bound to."""

_COMPARE = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_TURNED: Mapping[tuple[str, bool], str] = {
    (">", True): ">=",
    (">=", False): ">",
    ("<", False): "<=",
    ("<=", True): "<",
    (">", False): ">",
    (">=", True): ">=",
    ("<", True): "<",
    ("<=", False): "<=",
}
"""A comparison with a whole number that no float equals, of the float beside it, which is greater than it or not."""
_ALL = "SELECT id FROM images"
_NONE = f"{_ALL} WHERE false"


def names_in(node: Node) -> set[str]:
    """Of metadata that a filter looks at."""
    if isinstance(node, Comparison):
        return set() if node.name.startswith("@") else {node.name}
    return set().union(*map(names_in, [node.part] if isinstance(node, Not) else node.parts))


def query_of(node: Node, numbers: Mapping[str, int]) -> Query:
    """A query that gives the ids that a filter lets through, some of them perhaps twice.

    Args:
        numbers: of the names that the gallery knows.
    """
    if isinstance(node, Comparison):
        return _fact(node) if node.name.startswith("@") else _metadata(node, numbers.get(node.name))
    if isinstance(node, Not):
        return _joined(" EXCEPT ", [(_ALL, []), query_of(node.part, numbers)])
    if isinstance(node, AnyOf):
        return _joined(" UNION ", [query_of(part, numbers) for part in node.parts])
    kept = [query_of(part, numbers) for part in node.parts if not isinstance(part, Not)]
    kept = [_joined(" INTERSECT ", kept or [(_ALL, [])])]
    return _joined(" EXCEPT ", kept + [query_of(part.part, numbers) for part in node.parts if isinstance(part, Not)])


def _joined(operator: str, parts: Sequence[Query]) -> Query:
    if len(parts) == 1:
        return parts[0]
    return operator.join(f"({text})" for text, _ in parts), [value for _, values in parts for value in values]


def _metadata(test: Comparison, name: int | None) -> Query:
    if test.operator == "$exists":
        there: Query = (
            (_NONE, []) if name is None else (f"SELECT id FROM facts WHERE name = {name} AND kind < {MEMBER}", [])
        )
        return there if test.value else _joined(" EXCEPT ", [(_ALL, []), there])
    if name is None:
        return _NONE, []
    found = [(f"kind = {kind} AND {text}", values) for kind, (text, values) in _of_kinds(test)]
    return _either(f"SELECT id FROM facts WHERE name = {name} AND", found)


def _of_kinds(test: Comparison) -> list[tuple[int, Query]]:
    """Conditions on facts of one kind, any of which is enough."""
    if test.operator in ("$eq", "$in"):
        choices = test.value if isinstance(test.value, tuple) else (test.value,)
        return [(kind, _one_of(kind, values)) for kind, values in _by_kind(choices).items()]
    kind, value = _bound(test.value)
    if test.operator == "$contains":
        member = [(MEMBER + kind, _one_of(kind, [value]))]
        return [*member, (TEXT, _text("$contains", value, "text", _HEAD))] if kind == TEXT else member
    return [(kind, _text(test.operator, value, "text", _HEAD) if kind == TEXT else _number(test.operator, value))]


def _one_of(kind: int, values: Sequence[Any]) -> Query:
    """Of NULL, BOOL, NUMBER or TEXT, or of members that are."""
    if kind == NULL:
        return "true", []
    if kind == TEXT:
        return _text("$in", values, "text", _HEAD)
    return "number = ANY(%s::numeric[])", [[exact(value) for value in values]]


def _number(operator: str, value: float) -> Query:
    return f"number {_COMPARE[operator]} %s::numeric", [exact(value)]


_HEAD = f"number IS NULL AND substring(text from 1 for {HEAD})"
"""A text's first bytes, as the index has them."""


def _text(operator: str, value: Any, column: str, head: str = "") -> Query:
    """A condition on a column of bytes.

    Args:
        value: text; of ``$in`` several.
        head: the expression of :data:`HEAD` bytes that an index is made of, if there is one.
    """
    if operator == "$in":
        whole = [each.encode() for each in value]
        text, values = f"{column} = ANY(%s::bytea[])", [whole]
        return (
            (f"{head} = ANY(%s::bytea[]) AND {text}", [[each[:HEAD] for each in whole], whole])
            if head
            else (
                text,
                values,
            )
        )
    bound = value.encode()
    if operator == "$contains":
        return f"position(%s::bytea IN {column}) > 0", [bound]
    if operator == "$prefix":
        return _prefix(bound, column, head)
    sign = _COMPARE[operator]
    if not head:
        return f"{column} {sign} %s::bytea", [bound]
    if len(bound) < HEAD:
        return f"{head} {sign} %s::bytea", [bound]
    return f"{head} {sign[0]}= %s::bytea AND {column} {sign} %s::bytea", [bound[:HEAD], bound]


def _prefix(bound: bytes, column: str, head: str) -> Query:
    if not bound:
        return f"{column} IS NOT NULL", []
    if len(bound) > HEAD or not head:
        first = f"{head} = %s::bytea AND " if head else ""
        values = [bound[:HEAD]] if head else []
        return f"{first}substring({column} from 1 for {len(bound)}) = %s::bytea", [*values, bound]
    after = bound[:-1] + bytes([bound[-1] + 1])  # no byte of UTF-8 is the last one
    expression = head.rpartition(" AND ")[2]
    return f"{head} >= %s::bytea AND {expression} < %s::bytea", [bound, after]


def _fact(test: Comparison) -> Query:
    """On what is known of every image."""
    if test.operator == "$exists":
        return (_ALL if test.value else _NONE), []
    own = TEXT if FACTS[test.name] is str else NUMBER
    several = test.operator in ("$eq", "$in")
    choices = test.value if isinstance(test.value, tuple) else (test.value,)
    values = _by_kind(choices).get(own, [])
    if not values or (own == NUMBER and test.operator == "$contains"):
        return _NONE, []
    operator, value = ("$in", values) if several else (test.operator, values[0])
    condition = _FACTS[test.name](operator, value) if test.name in _FACTS else _column(test.name, operator, value)
    return _either(f"{_ALL} WHERE", [condition])


def _column(name: str, operator: str, value: Any) -> Query:
    column = name[1:]
    if FACTS[name] is str:
        return _text(operator, value, column)
    if operator == "$in":
        return f"{column} = ANY(%s::numeric[])", [[exact(each) for each in value]]
    return f"{column} {_COMPARE[operator]} %s::numeric", [exact(value)]


def _folder(operator: str, value: Any) -> Query:
    return _text(operator, value, "folder", f"substring(folder from 1 for {HEAD})")


def _key(operator: str, value: Any) -> Query:
    if operator == "$in":
        return "digest = ANY(%s::uuid[])", [[as_uuid(digest(each)) for each in value]]
    return _text(operator, value, "convert_to(key, 'UTF8')")


def _mtime(operator: str, value: Any) -> Query:
    """Seconds are a float, and Python compares whole numbers with floats exactly."""
    seconds = "mtime_ns::float8 / 1e9::float8"
    if operator == "$in":
        return f"{seconds} = ANY(%s::float8[])", [[float(each) for each in value if float(each) == each]]
    sign, near = _COMPARE[operator], float(value)
    return f"{seconds} {sign if near == value else _TURNED[sign, near > value]} %s::float8", [near]


_FACTS: Mapping[str, Callable[[str, Any], Query]] = {"@folder": _folder, "@key": _key, "@mtime": _mtime}


def _either(select: str, conditions: Sequence[Query]) -> Query:
    """By UNION: each condition has its own place in the index."""
    if not conditions:
        return _NONE, []
    return _joined(" UNION ", [(f"{select} {text}", values) for text, values in conditions])


def _bound(value: Scalar | tuple[Scalar, ...]) -> tuple[int, Any]:
    assert not isinstance(value, tuple)
    found = scalar(value)
    assert found is not None, "a filter holds no number that is none"
    return found


def _by_kind(choices: Sequence[Scalar]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for kind, value in map(_bound, choices):
        found.setdefault(kind, []).append(value)
    return found


def exact(value: float) -> Decimal:
    """In the order of numbers: whole ones as they are, others by their shortest digits, which no two floats share."""
    whole = isinstance(value, int) or value.is_integer()
    return Decimal(int(value)) if whole else Decimal(repr(value))
