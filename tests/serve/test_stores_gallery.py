"""A gallery in a store says what a gallery in a folder says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_helpers import DIM, MODEL, entries, unit
from gallery_machine import GalleryMachine, metadatas, wheres
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shelf_store import Shelf
from store_helpers import make, read

from clf.errors import GalleryError
from clf_serve.background import Background
from clf_serve.duplicates import finding
from clf_serve.gallery import Entry, EntryError, Gallery, Identity, Moved, Where
from clf_serve.gallery_memory import Memory
from clf_serve.place import Place
from clf_serve.problems import Problem
from clf_serve.stores import AnyGallery, ConflictError
from clf_serve.stores.matching import lets_through
from clf_serve.writing import _as_problem


class StoreMachine(GalleryMachine):
    """The random histories of the folder gallery, without what only a folder has."""

    optimize = an_older_clf_wrote_it = lose_the_index = None  # type: ignore[assignment]

    def make(self) -> AnyGallery:
        return make(self.path, self.model)

    def open(self, *, write: bool = False) -> AnyGallery:
        return make(self.path, self.model) if write else read(self.path)


TestHistories = StoreMachine.TestCase
TestHistories.settings = settings(
    max_examples=10, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


class ApproximateShelf(Shelf):
    """Finds every second row, until it is asked to be exact."""

    approximate = True

    def search(self, vector: Any, k: int, allowed: Any, *, exact: bool) -> list[int]:
        found = super().search(vector, k, allowed, exact=exact)
        return found if exact else found[::2]


class RefinedShelf(Shelf):
    """Knows its ids, and all of those that an empty filter lets through."""

    asked = 0

    def ids(self, where: Where | None) -> Any:
        RefinedShelf.asked += 1
        if where is not None and where.json != "{}":
            return None
        return np.array([row[0] for row in self.db.execute("SELECT id FROM rows")], np.int64)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Gallery, AnyGallery]]:
    """A folder gallery, and one in a store."""
    with Gallery.open_or_create(tmp_path / "folder", MODEL, tmp_path) as folder, make(tmp_path / "s.db") as store:
        yield folder, store


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(metadatas, min_size=1, max_size=6), st.lists(wheres, min_size=1, max_size=4))
def test_filters_and_fields_mean_the_same(
    pair: tuple[Gallery, AnyGallery], described: list[dict[str, Any]], asked: list[dict[str, Any]]
) -> None:
    folder, store = pair
    batch = [
        Entry(f"k{i}", f"u{i}", np.eye(DIM, dtype=np.float32)[0], b"", i, 10**17 + i, "ab", i, 2, one, f"f{i % 2}")
        for i, one in enumerate(described)
    ]
    for gallery in pair:
        gallery.delete(gallery.ids().tolist())
        gallery.upsert(batch)
    assert list(map(repr, store.fields())) == list(map(repr, folder.fields()))
    assert store.fields() == folder.fields()
    for where in map(Where.parse, asked):
        kept = [item.key for item in folder.page(where=where)]
        by_id = "@id" in where.json  # ids differ: the folder gallery was longer in use
        assert by_id or [item.key for item in store.page(where=where)] == kept
        assert [item.key for item in folder.page() if lets_through(where, item)] == kept
        assert store.count(where) == len(store.page(where=where))


def test_both_say_the_same_of_the_same_images(pair: tuple[Gallery, AnyGallery]) -> None:
    for gallery in pair:
        ids = gallery.upsert(entries(0, 40, metadata={"label": "cat"}, sha256="cd", width=3, folder="a/b"))
        gallery.delete(ids[:3])
        gallery.relocate([Moved(ids[5], "k6", "moved.jpg", 1, 2, "c"), Moved(ids[6], "k5", "6.jpg", 1, 2)])
        gallery.set_metadata({ids[9]: {"year": 2020}, ids[10]: None, 777: {"a": 1}})
    folder, store = pair
    query = unit(np.random.default_rng(5), 1)[0]
    cats, none = Where.parse({"label": "cat"}), Where.parse({"label": "dog"})
    assert len(store) == len(folder) == 37
    assert store.ids().tolist() == folder.ids().tolist()
    assert store.page(after=4, limit=9) == folder.page(after=4, limit=9)
    assert store.page(after=4, limit=9, where=cats) == folder.page(after=4, limit=9, where=cats)
    assert store.sample(7) == folder.sample(7) and store.sample(0) == []
    assert store.listing() == folder.listing()
    assert store.search(query, 8, where=cats, but=[7], offset=2) == folder.search(
        query, 8, where=cats, but=[7], offset=2
    )
    assert store.search(query, 5, but=range(70)) == folder.search(query, 5, but=range(70)) == []
    assert store.within(query, 0.2, limit=9) == folder.within(query, 0.2, limit=9) != []
    assert store.search(query, 3, where=none) == []
    assert store.find("k6") == folder.find("k6") != None  # noqa: E711
    assert store.find("k0") is store.find("\ud800") is store.find("a\0") is store.get(1) is None
    assert store.thumbnail(9) == folder.thumbnail(9) and store.thumbnail(1) is None
    np.testing.assert_array_equal(store.vectors([9, 8]), folder.vectors([9, 8]))
    np.testing.assert_array_equal(store.vector(9), folder.vector(9))
    assert store.vector(1) is None and store.vectors([]).shape == (0, DIM)
    with pytest.raises(KeyError):
        store.vectors([1])
    for (ids, vectors), (ours, rows) in zip(folder.batches(10), store.batches(10), strict=True):
        np.testing.assert_array_equal(ids, ours)
        np.testing.assert_array_equal(vectors, rows)
    assert Background.of(store).percentile(0.5) == Background.of(folder).percentile(0.5)  # type: ignore[union-attr]
    assert Memory().near(store) == Memory().near(folder)
    assert finding.find(store).groups == finding.find(folder).groups
    facts = store.facts()
    assert (facts.images, facts.model, facts.index.exact, facts.index.kind) == (37, MODEL, True, "shelf")


def test_what_cannot_be_kept_is_refused_and_changes_nothing(pair: tuple[Gallery, AnyGallery]) -> None:
    good = entries(0, 2)
    for gallery in pair:
        gallery.upsert(good)
        before = gallery.generation
        for bad in (Entry("", "u", good[0].vector), Entry("a\0", "u", good[0].vector)):
            with pytest.raises(EntryError):
                gallery.upsert([good[0], bad])
        with pytest.raises(EntryError):
            gallery.upsert([Entry("k", "u", good[0].vector, metadata={"a": float("nan")})])
        for vector in (good[0].vector[:3], 2 * good[0].vector):
            with pytest.raises(ValueError, match="unit length"):
                gallery.upsert([Entry("k", "u", vector)])
        with pytest.raises(EntryError):
            gallery.relocate([Moved(1, "x", "x", 0, 0), Moved(2, "x", "x", 0, 0)])
        with pytest.raises(EntryError):
            gallery.set_metadata({1: [1]})  # type: ignore[dict-item]
        with pytest.raises(ValueError, match="at least 1"):
            gallery.search(good[0].vector, 0)
        with pytest.raises(ValueError, match="NaN"):
            gallery.within(good[0].vector, float("nan"))
        assert gallery.generation == before and len(gallery) == 2


def test_ids_that_are_given_are_kept_and_never_given_out_again(tmp_path: Path) -> None:
    with make(tmp_path / "s.db") as gallery:
        assert gallery.upsert(entries(0, 3), ids=[5, 9, 7]) == [5, 9, 7]
        assert gallery.upsert(entries(2, 2)) == [7, 10]
        gallery.delete([10])
        assert gallery.upsert(entries(50, 1)) == [11]
        with pytest.raises(GalleryError, match="the id 5 is that of another image, k0"):
            gallery.upsert(entries(60, 1), ids=[5])
        with pytest.raises(GalleryError, match="same id"):
            gallery.upsert(entries(60, 2), ids=[90, 90])
        assert len(gallery) == 4


def test_an_approximate_store_is_asked_again_exactly_where_it_finds_too_few(tmp_path: Path) -> None:
    with make(tmp_path / "s.db", store=ApproximateShelf) as gallery:
        gallery.upsert(entries(0, 30))
        query = unit(np.random.default_rng(5), 1)[0]
        with read(tmp_path / "s.db") as exact:
            wanted = exact.search(query, 10)
        assert gallery.search(query, 10) == wanted
        assert gallery.search(query, 10, exact=True) == wanted
        assert gallery.within(query, -1.0, limit=10) == wanted
        index = gallery.facts().index
        assert (index.exact, index.recall) == (False, None)


def test_a_store_that_knows_its_ids_is_asked_for_them_once_a_generation(tmp_path: Path) -> None:
    RefinedShelf.asked = 0
    with make(tmp_path / "s.db", store=RefinedShelf) as gallery:
        ids = gallery.upsert(entries(0, 5, metadata={"a": 1}))
        assert gallery.ids().tolist() == gallery.ids().tolist() == ids and RefinedShelf.asked == 1
        assert gallery.ids(Where.parse({})).tolist() == ids
        assert gallery.ids(Where.parse({"a": 1})).tolist() == ids  # which it cannot tell
        gallery.delete(ids[:1])
        assert gallery.ids().tolist() == ids[1:]
        assert not gallery.ids().flags.writeable


def test_two_writers_do_not_lose_each_others_work(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with make(path) as one, make(path) as other, read(path) as reader:
        threads = [
            threading.Thread(target=lambda g=g, n=n: [g.upsert(entries(n + i, 1)) for i in range(15)])  # type: ignore[misc]
            for n, g in ((0, one), (100, other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert reader.ids().tolist() == list(range(1, 31)) and len(reader.listing()) == 30


def test_a_gallery_that_others_write_to_all_the_time_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(Shelf):
        def write(self, put: Any, delete: Any, about: Any, *, at: int) -> None:
            raise ConflictError

    monkeypatch.setattr("clf_serve.stores.changing._PAUSE", 0.0)
    make(tmp_path / "s.db").close()
    with (
        make(tmp_path / "s.db", store=Busy) as gallery,
        pytest.raises(GalleryError, match=r"others write .* all the time"),
    ):
        gallery.upsert(entries(0, 1))
    busy = GalleryError("others write")
    busy.__cause__ = ConflictError()
    problem = _as_problem(busy, Place.of("shelf://x"))
    assert isinstance(problem, Problem) and (problem.status, problem.code) == (409, "gallery_busy")


def test_it_is_closed_read_only_and_of_its_model(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    gallery = make(path)
    gallery.close()
    gallery.close()
    with pytest.raises(GalleryError, match="was closed"):
        len(gallery)
    with read(path) as reader:
        for change in (lambda: reader.upsert(entries(0, 1)), lambda: reader.delete([1])):
            with pytest.raises(ValueError, match="opened for reading"):
                change()
        with pytest.raises(GalleryError, match="kept by the store 'shelf'"):
            reader.optimize("hnsw")
        assert reader.wishes == (None, None, None) and reader.cache_note is None
        assert reader.place == Place.of(f"shelf://{path}") and reader.name == "s.db"
    for model in (Identity("m", "ff" * 32, DIM), Identity("m", MODEL.sha256, DIM + 1)):
        with pytest.raises(GalleryError, match="was made with model m"):
            read(path, model)
    with pytest.raises(GalleryError, match=r"no gallery at shelf://.*other.db; make one: clf index"):
        read(tmp_path / "other.db")
