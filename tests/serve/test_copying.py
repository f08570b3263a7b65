"""Galleries copied between folders and stores, bit for bit, whatever happens to the source meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import Run, one_error
from copies import MODEL, entry, made
from copying_helpers import (
    N,
    Turned,
    bend_a_vector,
    everything,
    install_store,
    next_id,
    small_parts,
)
from shelf_store import Shelf

from clf.errors import GalleryError
from clf_serve.copying import Steps, copy, diff
from clf_serve.copying.searches import K, Nearest
from clf_serve.copying.sides import PART_BYTES, in_parts, reading
from clf_serve.gallery import Entry, Gallery, Identity
from clf_serve.gallery.store import Moved
from clf_serve.stores import Row, open_gallery, open_or_create


@pytest.fixture
def store(install: Callable[..., Path], tmp_path: Path) -> Callable[[str], str]:
    install("clf-shelf", entry_points="[clf.indexes]\nshelf = shelf_store:Shelf\n")
    return lambda name: f"shelf://{tmp_path}/{name}.db"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With gaps among its ids, and none left of the last."""
    folder = made(tmp_path / "g", N)
    bend_a_vector(folder)
    return folder


def test_every_way_gives_the_same_gallery(folder: Path, store: Callable[[str], str], tmp_path: Path) -> None:
    before = everything(folder)
    assert {len(jpeg) for *_, jpeg in before} > {0} and len(before) == N
    ways = [(folder, store("a")), (store("a"), store("b")), (store("b"), tmp_path / "c"), (tmp_path / "c", "d")]
    for source, new in ways:
        new = new if new != "d" else tmp_path / "d"
        report = copy(source, new)
        assert (report.images, report.resumed, report.caught_up) == (N, 0, 0)
        assert (report.compared.rows, report.compared.different) == (N, 0)
        assert report.compared.thumbnails == sum(bool(jpeg) for *_, jpeg in before)
        assert report.compared.bytes == sum(len(vector) + len(jpeg) for _, vector, jpeg in before)
        assert report.searches == 32
        assert everything(new) == before
        found = diff(source, new)
        assert found.same and found.images == (N, N) and found.searches == report.searches
        with open_gallery(source) as a, open_gallery(new) as b:
            assert a.model == b.model == MODEL and a.model_path == b.model_path
    assert everything(folder) == before
    assert {next_id(place) for place in (folder, *(new for _, new in ways[:3]), tmp_path / "d")} == {N + 4}


def test_what_was_chosen_of_the_index_comes_back_from_a_store(
    folder: Path, store: Callable[[str], str], tmp_path: Path
) -> None:
    with Gallery(folder, write=True) as gallery:
        gallery.optimize("hnsw", memory=123 << 20, recall=0.9)

    copy(folder, store("a"))
    copy(store("a"), tmp_path / "back")

    with Gallery(tmp_path / "back") as back:
        assert back.wishes == ("hnsw", 123 << 20, 0.9)
        assert back.cache_note is None


def test_a_gallery_without_images_is_copied_too(store: Callable[[str], str], tmp_path: Path) -> None:
    folder = made(tmp_path / "g", 1)
    with Gallery(folder, write=True) as gallery:
        gallery.delete(gallery.ids().tolist())
    for source, new in ((folder, store("a")), (store("a"), tmp_path / "back")):
        assert copy(source, new).images == 0 and everything(new) == [] and diff(source, new).same
    assert next_id(tmp_path / "back") == next_id(folder) == 5
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir() and path.name[0] in ".bg") == ["back", "g"]


