"""Galleries of the first format are converted, whole or not at all; those of a later one are refused."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from gallery_helpers import MODEL, entries, make
from gallery_machine import to_format_1

from clf.errors import GalleryError
from clf_serve.gallery import Entry, Gallery, Where
from clf_serve.gallery.lock import WriteLock


def old(folder: Path) -> Path:
    """A gallery of format 1 with five images, of which one was deleted; its folder."""
    with Gallery.open_or_create(folder, MODEL, folder.parent) as writer:
        ids = writer.upsert(
            [
                Entry(f"/photos/{'ab'[i % 2]}/x/{i}.jpg", f"{i}.jpg", e.vector, e.thumbnail, 1, 2, "ff", 3, 4, {"n": i})
                for i, e in enumerate(entries(0, 5))
            ]
        )
        writer.delete(ids[4:])
    to_format_1(folder / "gallery.sqlite")
    return folder


def version(folder: Path) -> int:
    connection = sqlite3.connect(folder / "gallery.sqlite")
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    connection.close()
    return found


@pytest.mark.parametrize("write", [False, True])
def test_format_1_is_converted_when_it_is_opened(tmp_path: Path, write: bool) -> None:
    folder = old(tmp_path / "g")
    assert version(folder) == 1

    with Gallery(folder, write=write) as gallery:
        assert [item.folder for item in gallery.page()] == ["a/x", "b/x", "a/x", "b/x"]
        assert [item.key for item in gallery.page()] == [f"/photos/{'ab'[i % 2]}/x/{i}.jpg" for i in range(4)]
        assert gallery.count(Where.parse({"n": {"$gte": 2}})) == 2
        for i, entry in enumerate(entries(0, 4)):
            (hit,) = gallery.search(entry.vector, 1)
            assert (hit.uri, gallery.thumbnail(hit.id)) == (f"{i}.jpg", (b"jpeg%d" % i, "ff"))
    assert version(folder) == 2
    with Gallery(folder, write=True) as writer:
        assert writer.upsert(entries(0, 1)) == [6]  # 5 was deleted, and is not given out again


def test_keys_that_are_no_paths_have_no_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "g", 3)
    to_format_1(folder / "gallery.sqlite")

    with Gallery(folder) as gallery:
        assert [item.folder for item in gallery.page()] == ["", "", ""]


KILLED = """
import os, signal, sys
from pathlib import Path
from clf_serve.gallery import Gallery, schema
moment = int(sys.argv[2])
run = schema._run
add = schema.add_facts
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == 0:
    schema._folder_of = die
if moment == 1:
    schema.add_facts = die
if moment == 2:
    migrate = schema.migrate
    schema.migrate = lambda connection: (migrate(connection), die())
Gallery(Path(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_conversion_that_is_killed_has_not_begun(tmp_path: Path, moment: int) -> None:
    folder = old(tmp_path / "g")
    command = [sys.executable, "-c", KILLED, str(folder), str(moment)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL

    assert version(folder) == 1
    connection = sqlite3.connect(folder / "gallery.sqlite")
    assert connection.execute("SELECT count(*), count(vector) FROM images").fetchone() == (4, 4)
    connection.close()
    with Gallery(folder) as gallery:
        assert len(gallery.search(entries(0, 1)[0].vector, 10)) == 4


def test_a_reader_that_may_not_convert_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = old(tmp_path / "g")
    lock = WriteLock(folder)
    monkeypatch.setattr("clf_serve.gallery.lock.PATIENCE", 0.1)
    try:
        with pytest.raises(
            GalleryError, match=r"has format 1 and must be converted .* another process is writing .*clf gallery info"
        ):
            Gallery(folder)
    finally:
        lock.close()
    assert version(folder) == 1


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "g")
    connection = sqlite3.connect(folder / "gallery.sqlite")
    connection.execute("PRAGMA user_version = 3")
    connection.close()

    for write in (False, True):
        with pytest.raises(GalleryError, match=r"format 3, this clf reads up to format 2; use the clf that wrote it"):
            Gallery(folder, write=write)
