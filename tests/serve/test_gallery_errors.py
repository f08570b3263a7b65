"""What can be wrong with a gallery, each said in a sentence with the thing, the place and the remedy."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import DIM, MODEL, entries, make

from clf.errors import GalleryError
from clf_serve.gallery import Entry, Gallery, Identity

EAST = np.eye(DIM, dtype=np.float32)[0]


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
        statement = "UPDATE vectors SET vector = zeroblob(24) WHERE id = 7"
        connection.execute(statement if damage == "vector" else "DELETE FROM meta WHERE key = 'dim'")
        connection.commit()
        connection.close()

    with (
        pytest.raises(GalleryError, match=r"damaged .*clf gallery restore BACKUP -o .*clf index MODEL IMAGES -o"),
        Gallery(tmp_path / "g") as reader,
    ):
        reader.search(EAST, 3)


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = make(tmp_path / "g")

    with pytest.raises(GalleryError, match=r"made with model m \(abababababab, 6 dimensions\), not with n") as caught:
        Gallery(folder, Identity("n", "cd" * 32, DIM))
    for remedy in ("use that model", "a new folder", "clf gallery reembed"):
        assert remedy in str(caught.value)


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


def test_a_second_writer_is_told_who_and_readers_are_not_blocked(tmp_path: Path) -> None:
    folder = make(tmp_path / "g", 3)
    with Gallery(folder, write=True) as writer:
        with pytest.raises(
            GalleryError,
            match=rf"another process is writing to .*g \(process {os.getpid()} on .*, since 20.* UTC\); wait for it",
        ):
            Gallery(folder, write=True)
        with writer._db.writing() as (connection, _):  # in the middle of a transaction
            connection.execute("DELETE FROM images")
            with Gallery(folder) as reader:
                assert len(reader) == 3
                assert len(reader.search(EAST, 10)) == 3
            assert connection.execute("SELECT count(*) FROM images").fetchone() == (0,)
            connection.execute("ROLLBACK")
            connection.execute("BEGIN")
    Gallery(folder, write=True).close()  # free again


def test_a_reader_does_not_write(tmp_path: Path) -> None:
    with Gallery(make(tmp_path / "g", 3)) as reader:
        for write in (
            lambda: reader.delete([1]),
            lambda: reader.upsert(entries(0, 1)),
            lambda: reader.optimize("flat"),
        ):
            with pytest.raises(ValueError, match="opened for reading"):
                write()


def test_a_closed_gallery_says_so(tmp_path: Path) -> None:
    reader = Gallery(make(tmp_path / "g", 3))
    reader.close()
    reader.close()
    writer = Gallery(tmp_path / "g", write=True)
    writer.close()
    with pytest.raises(GalleryError, match="was closed"):
        reader.search(EAST, 1)
    with pytest.raises(GalleryError, match="was closed"):
        writer.upsert(entries(0, 1))


def test_only_a_writer_is_called_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(GalleryError) as caught:
        Gallery.open_or_create(tmp_path / "g", MODEL, tmp_path)
    assert "another process" not in str(caught.value)
    assert f"{tmp_path / 'g'} cannot be written: unable to open database file" in str(caught.value)


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    folder = make(tmp_path / "g", 3)
    with Gallery(folder, write=True) as writer:
        with writer._db.changing() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
        big = [Entry(e.key, e.uri, e.vector, bytes(30_000)) for e in entries(3, 3)]
        with pytest.raises(GalleryError, match="disk is full; make room and run this again, earlier entries are kept"):
            writer.upsert(big)
        assert len(writer) == 3 and len(writer.search(EAST, 100)) == 3
    with Gallery(folder) as reader:
        assert len(reader.search(EAST, 100)) == 3


def test_a_locked_gallery_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(GalleryError, match="g cannot be read: Permission denied"):
        Gallery(tmp_path / "g")


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gallery in a folder that may not be written to, as far as this process is told."""
    folder = make(tmp_path / "g", 3)
    monkeypatch.setattr("clf_serve.gallery.database.os.access", lambda path, mode: False)
    return folder


def test_a_gallery_in_a_folder_nobody_may_write_to_can_be_read(locked: Path) -> None:
    before = sorted(path.name for path in locked.iterdir())
    with Gallery(locked) as reader:
        assert len(reader.search(EAST, 10)) == 3
    assert sorted(path.name for path in locked.iterdir()) == before == ["gallery.sqlite", "index", "write.lock"]


def test_a_read_only_folder_that_is_written_elsewhere_is_followed(locked: Path) -> None:
    with Gallery(locked) as reader:
        assert len(reader.search(EAST, 10)) == 3
        with Gallery(locked, write=True) as writer:
            writer.upsert(entries(3, 4, seed=1))
            assert len(reader.search(EAST, 10)) == 7  # by the log
            writer.upsert(entries(7, 1, seed=2))
            assert len(reader.search(EAST, 10)) == 8
        assert len(reader.search(EAST, 10)) == 8
        with Gallery(locked, write=True) as writer:
            writer.delete([1, 2])
        assert len(reader.search(EAST, 10)) == 6


def test_a_change_while_a_read_only_folder_is_read_is_said(locked: Path) -> None:
    with Gallery(locked) as reader:
        with (
            pytest.raises(GalleryError, match=r"changed from elsewhere while it was read .*; try again"),
            reader._db.reading(),
            Gallery(locked, write=True) as writer,
        ):
            writer.upsert(entries(3, 1, seed=1))
        assert len(reader) == 4


NOBODY = """
import os, sys
from pathlib import Path
from clf.errors import GalleryError
from clf_serve.gallery import Gallery
with Gallery(Path(sys.argv[2])) as gallery:  # imports all, before it may not read the interpreter's folder any more
    gallery.search(gallery.vector(1), 10)
os.setgid(65534)
os.setuid(65534)
try:
    with Gallery(Path(sys.argv[1])) as gallery:
        print(len(gallery), len(gallery.search(gallery.vector(1), 10)))
except GalleryError as error:
    print(error)
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody may read; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_else_may_read_but_not_write(shared: Path) -> None:
    folder, warm = make(shared / "g", 3), make(shared / "warm", 3)

    def asked(folder: Path) -> str:
        command = [sys.executable, "-c", NOBODY, str(folder), str(warm)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout + done.stderr

    assert asked(folder) == "3 3\n"
    with Gallery(folder, write=True) as writer:
        writer.upsert(entries(3, 1, seed=1))
        assert asked(folder) == "4 4\n"  # by the log of a writer of another user
        shutil.copytree(folder, shared / "left", ignore=shutil.ignore_patterns("*-shm"))
    assert "its writer left work in gallery.sqlite-wal" in asked(shared / "left")
    with Gallery(shared / "left") as reader:
        assert len(reader) == 4
