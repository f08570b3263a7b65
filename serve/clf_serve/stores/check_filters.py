"""The check of stores that filter by themselves."""

from __future__ import annotations

from typing import Any

from clf.checks import Check, Failed, Skipped
from clf_serve.gallery.filters import Where
from clf_serve.stores.bench import Bench, row, units
from clf_serve.stores.matching import lets_through
from clf_serve.stores.rows import item_of

_METADATA: tuple[dict[str, Any], ...] = (
    {},
    {"a": 1},
    {"a": 1.0, "b": "cat"},
    {"a": True, "b": "Cat"},
    {"a": "1", "b": "cät"},
    {"a": None, "b": "%"},
    {"a": [1, "x", True, None], "b": ["cat", "dog"]},
    {"a": {"b": 2}, "a.b": 3},
    {"a": {"b": [5, 6]}, "b": ""},
    {"a": 2**53 + 1, "b": "a_b"},
    {"a": -0.5, "b": "\N{GRINNING FACE}"},
    {"a": 2**53, "b": "\uffff"},
    {"a": [], "b": {}, "ü 'x\"": 1},
    {"a": 1e300, "b": "catalogue"},
)
_TESTS: tuple[Any, ...] = (
    *(1, 1.0, True, None, "1", "cat", "", 2**53 + 1, 1e300),
    *({"$ne": 1}, {"$ne": True}, {"$ne": None}),
    *({"$in": [1, "cat", None]}, {"$in": []}, {"$nin": [1, "cat"]}, {"$nin": []}),
    *(
        {"$gt": 1},
        {"$gte": 1},
        {"$lt": 1},
        {"$lte": 1.0},
        {"$gt": "cat"},
        {"$lt": "\U00010000"},
        {"$gte": "a", "$lt": "d"},
    ),
    *({"$exists": True}, {"$exists": False}),
    *({"$contains": "a"}, {"$contains": 1}, {"$contains": True}, {"$contains": "%"}, {"$contains": "_"}),
    *({"$prefix": "c"}, {"$prefix": "C"}, {"$prefix": ""}, {"$prefix": "%"}),
)
_OTHERS: tuple[dict[str, Any], ...] = (
    {},
    {"$not": {}},
    {"$or": [{"a": 1}, {"b": "cat"}]},
    {"$and": [{"a": {"$exists": True}}, {"$not": {"b": {"$prefix": "c"}}}]},
    {"$not": {"$or": [{"a": 1}, {"b": {"$exists": False}}]}},
    {"ü 'x\"": 1},
    {"@id": {"$gt": 5}},
    {"@uri": "photos/3.jpg"},
    {"@key": {"$prefix": "/photos/1"}},
    {"@folder": {"$in": ["f1", "f2"]}},
    {"@width": 640},
    {"@height": {"$lt": 480}},
    {"@size": {"$gte": 10_007}},
    {"@mtime": {"$gt": 10**9}},
    {"@sha256": {"$ne": "ab" * 32}},
)


def _filters(bench: Bench) -> str:
    table = [
        row(id_, f"/photos/{id_}.jpg", metadata, vector)
        for id_, (metadata, vector) in enumerate(zip(_METADATA, units(len(_METADATA)), strict=True), 1)
    ]
    _, handle = bench.new(table)
    every = handle.ids(None)
    if every is not None and list(map(int, every)) != [each.id for each in table]:
        raise Failed(f"ids(None) gave {len(every)} ids of {len(table)} rows, or not by rising id")
    items = [item_of(each) for each in table]
    asked = [{name: test} for name in ("a", "b", "a.b") for test in _TESTS] + list(_OTHERS)
    told = 0
    for where in map(Where.parse, asked):
        if (found := handle.ids(where)) is None:
            continue
        wanted = [item.id for item in items if lets_through(where, item)]
        if list(map(int, found)) != wanted:
            raise Failed(f"ids for the filter {where.json} gave {list(map(int, found))[:9]} and not {wanted[:9]}")
        told += 1
    if every is None and not told:
        raise Skipped("its filters are found out by scan: ids gives None")
    return f"{told} of {len(asked)} filters"


CHECKS = (
    Check(
        "filters",
        "Where a store filters by itself, what it finds for a hundred filters is compared with what they mean.",
        "Search, listing and delete by filter would take other images than they say.",
        "In ids give rising ids, follow clf_serve.gallery.filters (true is not 1, text compares by code points, $ne "
        "and $nin hold for what is missing), and give None for each filter that the store cannot tell just so.",
        _filters,
        ("round trip",),
    ),
)
