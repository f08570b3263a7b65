"""A gallery kept in line with a folder: what is embedded again, what is skipped, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from serve_helpers import picture, write_model, write_pictures

from clf.errors import DataError, GalleryError, ImageError
from clf_serve.engine import Engine, Pixels
from clf_serve.gallery import Gallery, Identity
from clf_serve.sync.indexing import index_images


def index(folder: Path, engine: Engine, photos: Path, batch_size: int = 4) -> str:
    with Gallery.open_or_create(folder, Identity.of(engine.manifest), engine.folder) as gallery:
        return str(index_images(gallery, engine, photos, batch_size=batch_size))


def test_indexing_again_embeds_only_what_changed(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    paths = write_pictures(photos / "sub", 10)
    assert index(tmp_path / "g", engine, photos) == "10 added, 0 updated, 0 unchanged, 0 removed, 0 skipped"

    embedded: list[int] = []
    embed = engine.embed
    monkeypatch.setattr(engine, "embed", lambda pixels: embedded.append(len(pixels)) or embed(pixels))
    assert index(tmp_path / "g", engine, photos) == "0 added, 0 updated, 10 unchanged, 0 removed, 0 skipped"
    assert embedded == []

    picture(77).save(paths[2])
    os.utime(paths[2], ns=(1, 1))
    paths[5].unlink()
    paths[6].write_bytes(b"spoilt")
    write_pictures(photos, 1, first=50)
    assert index(tmp_path / "g", engine, photos) == "1 added, 1 updated, 7 unchanged, 2 removed, 1 skipped"
    assert sum(embedded) == 2

    with Gallery(tmp_path / "g") as reader:
        (hit,) = reader.search(embed(engine.prepare(paths[2])[None])[0], 1)
        assert hit.uri == str(paths[2]) and hit.score == pytest.approx(1, abs=1e-6)
        assert len(reader) == 9


def test_the_same_folder_under_another_name_is_the_same(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "photos", 3)
    index(tmp_path / "g", engine, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)

    assert index(Path("g"), engine, Path("photos")) == "0 added, 0 updated, 3 unchanged, 0 removed, 0 skipped"


def test_a_gallery_holds_several_folders_and_single_files(tmp_path: Path, engine: Engine) -> None:
    write_pictures(tmp_path / "a", 3)
    (one,) = write_pictures(tmp_path / "b", 1, first=9)
    index(tmp_path / "g", engine, tmp_path / "a")

    assert index(tmp_path / "g", engine, one) == "1 added, 0 updated, 0 unchanged, 0 removed, 0 skipped"
    with Gallery(tmp_path / "g") as reader:
        assert len(reader) == 4


def test_an_empty_folder_does_not_empty_the_gallery(tmp_path: Path, engine: Engine) -> None:
    photos = tmp_path / "photos"
    paths = write_pictures(photos, 3)
    index(tmp_path / "g", engine, photos)
    for path in paths:  # as when a disk is not mounted
        path.unlink()

    with pytest.raises(DataError, match="holds no images"):
        index(tmp_path / "g", engine, photos)
    with Gallery(tmp_path / "g") as reader:
        assert len(reader) == 3


def test_images_that_may_not_be_looked_at_stay_in_the_gallery(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "photos" / "a", 2)
    write_pictures(tmp_path / "photos" / "b", 2)
    index(tmp_path / "g", engine, tmp_path / "photos")
    locked, scandir = str(tmp_path / "photos" / "b"), os.scandir

    class Unasked:
        """An entry of a folder that one may list and not enter."""

        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path = entry.name, entry.path

        def is_dir(self) -> bool:
            return False

        def stat(self) -> os.stat_result:
            raise PermissionError(13, "Permission denied", self.path)

    def no_list(path: str) -> object:
        if path == locked:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    def no_stat(path: str) -> object:
        entries = scandir(path)
        return nullcontext([Unasked(entry) for entry in entries]) if path == locked else entries

    with monkeypatch.context() as patch:  # as after chmod a-r
        patch.setattr(os, "scandir", no_list)
        with pytest.raises(ImageError, match="b cannot be read: Permission denied"):
            index(tmp_path / "g", engine, tmp_path / "photos")
    with monkeypatch.context() as patch:  # as after chmod a-x
        patch.setattr(os, "scandir", no_stat)
        said = index(tmp_path / "g", engine, tmp_path / "photos")

    assert "0 removed, 2 skipped" in said
    with Gallery(tmp_path / "g") as reader:
        assert len(reader) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")
def test_a_file_name_that_is_no_unicode_is_skipped(tmp_path: Path, engine: Engine) -> None:
    write_pictures(tmp_path / "photos", 1)
    bad = os.fsencode(tmp_path / "photos") + b"/\xff.png"
    Path(os.fsdecode(bad)).write_bytes((tmp_path / "photos" / "0000.png").read_bytes())

    with Gallery.open_or_create(tmp_path / "g", Identity.of(engine.manifest), engine.folder) as gallery:
        report = index_images(gallery, engine, tmp_path / "photos")

    assert report.added == 1
    assert "no valid Unicode" in report.skipped[0].reason


def test_thumbnails_are_upright_and_small(tmp_path: Path, engine: Engine) -> None:
    import io

    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture is 300 wide and 600 high
    (tmp_path / "p").mkdir()
    picture(1, 600, 300).save(tmp_path / "p" / "turned.jpg", exif=exif)
    index(tmp_path / "g", engine, tmp_path / "p")

    with Gallery(tmp_path / "g") as reader:
        thumbnail = reader.thumbnail(1)
    assert thumbnail is not None
    assert Image.open(io.BytesIO(thumbnail.data)).size == (128, 256)


def test_indexing_that_is_killed_goes_on_where_it_was(tmp_path: Path, engine: Engine) -> None:
    photos = tmp_path / "photos"
    write_pictures(photos, 60)
    program = """
