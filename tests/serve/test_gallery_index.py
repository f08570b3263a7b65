"""The index beside the database: a cache that is used, caught up, replaced, chosen and never trusted too far."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import DIM, MODEL, entries, make, unit

from clf.errors import GalleryError
from clf_serve.gallery import Entry, Gallery, following
from clf_serve.index import VectorIndex


def agrees_with_brute_force(gallery: Gallery, k: int = 10) -> None:
    parts = list(gallery.batches())
    ids = np.concatenate([ids for ids, _ in parts])
    vectors = np.concatenate([rows for _, rows in parts])
    for query in unit(np.random.default_rng(9), 5):
        expected = ids[np.argsort(-(vectors.astype(np.float64) @ query), kind="stable")][:k]
        assert [hit.id for hit in gallery.search(query, k, exact=True)] == expected.tolist()


def test_a_saved_index_is_used_and_caught_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = entries(0, 50)
    with Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path) as writer:
        ids = writer.upsert(batch[:40])
        writer.save_index()
        writer.upsert(batch[40:])
        writer.delete(ids[:5])
    decoded: list[int] = []
    decode = following.decode
    monkeypatch.setattr(
        following, "decode", lambda db, blobs, dim: decoded.append(len(blobs)) or decode(db, blobs, dim)
    )
    with Gallery(tmp_path / "g") as reader:
        hits = reader.search(batch[45].vector, 100)

        assert len(hits) == 45 and hits[0].uri == "45.jpg"
        assert decoded == [10]  # only what came after the saved index
        assert reader.cache_note is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "no file", "foreign", "manifest", "missing"])
def test_a_bad_cache_is_rebuilt_from_the_database(tmp_path: Path, damage: str) -> None:
    folder, other = make(tmp_path / "g", 30), make(tmp_path / "other", 10)
    index = folder / "index"
    largest = max(index.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    if damage == "truncated":
        largest.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 3] ^= 0xFF
        largest.write_bytes(data)
    elif damage == "emptied":
        largest.write_bytes(b"")
    elif damage == "no file":
        largest.unlink()
    elif damage == "manifest":
        (index / "index.json").write_text("{")
    else:
        shutil.rmtree(index)
        if damage == "foreign":
            shutil.copytree(other / "index", index)

    with Gallery(folder) as reader:
        assert [reader.search(entry.vector, 1)[0].uri for entry in entries(0, 30)] == [f"{i}.jpg" for i in range(30)]
        assert (reader.cache_note is None) == (damage == "missing")
        reader.save_index()
    with Gallery(folder) as reader:
        reader.load_index()
        assert reader.cache_note is None


def test_a_reader_takes_up_the_better_index_that_a_writer_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nothing is written after it: the reader compares every vector until then."""
    monkeypatch.setattr("clf_serve.index.plan._LEAST_FOR_LISTS", 40)
    with Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path) as writer:
        writer.upsert(entries(0, 60))
        with Gallery(tmp_path / "g") as reader:
            assert reader.facts().index.kind == "flat" and reader.cache_note is None
            monkeypatch.setattr("clf_serve.index.plan.FLAT_VALUES", 10)
            writer.save_index()
            assert writer.facts().index.kind == "hnsw"
            agrees_with_brute_force(reader)
            assert reader.facts().index.kind == "hnsw" and reader.cache_note is None


def test_an_index_saved_while_a_search_begins_is_not_taken_for_a_wrong_one(tmp_path: Path) -> None:
    folder = make(tmp_path / "g", 5)
    with Gallery(folder) as reader, Gallery(folder, write=True) as writer:
        with reader._db.reading() as connection:  # a search that has begun, and not yet opened the index
            writer.upsert(entries(5, 5, seed=2))
            writer.save_index()
            with pytest.raises(following.StaleError):
                reader._follower.at(connection)
        assert len(reader.search(entries(0, 5)[0].vector, 100)) == 10
        assert reader.cache_note is None


def test_a_cache_newer_than_a_restored_database_is_not_believed(tmp_path: Path) -> None:
    folder = make(tmp_path / "g", 5)
    shutil.copy(folder / "gallery.sqlite", tmp_path / "backup")
    with Gallery(folder, write=True) as writer:
        writer.upsert(entries(5, 5, seed=2))
        writer.save_index()
    shutil.copy(tmp_path / "backup", folder / "gallery.sqlite")

    with Gallery(folder) as reader:
        assert len(reader.search(entries(0, 5)[0].vector, 100)) == 5
        assert reader.cache_note is not None and "newer" in reader.cache_note


def test_nor_when_the_restored_database_has_caught_up_with_it(tmp_path: Path) -> None:
    """The generations agree, the contents do not."""
    folder = make(tmp_path / "g", 5)
    shutil.copy(folder / "gallery.sqlite", tmp_path / "backup")
    with Gallery(folder, write=True) as writer:
        writer.upsert(entries(5, 5, seed=2))
        writer.save_index()
    shutil.copy(tmp_path / "backup", folder / "gallery.sqlite")
    with Gallery(folder, write=True) as writer:
        writer.upsert(entries(20, 5, seed=3))

    with Gallery(folder) as reader:
        assert {hit.uri for hit in reader.search(entries(0, 5)[0].vector, 100)} == {
            f"{i}.jpg" for i in [*range(5), *range(20, 25)]
        }


