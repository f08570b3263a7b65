"""Backup, restore and move, while others write, after damage, and when they are killed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from copies import MODEL, assert_finds_what_is_nearest, contents, entry, kill_when, made, start
from serve_helpers import PROGRAM, until

from clf.errors import DataError, GalleryError
from clf_serve.gallery import Gallery, Where, database
from clf_serve.gallery.database import FORMAT, Database
from clf_serve.moving import backup, move, restore, verify
from clf_serve.transfer.whole import whole

WRITER = """
import sys
from pathlib import Path
from copies import MODEL, entry
from clf_serve.gallery import Gallery
with Gallery.open_or_create(Path(sys.argv[1]), MODEL, Path("model")) as gallery:
    for first in range(0, 100_000, 5):
        gallery.upsert([entry(i) for i in range(first, first + 5)])
        print(first + 5, flush=True)
"""
HANGS = """
import time
from pathlib import Path
import clf_serve.moving as moving
def hang(*_, **__):
    Path({sign!r}).touch()
    time.sleep(600)
{what} = hang
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "g", 50)


def test_a_backup_is_one_file_and_comes_back_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)

    copied = backup(folder, tmp_path / "b.sqlite")
    restored = restore(tmp_path / "b.sqlite", tmp_path / "new")

    assert copied.images == restored.images == 50
    assert copied.bytes == (tmp_path / "b.sqlite").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.sqlite", "g", "new"]
    assert contents(tmp_path / "new") == before == contents(folder)
    assert_finds_what_is_nearest(tmp_path / "new")
    with Gallery(tmp_path / "new") as new:
        assert new.cache_note is None
        label = Where.parse({"label": "cat"})
        assert new.ids(label).tolist() == [item.id for item, *_ in before if item.metadata.get("label") == "cat"]


def test_ids_of_deleted_images_are_not_given_out_again_after_a_restore(folder: Path, tmp_path: Path) -> None:
    with Gallery(folder, write=True) as gallery:
        last = gallery.upsert([entry(900)])[0]
        gallery.delete([last])
    backup(folder, tmp_path / "b.sqlite")
    restore(tmp_path / "b.sqlite", tmp_path / "new")

    with Gallery(tmp_path / "new", write=True) as gallery:
        assert gallery.upsert([entry(901)])[0] > last


def test_what_was_deleted_is_not_in_the_backup(folder: Path, tmp_path: Path) -> None:
    secret = b"a picture that had to go"
    with Gallery(folder, write=True) as gallery:
        ids = gallery.upsert([replace(entry(900 + i), thumbnail=secret * 500) for i in range(5)])
        gallery.delete(ids)

    backup(folder, tmp_path / "b.sqlite")

    assert secret not in (tmp_path / "b.sqlite").read_bytes()


def test_backups_while_another_process_writes_are_states_it_was_in(tmp_path: Path) -> None:
    """Each holds the first so many entries in the order of their commits: all that were acknowledged when it began."""
    folder = tmp_path / "g"
    command = [sys.executable, "-c", WRITER, str(folder)]
    writer = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
    )
    assert writer.stdout is not None
    try:
        sizes = []
        for number in range(4):
            acknowledged = int(writer.stdout.readline())
            copied = backup(folder, tmp_path / f"{number}.sqlite")
            assert writer.poll() is None
            assert copied.images >= acknowledged and copied.images % 5 == 0
            sizes.append(copied.images)
            for _ in range(10):
                writer.stdout.readline()
    finally:
        writer.kill()
        writer.communicate()

    assert sizes == sorted(set(sizes))
    for number, images in enumerate(sizes):
        new = tmp_path / f"new{number}"
        restore(tmp_path / f"{number}.sqlite", new)
        assert [item.key for item, *_ in contents(new)] == [entry(i).key for i in range(images)]
        assert_finds_what_is_nearest(new)


def test_a_damaged_gallery_is_replaced_by_its_backup(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    backup(folder, tmp_path / "b.sqlite")
    database = folder / "gallery.sqlite"
    database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])
    with (
        pytest.raises(GalleryError, match=r"damaged.*Restore a backup \(clf gallery restore"),
        Gallery(folder) as broken,
    ):
        broken.search(entry(1).vector, 1)
    with pytest.raises(GalleryError, match="exists; name a new folder"):
        restore(tmp_path / "b.sqlite", folder)

    restore(tmp_path / "b.sqlite", folder, replace=True)

    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.sqlite", "g"]


