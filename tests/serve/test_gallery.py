"""The gallery against brute force, against a second process, and against damage."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clf.errors import GalleryError
from clf_serve.gallery import Gallery, Identity
from clf_serve.gallery.store import Entry, Store

DIM = 6
MODEL = Identity("m", "ab" * 32, DIM)


def unit(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    vectors = rng.normal(size=(n, DIM))
    rows: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return rows


def entries(first: int, n: int, seed: int = 0) -> list[Entry]:
    return [
        Entry(f"k{i}", f"{i}.jpg", vector, b"jpeg%d" % i)
        for i, vector in enumerate(unit(np.random.default_rng(seed), n), first)
    ]


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.open_or_create(tmp_path / "empty", MODEL, tmp_path) as opened:
        yield opened


def test_it_is_a_store(empty: Gallery) -> None:
    store: Store = empty

    ids = store.upsert(entries(0, 3))

    assert store.search(entries(0, 3)[1].vector, 1)[0].id == ids[1]
    assert store.delete([ids[1], 999]) == 1
    assert ids[1] not in [hit.id for hit in store.search(entries(0, 3)[1].vector, 3)]


def test_an_empty_gallery_has_no_neighbours(empty: Gallery) -> None:
    assert empty.search(unit(np.random.default_rng(0), 1)[0], 5) == []
    assert len(empty) == 0


def test_what_goes_in_comes_back(empty: Gallery) -> None:
    vector = unit(np.random.default_rng(0), 1)[0]
    (id_,) = empty.upsert([Entry("k", "a/b.jpg", vector, b"thumb", 5, 6, "ff", 7, 8, {"colour": "ä"})])

    (hit,) = empty.search(vector, 10)

    assert (hit.id, hit.uri, hit.metadata, hit.sha256) == (id_, "a/b.jpg", {"colour": "ä"}, "ff")
    assert hit.score == pytest.approx(1, abs=1e-6)
    assert empty.thumbnail(id_) == (b"thumb", "ff")
    np.testing.assert_array_equal(empty.vector(id_), vector)
    assert empty.vector(id_ + 1) is None and empty.thumbnail(id_ + 1) is None and empty.get(id_ + 1) is None


def test_an_entry_of_the_same_key_is_replaced_and_keeps_its_id(empty: Gallery) -> None:
    first, second = unit(np.random.default_rng(0), 2)
    ids = empty.upsert([Entry("k", "old", first)])

    assert empty.upsert([Entry("k", "new", second)]) == ids
    assert [(hit.uri, round(hit.score, 5)) for hit in empty.search(second, 5)] == [("new", 1.0)]


@pytest.mark.parametrize("vector", [np.zeros(DIM), np.full(DIM, np.nan), np.ones(DIM), np.eye(DIM + 1)[0]])
def test_vectors_that_are_not_unit_vectors_never_get_in(empty: Gallery, vector: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="unit length"):
        empty.upsert([*entries(0, 2), Entry("bad", "bad", vector.astype(np.float32))])
    with pytest.raises(ValueError, match="unit length"):
        empty.search(vector.astype(np.float32), 1)
    assert len(empty) == 0  # all or none


operations = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), st.lists(st.integers(0, 15), min_size=1, max_size=6), st.integers(0, 2**31)),
        st.tuples(st.just("delete"), st.lists(st.integers(0, 15), max_size=4), st.just(0)),
        st.tuples(st.just("search"), st.lists(st.integers(1, 20), min_size=1, max_size=1), st.integers(0, 2**31)),
        st.tuples(st.just("save"), st.just([]), st.just(0)),
        st.tuples(st.just("reopen"), st.just([]), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations)
def test_any_history_ends_as_brute_force_says(history: list[tuple[str, list[int], int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g"
        writer = Gallery.open_or_create(path, MODEL, path)
        reader = Gallery(path)  # sees every commit at its next search
        truth: dict[str, tuple[int, NDArray[np.float32]]] = {}
        for name, numbers, seed in history:
            if name == "upsert":
                vectors = unit(np.random.default_rng(seed), len(numbers))
                batch = [Entry(f"k{n}", f"k{n}", v) for n, v in zip(numbers, vectors, strict=True)]
                for entry, id_ in zip(batch, writer.upsert(batch), strict=True):
                    assert truth.get(entry.key, (id_,))[0] == id_
                    truth[entry.key] = (id_, entry.vector)
            elif name == "delete":
                gone = {f"k{n}" for n in numbers} & truth.keys()
                assert writer.delete([truth.pop(key)[0] for key in sorted(gone)]) == len(gone)
            elif name == "search":
                query = unit(np.random.default_rng(seed), 1)[0]
                for gallery in (writer, reader):
                    hits = gallery.search(query, numbers[0])
                    scores = {key: float(vector @ query) for key, (_, vector) in truth.items()}
                    best = sorted(scores, key=lambda key: -scores[key])[: numbers[0]]
                    assert [hit.uri for hit in hits] == best
                    assert [hit.id for hit in hits] == [truth[key][0] for key in best]
                    np.testing.assert_allclose([hit.score for hit in hits], [scores[key] for key in best], atol=1e-6)
            elif name == "save":
                writer.save_index()
            else:
                writer.close()
                reader.close()
                writer, reader = Gallery(path, MODEL, write=True), Gallery(path)
            assert len(writer) == len(truth)
        writer.close()
        reader.close()


def test_a_saved_index_is_used_and_caught_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = entries(0, 50)
    with Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path) as writer:
        ids = writer.upsert(batch[:40])
        writer.save_index()
        writer.upsert(batch[40:])
        writer.delete(ids[:5])
    with Gallery(tmp_path / "g") as reader:
        decoded: list[int] = []
        decode = reader._decode
        monkeypatch.setattr(reader, "_decode", lambda blobs: decoded.append(len(blobs)) or decode(blobs))

        hits = reader.search(batch[45].vector, 100)

        assert len(hits) == 45 and hits[0].uri == "45.jpg"
        assert decoded == [10]  # only what came after the saved index
        assert reader.cache_note is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "foreign", "missing"])
def test_a_bad_cache_is_rebuilt_from_the_database(tmp_path: Path, damage: str) -> None:
    batch = entries(0, 30)
    for name in ("g", "other"):
        with Gallery.open_or_create(tmp_path / name, MODEL, tmp_path) as writer:
            writer.upsert(batch if name == "g" else entries(0, 30, seed=1))
            writer.save_index()
    cache = tmp_path / "g" / "index.faiss"
    data = bytearray(cache.read_bytes())
    if damage == "truncated":
        cache.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 3] ^= 0xFF
        cache.write_bytes(data)
    elif damage == "emptied":
        cache.write_bytes(b"")
    elif damage == "foreign":
        shutil.copy(tmp_path / "other" / "index.faiss", cache)
    else:
        cache.unlink()

    with Gallery(tmp_path / "g") as reader:
        assert [reader.search(entry.vector, 1)[0].uri for entry in batch] == [entry.uri for entry in batch]
        assert (reader.cache_note is None) == (damage == "missing")


def test_a_cache_newer_than_a_restored_database_is_not_believed(tmp_path: Path) -> None:
    with Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path) as writer:
        writer.upsert(entries(0, 5))
    shutil.copytree(tmp_path / "g", tmp_path / "backup")
    with Gallery(tmp_path / "g", write=True) as writer:
        writer.upsert(entries(5, 5, seed=2))
        writer.save_index()
    shutil.copy(tmp_path / "backup" / "gallery.sqlite", tmp_path / "g" / "gallery.sqlite")

    with Gallery(tmp_path / "g") as reader:
        assert len(reader.search(entries(0, 5)[0].vector, 100)) == 5
        assert reader.cache_note is not None and "newer" in reader.cache_note


def test_the_index_file_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path) as writer:
        writer.upsert(entries(0, 5))
        writer.save_index()
        before = (tmp_path / "g" / "index.faiss").read_bytes()
        writer.upsert(entries(5, 5, seed=1))

        def fail(_: int) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, "fsync", fail)
        writer.save_index()
        assert writer.cache_note is not None and "could not be saved (disk full)" in writer.cache_note
        assert len(writer.search(entries(0, 1)[0].vector, 100)) == 10

    assert (tmp_path / "g" / "index.faiss").read_bytes() == before
    assert not list((tmp_path / "g").glob("*.tmp"))


@pytest.mark.parametrize("damage", ["garbage", "truncated", "page", "vector", "meta"])
def test_a_damaged_database_is_refused_with_a_remedy(tmp_path: Path, damage: str) -> None:
    with Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path) as writer:
        writer.upsert([Entry(e.key, e.uri, e.vector, bytes(3000)) for e in entries(0, 200)])
    path = tmp_path / "g" / "gallery.sqlite"
    data = bytearray(path.read_bytes())
    if damage == "garbage":
        path.write_bytes(b"nothing like a database" * 500)
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 3])
    elif damage == "page":
        page = int.from_bytes(data[16:18], "big")
        for start in range(page, len(data), page):
            data[start : start + 64] = bytes(64)
        path.write_bytes(data)
    else:
        connection = sqlite3.connect(path)
        statement = "UPDATE images SET vector = zeroblob(24) WHERE id = 7"
        connection.execute(statement if damage == "vector" else "DELETE FROM meta WHERE key = 'dim'")
        connection.commit()
        connection.close()

    with (
        pytest.raises(GalleryError, match=r"damaged .*clf index"),
        Gallery(tmp_path / "g") as reader,
    ):
        reader.search(entries(0, 1)[0].vector, 3)


def test_another_format_is_refused(tmp_path: Path) -> None:
    Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path).close()
    connection = sqlite3.connect(tmp_path / "g" / "gallery.sqlite")
    connection.execute("PRAGMA user_version = 2")
    connection.close()

    with pytest.raises(GalleryError, match="format 2, this clf reads format 1"):
        Gallery(tmp_path / "g")


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path).close()

    with pytest.raises(GalleryError, match=r"was made with model m \(abababababab, 6 dimensions\), not with n"):
        Gallery(tmp_path / "g", Identity("n", "cd" * 32, DIM))


def test_what_is_no_gallery_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")

    with pytest.raises(GalleryError, match="is not a gallery; make one"):
        Gallery(tmp_path / "photos")
    with pytest.raises(GalleryError, match="name a new folder"):
        Gallery.open_or_create(tmp_path / "photos", MODEL, tmp_path)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_a_foreign_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    connection = sqlite3.connect(tmp_path / "g" / "gallery.sqlite")
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()

    with pytest.raises(GalleryError, match="not a gallery of clf"):
        Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path)


def test_a_second_writer_is_told_and_readers_are_not_blocked(tmp_path: Path) -> None:
    with Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path) as writer:
        writer.upsert(entries(0, 3))
        with pytest.raises(GalleryError, match="another process is writing to the gallery"):
            Gallery(tmp_path / "g", write=True)
        with writer._db.writing() as (connection, _):  # in the middle of a transaction
            connection.execute("DELETE FROM images")
            with Gallery(tmp_path / "g") as reader:
                assert len(reader) == 3
                assert len(reader.search(entries(0, 1)[0].vector, 10)) == 3
    Gallery(tmp_path / "g", write=True).close()  # free again


def test_only_a_writer_is_called_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(GalleryError) as caught:
        Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path)
    assert "another process" not in str(caught.value)
    assert f"{tmp_path / 'g'} cannot be written: unable to open database file" in str(caught.value)


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    with Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path) as writer:
        writer.upsert(entries(0, 3))
        pages = writer._db._connection.execute("PRAGMA page_count").fetchone()[0]
        writer._db._connection.execute(f"PRAGMA max_page_count = {pages}")
        big = [Entry(e.key, e.uri, e.vector, bytes(30_000)) for e in entries(3, 3)]
        with pytest.raises(GalleryError, match="disk is full; make room and run this again, earlier entries are kept"):
            writer.upsert(big)
        assert len(writer) == 3
    with Gallery(tmp_path / "g") as reader:
        assert len(reader.search(entries(0, 1)[0].vector, 100)) == 3


def test_a_locked_gallery_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(GalleryError, match="g cannot be read: Permission denied"):
        Gallery(tmp_path / "g")


def test_a_gallery_in_a_folder_nobody_may_write_to_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path) as writer:
        writer.upsert(entries(0, 3))
    monkeypatch.setattr("clf_serve.gallery.database.os.access", lambda path, mode: False)

    with Gallery(tmp_path / "g") as reader:
        assert len(reader.search(entries(0, 1)[0].vector, 10)) == 3
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == ["gallery.sqlite", "write.lock"]