def test_the_index_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "g", 5)
    before = {path.name: path.read_bytes() for path in (folder / "index").iterdir()}
    with Gallery(folder, write=True) as writer:
        writer.upsert(entries(5, 5, seed=1))

        def fail(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            writer.save_index()
        assert writer.cache_note is not None and "could not be saved (No space left on device" in writer.cache_note
        assert len(writer.search(entries(0, 1)[0].vector, 100)) == 10

    assert {path.name: path.read_bytes() for path in (folder / "index").iterdir()} == before


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_every_kind_is_kept_up_to_date_and_measured(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    stages: list[str] = []
    with Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path) as writer:
        ids = writer.upsert([Entry(f"k{i}", f"{i}", v) for i, v in enumerate(unit(rng, 1500))])
        info = writer.optimize(kind, recall=0.9, progress=lambda stage, done: stages.append(stage))
        assert (info.kind, info.vectors, info.target) == (kind, 1500, 0.9)
        assert info.recall is not None and info.recall > 0.85 and stages
        writer.delete(ids[::7])
        writer.upsert([Entry(f"new{i}", f"new{i}", v) for i, v in enumerate(unit(rng, 50))])
        agrees_with_brute_force(writer)
        writer.save_index()
    with Gallery(tmp_path / "g") as reader:
        facts = reader.facts()
        assert (facts.index.kind, facts.index.vectors) == (kind, len(reader))
        assert facts.index.recall is not None and facts.index.recall > 0.85
        agrees_with_brute_force(reader)
        for query in unit(rng, 20):  # scores are exact, whatever the index
            for hit in reader.search(query, 5):
                vector = reader.vector(hit.id)
                assert vector is not None
                assert hit.score == pytest.approx(float(vector.astype(np.float64) @ query), abs=1e-12)
        assert len(reader.search(query, 10**6)) == len(reader)  # never short
        assert reader.cache_note is None


def test_what_was_chosen_is_kept(tmp_path: Path) -> None:
    folder = make(tmp_path / "g")
    with Gallery(folder, write=True) as writer:
        writer.upsert([Entry(f"k{i}", f"{i}", v) for i, v in enumerate(unit(np.random.default_rng(0), 1200))])
        writer.optimize("hnsw", memory=10**9, recall=0.9)
    with Gallery(folder, write=True) as writer:
        info = writer.optimize()
        assert (info.kind, info.target) == ("hnsw", 0.9)
        assert writer.optimize("auto", memory=0).kind == "flat"
        for wrong in ({"kind": "tree"}, {"recall": 2.0}):
            with pytest.raises(GalleryError, match=r"no index of .* can be built so"):
                writer.optimize(**wrong)  # type: ignore[arg-type]


def test_deletions_are_forgotten_once_saved_and_readers_from_before_start_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_DELETED", 10)
    folder = make(tmp_path / "g", 40)
    query = entries(0, 1)[0].vector
    with Gallery(folder) as reader, Gallery(folder, write=True) as writer:
        assert len(reader.search(query, 100)) == 40
        shutil.copytree(folder / "index", tmp_path / "old")
        writer.delete(writer.ids()[:20].tolist())
        writer.save_index()
        with writer._db.reading() as connection:
            assert connection.execute("SELECT count(*) FROM deleted").fetchone() == (0,)
        writer.delete(writer.ids()[:5].tolist())

        assert len(reader.search(query, 100)) == 15  # which deletions it missed it could not know
    shutil.rmtree(folder / "index")
    shutil.copytree(tmp_path / "old", folder / "index")
    with Gallery(folder) as reader:
        assert len(reader.search(query, 100)) == 15
        assert reader.cache_note is not None and "too old" in reader.cache_note


def test_an_index_saved_elsewhere_is_taken_up_when_ones_own_is_worn(tmp_path: Path) -> None:
    folder = make(tmp_path / "g", 20)
    with Gallery(folder) as reader, Gallery(folder, write=True) as writer:
        query = entries(0, 1)[0].vector
        assert reader.facts().index.tombstones == 0
        writer.upsert(entries(0, 20, seed=4))
        assert len(reader.search(query, 100)) == 20 and reader.facts().index.tombstones > 0
        writer.optimize()
        writer.set_metadata({1: {"a": 1}})
        assert len(reader.search(query, 100)) == 20 and reader.facts().index.tombstones == 0


def test_a_damaged_index_is_not_opened_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "g", 20)
    largest = max((folder / "index").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"")
    monkeypatch.setattr(VectorIndex, "due", lambda self, plan=None: True)
    opened: list[Path] = []
    open_index = VectorIndex.open
    monkeypatch.setattr(VectorIndex, "open", lambda folder, stamp: opened.append(folder) or open_index(folder, stamp))
    with Gallery(folder) as reader, Gallery(folder, write=True) as writer:
        for i in range(3):
            writer.upsert(entries(i, 1, seed=i))
            assert len(reader.search(entries(0, 1)[0].vector, 100)) == 20
        assert len(opened) == 1
        writer.save_index()
        writer.upsert(entries(0, 1, seed=7))
        assert len(reader.search(entries(0, 1)[0].vector, 100)) == 20
        assert len(opened) == 3  # the writer's, and the new one of the reader


def test_an_index_without_an_image_is_damage(tmp_path: Path) -> None:
    folder = make(tmp_path / "g", 5)
    with Gallery(folder, write=True) as writer:
        with writer._db.writing() as (connection, _):
            connection.execute("DELETE FROM images WHERE id = 2")
        with pytest.raises(GalleryError, match=r"damaged .*restore"):
            writer.search(np.eye(DIM, dtype=np.float32)[0], 5)
    shutil.rmtree(folder / "index")
    with Gallery(folder) as reader, pytest.raises(GalleryError, match=r"damaged \(4 images, 5 vectors\)"):
        reader.load_index()


def test_the_manifest_names_the_generation(tmp_path: Path) -> None:
    """What a writer that opens the gallery reads of it."""
    folder = make(tmp_path / "g", 5)
    assert json.loads((folder / "index" / "index.json").read_text())["generation"] == 1
