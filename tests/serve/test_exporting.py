"""Galleries as files of other programs, and back."""

from __future__ import annotations

import base64
import csv
import json
import sqlite3
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from copies import DIM, METADATA, assert_finds_what_is_nearest, contents, entry, kill_when, made, start
from serve_helpers import DIM as TINY_DIM
from serve_helpers import write_model

from clf.errors import ClfError, DataError, GalleryError, MissingExtraError
from clf.manifest import read_manifest
from clf_serve.gallery import Gallery, Identity, Where
from clf_serve.transfer import snapshot as snapshots
from clf_serve.transfer.export import export_gallery, import_gallery
from clf_serve.transfer.plan import Parts

ALL = Parts(vectors=True, thumbnails=True)


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading in parts of seven."""
    for module in ("snapshot", "npz"):
        monkeypatch.setattr(f"clf_serve.transfer.{module}.ROWS", 7)


@pytest.fixture
def folder(tmp_path: Path, model: Path, few_rows: None) -> Path:
    return made(tmp_path / "g", 50, Identity.of(read_manifest(model)), model)


@pytest.mark.parametrize("name", ["x.parquet", "x.npz"])
@pytest.mark.parametrize("thumbnails", [True, False])
def test_what_was_exported_comes_back_bit_for_bit(
    folder: Path, model: Path, tmp_path: Path, name: str, thumbnails: bool
) -> None:
    count = export_gallery(folder, tmp_path / name, Parts(True, thumbnails))
    seen: list[int] = []
    begun: list[int] = []

    assert import_gallery(tmp_path / name, tmp_path / "new", model, begin=begun.append, progress=seen.append) == 50

    assert count == 50 and begun == [50] and sum(seen) == 50
    assert contents(tmp_path / "new", thumbnails=thumbnails) == contents(folder, thumbnails=thumbnails)
    assert_finds_what_is_nearest(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "new", name]
    with Gallery(tmp_path / "new") as new:
        assert new.model_path == model.resolve()
        assert new.count(Where.parse({"camera.iso": 100})) == sum(item.metadata == METADATA[2] for item in new.page())


def test_parquet_is_what_other_programs_expect(folder: Path, tmp_path: Path, model: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    export_gallery(folder, tmp_path / "x.parquet", ALL)
    table = parquet.read_table(tmp_path / "x.parquet")
    rows = contents(folder)

    assert table.schema.field("vector").type == pa.list_(pa.field("element", pa.float32(), nullable=False), TINY_DIM)
    vectors = np.stack(table.column("vector").to_numpy())
    assert vectors.dtype == np.float32 and vectors.tobytes() == b"".join(row[1] for row in rows)
    assert [json.loads(text) for text in table.column("metadata").to_pylist()] == [row[0].metadata for row in rows]
    for name, kind in (("label", pa.string()), ("year", pa.int64()), ("score", pa.float64()), ("good", pa.bool_())):
        assert table.schema.field(name).type == kind
        assert table.column(name).to_pylist() == [row[0].metadata.get(name) for row in rows]
    assert table.column("uri").to_pylist() == [row[0].uri for row in rows]
    assert table.column("metadata.uri").to_pylist() == [row[0].metadata.get("uri") for row in rows]
    assert not {"mixed", "tags", "camera"} & set(table.schema.names)
    about = json.loads(table.schema.metadata[b"clf.gallery"])
    manifest = read_manifest(model)
    assert about["model_sha256"] == manifest.sha256 and about["model"] == manifest.name and about["images"] == 50


def test_npz_is_what_numpy_reads_without_pickle(folder: Path, tmp_path: Path, model: Path) -> None:
    export_gallery(folder, tmp_path / "x.npz", ALL)
    rows = contents(folder)

    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert file["vectors"].dtype == np.float32 and file["vectors"].tobytes() == b"".join(row[1] for row in rows)
        for member, name in (("ids", "id"), ("keys", "key"), ("uris", "uri"), ("mtimes_ns", "mtime_ns")):
            assert file[member].tolist() == [getattr(row[0], name) for row in rows]
        lines = file["metadata"].tobytes().decode().splitlines()
        assert [json.loads(line) for line in lines] == [row[0].metadata for row in rows]
        offsets, data = file["thumbnail_offsets"], file["thumbnails"].tobytes()
        pictures = [data[start:end] or None for start, end in pairwise(offsets)]
        assert pictures == [row[2] for row in rows]
        assert str(file["model"]) == f"tiny@{read_manifest(model).sha256}"


def test_jsonl_and_csv_hold_the_exact_numbers(folder: Path, tmp_path: Path) -> None:
    export_gallery(folder, tmp_path / "x.jsonl", ALL)
    export_gallery(folder, tmp_path / "x.csv", Parts())
    rows = contents(folder)

    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()]
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    for (item, vector, picture), line, cell in zip(rows, lines, cells, strict=True):
        assert np.array(line["vector"], np.float32).tobytes() == vector
        assert np.array([float(cell[f"v{i}"]) for i in range(TINY_DIM)], np.float32).tobytes() == vector
        assert line["metadata"] == json.loads(cell["metadata"]) == item.metadata
        assert base64.b64decode(line["thumbnail"]) == (picture or b"")
        for name in ("id", "key", "uri", "folder", "width", "mtime_ns", "sha256"):
            assert line[name] == getattr(item, name) and cell[name] == str(getattr(item, name))


@pytest.mark.parametrize("name", ["x.parquet", "x.npz", "x.jsonl", "x.csv"])
def test_a_part_of_a_gallery_without_vectors(folder: Path, tmp_path: Path, model: Path, name: str) -> None:
    where = Where.parse({"label": {"$in": ["cat", "Käse"]}})
    wanted = [item.id for item, *_ in contents(folder) if item.metadata.get("label") in ("cat", "Käse")]

    assert export_gallery(folder, tmp_path / name, Parts(vectors=False), where) == len(wanted) == 21

    if name == "x.csv":
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["id"]) for row in rows] == wanted and "v0" not in rows[0]
    if name == "x.jsonl":
        rows = [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        assert [row["id"] for row in rows] == wanted and "vector" not in rows[0]
    if name in ("x.parquet", "x.npz"):
        with pytest.raises(DataError, match="holds no vectors; export it again without --no-vectors"):
            import_gallery(tmp_path / name, tmp_path / "new", model)


@pytest.mark.parametrize("name", ["x.parquet", "x.npz", "x.jsonl", "x.csv"])
def test_an_empty_selection_is_a_file_too(folder: Path, tmp_path: Path, model: Path, name: str) -> None:
    assert export_gallery(folder, tmp_path / name, Parts(), Where.parse({"label": "nobody"})) == 0
    if name in ("x.parquet", "x.npz"):
        assert import_gallery(tmp_path / name, tmp_path / "new", model) == 0
        assert contents(tmp_path / "new") == []


@pytest.mark.parametrize("name", ["x.parquet", "x.npz", "x.jsonl", "x.csv"])
def test_an_export_is_one_state_of_a_gallery_that_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Between any two parts that are read, everything is written anew, and images come and go."""
    before = contents(folder)
    read = snapshots.gallery_rows.by_ids
    with Gallery(folder, write=True) as writer:
        number = iter(range(1000, 100_000))

        def meanwhile(connection: object, ids: list[int]) -> object:
            found = read(connection, ids)  # type: ignore[arg-type]
            thread = threading.Thread(target=change)
            thread.start()
            thread.join()
            return found

        def change() -> None:
            ids = writer.ids().tolist()
            writer.delete(ids[::10])
            writer.set_metadata({id_: {"label": "changed", "new": 1} for id_ in ids}, merge=False)
            writer.upsert([replace(entry(0, TINY_DIM), key=before[5][0].key), entry(next(number), TINY_DIM)])

        monkeypatch.setattr(snapshots.gallery_rows, "by_ids", meanwhile)
        export_gallery(folder, tmp_path / name, Parts())

    if name == "x.parquet":
        from pyarrow import parquet

        table = parquet.read_table(tmp_path / name)
        texts, vectors = table.column("metadata").to_pylist(), np.stack(table.column("vector").to_numpy())
    elif name == "x.npz":
        with np.load(tmp_path / name) as file:
            texts, vectors = file["metadata"].tobytes().decode().splitlines(), file["vectors"]
    elif name == "x.jsonl":
        lines = [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        texts = [json.dumps(line["metadata"]) for line in lines]
        vectors = np.array([line["vector"] for line in lines], np.float32)
    else:
        with (tmp_path / name).open(encoding="utf-8", newline="") as text:
            cells = list(csv.DictReader(text))
        texts = [cell["metadata"] for cell in cells]
        vectors = np.array([[float(cell[f"v{i}"]) for i in range(TINY_DIM)] for cell in cells], np.float32)
    assert [json.loads(text) for text in texts] == [item.metadata for item, *_ in before]
    assert [row.tobytes() for row in vectors] == [vector for _, vector, _ in before]


SLOW_EXPORT = """
import time
from pathlib import Path
from clf_serve.transfer import snapshot
snapshot.ROWS = 7
batches = snapshot.Snapshot.batches
def slow(self, **options):
    for number, batch in enumerate(batches(self, **options)):
        if number == 3:
            Path({sign!r}).touch()
            time.sleep(600)
        yield batch
snapshot.Snapshot.batches = slow
"""


@pytest.mark.parametrize("name", ["x.parquet", "x.npz"])
def test_an_export_that_is_killed_leaves_the_earlier_file(folder: Path, tmp_path: Path, name: str) -> None:
    sign, file = tmp_path / "sign", tmp_path / name
    file.write_bytes(b"earlier")

    kill_when(start("gallery", "export", folder, file, before=SLOW_EXPORT.format(sign=str(sign))), sign)

    assert file.read_bytes() == b"earlier"
    export_gallery(folder, file, Parts())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "sign", name]


