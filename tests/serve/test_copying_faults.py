"""Copies that are killed, refused, or made by what fails: nothing half done is used, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Run, one_error
from copies import MODEL, entry, kill_when, made
from copying_helpers import Failing, Forgetful, N, Rounding, everything, install_store, next_id, small_parts
from serve_helpers import PROGRAM, until
from store_helpers import HERE

from clf.errors import GalleryError
from clf_serve.copying import copy, drafts, work
from clf_serve.copying.drafts import work_folder
from clf_serve.gallery import Gallery, Identity
from clf_serve.gallery.lock import WriteLock
from clf_serve.place import Place
from clf_serve.stores import is_there, open_gallery
from clf_serve.stores.opening import open_draft

HANGS = """
import time
from pathlib import Path
from clf_serve.copying import drafts, sides, work
sides.ROWS = 10
calls = []
real = {where}.{what}
def hang(*given, **named):
    calls.append(1)
    if len(calls) == {nth}:
        Path({sign!r}).touch()
        time.sleep(600)
    return real(*given, **named)
{where}.{what} = hang
"""
STAGES = {
    "before the first write": ("drafts.{kind}Draft", "write", 1),
    "between writes": ("drafts.{kind}Draft", "write", 4),
    "before the comparison": ("work", "bring", 2),
    "before the search": ("work.Nearest", "differs", 1),
    "before the end": ("drafts.{kind}Draft", "publish", 1),
    "at the very end": ("drafts", "remove", 1),
}


@pytest.fixture
def site(install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    site = install("clf-shelf", entry_points="[clf.indexes]\nshelf = shelf_store:Shelf\n")
    monkeypatch.setenv("PYTHONPATH", f"{site}:{HERE}")  # of the processes that are killed
    return site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "g", N)


def begun(folder: Path, new: Path | str, sign: Path, stage: str) -> subprocess.Popen[bytes]:
    """``clf gallery copy``, which comes to a halt at a stage."""
    kind = "Store" if "://" in str(new) else "Folder"
    where, what, nth = STAGES[stage]
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs ignore it
    before = heard + HANGS.format(where=where.format(kind=kind), what=what, nth=nth, sign=str(sign))
    command = [sys.executable, "-c", before + PROGRAM, "gallery", "copy", str(folder), str(new)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)


@pytest.mark.parametrize("stage", ["between writes", "before the search", "at the very end"])
def test_killed_at_any_stage_into_a_folder(site: Path, folder: Path, tmp_path: Path, stage: str) -> None:
    new, sign = tmp_path / "new", tmp_path / "sign"
    before = everything(folder)

    kill_when(begun(folder, new, sign, stage), sign)

    if stage == "at the very end":  # it has its name, and only what was beside it is left
        assert everything(new) == before
        (work_folder(new, "copying") / "write.lock").unlink()
        return
    assert not new.exists() and work_folder(new, "copying").is_dir()
    with pytest.raises(GalleryError, match="is not a gallery"):
        open_gallery(new)
    report = copy(folder, new)
    assert report.resumed == (30 if stage == "between writes" else N)
    assert everything(new) == before and next_id(new) == N + 4
    assert sorted(path.name for path in tmp_path.iterdir() if "site" not in path.name) == ["g", "new", "sign"]


@pytest.mark.parametrize(
    "stage", ["before the first write", "between writes", "before the comparison", "before the end"]
)
def test_killed_at_any_stage_into_a_store(
    site: Path, folder: Path, tmp_path: Path, stage: str, run: Run, model: Path, photos: Path
) -> None:
    new, sign = f"shelf://{tmp_path}/new.db", tmp_path / "sign"
    before = everything(folder)

    kill_when(begun(folder, new, sign, stage), sign)

    assert is_there(new)
    if stage == "between writes":
        photo = next(photos.iterdir())
        for words in (
            ("search", new, photo),
            ("search", new, "--id", 2),
            ("index", model, photos, "-o", new),
            ("index", model, photos, "-o", new, "--dry-run"),
            ("serve", model, "--gallery", new, "--port", 0),
            ("duplicates", new),
            *(("gallery", name, new) for name in ("info", "check", "optimize")),
            ("gallery", "delete", new, "--id", 2, "--yes"),
            ("gallery", "export", new, tmp_path / "x.npz"),
            ("gallery", "copy", new, tmp_path / "other"),
            ("gallery", "diff", folder, new),
        ):
            code, out, err = run(*words)
            said = err or out
            assert code != 0 and f"the gallery {new} is not whole yet: it is being made" in said, (words, code, said)
            assert f"to go on: clf gallery copy {folder} {new}" in said
        assert "was begun by another command (clf gallery copy" in one_error(
            run("gallery", "copy", made(tmp_path / "more", 3), new)
        )
    report = copy(folder, new)
    assert report.resumed == {"before the first write": 0, "between writes": 30}.get(stage, N)
    assert everything(new) == before and next_id(new) == N + 4
    with pytest.raises(GalleryError, match=r"there is a gallery at .*, which is left as it is"):
        copy(folder, new)


def test_ctrl_c_says_that_nothing_is_lost(site: Path, folder: Path, tmp_path: Path) -> None:
    new, sign = tmp_path / "new", tmp_path / "sign"
    process = begun(folder, new, sign, "between writes")
    until(sign.exists, 60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().strip() == (
        "stopped; what was written is kept, unfinished: run the same command again to go on from there"
    )
    assert copy(folder, new).resumed == 30


def test_two_at_once_are_kept_apart(site: Path, folder: Path, tmp_path: Path) -> None:
    def second(label: str, rows: int) -> None:
        if label == "copying":
            with pytest.raises(GalleryError, match="another process is writing to the gallery"):
                copy(folder, tmp_path / "new")

    assert copy(folder, tmp_path / "new", work.Steps(stage=second)).images == N

    url = f"shelf://{tmp_path}/new.db"
    told: list[str] = []

    def other(label: str, rows: int) -> None:
        if not told:
            told.append(label)
            assert copy(folder, url).images == N  # which comes first

    with pytest.raises(GalleryError, match="another process writes to shelf"):
        copy(folder, url, work.Steps(stage=other))
    assert everything(url) == everything(folder)


def test_a_work_of_something_else_is_left_alone(site: Path, folder: Path, tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", 3, Identity("another", "cd" * 32, 8))
    place = Place.of(f"shelf://{tmp_path}/new.db")
    open_draft(place, MODEL, Path("m"), "clf something").close()
    assert "is not whole yet" in one_error(run("gallery", "info", place.url))
    said = one_error(run("gallery", "copy", other, place.url))
    assert "was made with model m" in said and "not with another" in said
    assert copy(folder, place).images == N  # nothing was in it, and it is of the same model

    draft = work_folder(tmp_path / "new", "copying")
    drafts.begin(draft, {"work": "clf gallery copy x y"})
    assert f"{draft} is left from another gallery or model; delete it" in one_error(
        run("gallery", "copy", folder, tmp_path / "new")
    )
    assert [path.name for path in draft.iterdir()] == ["work.json"]


def test_a_full_disk_keeps_what_was_written(folder: Path, tmp_path: Path) -> None:
    limited = "import resource\nfrom clf_serve.copying import sides\nsides.ROWS = 10\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
    new = tmp_path / "new"
    command = [sys.executable, "-c", limited.format(size=120_000) + PROGRAM, "gallery", "copy", str(folder), str(new)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2 and "cannot be" in done.stderr and "Traceback" not in done.stderr, done
    assert not new.exists()
    assert copy(folder, new).images == N and everything(new) == everything(folder)


def test_a_disk_where_nothing_can_be_made_is_named(folder: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    said = one_error(run("gallery", "copy", folder, tmp_path / "file" / "new"))
    assert "cannot be" in said and "name another folder" in said


def test_a_store_that_fails_in_the_middle_goes_on_later(
    install: Callable[..., Path], folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch)
    install_store(install, Failing)
    monkeypatch.setattr(Failing, "writes", 0)
    words = ("gallery", "copy", folder, f"shelf://{tmp_path}/new.db")
    said = one_error(run(*words))
    assert "the store 'shelf' (clf-shelf 1.0) failed in write: ConnectionError: the host is gone" in said
    code, out, _ = run(*words)
    assert code == 0 and "(20 of them by an earlier run)" in out
    assert everything(f"shelf://{tmp_path}/new.db") == everything(folder)


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (Rounding, r"does not give back what was written to it: the vectors of image 7 \(1 of 8 numbers\)"),
        (Forgetful, r"found image \d+ \(score .*\) where comparing every vector finds image"),
    ],
)
def test_a_store_that_changes_or_loses_anything_is_found_out(
    install: Callable[..., Path], folder: Path, tmp_path: Path, store: Any, words: str
) -> None:
    install_store(install, store)
    url = f"shelf://{tmp_path}/new.db"
    with pytest.raises(GalleryError, match=words + ".*it is left unfinished; tell the authors of the store 'shelf'"):
        copy(folder, url)
    with pytest.raises(GalleryError, match="is not whole yet"):
        open_gallery(url)


def test_a_damaged_source_is_named(site: Path, folder: Path, tmp_path: Path, run: Run) -> None:
    from clf_serve.gallery.database import Database

    with closing(Database(folder, write=True)) as database, database.changing() as connection:
        connection.execute("UPDATE vectors SET vector = zeroblob(32) WHERE id = 9")
    said = one_error(run("gallery", "copy", folder, f"shelf://{tmp_path}/new.db"))
    assert "the vector of image 9 is not of unit length" in said and "clf gallery check" in said
    with closing(Database(folder, write=True)) as database, database.changing() as connection:
        connection.execute("UPDATE vectors SET vector = x'00' WHERE id = 9")
    assert "the vector of image 9 has the wrong size" in one_error(run("gallery", "diff", folder, folder))


def test_metadata_that_no_store_can_keep_names_the_image(site: Path, folder: Path, tmp_path: Path, run: Run) -> None:
    """Of a gallery that an older version wrote."""
    from clf_serve.gallery.database import Database

    with closing(Database(folder, write=True)) as database, database.changing() as connection:
        connection.execute("UPDATE images SET metadata = '{\"x\": NaN}' WHERE id = 9")
    said = one_error(run("gallery", "copy", folder, f"shelf://{tmp_path}/new.db"))
    assert "ä/00008.jpg: metadata.x: nan is no number of JSON" in said


def test_a_lock_that_is_left_by_a_copy_that_ended_is_none(folder: Path, tmp_path: Path) -> None:
    draft = work_folder(tmp_path / "new", "copying")
    with pytest.raises(KeyboardInterrupt):
        copy(folder, tmp_path / "new", work.Steps(stage=_stop))
    assert not draft.exists()  # nothing was written yet
    draft.mkdir()
    WriteLock(draft).close()
    assert copy(folder, tmp_path / "new").images == N
    with Gallery(tmp_path / "new", write=True) as gallery:
        assert gallery.upsert([entry(1)]) == [2]


def _stop(label: str, rows: int) -> None:
    raise KeyboardInterrupt
