"""Filters: what they mean, against plain Python; what is no filter, and how it is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gallery_machine import holds, metadatas, numbers, texts, wheres
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clf_serve.gallery import Entry, FilterError, Gallery, Identity, Where

MODEL = Identity("m", "ab" * 32, 2)
EAST = np.array([1, 0], np.float32)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    folder = tmp_path_factory.mktemp("filters")
    with Gallery.open_or_create(folder / "g", MODEL, folder) as opened:
        yield opened


def put(gallery: Gallery, *metadata: dict[str, Any], **facts: Any) -> list[int]:
    """Replaces everything by entries of these metadata; their ids."""
    gallery.delete(gallery.ids().tolist())
    return gallery.upsert([Entry(f"k{i}", f"u{i}", EAST, metadata=one, **facts) for i, one in enumerate(metadata)])


def found(gallery: Gallery, where: Any) -> list[int]:
    """Positions of the entries that it lets through."""
    return [int(item.key[1:]) for item in gallery.page(where=Where.parse(where))]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(metadatas, min_size=1, max_size=6), st.lists(wheres, min_size=1, max_size=4), numbers, texts)
@example([{"a": 0.1}, {"a": 0.30000000000000004}], [{"a": {"$gt": 0.3}}], 0, "")
@example([{"a": 2**53}, {"a": 2**53 + 1}], [{"a": float(2**53)}], 0, "")
def test_a_filter_means_what_plain_python_says(
    gallery: Gallery, metadata: list[dict[str, Any]], filters: list[dict[str, Any]], size: int | float, text: str
) -> None:
    put(gallery, *metadata, size=int(size) % 2**63, mtime_ns=1_500_000_000 * (len(text) + 1), folder=text)
    items = gallery.page()
    for where in filters:
        expected = [item.id for item in items if holds(where, item)]
        parsed = Where.parse(where)
        assert gallery.ids(parsed).tolist() == expected
        assert gallery.count(parsed) == len(expected)
        assert sorted(hit.id for hit in gallery.search(EAST, 100, where=parsed)) == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"a": 1}, [0]),
        ({"a": True}, [1]),
        ({"a": "1"}, [2]),
        ({"a": None}, [3]),
        ({"a": {"$ne": 1}}, [1, 2, 3, 4]),
        ({"a": {"$in": [1, "1"]}}, [0, 2]),
        ({"a": {"$nin": [1, "1"]}}, [1, 3, 4]),
        ({"a": {"$exists": False}}, [4]),
        ({"a": {"$exists": True}}, [0, 1, 2, 3]),
        ({"a": {"$gt": 0}}, [0]),
        ({"a": {"$lt": "2"}}, [2]),
        ({"$not": {"a": {"$gt": 0}}}, [1, 2, 3, 4]),
        ({"a": {"$in": []}}, []),
    ],
)
def test_types_and_missing_names(gallery: Gallery, where: dict[str, Any], expected: list[int]) -> None:
    put(gallery, {"a": 1}, {"a": True}, {"a": "1"}, {"a": None}, {})

    assert found(gallery, where) == expected


def test_names_reach_into_objects_and_members_into_lists(gallery: Gallery) -> None:
    put(gallery, {"camera": {"iso": 100}, "tags": ["red", 7, True]}, {"camera.iso": 200}, {"tags": "red car"})

    assert found(gallery, {"camera.iso": {"$gte": 100}}) == [0, 1]
    assert found(gallery, {"camera": {"$exists": True}}) == [0]
    assert found(gallery, {"tags": {"$contains": "red"}}) == [0, 2]
    assert found(gallery, {"tags": {"$contains": 1}}) == []  # true is not 1
    assert found(gallery, {"tags": {"$contains": True}}) == [0]
    assert found(gallery, {"tags": "red"}) == []  # a list equals none of its members


def test_facts_of_the_image(gallery: Gallery) -> None:
    first, second = put(gallery, {}, {}, width=640, sha256="ff", mtime_ns=1_500_000_000, folder="a/b")

    assert found(gallery, {"@width": {"$gte": 640}, "@sha256": "ff", "@mtime": 1.5}) == [0, 1]
    assert found(gallery, {"@folder": {"$prefix": "a/"}}) == [0, 1]
    assert found(gallery, {"@id": {"$gt": first}}) == [1]
    assert found(gallery, {"@key": {"$in": ["k0", 0]}}) == [0]
    assert found(gallery, {"@width": "640"}) == []
    assert found(gallery, {"@uri": {"$exists": False}}) == []
    assert second == first + 1


@pytest.mark.parametrize("text", ["' OR 1=1 --", "%", "_", '"; DROP TABLE images; --', "\\", "a\nb"])
def test_no_text_is_taken_for_sql(gallery: Gallery, text: str) -> None:
    put(gallery, {"a": "plain"}, {text: text})

    for operator in ("$eq", "$contains", "$prefix", "$gte"):
        assert 1 in found(gallery, {text: {operator: text}})
        assert found(gallery, {"a": {"$contains": text}}) == []
    assert len(gallery) == 2


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ([], "where: expected an object"),
        ("cat", 'where: expected an object like {"label": "cat"}, not "cat"'),
        ({"$xor": []}, r"where.\$xor: there is no \$xor here; expected a name, \$and, \$or or \$not"),
        ({"$gt": 1}, r"where.\$gt: \$gt belongs to a name"),
        ({"$and": {}}, r"where.\$and: expected a list of conditions, not an object of 0"),
        ({"$or": []}, r"where.\$or: expected a list of conditions"),
        ({"$and": [{}, {"year": {"$gte": None}}]}, r"where.\$and\[1\].year.\$gte: expected a number or text, not null"),
        ({"year": {"$gte": True}}, r"where.year.\$gte: expected a number or text, not true"),
        ({"a": {"b": 1}}, r'where.a.b: there is no such operator; to reach into an object, write "a.b"'),
        ({"a": {"$like": 1}}, r"where.a.\$like: there is no such operator; expected one of \$eq"),
        ({"a": {}}, "where.a: an empty object tests nothing"),
        ({"a": [1]}, r"where.a: a list; write {\"\$in\""),
        ({"a": {"$in": 1}}, r"where.a.\$in: expected a list of values, not 1"),
        ({"a": {"$in": [1, [2]]}}, r"where.a.\$in\[1\]: a list"),
        ({"a": {"$exists": 1}}, r"where.a.\$exists: expected true or false, not 1"),
        ({"a": {"$prefix": 1}}, r"where.a.\$prefix: expected text, not 1"),
        ({"@nope": 1}, "where.@nope: there is no such fact; there are @id, "),
        ({"a": float("nan")}, "where.a: nan is no number of JSON"),
        ({"a": 2**63}, "where.a: the number does not fit into 64 bits"),
        ({"a": "x" * 5000}, "where.a: a text of more than 4096 characters"),
        ({"a": "\0"}, "where.a: the text holds a NUL"),
        ({"a": "\ud800"}, "where.a: the text holds a NUL or half a surrogate pair"),
        ({1: 2}, "where: a name must be text, not 1"),
        ({"a": {"$in": [1] * 10_001}}, "more than 10000 values"),
        ({"$and": [{f"n{i}": i} for i in range(201)]}, "more than 200 tests"),
    ],
)
def test_what_is_no_filter_is_refused_at_its_place(where: Any, words: str) -> None:
    with pytest.raises(FilterError, match=words) as caught:
        Where.parse(where)
    assert len(str(caught.value)) < 300


def test_filters_are_bounded_in_depth() -> None:
    deep: dict[str, Any] = {"a": 1}
    for _ in range(13):
        deep = {"$not": deep}
    with pytest.raises(FilterError, match="deeper than 12; write them flatter"):
        Where.parse(deep)
    with pytest.raises(FilterError, match="this is no JSON"):
        Where.parse_text('{"$not":' * 100_000)


@given(wheres)
def test_the_canonical_text_is_the_filter(where: dict[str, Any]) -> None:
    parsed = Where.parse(where)
    again = Where.parse_text(parsed.json)

    assert (again, hash(again), again.json) == (parsed, hash(parsed), parsed.json)
    assert Where.parse(dict(reversed(where.items()))) == parsed
    assert json.loads(str(parsed)) == where


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text() | st.sampled_from(["$and", "$not", "$in", "$gt", "@id"]), x),
    )
)
def test_any_json_is_a_filter_or_refused_in_words(value: Any) -> None:
    try:
        Where.parse(value)
    except FilterError as error:
        assert str(error).startswith("where")


def test_many_choices_and_a_changed_gallery(gallery: Gallery) -> None:
    put(gallery, *[{"n": i} for i in range(50)])
    where = Where.parse({"n": {"$in": list(range(25, 10_000))}})

    assert gallery.count(where) == 25
    gallery.set_metadata({gallery.ids()[0]: {"n": 30}})
    assert gallery.count(where) == 26  # what was remembered of the older state is not used
    gallery.delete(gallery.ids()[-5:].tolist())
    assert gallery.count(where) == 21
