"""What goes into a gallery, what comes out, and what is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_helpers import DIM, MODEL, entries, unit
from numpy.typing import NDArray

from clf_serve.gallery import Entry, EntryError, Gallery, Item, Moved, Where, facts, matching


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.open_or_create(tmp_path / "empty", MODEL, tmp_path) as opened:
        yield opened


def test_what_is_added_is_found_and_what_is_deleted_is_not(empty: Gallery) -> None:
    ids = empty.upsert(entries(0, 3))

    assert empty.search(entries(0, 3)[1].vector, 1)[0].id == ids[1]
    assert empty.delete([ids[1], 999, 2**70]) == 1
    assert ids[1] not in [hit.id for hit in empty.search(entries(0, 3)[1].vector, 3)]


def test_an_empty_gallery_has_no_neighbours(empty: Gallery) -> None:
    query = unit(np.random.default_rng(0), 1)[0]

    assert empty.search(query, 5) == empty.within(query, -1) == empty.page() == empty.sample(3) == []
    assert empty.search(query, 5, where=Where.parse({}), offset=3) == []
    assert len(empty) == empty.count() == len(empty.ids()) == len(list(empty.batches())) == 0
    assert empty.upsert([]) == [] and empty.delete([]) == empty.relocate([]) == empty.set_metadata({}) == 0
    assert empty.fields()["@folder"].entries == 0
    assert empty.facts().images == 0 and empty.facts().index.vectors == 0
    assert empty.generation == 0


def test_what_goes_in_comes_back(empty: Gallery) -> None:
    vector = unit(np.random.default_rng(0), 1)[0]
    (id_,) = empty.upsert([Entry("k", "a/b.jpg", vector, b"thumb", 5, 6, "ff", 7, 8, {"colour": "ä"}, "a")])

    (hit,) = empty.search(vector, 10)

    assert (hit.id, hit.uri, hit.metadata, hit.sha256) == (id_, "a/b.jpg", {"colour": "ä"}, "ff")
    assert (hit.folder, hit.width, hit.height) == ("a", 7, 8)
    assert hit.score == pytest.approx(1, abs=1e-6)
    assert empty.thumbnail(id_) == (b"thumb", "ff")
    np.testing.assert_array_equal(empty.vector(id_), vector)
    np.testing.assert_array_equal(empty.vectors([id_, id_]), [vector, vector])
    assert empty.get(id_) == empty.find("k") == Item(id_, "k", "a/b.jpg", {"colour": "ä"}, "ff", 7, 8, 5, 6, "a")
    assert empty.listing() == {"k": (id_, 5, 6, "ff")}
    for unknown in (id_ + 1, 0, -1, 2**63, 2**70):
        assert empty.vector(unknown) is None and empty.thumbnail(unknown) is None and empty.get(unknown) is None
    with pytest.raises(KeyError):
        empty.vectors([id_, id_ + 1])


def test_an_entry_of_the_same_key_is_replaced_and_keeps_its_id(empty: Gallery) -> None:
    first, second = unit(np.random.default_rng(0), 2)
    ids = empty.upsert([Entry("k", "old", first)])

    assert empty.upsert([Entry("k", "new", second)]) == ids
    assert [(hit.uri, round(hit.score, 5)) for hit in empty.search(second, 5)] == [("new", 1.0)]


def test_the_last_of_one_key_counts_and_ids_are_never_given_out_again(empty: Gallery) -> None:
    first, second = unit(np.random.default_rng(0), 2)
    one, other = empty.upsert([Entry("k", "old", first), Entry("k", "new", second)])
    assert one == other and [item.uri for item in empty.page()] == ["new"]

    empty.delete([one])
    assert empty.upsert([Entry("k", "again", first)]) > [one]


@pytest.mark.parametrize("vector", [np.zeros(DIM), np.full(DIM, np.nan), np.ones(DIM), np.eye(DIM + 1)[0]])
def test_vectors_that_are_not_unit_vectors_never_get_in(empty: Gallery, vector: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="unit length"):
        empty.upsert([*entries(0, 2), Entry("bad", "bad", vector.astype(np.float32))])
    with pytest.raises(ValueError, match="unit length"):
        empty.search(vector.astype(np.float32), 1)
    with pytest.raises(ValueError, match="unit length"):
        empty.within(vector.astype(np.float32), 0.5)
    assert len(empty) == 0  # all or none


def test_a_vector_a_little_off_unit_length_is_put_right(empty: Gallery) -> None:
    (id_,) = empty.upsert([Entry("k", "k", np.float32(1.0005) * np.eye(DIM, dtype=np.float32)[0])])

    assert empty.vector(id_) == pytest.approx(np.eye(DIM)[0], abs=1e-7)


DEEP: Any = "x"
for _ in range(20):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"key": ""}, "needs a key"),
        ({"key": "a\0b"}, "key: the text holds a NUL"),
        ({"uri": "\ud800"}, "uri: .* is no valid Unicode"),
        ({"folder": "x" * 9000}, "folder: 9000 characters, more than the 8192"),
        ({"size": 2**63}, "size: 9223372036854775808 does not fit into 64 bits"),
        ({"metadata": {"a": {"b": [1, float("nan")]}}}, r"u: metadata.a.b\[1\]: nan is no number of JSON"),
        ({"metadata": {"a": 2**64}}, "metadata.a: the number does not fit into 64 bits; write it as text"),
        ({"metadata": {"a": "\0"}}, "metadata.a: the text holds a NUL"),
        ({"metadata": {"a": {1: 2}}}, "metadata.a: a name must be text, not 1"),
        ({"metadata": {"a": object()}}, "metadata.a: object is not of JSON"),
        ({"metadata": {"a": DEEP}}, "deeper than 16"),
        ({"metadata": {"a": "ä" * 200_000}}, "400008 bytes of JSON, more than the 262144"),
        ({"metadata": [1]}, "metadata must be an object of names and values, not list"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_its_place(empty: Gallery, fields: dict[str, Any], words: str) -> None:
    bad = Entry(**{"key": "k", "uri": "u", "vector": np.eye(DIM, dtype=np.float32)[0], **fields})

    with pytest.raises(EntryError, match=words) as caught:
        empty.upsert([*entries(0, 2), bad])
    assert len(empty) == 0 and len(str(caught.value)) < 500


def test_equal_scores_are_in_order_of_their_ids_on_every_page(empty: Gallery) -> None:
    east, north = np.eye(DIM, dtype=np.float32)[:2]
    empty.upsert([Entry(f"k{i}", str(i), east if i % 3 else north) for i in range(90)])

    whole = empty.search(east, 90)
    pages = [hit for start in range(0, 90, 7) for hit in empty.search(east, 7, offset=start)]

    assert pages == whole
    assert [hit.id for hit in whole[:60]] == sorted(hit.id for hit in whole[:60])
    assert [hit.score for hit in whole] == [1.0] * 60 + [0.0] * 30
    assert empty.search(east, 5, offset=90) == []


def test_ids_can_be_left_out_few_or_many(empty: Gallery) -> None:
    ids = empty.upsert(entries(0, 200))
    query = entries(0, 1)[0].vector
    whole = [hit.id for hit in empty.search(query, 200)]

    for n in (1, 3, 63, 64, 65, 150, 200):
        assert [hit.id for hit in empty.search(query, 10, but=whole[:n])] == whole[n : n + 10]
        where = Where.parse({"@id": {"$lte": ids[99]}})
        rest = [id_ for id_ in whole[n:] if id_ <= ids[99]]
        assert [hit.id for hit in empty.search(query, 10, where=where, but=whole[:n])] == rest[:10]


def test_a_range_search_finds_all_down_to_the_threshold(empty: Gallery) -> None:
    empty.upsert(entries(0, 300))
    query = entries(0, 1)[0].vector
    whole = empty.search(query, 300)

    for position in (0, 1, 50, 299):
        assert empty.within(query, whole[position].score) == whole[: position + 1]  # the threshold itself is in
        assert empty.within(query, np.nextafter(whole[position].score, 2)) == whole[:position]
    assert empty.within(query, -1, limit=7) == whole[:7]
    assert empty.within(query, 0.5, but=[whole[0].id])[0] == whole[1]
    with pytest.raises(ValueError, match="NaN"):
        empty.within(query, float("nan"))
    with pytest.raises(ValueError, match="limit must be at least 1"):
        empty.within(query, 0, limit=0)


def test_a_search_for_nothing_is_refused(empty: Gallery) -> None:
    query = entries(0, 1)[0].vector
    with pytest.raises(ValueError, match="k must be at least 1"):
        empty.search(query, 0)
    with pytest.raises(ValueError, match="offset must be at least 0"):
        empty.search(query, 1, offset=-1)


def test_a_moved_file_keeps_id_vector_thumbnail_and_metadata(empty: Gallery) -> None:
    (id_,) = empty.upsert([Entry("old", "old.jpg", np.eye(DIM, dtype=np.float32)[0], b"t", 1, 2, "ff", 3, 4, {"a": 1})])

    assert empty.relocate([Moved(id_, "new", "new.jpg", 5, 6, "b"), Moved(99, "x", "x", 0, 0)]) == 1

    assert empty.get(id_) == Item(id_, "new", "new.jpg", {"a": 1}, "ff", 3, 4, 5, 6, "b")
    assert empty.find("old") is None and empty.thumbnail(id_) == (b"t", "ff")
    assert empty.count(Where.parse({"a": 1, "@folder": "b"})) == 1


def test_files_may_change_places_and_push_another_out(empty: Gallery) -> None:
    one, two, three = empty.upsert(entries(0, 3))
    query = entries(0, 3)[2].vector
    assert empty.search(query, 1)[0].id == three

    assert empty.relocate([Moved(one, "k1", "b", 0, 0), Moved(two, "k2", "c", 0, 0)]) == 2

    assert {key: known.id for key, known in empty.listing().items()} == {"k1": one, "k2": two}
    assert empty.get(three) is None and empty.thumbnail(three) is None
    assert {hit.id for hit in empty.search(query, 5)} == {one, two}


def test_two_files_cannot_move_to_one_place(empty: Gallery) -> None:
    one, two, _ = empty.upsert(entries(0, 3))
    for moves in ([Moved(one, "x", "x", 0, 0), Moved(two, "x", "x", 0, 0)], [Moved(one, "x", "x", 0, 0)] * 2):
        with pytest.raises(EntryError, match="the same id, or go to the same key"):
            empty.relocate(moves)
    assert set(empty.listing()) == {"k0", "k1", "k2"}


def test_metadata_is_merged_replaced_and_emptied(empty: Gallery) -> None:
    one, two = empty.upsert(entries(0, 2, metadata={"a": {"b": 1, "c": 2}, "d": 3}))

    assert empty.set_metadata({one: {"a": {"b": None, "e": [4]}, "d": None}, 99: {}}) == 1
    assert empty.get(one).metadata == {"a": {"c": 2, "e": [4]}}  # type: ignore[union-attr]
    assert empty.set_metadata({one: {"x": 1}, two: {"y": 2}}, merge=False) == 2
    assert [item.metadata for item in empty.page()] == [{"x": 1}, {"y": 2}]
    assert empty.set_metadata({one: None}) == 1
    assert [item.metadata for item in empty.page()] == [{}, {"y": 2}]
    assert empty.count(Where.parse({"d": {"$exists": True}})) == 0
    with pytest.raises(EntryError, match=r"metadata\.z"):
        empty.set_metadata({two: {"y": 5}, one: {"z": float("inf")}})
    assert empty.count(Where.parse({"y": 2})) == 1  # all or none


def test_listing_by_pages_and_samples(empty: Gallery) -> None:
    ids = empty.upsert(entries(0, 50))
    empty.delete(ids[10:20])
    left = ids[:10] + ids[20:]

    assert [item.id for item in empty.page(after=ids[8], limit=3)] == [ids[9], ids[20], ids[21]]
    where = Where.parse({"@id": {"$gte": ids[5]}})
    assert [item.id for item in empty.page(after=ids[8], limit=3, where=where)] == [ids[9], ids[20], ids[21]]
    assert empty.ids().tolist() == left
    assert [item.id for item in empty.sample(4)] == left[::10]
    assert len(empty.sample(100)) == 40 and empty.sample(0) == empty.sample(-1) == []
    assert empty.page(limit=0) == empty.page(limit=-1) == empty.page(after=2**70) == []
    assert len(empty.page(after=-(2**70), limit=2**70)) == 40
    assert empty.find("\ud800") is None and empty.find("a\0") is None
    assert [item.id for item in empty.items([left[3], 999, left[1]])] == [left[3], left[1]]
    parts = list(empty.batches(7))
    assert np.concatenate([part for part, _ in parts]).tolist() == left
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), empty.vectors(left))


def test_fields_say_what_the_metadata_holds(empty: Gallery) -> None:
    empty.upsert(
        entries(0, 3, metadata={"label": "cat", "year": 2020, "tags": ["a", "b"], "ok": True}, folder="x")
        + entries(3, 1, metadata={"label": "dog", "year": "unknown", "tags": ["a"], "camera": {"iso": 1.5}})
    )

    fields = empty.fields()

    assert list(fields) == ["@folder", "camera.iso", "label", "ok", "tags", "year"]
    assert (fields["@folder"].values, fields["@folder"].distinct) == ((("x", 3), ("", 1)), 2)
    label, tags, year = fields["label"], fields["tags"], fields["year"]
    assert (label.type, label.entries, label.values, label.distinct) == ("text", 4, (("cat", 3), ("dog", 1)), 2)
    assert (tags.type, tags.entries, tags.values) == ("list", 4, (("a", 4), ("b", 3)))
    assert (year.type, year.values) == ("mixed", ((2020, 3), ("unknown", 1)))
    assert fields["ok"].type == "bool" and fields["ok"].values == ((True, 3),)
    assert fields["camera.iso"].type == "number" and not any(field.sampled for field in fields.values())
    empty.set_metadata({empty.ids()[0]: {"new": 1}})
    assert "new" in empty.fields()


def test_of_a_large_gallery_fields_look_at_a_sample(empty: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_LOOKED_AT", 30)
    empty.upsert([Entry(e.key, e.uri, e.vector, metadata={"parity": i % 2}) for i, e in enumerate(entries(0, 90))])

    parity = empty.fields()["parity"]
    assert (parity.sampled, parity.entries, parity.distinct) == (True, 30, 2)


def test_what_filters_matched_is_remembered_within_bounds(empty: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_CACHE_BYTES", 5000)
    empty.upsert(entries(0, 90))
    for i in range(1, 10):
        where = Where.parse({"@id": {"$ne": -i}})
        assert empty.ids(where) is empty.ids(where)
    assert 2 <= len(empty._matching._kept) <= 4
    for i in range(1, 30):  # matches nothing, and has a long text
        assert not len(empty.ids(Where.parse({"label": "x" * 1000 + str(i)})))
    assert len(empty._matching._kept) <= 2


def test_facts_and_generation(empty: Gallery, tmp_path: Path) -> None:
    assert empty.generation == 0
    empty.upsert(entries(0, 3))
    with Gallery(tmp_path / "empty") as reader:
        assert reader.generation == empty.generation == 1
        empty.set_metadata({1: {"a": 1}})
        assert reader.generation == 2
        found = reader.facts()
    assert (found.images, found.dim, found.model, found.format, found.generation) == (3, DIM, MODEL, 2, 2)
    assert found.bytes > 4096 and found.index.kind == "flat" and found.index.exact
    assert empty.name == "empty" and empty.model_path == tmp_path