def test_parts_are_bounded_in_rows_and_bytes() -> None:
    small = [Row(i, str(i)) for i in range(1, 2_501)]
    assert [len(part) for part in in_parts(iter(small))] == [1000, 1000, 500]
    large = [replace(row, thumbnail=bytes(PART_BYTES // 3)) for row in small[:10]]
    assert [len(part) for part in in_parts(iter(large))] == [3, 3, 3, 1]


def test_a_store_is_read_in_parts_that_fit_its_rows(store: Callable[[str], str], tmp_path: Path) -> None:
    with open_or_create(store("a"), MODEL, tmp_path) as gallery:
        gallery.upsert([replace(entry(i), thumbnail=bytes(PART_BYTES // 50)) for i in range(300)])
    with reading(store("a")) as side:
        sizes = [len(part) for part in side.rows()]
    assert sum(sizes) == 300 and sizes[0] == 125 and set(sizes[1:-1]) <= {48, 49, 50}


@pytest.mark.parametrize("equal", [1, 3])
def test_the_nearest_of_all_that_went_by_are_those_of_brute_force(equal: int) -> None:
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(500 // equal, 8)), equal, axis=0)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    ids = np.sort(rng.choice(10_000, len(vectors), replace=False)).astype(np.int64)
    nearest = Nearest(list(vectors[:20]))
    for start in range(0, len(ids), 37):
        nearest.add(ids[start : start + 37], vectors[start : start + 37])
    for query, found in zip(nearest.queries, nearest._best, strict=True):
        scores = vectors.astype(np.float64) @ query.astype(np.float64)
        assert [id_ for id_, _ in found] == ids[np.lexsort((ids, -scores.round(12)))[:K]].tolist()


def test_facts_that_a_store_turns_round_are_the_same(install: Callable[..., Path], tmp_path: Path) -> None:
    install_store(install, Turned)
    url = f"shelf://{tmp_path}/t.db"
    metadata = {
        "z": 1e300,
        "a": [True, 1.0, 2**53 + 1],
        "m": {"b": None, "a": -5e-324},
        "big": -(2**63),
    }
    each = [{**metadata, "i": i} for i in range(4)] + [{"just beyond 64 bits": 9.3e18}]
    with Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path) as gallery:
        gallery.upsert([replace(entry(i), sha256="ab" * 32, metadata=each[i]) for i in range(5)])

    copy(tmp_path / "g", url)
    copy(url, tmp_path / "back")

    assert diff(tmp_path / "g", tmp_path / "back").same
    assert [row[0].metadata for row in everything(tmp_path / "back")] == each
    with open_gallery(url, write=True) as turned:  # 1e300 came back with 301 digits, and can be kept again
        assert turned.set_metadata({1: {"new": 1}, 5: {"new": 1}}) == 2
    with Gallery(tmp_path / "back", write=True) as gallery:
        gallery.set_metadata({2: {"a": [1, 1.0, 2**53 + 1]}})
    assert [each.text for each in diff(tmp_path / "g", tmp_path / "back").compared.first] == [
        "of image 2 metadata differ (in the types of values)"
    ]


def stop_after(rows: int) -> Steps:
    seen = [0]

    def progress(done: int) -> None:
        seen[0] += done
        if seen[0] >= rows:
            raise KeyboardInterrupt

    return Steps(progress=progress)


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_stopped_and_run_again_it_goes_on_whatever_has_changed(
    kind: str, folder: Path, store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch)
    new: Any = tmp_path / "new" if kind == "folder" else store("new")
    with pytest.raises(KeyboardInterrupt):
        copy(folder, new, stop_after(30))
    assert not (tmp_path / "new").exists()
    with Gallery(folder, write=True) as gallery:
        ids = gallery.ids().tolist()
        first, second, late = gallery.items([ids[0], ids[5], ids[-1]])
        gallery.delete(ids[10:13])
        gallery.relocate(
            [  # three images change places; one of them is not copied yet
                Moved(first.id, late.key, late.uri, 1, 1),
                Moved(second.id, first.key, first.uri, 2, 2),
                Moved(late.id, second.key, second.uri, 3, 3),
            ]
        )
        gallery.set_metadata({ids[20]: {"label": "new"}})
        gallery.upsert([entry(700), replace(entry(6), vector=entry(701).vector)])

    report = copy(folder, new)

    assert report.resumed == 30 and report.images == N - 2
    assert everything(new) == everything(folder) and diff(folder, new).same
    assert not list(tmp_path.glob(".*"))


def test_a_folder_is_copied_as_it_was_when_the_copy_began(
    folder: Path, store: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch)
    before = everything(folder)
    with Gallery(folder, write=True) as gallery:

        def write(done: int) -> None:
            gallery.delete(gallery.ids().tolist()[-2:])
            gallery.upsert([entry(800 + len(gallery))])

        report = copy(folder, store("a"), Steps(progress=write))

    assert report.caught_up == 0 and everything(store("a")) == before != everything(folder)


def test_what_is_written_to_a_store_meanwhile_is_copied_too(
    folder: Path, store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch)
    copy(folder, store("a"))
    with open_gallery(store("a"), write=True) as gallery:
        ids = gallery.ids().tolist()
        calls = iter(range(100))

        def write(done: int) -> None:
            if next(calls) == 3:  # an image that was copied gives its key to one that was not, and one is gone
                one, other = gallery.items([ids[2], ids[-2]])
                gallery.relocate([Moved(one.id, "elsewhere", "e", 1, 1), Moved(other.id, one.key, one.uri, 1, 1)])
                gallery.delete([ids[4]])

        report = copy(store("a"), tmp_path / "new", Steps(progress=write))

    assert report.images == N - 1 and report.caught_up >= 2
    assert everything(tmp_path / "new") == everything(store("a")) and diff(store("a"), tmp_path / "new").same


def test_a_store_that_is_written_to_all_the_time_is_not_taken_for_copied(
    folder: Path, store: Callable[[str], str], tmp_path: Path
) -> None:
    copy(folder, store("a"))
    with open_gallery(store("a"), write=True) as gallery:
        stages: list[str] = []

        def write(label: str, rows: int) -> None:
            stages.append(label)
            gallery.upsert([entry(900 + len(stages))])

        with pytest.raises(GalleryError, match=r"a\.db is written to all the time; .* run this again to go on"):
            copy(store("a"), tmp_path / "new", Steps(stage=write))
    assert stages == ["copying", *["catching up"] * 5] and not (tmp_path / "new").exists()

    assert copy(store("a"), tmp_path / "new").resumed >= N
    assert everything(tmp_path / "new") == everything(store("a"))


def test_what_is_there_is_never_touched(folder: Path, store: Callable[[str], str], tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", 5)
    with open_or_create(store("a"), Identity("another", "cd" * 32, 4), tmp_path) as gallery:
        assert len(gallery) == 0
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "n.txt").write_text("mine")
    before = everything(other)
    for new in (other, tmp_path / "notes", folder):
        assert "exists; name a new folder" in one_error(run("gallery", "copy", folder, new))
    said = one_error(run("gallery", "copy", folder, store("a")))
    assert f"there is a gallery at {store('a')}, which is left as it is; name a new one" in said
    assert everything(other) == before and (tmp_path / "notes" / "n.txt").read_text() == "mine"
    assert "is not a gallery; make one" in one_error(run("gallery", "copy", tmp_path / "none", tmp_path / "new"))
    assert "there is no gallery at" in one_error(run("gallery", "copy", store("none"), tmp_path / "new"))
    assert "no installed package keeps galleries at other://" in one_error(run("gallery", "copy", folder, "other://x"))
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "new").exists()


CHANGES: dict[str, Callable[[Gallery], object]] = {
    "missing": lambda g: g.delete([9]),
    "extra": lambda g: g.upsert([entry(600)], ids=[1]),
    "key": lambda g: g.relocate([Moved(9, "/moved.jpg", "ä/00008.jpg", 1008, 1_700_000_000_123_456_797, "")]),
    "facts": lambda g: g.set_metadata({9: {"label": "cat"}}),
    "vector": lambda g: g.upsert([replace(entry(8), vector=entry(601).vector)]),
    "thumbnail": lambda g: g.upsert([replace(entry(8), thumbnail=b"other")]),
}


@pytest.mark.parametrize("part", CHANGES)
def test_diff_names_what_differs(part: str, tmp_path: Path, run: Run) -> None:
    a, b = made(tmp_path / "a", 30), made(tmp_path / "b", 30)
    with Gallery(b, write=True) as gallery:
        CHANGES[part](gallery)

    code, out, _ = run("gallery", "diff", a, b, "--json")

    found = json.loads(out)
    assert code == 1 and found["same"] is False and found["different"] == 1 and found["searches"] == 0
    [first] = found["first"]
    assert (first["part"], first["id"]) == (part, 1 if part == "extra" else 9)
    code, out, _ = run("gallery", "diff", a, b)
    assert code == 1 and first["text"] in out and "1 difference." in out
    assert run("gallery", "diff", a, a)[0] == 0


def test_diff_of_galleries_that_have_little_in_common(tmp_path: Path, run: Run) -> None:
    a, b = made(tmp_path / "a", 40), made(tmp_path / "b", 1, Identity("another", "cd" * 32, 4))
    code, out, _ = run("gallery", "diff", a, b)
    assert code == 1 and "and 31 more" in out and "40 images in" in out
    assert "image 5 (/photos/ä/00004.jpg) is only in the first" in out
    assert "the vectors of image 2 (8 and 4 numbers)" in out
    found = diff(a, b)
    assert found.compared.different == 40 + 1 and found.searches == 0


def test_the_command_says_what_was_compared(
    folder: Path, store: Callable[[str], str], tmp_path: Path, run: Run
) -> None:
    code, out, err = run("gallery", "copy", folder, store("a"))
    assert (code, err) == (0, "")
    assert f"{N} images of {folder} → {store('a')}" in out
    assert f"compared after that: {N} ids, keys, facts and vectors, " in out and "exact searches; no difference" in out
    code, out, _ = run("gallery", "copy", store("a"), tmp_path / "new", "--json")
    found = json.loads(out)
    assert code == 0 and found["images"] == found["compared"]["rows"] == N and found["first"] == []
    assert (found["source"], found["gallery"], found["resumed"]) == (store("a"), str(tmp_path / "new"), 0)
    code, out, _ = run("gallery", "diff", folder, tmp_path / "new")
    assert code == 0 and f"{N} in {tmp_path / 'new'} (the second): the same. Compared: {N} ids" in out


def test_vectors_of_a_store_need_no_more_than_to_be_believed(store: Callable[[str], str], tmp_path: Path) -> None:
    """A store gives what it was given, and a copy takes it so: nothing is made of unit length anew."""
    with open_or_create(store("a"), MODEL, tmp_path) as gallery:
        gallery.upsert([Entry("k", "u", entry(1).vector)])
        raw: Any = gallery.calls.store  # type: ignore[attr-defined]
        assert isinstance(raw, Shelf)
        bent = (entry(1).vector * np.float32(0.9993)).tobytes()
        raw.db.execute("UPDATE rows SET vector = ?", (bent,))
    copy(store("a"), tmp_path / "new")
    assert everything(tmp_path / "new")[0][1] == bent