@pytest.mark.parametrize("name", ["x.parquet", "x.npz", "x.jsonl", "x.csv"])
def test_a_full_disk_leaves_the_earlier_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_bytes(b"earlier")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clf_serve.transfer.snapshot.Snapshot._vectors", full)
    with pytest.raises(DataError, match=rf"{name} cannot be written: No space left on device; make room"):
        export_gallery(folder, tmp_path / name, Parts())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", name]
    assert (tmp_path / name).read_bytes() == b"earlier"


@pytest.mark.parametrize("name", ["x.parquet", "x.npz"])
@pytest.mark.parametrize("damage", [lambda d: d[:-3000], lambda d: d[:3000] + bytes(64) + d[3064:], lambda d: b"x"])
def test_a_damaged_file_makes_no_gallery(
    folder: Path, tmp_path: Path, model: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / name
    export_gallery(folder, file, Parts())
    file.write_bytes(damage(file.read_bytes()))

    try:
        import_gallery(file, tmp_path / "new", model)
    except DataError as error:
        assert "is damaged" in str(error)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["g", name]
    else:  # the bytes were of no consequence
        assert contents(tmp_path / "new", thumbnails=False) == contents(folder, thumbnails=False)


@pytest.mark.parametrize("name", ["x.parquet", "x.npz"])
def test_vectors_of_another_model_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    export_gallery(folder, tmp_path / name, Parts())
    other = write_model(tmp_path / "other", name="other", cells=4, dim=48)

    with pytest.raises(GalleryError, match=r"holds vectors of model tiny .*, not of other .*clf gallery reembed"):
        import_gallery(tmp_path / name, tmp_path / "new", other)
    assert not (tmp_path / "new").exists()


def test_an_import_that_is_killed_leaves_no_gallery(folder: Path, tmp_path: Path, model: Path) -> None:
    sign, file = tmp_path / "sign", tmp_path / "x.npz"
    export_gallery(folder, file, Parts())
    hang = (
        "import time\nfrom pathlib import Path\nfrom clf_serve.gallery import Gallery\n"
        f"def hang(self, **options):\n    Path({str(sign)!r}).touch()\n    time.sleep(600)\nGallery.save_index = hang\n"
    )

    kill_when(start("gallery", "import", file, "-o", tmp_path / "new", "--model", model, before=hang), sign)

    assert not (tmp_path / "new").exists()
    assert import_gallery(file, tmp_path / "new", model) == 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "new", "sign", "x.npz"]


