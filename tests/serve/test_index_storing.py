"""A saved index: opened again as it was, never believed when it is not, never half written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from index_helpers import DIM, KINDS, Brute, Vectors, built, recall, unit

from clf_serve.index import Stamp, VectorIndex, files, storing

N = 1200
IDS = np.arange(N, dtype=np.int64) + 1
VECTORS = unit(N)
QUERIES = unit(30, seed=1)
NONE = np.empty((0, DIM), np.float32)
STAMP = Stamp("gallery", DIM, 9)


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved index of each kind with recent vectors and tombstones, at generation 3."""
    made = {}
    for kind in KINDS:
        index = built(kind, IDS, VECTORS)
        index.update([1, 2, 3], [10, 5000], unit(2, seed=7), 3)
        made[kind] = tmp_path_factory.mktemp(kind) / "index"
        index.save(made[kind], "gallery")
    return made


@pytest.fixture(params=KINDS)
def saved(request: pytest.FixtureRequest, masters: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(masters[request.param], tmp_path / "index")
    return tmp_path / "index"


def truth() -> Brute:
    known = Brute(IDS, VECTORS)
    known.update([1, 2, 3], [10, 5000], unit(2, seed=7))
    return known


def answers(index: VectorIndex) -> list[list[int]]:
    return [index.search(query, 15).ids.tolist() for query in QUERIES]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_saved_is_there_again(saved: Path) -> None:
    index, note = VectorIndex.open(saved, STAMP)

    assert note is None
    assert index.generation == 3 and len(index) == N - 3 + 1
    assert (index.info.recent, index.info.tombstones) == (2, 4)
    assert recall(index, truth(), QUERIES) >= (1 if index.info.exact else 0.97)
    assert recall(index, truth(), QUERIES[:5], 30, exact=True) == 1
    assert answers(VectorIndex.open(saved, STAMP)[0]) == answers(index)


def test_it_goes_on_from_there(saved: Path) -> None:
    index, _ = VectorIndex.open(saved, STAMP)
    known = truth()
    base = {name for name in names(saved) if not name.startswith(("changes", "index"))}
    for generation in (4, 5):
        change = unit(3, seed=generation)
        index.update([20 * generation], [5000, 10, 6000 + generation], change, generation)
        known.update([20 * generation], [5000, 10, 6000 + generation], change)
        index.save(saved, "gallery")

        again, note = VectorIndex.open(saved, STAMP)
        assert note is None and (again.generation, len(again)) == (generation, len(known.rows))
        assert recall(again, known, QUERIES[:10], 30, exact=True) == 1
        assert base <= names(saved) and len(names(saved)) == len(base) + 2  # nothing of the base is written again


def test_an_index_without_a_base_is_saved_too(tmp_path: Path) -> None:
    index = VectorIndex(DIM)
    index.save(tmp_path / "index", "gallery")
    assert len(VectorIndex.open(tmp_path / "index", STAMP)[0]) == 0

    index.update([], [4, 2], VECTORS[:2], 1)
    index.save(tmp_path / "index", "gallery")
    again, note = VectorIndex.open(tmp_path / "index", STAMP)
    assert note is None and again.search(VECTORS[1], 1).ids.tolist() == [2]


def test_what_it_was_chosen_and_tuned_by_is_kept(saved: Path) -> None:
    first, _ = VectorIndex.open(saved, STAMP)
    first.save(saved, "gallery")
    second, _ = VectorIndex.open(saved, STAMP)

    assert second.info == first.info
    assert second.info.exact or 0.9 < (second.info.recall or 0) <= 1
    assert json.loads(json.dumps(second.info.json()))["kind"] == first.info.kind


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def flip_first(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 0x01
    path.write_bytes(data)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def remove(path: Path) -> None:
    path.unlink()


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [truncate, flip, flip_first, lengthen, empty, garbage, remove, turn_into_a_folder]
)  # fmt: skip
def test_damage_of_any_file_is_seen(saved: Path, damage: Callable[[Path], None], tmp_path: Path) -> None:
    for name in sorted(names(saved)):
        folder = tmp_path / "damaged"
        shutil.copytree(saved, folder)
        damage(folder / name)

        index, note = VectorIndex.open(folder, STAMP)

        if name == files.MANIFEST and damage is remove:
            assert note == "missing"
        else:
            assert note is not None and note.startswith("damaged ("), name
        assert len(index) == 0 and index.generation == 0
        if damage is not turn_into_a_folder:  # and what is saved next is good again
            index.update([], IDS, VECTORS, 4)
            index.save(folder, "gallery")
            assert VectorIndex.open(folder, STAMP)[1] is None
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"crc32": 1}', '{"crc32": 1, "format": 1}', "[" * 100_000, '{"format": 1, "files": 3}'],
)
def test_json_that_is_no_manifest_is_damage(saved: Path, text: str) -> None:
    (saved / files.MANIFEST).write_text(text)

    assert VectorIndex.open(saved, STAMP)[1] == "damaged (index.json)"


def reseal(folder: Path, **changes: object) -> None:
    """A manifest that somebody wrote on purpose, or another version of clf."""
    manifest = json.loads((folder / files.MANIFEST).read_text())
    del manifest["crc32"]
    manifest |= changes
    manifest["crc32"] = files._seal(manifest)
    (folder / files.MANIFEST).write_text(json.dumps(manifest))


