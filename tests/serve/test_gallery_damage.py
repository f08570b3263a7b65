"""Content that SQLite takes and a gallery cannot hold: refused with a remedy wherever it is met, and written over."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import DIM, MODEL, entries, make

from clf.errors import GalleryError
from clf_serve.checking import check
from clf_serve.commands.gallery_info import facts_of
from clf_serve.duplicates.finding import find
from clf_serve.gallery import Gallery, Identity, Where
from clf_serve.moving import move
from clf_serve.transfer.export import export_gallery
from clf_serve.transfer.plan import Parts

EAST = np.eye(DIM, dtype=np.float32)[0]
METADATA = {"label": "cat"}


def damage(folder: Path, statement: str) -> Path:
    with closing(sqlite3.connect(folder / "gallery.sqlite", isolation_level=None)) as connection:
        connection.execute(statement)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "g", 9, metadata=METADATA)


def _export(folder: Path, suffix: str) -> None:
    export_gallery(folder, folder.parent / f"out{suffix}", Parts(vectors=True, thumbnails=suffix != ".csv"))


def _opened(use: Callable[[Gallery], object]) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        with Gallery(folder) as gallery:
            return use(gallery)

    return run


USES: dict[str, Callable[[Path], object]] = {
    "page": _opened(lambda gallery: gallery.page()),
    "search": _opened(lambda gallery: gallery.search(EAST, 9)),
    "thumbnail": _opened(lambda gallery: gallery.thumbnail(5)),
    "vector": _opened(lambda gallery: gallery.vector(5)),
    "duplicates": _opened(find),
    "info": facts_of,
    "move": lambda folder: move(folder, Path("/old"), Path("/new")),
    "parquet": lambda folder: _export(folder, ".parquet"),
    "npz": lambda folder: _export(folder, ".npz"),
    "jsonl": lambda folder: _export(folder, ".jsonl"),
    "csv": lambda folder: _export(folder, ".csv"),
}
EVERY_EXPORT = ("parquet", "npz", "jsonl")


@pytest.mark.parametrize(
    ("statement", "uses"),
    [
        ("UPDATE images SET metadata = '{bad' WHERE id = 5", ("page", "search", "duplicates", "move", *EVERY_EXPORT)),
        ("UPDATE images SET metadata = '[1]' WHERE id = 5", ("page", "search", "csv", *EVERY_EXPORT)),
        ("UPDATE images SET metadata = x'ff' WHERE id = 5", ("page", "search", *EVERY_EXPORT)),
        ("UPDATE images SET width = 'x' WHERE id = 5", ("page", "search", "duplicates", *EVERY_EXPORT)),
        ("UPDATE images SET key = x'0011' WHERE id = 5", ("page", "move", *EVERY_EXPORT)),
        (f"UPDATE vectors SET vector = '{'a' * 4 * DIM}' WHERE id = 5", ("vector", "duplicates", "csv", *EVERY_EXPORT)),
        ("UPDATE thumbnails SET data = 'text' WHERE id = 5", ("thumbnail", "duplicates", *EVERY_EXPORT)),
        ("UPDATE meta SET value = 'x' WHERE key = 'dim'", tuple(USES)),
        ("UPDATE meta SET value = '0' WHERE key = 'dim'", tuple(USES)),
        ("UPDATE meta SET value = '1000000000000' WHERE key = 'dim'", tuple(USES)),
        ("UPDATE meta SET value = '-4' WHERE key = 'generation'", ("info", "search", "page")),
        ("INSERT INTO meta VALUES ('index_memory', 'much')", ()),
    ],
)
def test_damage_is_refused_with_a_remedy(folder: Path, statement: str, uses: tuple[str, ...]) -> None:
    damage(folder, statement)

    for use in uses:
        with pytest.raises(GalleryError, match=r"is damaged \(.*clf gallery check .*restore BACKUP -o .* --replace"):
            USES[use](folder)
    findings = {finding.part: finding.sound for finding in check(folder)}
    assert uses == () or not all(findings.values())


def test_a_wish_for_the_index_that_is_no_number(folder: Path) -> None:
    damage(folder, "INSERT INTO meta VALUES ('index_memory', 'much')")

    with Gallery(folder, write=True) as gallery, pytest.raises(GalleryError, match="is damaged"):
        gallery.optimize()


@pytest.mark.parametrize("metadata", ["'{bad'", "'[1]'", "x'ff'"])
def test_damaged_metadata_can_be_written_over_or_deleted(folder: Path, metadata: str) -> None:
    damage(folder, f"UPDATE images SET metadata = {metadata} WHERE id IN (2, 3, 4)")

    with Gallery(folder, write=True) as gallery:
        with pytest.raises(GalleryError, match=r"is damaged \(the metadata of image 2 is no JSON object\)"):
            gallery.set_metadata({2: {"label": "dog"}})
        assert gallery.set_metadata({2: {"label": "dog"}}, merge=False) == 1
        assert gallery.upsert([entries(0, 9, metadata={"label": "cow"})[2]]) == [3]
        assert gallery.delete([4]) == 1
        assert len(gallery.page()) == 8
        found = {label: gallery.ids(Where.parse({"label": label})).tolist() for label in ("cat", "cow", "dog")}
    assert found == {"cat": [1, 5, 6, 7, 8, 9], "cow": [3], "dog": [2]}


def test_the_remedy_of_a_damaged_gallery_is_a_command_that_runs(folder: Path) -> None:
    from clf_serve.moving import backup, restore

    backup(folder, folder.parent / "b.backup")
    damage(folder, "UPDATE meta SET value = 'x' WHERE key = 'dim'")
    with pytest.raises(GalleryError) as caught:
        Gallery(folder)
    found = re.search(r"clf gallery restore BACKUP -o (\S+) --replace", str(caught.value))
    assert found

    restore(folder.parent / "b.backup", Path(found[1]), replace=True)

    with Gallery(folder, Identity(*vars(MODEL).values())) as gallery:
        assert len(gallery) == 9


def test_numbers_that_overflow_are_damage_and_no_warning(folder: Path) -> None:
    damage(folder, f"UPDATE vectors SET vector = x'{'ffff7f7f' * DIM}' WHERE id = 5")  # the largest float32

    with pytest.raises(GalleryError, match="a vector is not of unit length"):
        USES["vector"](folder)
    assert {finding.part for finding in check(folder) if not finding.sound} >= {"vectors"}