def test_a_reader_goes_on_with_the_old_gallery_while_it_is_replaced(folder: Path, tmp_path: Path) -> None:
    backup(folder, tmp_path / "b.sqlite")
    with Gallery(folder, write=True) as gallery:
        gallery.upsert([entry(900)])
    with Gallery(folder) as reader:
        assert reader.search(entry(900).vector, 1)[0].uri == entry(900).uri
        restore(tmp_path / "b.sqlite", folder, replace=True)
        assert reader.search(entry(900).vector, 1)[0].uri == entry(900).uri
    with Gallery(folder) as reader:
        assert reader.find(entry(900).key) is None and reader.cache_note is None


def test_a_gallery_that_is_being_written_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    backup(folder, tmp_path / "b.sqlite")
    with Gallery(folder, write=True) as gallery:
        with pytest.raises(GalleryError, match="another process is writing"):
            restore(tmp_path / "b.sqlite", folder, replace=True)
        gallery.upsert([entry(900)])
    with Gallery(folder) as gallery:
        assert gallery.find(entry(900).key) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.sqlite", "g"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:5000], "is damaged"),
        (lambda data: data[:9000] + bytes(4096) + data[13096:], "is damaged"),
        (lambda data: b"no database" * 1000, "is damaged"),
        (lambda data: data[:68] + b"clfX" + data[72:], "is not a gallery of clf"),
        (
            lambda data: data[:60] + (FORMAT + 1).to_bytes(4) + data[64:],
            f"has format {FORMAT + 1}, this clf reads up to",
        ),
    ],
)
def test_what_is_no_whole_backup_makes_no_gallery(folder: Path, tmp_path: Path, damage: object, message: str) -> None:
    backup(folder, tmp_path / "b.sqlite")
    file = tmp_path / "b.sqlite"
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]

    with pytest.raises(GalleryError, match=message):
        restore(file, tmp_path / "new")
    with pytest.raises(GalleryError, match=message):
        restore(file, folder, replace=True)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.sqlite", "g"]
    assert len(contents(folder)) == 50


