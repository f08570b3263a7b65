"""Renamed, moved, touched, copied and broken files: what a second run embeds, and what entries keep."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_helpers import picture, write_pictures

from clf import images
from clf.errors import DataError, GalleryError, ImageError
from clf_serve.engine import Engine
from clf_serve.gallery import Entry, Gallery, Identity, Item
from clf_serve.sync import failures as failures_module
from clf_serve.sync.indexing import IndexReport, Settings, index_images


class Bench:
    """A folder, a gallery of it, and the number of images that the model has seen."""

    def __init__(self, folder: Path, engine: Engine, embedded: list[int]) -> None:
        self.photos, self.gallery, self._engine, self._embedded = folder / "photos", folder / "g", engine, embedded

    def sync(self, source: Path | None = None, **options: object) -> IndexReport:
        with self.open(write=True) as gallery:
            return index_images(gallery, self._engine, source or self.photos, Settings(batch_size=4, **options))  # type: ignore[arg-type]

    def open(self, write: bool = False) -> Gallery:
        if write:
            return Gallery.open_or_create(self.gallery, Identity.of(self._engine.manifest), self._engine.folder)
        return Gallery(self.gallery)

    def embedded(self) -> int:
        """Since the last call."""
        count = sum(self._embedded)
        self._embedded.clear()
        return count

    def items(self) -> dict[str, Item]:
        """By name relative to the folder above the photos."""
        with self.open() as gallery:
            top = str(self.photos.parent) + "/"
            return {item.key.removeprefix(top): item for item in gallery.page(limit=1000)}

    def is_right(self) -> None:
        """Each file has one entry, with its own bytes' digest, vector, size and place; and nothing else is there."""
        files = {str(path): path for path in self.photos.rglob("*.png")}
        with self.open() as gallery:
            items = gallery.page(limit=1000)
            assert {item.key for item in items} == set(files)
            vectors = gallery.vectors([item.id for item in items])
            for item, vector in zip(items, vectors, strict=True):
                path, stat = files[item.key], files[item.key].stat()
                assert item.uri == item.key and item.folder == os.path.relpath(path.parent, self.photos).strip(".")
                assert (item.size, item.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
                assert (item.width, item.height) == (48, 40)
                wanted = self._engine.embed(self._engine.prepare(path)[None])[0]
                assert vector == pytest.approx(wanted, abs=1e-6)
                assert gallery.search(wanted, 1)[0].score == pytest.approx(1, abs=1e-6)


@pytest.fixture
def bench(tmp_path: Path, model: Path) -> Bench:
    embedded: list[int] = []
    engine = Engine(model, "cpu")
    embed = engine.embed
    engine.embed = lambda pixels: embedded.append(len(pixels)) or embed(pixels)  # type: ignore[method-assign, func-returns-value, assignment]
    bench = Bench(tmp_path, engine, embedded)
    write_pictures(bench.photos, 12)
    assert bench.sync().added == 12 and bench.embedded() == 12
    return bench


def test_touched_files_are_not_embedded(bench: Bench) -> None:
    for path in bench.photos.iterdir():
        os.utime(path, ns=(1, 1))

    report = bench.sync()

    assert (report.touched, report.unchanged, report.updated) == (12, 0, 0)
    assert bench.embedded() == 0
    assert str(bench.sync()).startswith("0 added, 0 updated, 12 unchanged")
    bench.is_right()


def test_a_renamed_file_keeps_its_entry_and_its_metadata(bench: Bench) -> None:
    old = bench.items()["photos/0003.png"]
    with bench.open(write=True) as gallery:
        gallery.set_metadata({old.id: {"label": "red"}})
    (bench.photos / "sub").mkdir()
    (bench.photos / "0003.png").rename(bench.photos / "sub" / "other.png")

    report = bench.sync()

    assert (report.renamed, report.added, report.removed, report.unchanged) == (1, 0, 0, 11)
    assert bench.embedded() == 0
    new = bench.items()["photos/sub/other.png"]
    assert (new.id, new.metadata, new.folder) == (old.id, {"label": "red"}, "sub")
    bench.is_right()


def test_files_that_change_places_keep_their_entries(bench: Bench) -> None:
    before = bench.items()
    names = [f"{i:04d}.png" for i in (1, 2, 3)]
    for name in names:
        (bench.photos / name).rename(bench.photos / f"{name}.was")
    for name, next_name in zip(names, names[1:] + names[:1], strict=True):
        (bench.photos / f"{name}.was").rename(bench.photos / next_name)
    (bench.photos / "0000.png").rename(bench.photos / "new.png")  # and a chain: 0005 takes the place of 0000
    (bench.photos / "0005.png").rename(bench.photos / "0000.png")
    for path in bench.photos.iterdir():
        os.utime(path)

    report = bench.sync()

    assert (report.renamed, report.touched, report.removed) == (5, 7, 0)
    assert bench.embedded() == 0
    after = bench.items()
    for name, next_name in zip(names, names[1:] + names[:1], strict=True):
        assert after[f"photos/{next_name}"].id == before[f"photos/{name}"].id
    assert after["photos/new.png"].id == before["photos/0000.png"].id
    bench.is_right()


def test_a_file_that_took_the_place_of_another_is_that_image(bench: Bench) -> None:
    before = bench.items()
    (bench.photos / "0001.png").replace(bench.photos / "0002.png")

    report = bench.sync()

    assert (report.renamed, report.removed, report.unchanged) == (1, 1, 10)
    assert bench.embedded() == 0
    assert bench.items()["photos/0002.png"].id == before["photos/0001.png"].id
    bench.is_right()


def test_a_copy_takes_the_vector_of_equal_bytes(bench: Bench) -> None:
    shutil.copy(bench.photos / "0001.png", bench.photos / "copy.png")
    shutil.copy(bench.photos / "0001.png", bench.photos / "0004.png")
    picture(99).save(bench.photos / "fresh.png")
    for name in ("fresh2.png", "fresh3.png", "a-fresh.png"):
        shutil.copy(bench.photos / "fresh.png", bench.photos / name)

    report = bench.sync()

    assert (report.added, report.updated, report.copied, report.unchanged) == (5, 1, 5, 11)
    assert bench.embedded() == 1
    assert "5 added, 1 updated (5 of them copies), 11 unchanged" in str(report)
    bench.is_right()
    with bench.open() as gallery:
        for item in gallery.page(limit=100):
            small = gallery.thumbnail(item.id)
            assert small is not None and small.data.startswith(b"\xff\xd8")


def test_copies_in_a_new_gallery_are_embedded_once(bench: Bench, tmp_path: Path) -> None:
    for i in range(40):
        shutil.copy(bench.photos / f"{i % 12:04d}.png", bench.photos / f"copy{i:02}.png")
    shutil.rmtree(bench.gallery)

    report = bench.sync()

    assert (report.added, report.copied) == (52, 40)
    assert bench.embedded() == 12
    bench.is_right()


def test_a_moved_original_and_its_copy(bench: Bench) -> None:
    old = bench.items()["photos/0007.png"].id
    (bench.photos / "sub").mkdir()
    shutil.copy(bench.photos / "0007.png", bench.photos / "a.png")
    (bench.photos / "0007.png").rename(bench.photos / "sub" / "0007.png")

    report = bench.sync()

    assert (report.renamed, report.added, report.copied, report.removed) == (1, 1, 1, 0)
    assert bench.embedded() == 0
    assert bench.items()["photos/sub/0007.png"].id == old  # the same name counts for more than the order
    bench.is_right()


def test_a_folder_that_was_renamed_as_a_whole(bench: Bench) -> None:
    ids = {item.id for item in bench.items().values()}
    bench.photos.rename(bench.photos.parent / "pictures")
    bench.photos = bench.photos.parent / "pictures"

    report = bench.sync()

    assert (report.renamed, report.added) == (12, 0) and bench.embedded() == 0
    assert {item.id for item in bench.items().values()} == ids
    bench.is_right()


def test_a_copy_in_another_folder_is_not_taken_for_a_move(bench: Bench, tmp_path: Path) -> None:
    shutil.copytree(bench.photos, tmp_path / "second")

    report = bench.sync(tmp_path / "second")

    assert (report.added, report.copied, report.renamed) == (12, 12, 0) and bench.embedded() == 0
    assert len(bench.items()) == 24


def test_entries_that_programs_added_are_never_moved_or_removed(bench: Bench) -> None:
    with bench.open(write=True) as gallery:
        vector = gallery.vector(1)
        assert vector is not None
        gallery.upsert([Entry("given by a program", "u", vector, size=7, sha256="0" * 64)])
    (bench.photos / "0002.png").unlink()
    picture(50).save(bench.photos / "new.png")

    assert bench.sync().removed == 1
    assert "given by a program" in bench.items()


def test_links_are_followed_and_what_is_gone_behind_them_is_removed(bench: Bench, tmp_path: Path) -> None:
    write_pictures(tmp_path / "elsewhere", 3, first=100)
    (bench.photos / "link").symlink_to(tmp_path / "elsewhere")
    (bench.photos / "circle").symlink_to(bench.photos)
    (bench.photos / "nowhere.png").symlink_to(tmp_path / "none.png")
    assert bench.sync().added == 3
    (tmp_path / "elsewhere" / "0101.png").unlink()

    report = bench.sync()

    assert (report.removed, report.unchanged) == (1, 14)
    assert bench.items()["elsewhere/0100.png"].folder == "link"
    assert [reason.partition("cannot")[2] for _, reason in report.skipped] == [" be read: No such file or directory"]


def test_most_images_do_not_go_without_a_word(bench: Bench) -> None:
    for path in sorted(bench.photos.iterdir())[:11]:
        path.unlink()
    picture(60).save(bench.photos / "new.png")

    report = bench.sync()

    assert (report.kept, report.removed, report.added) == (11, 0, 1)
    assert "11 gone and kept" in str(report)
    assert len(bench.items()) == 13
    assert bench.sync(allow_removals=True).removed == 11
    bench.is_right()


def test_a_folder_that_vanished_or_is_empty_never_empties_the_gallery(bench: Bench) -> None:
    bench.photos.rename(bench.photos.parent / "away")
    with pytest.raises(DataError, match="does not exist"):
        bench.sync(allow_removals=True)
    bench.photos.mkdir()
    with pytest.raises(DataError, match="holds no images"):
        bench.sync(allow_removals=True)
    assert len(bench.items()) == 12


def test_a_broken_file_is_read_once_and_listed_always(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = bench.photos / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    shutil.copy(bad, bench.photos / "worse.png")
    first = bench.sync()
    assert [path.name for path, _ in first.skipped] == ["bad.png", "worse.png"]
    assert all(str(path) in reason for path, reason in first.skipped)

    with monkeypatch.context() as patch:
        patch.setattr(images, "read", lambda *_: pytest.fail("a file was read again"))
        assert sorted(bench.sync().skipped) == sorted(first.skipped)

    with monkeypatch.context() as patch:  # another release of the decoders may read it
        patch.setattr(failures_module.Failures, "decoders", "others")
        assert sorted(bench.sync().skipped) == sorted(first.skipped)

    shutil.copy(bench.photos / "0001.png", bad)
    assert bench.sync().skipped == [first.skipped[1]]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"root": 3}', b'{"files": {"a": [1]}}'])
def test_what_is_remembered_of_broken_files_may_be_damaged(bench: Bench, damage: bytes) -> None:
    (bench.photos / "bad.png").write_bytes(b"nothing")
    bench.sync()
    (memory,) = (bench.gallery / "sync").iterdir()
    memory.write_bytes(damage)

    assert len(bench.sync().skipped) == 1


def test_an_entry_stays_while_its_changed_file_cannot_be_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = bench.photos / "0003.png"
    picture(70).save(changed)
    read = images.read

    def failing(path: Path) -> bytes:
        if path == changed:
            raise ImageError(f"{path} cannot be read: Input/output error") from OSError(5, "Input/output error")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(images, "read", failing)
        report = bench.sync()
    assert (report.removed, len(report.skipped)) == (0, 1)
    assert bench.sync().updated == 1
    bench.is_right()


def test_changed_files_keep_their_metadata(bench: Bench) -> None:
    with bench.open(write=True) as gallery:
        gallery.set_metadata({1: {"label": "blue"}})
    changed = next(item for item in bench.items().values() if item.id == 1)
    picture(80).save(changed.key)

    bench.sync()

    assert bench.items()["photos/0000.png"].metadata == {"label": "blue"}


def test_another_writer_is_told_of(bench: Bench) -> None:
    with bench.open(write=True), pytest.raises(GalleryError, match="another process"):
        bench.sync()


CHANGES = st.lists(
    st.tuples(st.sampled_from(["new", "copy", "rename", "over", "delete", "touch", "swap"]), st.integers(0, 99)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(CHANGES, min_size=1, max_size=3))
def test_any_changes_end_in_the_folder_as_it_is(bench: Bench, rounds: list[list[tuple[str, int]]]) -> None:
    shutil.rmtree(bench.photos)
    shutil.rmtree(bench.gallery)
    write_pictures(bench.photos, 5)
    for changes in [[], *rounds]:
        for kind, number in changes:
            alter(bench.photos, kind, number)
        bench.sync(allow_removals=True)
        bench.is_right()


def alter(photos: Path, kind: str, number: int) -> None:
    """One change of the folder; two files are always left."""
    files = sorted(photos.rglob("*.png"))
    one, two = files[number % len(files)], files[(number * 7 + 1) % len(files)]
    new = photos / "abc"[number % 3] / f"{number:02d}-{len(files)}.png"
    new.parent.mkdir(exist_ok=True)
    if new.exists():
        return
    if kind == "new":
        picture(1000 + number).save(new)
    elif kind == "copy":
        shutil.copy(one, new)
    elif kind == "rename":
        one.rename(new)
    elif kind == "over" and one != two and len(files) > 2:
        one.replace(two)
    elif kind == "delete" and len(files) > 2:
        one.unlink()
    elif kind == "touch":
        os.utime(one, ns=(number, number))
    elif kind == "swap" and one != two:
        one.rename(photos / "swap")
        two.rename(one)
        (photos / "swap").rename(two)
