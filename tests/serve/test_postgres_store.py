"""A gallery in PostgreSQL: what every store has to do, filters in SQL, and numbers and texts to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from gallery_helpers import entries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres_helpers import Postgres, make, read

from clf.errors import GalleryError
from clf_serve.gallery import Where
from clf_serve.stores import Row, StoreGallery, conformance
from clf_serve.stores.bench import ABOUT, rows, units
from clf_serve.stores.matching import lets_through
from clf_serve.stores.rows import item_of

pytest.importorskip("psycopg")

from clf_serve.stores.postgres import PostgresStore
from clf_serve.stores.postgres.binary import numeric
from clf_serve.stores.postgres.filters import exact

_servers: list[Postgres] = []


@pytest.fixture(autouse=True)
def _(postgres: Postgres) -> None:
    _servers[:] = [postgres]


test_conformance = conformance(PostgresStore, lambda folder, name: _servers[0].url(f"{folder.name}-{name}"))


@pytest.fixture
def store(postgres: Postgres) -> Iterator[PostgresStore]:
    opened = PostgresStore.open(postgres.url(), write=True, create=ABOUT)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def kept(postgres: Postgres) -> Iterator[PostgresStore]:
    """For many examples, each of which replaces its rows."""
    opened = PostgresStore.open(postgres.url(), write=True, create=ABOUT)
    yield opened
    opened.close()


_LONG = ("x" * 63, "x" * 64, "x" * 64 + "a", "x" * 64 + "b", "x" * 200, "é" * 40)
_LETTERS = st.text(st.sampled_from(["a", "b", "%", "_", "\\", "é", "\uffff", "\U00010000", "\U0010ffff"]), max_size=3)
_KEPT_TEXT = st.one_of(
    _LETTERS,
    st.sampled_from(_LONG),
    st.text(st.sampled_from(["a", "\0", "\ud800", "\udfff", "\uffff"]), max_size=3),  # as JSON may have it
)
_NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 1.0, -0.0, 0.1, 0.5, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, float(2**63), -(2**63)]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
_SCALARS = st.one_of(st.none(), st.booleans(), _NUMBERS, _LETTERS, st.sampled_from(_LONG))
_NAMES = st.sampled_from(["a", "b", "a.b", "ü 'x\"", "x" * 300])
_VALUES = st.recursive(
    st.one_of(_SCALARS, _KEPT_TEXT, st.just(2**70)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=2)),
    max_leaves=4,
)
_METADATA = st.dictionaries(_NAMES, _VALUES, max_size=3)
_FACTS = st.sampled_from(
    ["@id", "@uri", "@key", "@folder", "@width", "@height", "@size", "@mtime", "@sha256", "a", "b"]
)
_TESTS = st.one_of(
    _SCALARS,
    st.tuples(st.sampled_from(["$eq", "$ne", "$contains"]), _SCALARS),
    st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), st.one_of(_NUMBERS, _LETTERS, st.sampled_from(_LONG))),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(_SCALARS, max_size=4)),
    st.tuples(st.just("$exists"), st.booleans()),
    st.tuples(st.just("$prefix"), st.one_of(_LETTERS, st.sampled_from(_LONG))),
).map(lambda test: dict([test]) if isinstance(test, tuple) else test)
_FILTERS = st.recursive(
    st.dictionaries(st.one_of(_NAMES, _FACTS), _TESTS, max_size=2),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$not": inner}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
    ),
    max_leaves=4,
)
_INTEGERS = st.sampled_from([0, 1, 640, 2**31, 2**53 + 1, 2**63 - 1])


@st.composite
def _images(draw: st.DrawFn) -> list[Row]:
    found = []
    for id_, vector in enumerate(units(draw(st.integers(0, 5))), 1):
        facts = {name: draw(_KEPT_TEXT) for name in ("uri", "sha256", "folder")}
        facts |= {name: draw(_INTEGERS) for name in ("size", "mtime_ns", "width", "height")}
        key = f"{id_}{draw(_LETTERS)}"
        found.append(Row(id_, key, json.dumps({**facts, "metadata": draw(_METADATA)}), vector))
    return found


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(images=_images(), filters=st.lists(_FILTERS, min_size=3, max_size=12))
def test_a_filter_in_sql_lets_through_what_it_means(kept: PostgresStore, images: list[Row], filters: list[Any]) -> None:
    kept.write(images, range(1, 10), {}, at=kept.state().generation)
    items = [item_of(row) for row in images]
    for where in map(Where.parse, filters):
        found = kept.ids(where)
        assert found is not None
        assert found.tolist() == [item.id for item in items if lets_through(where, item)], where.json


_SOME = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))


@given(st.lists(_SOME, min_size=1, max_size=20))
def test_numbers_keep_their_order_and_arrive_as_they_are(kept: PostgresStore, numbers: list[float]) -> None:
    for one, other in pairwise(numbers):
        assert (one < other, one == other) == (exact(one) < exact(other), exact(one) == exact(other))
    decimals = [exact(number) for number in numbers]
    with kept.lines.one() as line:
        line.execute("CREATE TEMPORARY TABLE IF NOT EXISTS sent (number numeric)")
        line.execute("TRUNCATE sent")
        with line.cursor() as cursor, cursor.copy("COPY sent FROM STDIN (FORMAT binary)") as copy:
            fields = b"".join(b"\0\1" + len(n).to_bytes(4, "big") + n for n in map(numeric, decimals))
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + fields + b"\xff\xff")
        assert [row[0] for row in line.execute("SELECT number FROM sent")] == decimals
        line.execute("DROP TABLE sent")
    assert numeric(Decimal("0E+3")) == numeric(Decimal("0"))


def test_what_json_can_hold_and_a_database_cannot_is_kept_and_found(store: PostgresStore) -> None:
    facts = json.loads(rows(1)[0].facts) | {"uri": "a\0b", "metadata": {"n\0": "a\0b", "half": "\ud800", "nan": 1e300}}
    text = json.dumps(facts).replace("1e+300", "NaN")
    store.write([Row(1, "k", text, units(1)[0]), Row(2, "l", "{}", units(1)[0]), *rows(1, first=3)], [], {}, at=0)
    [row] = store.read([1], vectors=False, thumbnails=False)
    assert row.facts == text and "\\u0000" in text and "\\ud800" in text
    for where, wanted in (
        ({"half": {"$exists": True}}, [1]),
        ({"nan": {"$exists": True}}, []),
        ({"@uri": {"$prefix": "a"}}, [1]),
        ({"@uri": {"$contains": "b"}}, [1]),
        ({"half": {"$gt": "\ud7ff"}}, [1]),
        ({"half": {"$lt": "\ue000"}}, [1]),
        ({}, [1, 2, 3]),
    ):
        found = store.ids(Where.parse(where))
        assert found is not None and found.tolist() == wanted
    with pytest.raises(ValueError, match="hold a NUL"):
        store.write([Row(4, "a\0b", "{}", units(1)[0])], [], {}, at=1)


def test_vectors_come_back_to_the_last_bit(store: PostgresStore) -> None:
    odd = np.array([-0.0, 0.0, 1e-45, -1e-40, 1.1754942e-38, np.float32(0.1), -1.0, 3.4028235e38], np.float32)
    store.write([Row(1, "k", "{}", odd)], [], {}, at=0)
    for found in (store.read([1], vectors=True, thumbnails=False), store.scan(0, 9, vectors=True, thumbnails=True)):
        assert found[0].vector.tobytes() == odd.tobytes() and found[0].vector.dtype == np.float32


def test_two_galleries_of_one_database_know_nothing_of_each_other(postgres: Postgres) -> None:
    first, second = make(postgres.url("birds")), make(postgres.url("Birds"))
    first.upsert(entries(0, 5))
    second.upsert(entries(3, 2))
    assert (len(first), len(second), first.name, second.name) == (5, 2, "birds", "Birds")
    assert first.find("k0") is not None and second.find("k0") is None
    first.close()
    postgres.execute('DROP SCHEMA "birds" CASCADE')
    assert len(second) == 2
    second.close()
    with pytest.raises(GalleryError, match=r"there is no gallery at .*gallery=birds"):
        read(postgres.url("birds"))


def test_a_gallery_that_is_removed_while_it_is_open_says_so(postgres: Postgres) -> None:
    url = postgres.url("removed")
    with make(url) as gallery:
        gallery.upsert(entries(0, 3))
        postgres.execute("DROP SCHEMA removed CASCADE")
        with pytest.raises(GalleryError, match="there is no gallery 'removed' any more"):
            gallery.count()
        make(url).close()
        with pytest.raises(GalleryError, match="another gallery is at"):
            gallery.count()


def test_what_sql_does_is_what_reading_the_rows_gives(postgres: Postgres) -> None:
    with make(postgres.url()) as gallery:
        made = [
            replace(
                entry,
                folder=f"f{i % 4}/ü",
                metadata={
                    "n": i % 7 if i % 2 else float(i % 7),
                    "t": ["x", f"t{i % 60}"],
                    "mixed": [True, 1, "1", None, 0.5][i % 5],
                    "deep": {"er": i % 3 == 0},
                },
            )
            for i, entry in enumerate(entries(0, 150))
        ]
        ids = gallery.upsert(made)
        gallery.delete(ids[::5])
        assert _sorted(gallery.fields()) == _sorted(_slow(gallery, "fields"))
        assert gallery.listing() == _slow(gallery, "listing")
        for n in (1, 7, 120, 500):
            assert gallery.sample(n) == _slow(gallery, "sample", n)
        for where in ({"n": {"$gt": 3}}, {"t": {"$contains": "x"}}, {"nothing": 1}):
            asked = Where.parse(where)
            assert gallery.count(asked) == len(gallery.ids(asked)) == len(gallery.page(limit=999, where=asked))
        pairs = [list(gallery.batches(50)), list(StoreGallery.batches(gallery, 50))]
        for (ids_, vectors), (others, theirs) in zip(*pairs, strict=True):
            assert ids_.tolist() == others.tolist() and vectors.tobytes() == theirs.tobytes()
        assert gallery.facts().bytes > 100_000
        assert gallery.facts().index.exact and gallery.facts().index.kind == "flat"


def _slow(gallery: StoreGallery, name: str, *values: Any) -> Any:
    gallery._kept.clear()
    return getattr(StoreGallery, name)(gallery, *values)


def _sorted(fields: dict[str, Any]) -> dict[str, Any]:
    """Equally frequent values of one number stand in the order in which they came."""
    return {name: (f.type, f.entries, f.distinct, sorted(f.values, key=repr)[:20]) for name, f in fields.items()}


_WRITER = """
import sys
from clf_serve.stores import ConflictError  # noqa: E402
from clf_serve.stores.bench import rows  # noqa: E402
from clf_serve.stores.postgres import PostgresStore  # noqa: E402
store = PostgresStore.open(sys.argv[1], write=True)
for row in rows(10, first=int(sys.argv[2])):
    while True:
        try:
            store.write([row], [], {}, at=store.state().generation)
        except ConflictError:
            continue
        break
"""


def test_several_processes_that_write_at_once_lose_nothing(postgres: Postgres) -> None:
    url = postgres.url()
    store = PostgresStore.open(url, write=True, create=ABOUT)
    command = [sys.executable, "-c", _WRITER, url]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    children = [subprocess.Popen([*command, str(first)], env=env) for first in (100, 200)]
    assert [child.wait(120) for child in children] == [0, 0]
    state = store.state()
    assert (state.generation, state.images) == (20, 20)
    found = store.ids(None)
    assert found is not None and found.tolist() == sorted(first + i for first in (100, 200) for i in range(10))
    store.close()


def test_two_first_users_at_once_make_one_gallery(postgres: Postgres) -> None:
    postgres.execute("CREATE DATABASE fresh")
    url = postgres.url("both", database="fresh")
    made: list[PostgresStore] = []
    errors: list[BaseException] = []

    def begin(number: int) -> None:
        try:
            made.append(PostgresStore.open(url, write=True, create={**ABOUT, "uuid": str(number)}))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and len({store.state().about["uuid"] for store in made}) == 1
    for store in made:
        store.close()
    postgres.execute("DROP DATABASE fresh")