def test_foreign_and_newer_ones_are_told_apart(saved: Path) -> None:
    assert VectorIndex.open(saved, STAMP._replace(gallery="other"))[1] == "of another gallery"
    assert VectorIndex.open(saved, STAMP._replace(dim=DIM * 2))[1] == "of another gallery"
    assert VectorIndex.open(saved, STAMP._replace(generation=2))[1] == "newer than the database"
    assert VectorIndex.open(saved / "nothing", STAMP)[1] == "missing"
    reseal(saved, format=2)
    assert VectorIndex.open(saved, STAMP)[1] == "of another version of clf"


@pytest.mark.parametrize("change", [{"generation": None}, {"plan": {}}, {"effort": {}}, {"error": "x"}, {"dim": 31}])
def test_a_manifest_that_makes_no_sense_is_damage(masters: dict[str, Path], tmp_path: Path, change: dict) -> None:
    shutil.copytree(masters["ivf"], tmp_path / "index")
    reseal(tmp_path / "index", **change)

    note = VectorIndex.open(tmp_path / "index", STAMP)[1]
    assert note is not None and note.startswith("damaged (")


def test_a_manifest_cannot_name_files_elsewhere(saved: Path) -> None:
    reseal(saved, files={"changes": ["../../secret", 1, 1]})

    assert VectorIndex.open(saved, STAMP)[1] == "damaged (index.json)"


def test_files_that_do_not_belong_together_are_damage(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    built("ivf", IDS, VECTORS).save(one, "gallery")
    built("ivf", IDS[:1100], VECTORS[:1100]).save(other, "gallery")
    first, second = (json.loads((folder / files.MANIFEST).read_text())["files"] for folder in (one, other))
    shutil.copy(other / second["codes"][0], one)
    reseal(one, files=first | {"codes": second["codes"]})

    assert VectorIndex.open(one, STAMP)[1] == "damaged (its files do not belong together)"


def test_leftovers_go_and_strangers_stay(saved: Path) -> None:
    (saved / f"codes-{'0' * 32}.faiss").write_bytes(b"of a process that was killed")
    (saved / f"index-{'0' * 32}.json").write_bytes(b"likewise")
    (saved / "mine.txt").write_bytes(b"mine")
    (saved.parent / "index.faiss").write_bytes(b"the old layout")
    before = names(saved)
    index, _ = VectorIndex.open(saved, STAMP)
    index.update([], [7], unit(1), 4)

    index.save(saved, "gallery")

    after = names(saved)
    assert "mine.txt" in after and len(after) == len(before) - 2
    assert not any("0" * 32 in name for name in after)
    assert names(saved.parent) == {"index"}


@pytest.mark.parametrize("failing", ["fsync", "replace", "write"])
def test_a_save_that_fails_leaves_everything_as_it_was(
    saved: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    index = built("ivf", IDS, VECTORS, generation=5)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def fail_in_faiss(*_: object) -> None:
        raise RuntimeError("Error in write_index:\nNo space left on device")

    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr(os, "fsync", fail)
        elif failing == "replace":
            patch.setattr(Path, "replace", fail)
        else:
            patch.setattr("faiss.write_index", fail_in_faiss)
        with pytest.raises(OSError, match="No space left on device"):
            index.save(saved, "gallery")

    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    index.save(saved, "gallery")
    assert VectorIndex.open(saved, STAMP)[0].generation == 5


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps files that are open")
def test_a_reader_goes_on_with_files_that_were_replaced(saved: Path) -> None:
    reader, _ = VectorIndex.open(saved, STAMP)
    before = answers(reader)
    assert not reader.outdated(saved)

    built("flat", IDS[:1000], unit(1000, seed=3), generation=6).save(saved, "gallery")

    assert answers(reader) == before and reader.outdated(saved)
    again, _ = VectorIndex.open(saved, STAMP)
    assert again.generation == 6 and not again.outdated(saved)


def test_a_reader_that_was_overtaken_by_a_save_reads_again(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = built("flat", IDS[:1000], unit(1000, seed=3), generation=6)
    check, saves = files.check, []

    def overtaken(folder: Path, wanted: object) -> None:
        if not saves:
            saves.append(other.save(folder, "gallery"))
        check(folder, wanted)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "check", overtaken)
    index, note = VectorIndex.open(saved, STAMP)

    assert note is None and index.generation == 6


def test_a_base_whose_files_are_gone_is_written_again(saved: Path) -> None:
    if os.name == "nt":
        pytest.skip("Windows keeps files that are open")
    index, _ = VectorIndex.open(saved, STAMP)
    before = answers(index)
    for path in saved.iterdir():
        path.unlink()

    index.save(saved, "gallery")

    assert answers(VectorIndex.open(saved, STAMP)[0]) == before


def test_large_arrays_are_mapped_and_not_read(masters: dict[str, Path]) -> None:
    flat, _ = VectorIndex.open(masters["flat"], STAMP)
    vectors: Vectors = flat._view.base.vectors  # type: ignore[attr-defined]

    assert isinstance(vectors, np.memmap)
    np.testing.assert_array_equal(vectors, VECTORS)


def test_a_faiss_that_cannot_map_reads(masters: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers(VectorIndex.open(masters["ivf"], STAMP)[0])
    monkeypatch.delattr("faiss.IO_FLAG_MMAP_IFC")

    assert answers(VectorIndex.open(masters["ivf"], STAMP)[0]) == before
    assert storing.identity(masters["ivf"]) is not None