def test_a_vector_of_the_wrong_size_is_noticed_in_a_backup(folder: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(folder / "gallery.sqlite")
    connection.execute("UPDATE vectors SET vector = x'00' WHERE id = 5")
    connection.commit()
    connection.close()

    with pytest.raises(GalleryError, match="50 images and 49 vectors of the right size"):
        backup(folder, tmp_path / "b.sqlite")

    assert not (tmp_path / "b.sqlite").exists()


def test_an_earlier_backup_stays_until_the_new_one_is_whole(folder: Path, tmp_path: Path) -> None:
    file, sign = tmp_path / "b.sqlite", tmp_path / "sign"
    backup(folder, file)
    earlier = file.read_bytes()
    with Gallery(folder, write=True) as gallery:
        gallery.upsert([entry(900)])

    kill_when(start("gallery", "backup", folder, file, before=HANGS.format(sign=str(sign), what="moving.verify")), sign)

    assert file.read_bytes() == earlier
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    assert backup(folder, file).images == 51 == verify(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.sqlite", "g", "sign"]


def test_a_restore_that_is_killed_leaves_the_old_gallery(folder: Path, tmp_path: Path) -> None:
    file, sign, before = tmp_path / "b.sqlite", tmp_path / "sign", contents(folder)
    backup(folder, file)
    hangs = HANGS.format(sign=str(sign), what="moving.Gallery.optimize")

    kill_when(start("gallery", "restore", file, "-o", folder, "--replace", before=hangs), sign)
    assert contents(folder) == before
    sign.unlink()
    kill_when(start("gallery", "restore", file, "-o", tmp_path / "new", before=hangs), sign)
    assert not (tmp_path / "new").exists()

    restore(file, folder, replace=True)
    restore(file, tmp_path / "new")
    assert contents(folder) == before == contents(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.sqlite", "g", "new", "sign"]


def test_an_old_gallery_that_was_set_aside_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    """As after a kill between the two renames of a restore."""
    backup(folder, tmp_path / "b.sqlite")
    folder.rename(tmp_path / "g.replaced")

    with pytest.raises(GalleryError, match=r"g\.replaced is left from a restore"):
        restore(tmp_path / "b.sqlite", folder, replace=True)

    assert len(contents(tmp_path / "g.replaced")) == 50


def test_a_rename_that_fails_puts_the_old_gallery_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    backup(folder, tmp_path / "b.sqlite")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(DataError, match="cannot be written: Input/output error"):
        restore(tmp_path / "b.sqlite", folder, replace=True)
    assert contents(folder) == before


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(GalleryError, match="is not a gallery; name the folder that clf index made"):
        backup(tmp_path / "none", tmp_path / "b.sqlite")
    with pytest.raises(DataError, match="is a folder; name a file"):
        backup(folder, tmp_path)
    with pytest.raises(DataError, match="does not exist; make it first"):
        backup(folder, tmp_path / "nowhere" / "b.sqlite")
    with pytest.raises(GalleryError, match="does not exist; name a file that clf gallery backup wrote"):
        restore(tmp_path / "b.sqlite", tmp_path / "new")
    backup(folder, tmp_path / "b.sqlite")
    with pytest.raises(GalleryError, match="is not a gallery, and is not replaced"):
        restore(tmp_path / "b.sqlite", tmp_path / "photos", replace=True)


def test_drafts_of_processes_that_live_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with whole(file) as draft:
        draft.write_text("one")
        with whole(file) as other:
            other.write_text("two")
        assert file.read_text() == "two" and draft.exists()
    assert file.read_text() == "one"
    with pytest.raises(ZeroDivisionError), whole(file) as draft:
        draft.write_text("three")
        raise ZeroDivisionError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "one")]


@pytest.fixture
def photographed(tmp_path: Path) -> Path:
    """A gallery of files that exist, some indexed by a relative path, and one whose key is no path."""
    folder, photos = tmp_path / "g", tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    made(folder, 2)
    files = [photos / "a.jpg", photos / "sub" / "b.jpg"]
    entries = []
    for i, (path, uri) in enumerate(zip(files, ("photos/a.jpg", str(files[1])), strict=True)):
        path.touch()
        entries.append(replace(entry(i + 100), key=str(path), uri=uri))
    with Gallery(folder, write=True) as gallery:
        gallery.upsert(entries)
    return folder


def test_move_changes_the_paths_and_nothing_else(photographed: Path, tmp_path: Path) -> None:
    before = contents(photographed)
    (tmp_path / "photos").rename(tmp_path / "disk")

    assert move(photographed, tmp_path / "photos", tmp_path / "disk") == (2, 0)

    after = contents(photographed)
    assert [row[1:] for row in after] == [row[1:] for row in before]
    assert [item.metadata for item, *_ in after] == [item.metadata for item, *_ in before]
    assert [(item.key, item.uri) for item, *_ in after] == [
        *((item.key, item.uri) for item, *_ in before[:-2]),
        (str(tmp_path / "disk" / "a.jpg"), str(tmp_path / "disk" / "a.jpg")),
        (str(tmp_path / "disk" / "sub" / "b.jpg"), str(tmp_path / "disk" / "sub" / "b.jpg")),
    ]
    assert_finds_what_is_nearest(photographed)


def test_move_says_how_many_files_are_not_there(photographed: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "photos", tmp_path / "disk")
    (tmp_path / "disk" / "a.jpg").unlink()

    assert move(photographed, tmp_path / "photos", tmp_path / "disk") == (2, 1)


def test_move_is_all_or_nothing(photographed: Path, tmp_path: Path) -> None:
    before = contents(photographed)
    with pytest.raises(GalleryError, match=r"none of the 2 files is below .*nowhere.*--missing-too"):
        move(photographed, tmp_path / "photos", tmp_path / "nowhere")
    with pytest.raises(GalleryError, match=r"no image of .* lies below .*phot; one of them is /photos"):
        move(photographed, tmp_path / "phot", tmp_path / "disk")
    shutil.copytree(tmp_path / "photos", tmp_path / "disk")
    with Gallery(photographed, write=True) as gallery:
        gallery.upsert([replace(entry(200), key=str(tmp_path / "disk" / "sub" / "b.jpg"))])
    with pytest.raises(GalleryError, match=r"sub/b\.jpg is in .* already \(image \d+\)"):
        move(photographed, tmp_path / "photos", tmp_path / "disk")
    assert contents(photographed)[:-1] == before

    assert move(photographed, tmp_path / "photos" / "sub", tmp_path / "nowhere", missing_too=True) == (1, 1)


def test_ctrl_c_ends_a_backup_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with Gallery(folder, write=True) as gallery:
        for first in range(1000, 9000, 1000):
            gallery.upsert([entry(i) for i in range(first, first + 1000)])
    pressed = "import clf_serve.moving as moving\nmoving._OPCODES = 1000\ndef press():\n    raise KeyboardInterrupt\n"
    pressed += "moving._look = press\n"

    process = start("gallery", "backup", folder, tmp_path / "b.sqlite", before=pressed)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130, (out, err)
    until(lambda: sorted(path.name for path in tmp_path.iterdir()) == ["g"])


def test_a_backup_never_takes_the_place_of_what_is_no_backup(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = (folder / "gallery.sqlite").stat().st_ino

    for name, message in (
        ("g/gallery.sqlite", "a gallery's own file"),
        ("g/write.lock", "a gallery's own file"),
        ("gallery.sqlite", "a gallery's own file"),
        ("pipe", "is a device or a pipe"),
        ("g", "is a folder; name a file"),
    ):
        with pytest.raises(DataError, match=message):
            backup(folder, tmp_path / name)

    assert (folder / "gallery.sqlite").stat().st_ino == before
    assert (tmp_path / "pipe").is_fifo() and sorted(path.name for path in tmp_path.iterdir()) == ["g", "pipe"]


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path) -> None:
    """As a limit on the size of a file, which SQLite meets in the middle of its work."""
    made(tmp_path / "g", 2000)
    program = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n{PROGRAM}"

    done = subprocess.run(
        [sys.executable, "-c", program, "gallery", "backup", "g", "b"], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.returncode == 2 and done.stderr.startswith("error: b cannot be written: "), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_an_error_of_the_draft_names_what_was_to_be_made(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"new cannot be written: "),
        whole(tmp_path / "new", folder=True) as d,
    ):
        Gallery.open_or_create(d, MODEL, tmp_path).close()
        (d / "gallery.sqlite").unlink()
        (d / "gallery.sqlite").mkdir()
        with closing(Database(d, write=False)):
            pass

    assert list(tmp_path.iterdir()) == []


def test_restored_to_where_a_link_leads(folder: Path, tmp_path: Path) -> None:
    backup(folder, tmp_path / "b")
    with Gallery(folder, write=True) as gallery:
        gallery.delete(gallery.ids().tolist())
    (tmp_path / "link").symlink_to("g")

    restore(tmp_path / "b", tmp_path / "link", replace=True)

    assert (tmp_path / "link").is_symlink() and len(contents(folder)) == 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "g", "link"]


