"""Random histories of a gallery against a dictionary: hypothesis drives a writer and a reader, a plain model says what
is right. Set the class attributes of :class:`GalleryMachine` in a subclass for other sizes."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from clf_serve.gallery import Entry, Gallery, Hit, Identity, Item, Moved, Where
from clf_serve.index import plan
from clf_serve.stores import AnyGallery

Vectors = NDArray[np.float32]

# what filters mean, in plain Python


def holds(where: Mapping[str, Any], item: Item) -> bool:
    return all(_condition(name, inner, item) for name, inner in where.items())


def _condition(name: str, inner: Any, item: Item) -> bool:
    if name == "$and":
        return all(holds(part, item) for part in inner)
    if name == "$or":
        return any(holds(part, item) for part in inner)
    if name == "$not":
        return not holds(inner, item)
    tests = inner if isinstance(inner, dict) else {"$eq": inner}
    return all(_test(list(_values(name, item)), operator, wanted) for operator, wanted in tests.items())


def _values(name: str, item: Item) -> Iterator[Any]:
    if name == "@mtime":
        yield item.mtime_ns / 1e9
    elif name.startswith("@"):
        yield getattr(item, name[1:])
    else:
        yield from (value for path, value in flat(item.metadata) if path == name)


def flat(metadata: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in metadata.items():
        yield prefix + name, value
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")


def _test(values: list[Any], operator: str, wanted: Any) -> bool:
    if operator in ("$ne", "$nin"):
        return not _test(values, "$eq" if operator == "$ne" else "$in", wanted)
    if operator == "$exists":
        return bool(values) == wanted
    return any(_one(value, operator, wanted) for value in values)


def _one(value: Any, operator: str, wanted: Any) -> bool:
    if operator == "$eq":
        return _same(value, wanted)
    if operator == "$in":
        return any(_same(value, one) for one in wanted)
    if operator == "$contains":
        if isinstance(value, list):
            return any(_same(member, wanted) for member in value)
        return isinstance(value, str) and isinstance(wanted, str) and wanted in value
    if operator == "$prefix":
        return isinstance(value, str) and value.startswith(wanted)
    if _kind(value) != _kind(wanted):
        return False
    return {
        "$gt": lambda: value > wanted,
        "$gte": lambda: value >= wanted,
        "$lt": lambda: value < wanted,
        "$lte": lambda: value <= wanted,
    }[operator]()


def _same(value: Any, wanted: Any) -> bool:
    return _kind(value) == _kind(wanted) and bool(value == wanted)


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None or not isinstance(value, int | float):
        return type(value).__name__
    return "number"


# values that make filters hit, miss and mistake one type for another

texts = st.sampled_from(["", "a", "ab", "b", "cat", "1", "true", "é", "\U0010ffff", "\ud7ff", "\ue000", "a'b\"c%_"])
numbers = st.one_of(st.sampled_from([0, 1, -1, 2, 1.5, 0.1, 2**53, 2**53 + 1, -(2**63), 1e300]), st.integers(-3, 3))
scalars: st.SearchStrategy[Any] = st.one_of(texts, numbers, st.booleans(), st.none())
names = st.sampled_from(["a", "b", "a.b", "label", "x.y.z", "ü"])
metadata_values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names | st.just("y"), inner, max_size=2)),
    max_leaves=4,
)
metadatas = st.dictionaries(names | st.just("x"), metadata_values, max_size=4)
facts = st.sampled_from(["@id", "@uri", "@key", "@folder", "@width", "@height", "@size", "@mtime", "@sha256"])
tests = st.one_of(
    scalars,
    st.fixed_dictionaries(
        {},
        optional={
            "$eq": scalars,
            "$ne": scalars,
            "$gt": texts | numbers,
            "$gte": texts | numbers,
            "$lt": texts | numbers,
            "$lte": texts | numbers,
            "$in": st.lists(scalars, max_size=3),
            "$nin": st.lists(scalars, max_size=3),
            "$exists": st.booleans(),
            "$contains": scalars,
            "$prefix": texts,
        },
    ).filter(bool),
)
wheres: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(names | facts, tests, max_size=2),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$or": parts}),
        inner.map(lambda part: {"$not": part}),
    ),
    max_leaves=4,
)


def brute_force(
    items: Mapping[int, Item], vectors: Mapping[int, Vectors], query: Vectors, where: Mapping[str, Any] | None = None
) -> list[tuple[int, float]]:
    """(id, score) of all that ``where`` lets through, best first, equal scores by id."""
    found = [
        (id_, float(vectors[id_].astype(np.float64) @ query.astype(np.float64)))
        for id_, item in items.items()
        if where is None or holds(where, item)
    ]
    return sorted(found, key=lambda pair: (-round(pair[1], 9), pair[0]))


def agrees(hits: Sequence[Hit], expected: Sequence[tuple[int, float]]) -> None:
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-6)
    assert [hit.id for hit in hits] == [id_ for id_, _ in expected]


class GalleryMachine(RuleBasedStateMachine):
    """A writer and a reader in one process; both must always say what the model says."""

    DIM = 6
    KEYS = 50
    """Entries that there may be at a time."""
    BATCH = 8
    LEAST = 20
    """Entries from which on a graph or lists are built if asked for; that many are needed to learn codes from."""
    POOL = 60
    """Different vectors; a small number makes equal scores frequent."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="clf-gallery-machine-"))
        self.model = Identity("m", "ab" * 32, self.DIM)
        rows = np.random.default_rng(0).normal(size=(self.POOL, self.DIM))
        self.pool: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        self.items: dict[int, Item] = {}
        self.vectors: dict[int, Vectors] = {}
        self.used: set[int] = set()
        self.random = np.random.default_rng(0)
        self.threshold, plan._LEAST_FOR_LISTS = plan._LEAST_FOR_LISTS, self.LEAST

    @initialize(seed=st.integers(0, 2**32 - 1), many=st.booleans())
    def begin(self, seed: int, many: bool) -> None:
        self.random = np.random.default_rng(seed)
        self.path = self.folder / "g"
        self.writer = self.make()
        self.reader = self.open()
        for _ in range(self.KEYS // self.BATCH if many else 0):
            self.upsert([int(number) for number in self.random.integers(0, 10**9, self.BATCH)], {})

    def teardown(self) -> None:
        plan._LEAST_FOR_LISTS = self.threshold
        if hasattr(self, "reader"):
            self.writer.close()
            self.reader.close()
        shutil.rmtree(self.folder)

    def make(self) -> AnyGallery:
        return Gallery.open_or_create(self.path, self.model, self.folder)

    def open(self, *, write: bool = False) -> AnyGallery:
        return Gallery(self.path, self.model if write else None, write=write)

    def _keys(self) -> dict[str, int]:
        return {item.key: id_ for id_, item in self.items.items()}

    def _some(self, n: int) -> list[int]:
        """Up to n ids, most of them there."""
        ids = [*self.items, 10**6]
        return [int(id_) for id_ in self.random.choice(ids, min(n, len(ids)), replace=False)]

    @rule(numbers=st.lists(st.integers(0, 10**9), min_size=1, max_size=8), metadata=metadatas)
    def upsert(self, numbers: list[int], metadata: dict[str, Any]) -> None:
        batch = [
            Entry(
                f"k{number % self.KEYS}",
                f"uri{number % 7}",
                self.pool[number % self.POOL],
                b"jpeg%d" % number,
                number,
                number * 1000,
                f"{number % 5:064x}",
                number % 100,
                number % 90,
                metadata if i % 2 == 0 else {"label": "cat", "n": number},
                f"folder{number % 3}",
            )
            for i, number in enumerate(numbers[: self.BATCH])
        ]
        before = self._keys()
        for entry, id_ in zip(batch, self.writer.upsert(batch), strict=True):
            assert before.get(entry.key, id_) == id_
            assert entry.key in before or id_ not in self.used  # ids are never given out again
            before[entry.key] = id_
            fields = {name: getattr(entry, name) for name in Item.__dataclass_fields__ if name != "id"}
            self.items[id_] = Item(id_, **fields)
            self.vectors[id_] = entry.vector
        self.used |= self.items.keys()

    @rule(n=st.integers(0, 6))
    def delete(self, n: int) -> None:
        ids = self._some(n)
        gone = self.items.keys() & set(ids)
        assert self.writer.delete(ids) == len(gone)
        for id_ in gone:
            del self.items[id_], self.vectors[id_]

    @rule(n=st.integers(1, 5), place=st.integers(0, 10**9))
    def relocate(self, n: int, place: int) -> None:
        """Some to free keys, some to those of others, some in a ring."""
        ids = self._some(n)
        there = [self.items[id_].key for id_ in ids if id_ in self.items]
        keys = [*there[1:], *there[:1]] if place % 2 else [f"k{(place + i) % self.KEYS}" for i in range(len(ids))]
        keys += [f"other{id_}" for id_ in ids]
        if len(set(keys[: len(ids)])) < len(ids):
            return
        moves = [Moved(id_, key, f"at {key}", 1, 2, "moved") for id_, key in zip(ids, keys, strict=False)]
        assert self.writer.relocate(moves) == len(self.items.keys() & set(ids))
        moving = {move.id: move for move in moves if move.id in self.items}
        taken = {move.key for move in moving.values()}
        for id_ in [id_ for id_, item in self.items.items() if item.key in taken and id_ not in moving]:
            del self.items[id_], self.vectors[id_]
        for id_, move in moving.items():
            item = replace(self.items[id_], key=move.key, uri=move.uri, size=1, mtime_ns=2, folder="moved")
            self.items[id_] = item

    @rule(n=st.integers(0, 5), change=st.none() | metadatas, merge=st.booleans())
    def set_metadata(self, n: int, change: dict[str, Any] | None, merge: bool) -> None:
        ids = self._some(n)
        known = self.items.keys() & set(ids)
        assert self.writer.set_metadata(dict.fromkeys(ids, change), merge=merge) == len(known)
        for id_ in known:
            new = {} if change is None else patched(self.items[id_].metadata, change) if merge else change
            self.items[id_] = replace(self.items[id_], metadata=new)

    @rule(k=st.integers(1, 40), offset=st.integers(0, 5), at=st.integers(0, 10**6), n=st.integers(0, 4))
    def search(self, k: int, offset: int, at: int, n: int) -> None:
        query, but = self.pool[at % self.POOL], self._some(n)
        expected = [pair for pair in brute_force(self.items, self.vectors, query) if pair[0] not in but]
        for gallery in (self.writer, self.reader):
            agrees(gallery.search(query, k, but=but, offset=offset), expected[offset : offset + k])

    @rule(where=wheres, k=st.integers(1, 20), at=st.integers(0, 10**6))
    def filtered(self, where: dict[str, Any], k: int, at: int) -> None:
        query, parsed = self.pool[at % self.POOL], Where.parse(where)
        expected = brute_force(self.items, self.vectors, query, where)
        for gallery in (self.writer, self.reader):
            agrees(gallery.search(query, k, where=parsed), expected[:k])
            assert gallery.count(parsed) == len(expected)
            assert [item.id for item in gallery.page(where=parsed, limit=10**6)] == sorted(i for i, _ in expected)

    @rule(score=st.floats(-1, 1), at=st.integers(0, 10**6), limit=st.integers(1, 30))
    def within(self, score: float, at: int, limit: int) -> None:
        query = self.pool[at % self.POOL]
        for gallery in (self.writer, self.reader):
            hits = gallery.within(query, score, limit=limit)
            every = brute_force(self.items, self.vectors, query)
            expected = [pair for pair in every if pair[1] >= score]
            if all(abs(pair[1] - score) > 1e-6 for pair in every):  # else rounding decides
                agrees(hits, expected[:limit])

    @rule()
    def save(self) -> None:
        self.writer.save_index()

    @rule(kind=st.sampled_from(["flat", "hnsw", "ivf"]))
    def optimize(self, kind: str) -> None:
        info = self.writer.optimize(kind)
        assert info.kind == (kind if len(self.items) >= self.LEAST else "flat") and info.vectors == len(self.items)

    @rule(again=st.booleans())
    def reopen(self, again: bool) -> None:
        self.reader.close()
        if again:
            self.writer.close()
            self.writer = self.open(write=True)
        self.reader = self.open()

    @rule()
    def an_older_clf_wrote_it(self) -> None:
        self.reader.close()
        self.writer.close()
        to_format_1(self.path / "gallery.sqlite")
        self.reader = Gallery(self.path)  # converts
        self.writer = Gallery(self.path, self.model, write=True)
        self.items = {id_: replace(item, folder="") for id_, item in self.items.items()}

    @rule()
    def lose_the_index(self) -> None:
        self.reader.close()
        shutil.rmtree(self.path / "index", ignore_errors=True)
        self.reader = Gallery(self.path)

    @invariant()
    def every_entry_is_there_once(self) -> None:
        if not hasattr(self, "reader"):
            return
        assert self.reader.page(limit=10**6) == [self.items[id_] for id_ in sorted(self.items)]
        assert {key: known.id for key, known in self.reader.listing().items()} == self._keys()
        assert len(self.writer) == len(self.items)


FORMAT_1 = """
CREATE TABLE images (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, uri TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    metadata TEXT NOT NULL, vector BLOB NOT NULL, generation INTEGER NOT NULL
);
CREATE INDEX images_generation ON images (generation);
"""
"""The tables that differ from those of today."""


def to_format_1(path: Path) -> None:
    """Turns a database that is not open into one that the first clf would have written; folders are lost."""
    connection = sqlite3.connect(path)
    connection.executescript(
        f"""
        BEGIN;
        ALTER TABLE images RENAME TO new;
        {FORMAT_1}
        INSERT INTO images SELECT id, key, uri, size, mtime_ns, sha256, width, height, metadata, vector, generation
            FROM new JOIN vectors USING (id);
        DELETE FROM sqlite_sequence WHERE name = 'images';
        UPDATE sqlite_sequence SET name = 'images' WHERE name = 'new';
        DROP TABLE new; DROP TABLE vectors; DROP TABLE facts; DROP TABLE names;
        DELETE FROM meta WHERE key IN ('floor', 'index_kind', 'index_memory', 'index_recall');
        PRAGMA user_version = 1;
        COMMIT;
        """
    )
    connection.close()


def patched(old: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7396, as it is written there."""
    new = dict(old)
    for name, value in patch.items():
        if value is None:
            new.pop(name, None)
        elif isinstance(value, dict):
            inner = new.get(name)
            new[name] = patched(inner if isinstance(inner, dict) else {}, value)
        else:
            new[name] = value
    return new