import sys, time
from pathlib import Path
from clf_serve.engine import Engine, Pixels
from clf_serve.gallery import Gallery, Identity
from clf_serve.sync.indexing import index_images
engine = Engine(Path(sys.argv[1]), "cpu")
with Gallery.open_or_create(Path(sys.argv[2]), Identity.of(engine.manifest), engine.folder) as gallery:
    def progress(done):
        print(done, flush=True)
        time.sleep(0.05)
    index_images(gallery, engine, Path(sys.argv[3]), batch_size=4, progress=progress)
"""
    words = [sys.executable, "-c", program, str(engine.folder), str(tmp_path / "g"), str(photos)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = sum(int(process.stdout.readline()) for _ in range(5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    with Gallery(tmp_path / "g") as reader:  # usable as it is
        survived = len(reader)
        assert acknowledged <= survived < 60
    report = index(tmp_path / "g", engine, photos)
    assert report == f"{60 - survived} added, 0 updated, {survived} unchanged, 0 removed, 0 skipped"
    with Gallery(tmp_path / "g") as reader:
        vectors, paths, _ = engine.embed_files(sorted(photos.iterdir()))
        for vector, path in zip(vectors, paths, strict=True):
            assert reader.search(vector, 1)[0].uri == str(path)


def test_a_reader_in_another_process_searches_while_an_index_is_written(tmp_path: Path, engine: Engine) -> None:
    photos = tmp_path / "photos"
    write_pictures(photos, 4)
    index(tmp_path / "g", engine, photos)
    program = """
import sys, numpy as np
from pathlib import Path
from clf_serve.gallery import Gallery
gallery = Gallery(Path(sys.argv[1]))
query = np.full(12, 12 ** -0.5, np.float32)
seen = [len(gallery.search(query, 1000))]
print(seen[0], flush=True)
while seen[-1] < 44:
    seen.append(len(gallery.search(query, 1000)))
assert seen == sorted(seen), seen
print("grew", len(set(seen)) > 2)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "g")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "4\n"
    write_pictures(photos, 40, first=100)
    with Gallery.open_or_create(tmp_path / "g", Identity.of(engine.manifest), engine.folder) as gallery:
        index_images(gallery, engine, photos, batch_size=2, progress=lambda done: time.sleep(0.02))
    out, err = process.communicate(timeout=60)

    assert (out, err) == ("grew True\n", "")


def test_a_gallery_of_another_model_is_not_written_to(tmp_path: Path, engine: Engine) -> None:
    write_pictures(tmp_path / "photos", 2)
    index(tmp_path / "g", engine, tmp_path / "photos")
    other = Engine(write_model(tmp_path / "other", name="other", cells=4, dim=48), "cpu")

    with pytest.raises(GalleryError, match="was made with model tiny"):
        index(tmp_path / "g", other, tmp_path / "photos")


def test_a_stream_that_is_closed_decodes_no_more(tmp_path: Path, engine: Engine) -> None:
    paths = write_pictures(tmp_path / "photos", 200)
    read: list[Path] = []

    def load(path: Path) -> tuple[Pixels, Path]:
        read.append(path)
        time.sleep(0.01)
        return engine.prepare(path), path

    chunks = engine.stream(paths, load, batch_size=64)
    next(chunks)
    chunks.close()

    assert len(read) < 150  # and not all that were begun ahead