def test_a_damaged_vector_is_named(folder: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(folder / "gallery.sqlite")
    connection.execute("UPDATE vectors SET vector = x'00' WHERE id = 5")
    connection.commit()
    connection.close()

    with pytest.raises(GalleryError, match=r"vector of image 5 has the wrong size.*clf gallery check"):
        export_gallery(folder, tmp_path / "x.npz", Parts())
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_mistakes(folder: Path, tmp_path: Path, model: Path) -> None:
    for output, parts, message in (
        ("x.parkett", Parts(), "must end in one of .parquet, .npz, .jsonl, .csv. Did you mean '.parquet'"),
        ("x", Parts(), "must end in one of"),
        ("x.csv", ALL, "holds no pictures; leave --thumbnails out"),
        ("none/x.csv", Parts(), "does not exist; make it first"),
    ):
        with pytest.raises(DataError, match=message):
            export_gallery(folder, tmp_path / output, parts)
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(DataError, match="is a folder; name a file"):
        export_gallery(folder, tmp_path / "d.npz", Parts())
    with pytest.raises(GalleryError, match="is not a gallery"):
        export_gallery(tmp_path / "none", tmp_path / "x.npz", Parts())
    np.savez(tmp_path / "foreign.npz", vectors=np.eye(3, dtype=np.float32))
    for file, message in (
        (tmp_path / "foreign.npz", "was not written by clf gallery export"),
        (tmp_path / "none.npz", "does not exist"),
        (tmp_path / "x.csv", "a gallery is made of .parquet and .npz files"),
    ):
        with pytest.raises(DataError, match=message):
            import_gallery(file, tmp_path / "new", model)
    with pytest.raises(GalleryError, match="exists; name a new folder"):
        import_gallery(tmp_path / "foreign.npz", folder, model)


def test_a_later_format_and_objects_are_refused(folder: Path, tmp_path: Path, model: Path) -> None:
    export_gallery(folder, tmp_path / "x.npz", Parts())

    def changed(name: str, array: object) -> Path:
        """The file with another member, as an attacker or a later version would write it."""
        file = tmp_path / "changed.npz"
        with zipfile.ZipFile(tmp_path / "x.npz") as old, zipfile.ZipFile(file, "w") as new:
            for member in old.namelist():
                if member != f"{name}.npy":
                    new.writestr(member, old.read(member))
            with new.open(f"{name}.npy", "w") as member_file:
                np.lib.format.write_array(member_file, np.asarray(array), allow_pickle=True)
        return file

    with np.load(tmp_path / "x.npz") as file:
        about = json.loads(str(file["about"]))
        ids = file["ids"]
    with pytest.raises(DataError, match="has format 2, this clf reads format 1"):
        import_gallery(changed("about", json.dumps({**about, "format": 2})), tmp_path / "new", model)
    with pytest.raises(DataError, match="was not written by clf gallery export"):
        import_gallery(changed("about", json.dumps([about])), tmp_path / "new", model)
    for name, array, message in (
        ("keys", np.array([object()] * 50), "is damaged"),
        ("ids", ids[:-1], "is damaged"),
        ("ids", ids[::-1], "an id or a key comes twice"),
        ("vectors", np.full((50, TINY_DIM), np.nan, np.float32), "the vector of image 2 is not of unit length"),
        ("keys", np.array(["one"] * 50), "comes twice"),
    ):
        with pytest.raises(ClfError, match=message):
            import_gallery(changed(name, array), tmp_path / "new", model)
        assert not (tmp_path / "new").exists()


def test_parquet_without_pyarrow_says_what_to_install(
    folder: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_gallery(folder, tmp_path / "x.parquet", Parts())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for work in (
        lambda: export_gallery(folder, tmp_path / "y.parquet", Parts()),
        lambda: import_gallery(tmp_path / "x.parquet", tmp_path / "new", model),
    ):
        with pytest.raises(MissingExtraError, match=r"'pyarrow', which is not installed.*clf-vision\[parquet\]"):
            work()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "x.parquet"]


def test_memory_does_not_grow_with_the_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the rows of one part are asked for at a time."""
    made(tmp_path / "g", 200)
    monkeypatch.setattr(snapshots, "ROWS", 20)
    asked: list[int] = []
    vectors = snapshots.Snapshot._vectors

    def counted(self: snapshots.Snapshot, items: list[object], ids: str) -> object:
        asked.append(len(items))
        return vectors(self, items, ids)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshots.Snapshot, "_vectors", counted)
    for name in ("x.parquet", "x.npz", "x.jsonl", "x.csv"):
        asked.clear()
        export_gallery(tmp_path / "g", tmp_path / name, Parts())
        assert asked == [20] * 10
    assert (tmp_path / "x.npz").stat().st_size > DIM * 4 * 200