@pytest.mark.parametrize("name", [".", "..", "x" * 300])
def test_a_folder_that_cannot_be_made(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    backup(folder, tmp_path / "b")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    with pytest.raises(GalleryError, match=r"name (a new|another) folder"):
        restore(tmp_path / "b", Path(name))
    with pytest.raises(GalleryError, match="cannot be read: File name too long"):
        backup(Path("x" * 300), tmp_path / "c")


def test_who_has_the_old_gallery_open_never_sees_the_new_one(folder: Path, tmp_path: Path) -> None:
    """However many threads read: a connection that is opened later would read another gallery at the same place."""
    with Gallery.open_or_create(tmp_path / "h", MODEL, tmp_path) as other:
        other.upsert([entry(i) for i in range(500, 560)])
    backup(tmp_path / "h", tmp_path / "b")
    with Gallery(folder) as old, ThreadPoolExecutor(8) as pool:
        before = old.ids().tolist(), [item.key for item in old.page()]
        restore(tmp_path / "b", folder, replace=True)

        seen = list(pool.map(lambda _: (old.ids().tolist(), [item.key for item in old.page()]), range(200)))

    assert all(one == before for one in seen)
    assert contents(folder) == contents(tmp_path / "h")


def test_a_replaced_gallery_is_said_when_nobody_has_it_open(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    backup(folder, tmp_path / "b")
    with closing(Database(folder, write=False)) as old, old.reading():
        restore(tmp_path / "b", folder, replace=True)

        with pytest.raises(GalleryError, match="was replaced by another gallery; open it again"), old.reading():
            pass
