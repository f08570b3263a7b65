"""A gallery of the same images with another encoder: from files, from thumbnails, resumed after a kill."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from copies import assert_finds_what_is_nearest, contents, kill_once, start
from PIL import Image
from serve_helpers import PROGRAM, picture, write_model, write_pictures

from clf.errors import DataError, GalleryError
from clf_serve.engine import Engine
from clf_serve.gallery import Entry, Gallery, Identity, Item
from clf_serve.reembedding import reembed, work_folder
from clf_serve.sync.indexing import index_images
from clf_serve.sync.thumbnails import thumbnail

SLOW = (
    "import time\nfrom clf_serve.engine import Engine\nembed = Engine.embed\n"
    "def slow(self, pixels):\n    time.sleep(0.2)\n    return embed(self, pixels)\nEngine.embed = slow\n"
)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    engine = Engine(write_model(tmp_path_factory.mktemp("other"), name="other", cells=4, dim=48), "cpu")
    engine.warm_up()
    return engine


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "photos", 20)
    write_pictures(tmp_path / "photos" / "sub", 4, first=100)
    return tmp_path / "photos"


@pytest.fixture
def folder(tmp_path: Path, engine: Engine, photographs: Path) -> Path:
    """A gallery of the photographs, with metadata and gaps among the ids."""
    with Gallery.open_or_create(tmp_path / "g", Identity.of(engine.manifest), engine.folder) as gallery:
        index_images(gallery, engine, photographs)
        gallery.delete([1, 7])
        gallery.set_metadata({id_: {"label": f"class {id_ % 3}"} for id_ in gallery.ids().tolist()})
    return tmp_path / "g"


def items(folder: Path) -> list[Item]:
    return [row[0] for row in contents(folder)]


def expected(engine: Engine, paths: list[Path]) -> list[bytes]:
    vectors, _, _ = engine.embed_files(paths)
    return [vector.tobytes() for vector in vectors]


def test_the_same_images_with_other_vectors(folder: Path, other: Engine, tmp_path: Path) -> None:
    begun: list[int] = []
    done: list[int] = []

    report = reembed(folder, other, tmp_path / "new", batch_size=5, begin=begun.append, progress=done.append)

    old, new = contents(folder), contents(tmp_path / "new")
    assert [row[0] for row in new] == [row[0] for row in old]
    assert [row[2] for row in new] == [row[2] for row in old]
    assert [row[1] for row in new] == expected(other, [Path(row[0].key) for row in old])
    assert (report.images, report.resumed, report.changed, report.skipped) == (22, 0, 0, [])
    assert begun == [22] and sum(done) == 22
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "new", "photos"]
    with Gallery(tmp_path / "new", Identity.of(other.manifest)) as gallery:
        assert gallery.model_path == other.folder.resolve()
    assert_finds_what_is_nearest(tmp_path / "new")


def test_files_that_are_gone_are_listed_and_left_out(folder: Path, other: Engine, tmp_path: Path) -> None:
    (tmp_path / "photos" / "0003.png").unlink()
    (tmp_path / "photos" / "0005.png").write_bytes(b"no picture at all")

    report = reembed(folder, other, tmp_path / "new")

    assert report.images == 20
    assert sorted(path.name for path, _ in report.skipped) == ["0003.png", "0005.png"]
    reasons = dict(report.skipped)
    assert "0003.png does not exist" in reasons[tmp_path / "photos" / "0003.png"]
    assert "not an image" in reasons[tmp_path / "photos" / "0005.png"]
    left = [item for item in items(folder) if Path(item.key).name not in ("0003.png", "0005.png")]
    assert items(tmp_path / "new") == left


def test_files_that_are_gone_come_from_their_thumbnails_when_asked(folder: Path, other: Engine, tmp_path: Path) -> None:
    gone = tmp_path / "photos" / "0003.png"
    gone.unlink()
    item = next(item for item in items(folder) if item.key == str(gone))
    with Gallery(folder) as gallery:
        stored = gallery.thumbnail(item.id)
    assert stored is not None

    report = reembed(folder, other, tmp_path / "new", from_thumbnails=True)

    assert (report.images, report.from_thumbnails, report.skipped) == (22, 1, [])
    assert items(tmp_path / "new") == items(folder)
    with Gallery(tmp_path / "new") as new:
        kept, vector = new.thumbnail(item.id), new.vector(item.id)
    assert kept == stored and vector is not None
    with Image.open(io.BytesIO(stored.data)) as small:
        small.load()
        np.testing.assert_array_equal(vector, other.embed(other.prepare(stored.data)[None])[0])


def test_a_file_that_changed_is_embedded_as_it_is_now(folder: Path, other: Engine, tmp_path: Path) -> None:
    path = tmp_path / "photos" / "0003.png"
    picture(77, 64, 64).save(path)

    report = reembed(folder, other, tmp_path / "new")

    assert report.changed == 1
    new = {row[0].key: row for row in contents(tmp_path / "new")}[str(path)]
    old = next(item for item in items(folder) if item.key == str(path))
    assert new[1] == expected(other, [path])[0]
    assert (new[0].id, new[0].metadata) == (old.id, old.metadata)
    assert (new[0].width, new[0].height, new[0].size) == (64, 64, path.stat().st_size)
    assert new[0].sha256 != old.sha256


def test_a_key_that_is_no_path_is_found_by_its_uri(
    folder: Path, other: Engine, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Gallery(folder, write=True) as gallery:
        item = gallery.page(limit=1)[0]
        vector = gallery.vector(item.id)
        assert vector is not None
        loaded = {name: getattr(item, name) for name in ("size", "mtime_ns", "sha256", "width", "height")}
        gallery.upsert([Entry("shop/17", "photos/0004.png", vector, **loaded), Entry("shop/18", "http://x/y", vector)])

    report = reembed(folder, other, tmp_path / "new")

    assert report.images == 23 and [path for path, _ in report.skipped] == [Path("http://x/y")]
    found = {row[0].key: row[1] for row in contents(tmp_path / "new")}
    assert found["shop/17"] == expected(other, [Path("photos/0004.png")])[0]


def test_killed_and_run_again_it_goes_on(folder: Path, other: Engine, tmp_path: Path) -> None:
    new = tmp_path / "new"
    database = work_folder(new) / "gallery" / "gallery.sqlite"
    words = ("gallery", "reembed", folder, other.folder, "-o", new, "--batch-size", 2, "--json")
    for _ in range(2):
        before = embedded(database)
        kill_once(start(*words, before=SLOW), partial(lambda seen: embedded(database) > seen, before))
        assert not new.exists()
    halfway = embedded(database)

    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, words)], capture_output=True, text=True, check=True)

    report = json.loads(done.stdout)
    assert report["images"] == 22 and 22 > report["resumed"] >= halfway > 0
    reembed(folder, other, tmp_path / "whole")
    assert contents(new) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "new", "photos", "whole"]


def embedded(database: Path) -> int:
    if not database.exists():
        return 0
    try:
        with Gallery(database.parent) as gallery:
            return len(gallery)
    except GalleryError:  # it is just being made
        return 0


def test_the_old_gallery_may_change_between_two_runs(
    folder: Path, engine: Engine, other: Engine, tmp_path: Path
) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reembed(folder, other, tmp_path / "new", batch_size=10, progress=stop)
    half = items(work_folder(tmp_path / "new") / "gallery")
    assert len(half) == 10
    with Gallery(folder, write=True) as gallery:
        gallery.delete([half[0].id, half[1].id, 20])
        write_pictures(tmp_path / "photos", 1, first=0)
        added = index_images(gallery, engine, tmp_path / "photos").added
    assert added == 5  # under new ids

    report = reembed(folder, other, tmp_path / "new")

    assert items(tmp_path / "new") == items(folder)
    assert report.resumed == 8 and report.images == len(items(folder))


def test_images_added_while_it_runs_are_not_forgotten(
    folder: Path, engine: Engine, other: Engine, tmp_path: Path
) -> None:
    added: list[int] = []

    def meanwhile(done: int) -> None:
        if not added:
            write_pictures(tmp_path / "more", 3, first=200)
            with Gallery(folder, write=True) as gallery:
                added.append(index_images(gallery, engine, tmp_path / "more").added)
                gallery.delete([2])

    report = reembed(folder, other, tmp_path / "new", batch_size=5, progress=meanwhile)

    assert added == [3] and report.images == 24
    assert items(tmp_path / "new") == items(folder)


def test_two_at_once_are_kept_apart(folder: Path, other: Engine, tmp_path: Path) -> None:
    work = work_folder(tmp_path / "new")

    def second(done: int) -> None:
        with pytest.raises(GalleryError, match="another process is writing to the gallery"):
            reembed(folder, other, tmp_path / "new")

    assert reembed(folder, other, tmp_path / "new", progress=second).images == 22
    assert not work.exists()


def test_mistakes(folder: Path, engine: Engine, other: Engine, tmp_path: Path, photographs: Path) -> None:
    with pytest.raises(GalleryError, match=r"is of model tiny .* already"):
        reembed(folder, engine, tmp_path / "new")
    with pytest.raises(GalleryError, match="exists; name a new folder"):
        reembed(folder, other, photographs)
    with pytest.raises(GalleryError, match="is not a gallery"):
        reembed(photographs, other, tmp_path / "new")
    third = replace(Identity.of(other.manifest), sha256="0" * 64)
    work = work_folder(tmp_path / "new")
    work.mkdir()
    (work / "work.json").write_text(json.dumps({"gallery": str(folder), "of": "x", "model": third.sha256}))
    with pytest.raises(GalleryError, match=r"\.new\.reembedding is left from another gallery or model; delete it"):
        reembed(folder, other, tmp_path / "new")
    (work / "work.json").write_text("{")
    with pytest.raises(GalleryError, match="is left from another gallery or model"):
        reembed(folder, other, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_gallery_of_which_nothing_can_be_read_is_not_made(folder: Path, other: Engine, tmp_path: Path) -> None:
    (tmp_path / "photos").rename(tmp_path / "elsewhere")

    with pytest.raises(DataError, match=r"none of the 22 images can be read: .*does not exist.*clf gallery move"):
        reembed(folder, other, tmp_path / "new")

    assert not (tmp_path / "new").exists()


def test_the_command_says_what_became_of_the_images(
    folder: Path, other: Engine, tmp_path: Path, run_cli: object
) -> None:
    (tmp_path / "photos" / "0003.png").unlink()

    done = run_cli("gallery", "reembed", str(folder), str(other.folder), "-o", str(tmp_path / "new"))  # type: ignore[operator]

    assert done.code == 0, done.err
    assert f"21 images of {folder} → {tmp_path / 'new'}" in done.out
    assert "1 file skipped" in done.out and "0003.png does not exist" in done.out and "--from-thumbnails" in done.out
    again = run_cli(  # type: ignore[operator]
        "gallery", "reembed", str(folder), str(other.folder), "-o", str(tmp_path / "all"), "--from-thumbnails", "--json"
    )
    assert json.loads(again.out) == {
        "gallery": str(tmp_path / "all"),
        "images": 22,
        "resumed": 0,
        "from_thumbnails": 1,
        "changed": 0,
        "skipped": [],
    }


def test_keys_and_uris_that_no_file_can_have(tmp_path: Path, folder: Path, engine: Engine, other: Engine) -> None:
    """As they come over HTTP: too long for the operating system to look for."""
    with Gallery(folder, write=True) as gallery:
        vector = gallery.vectors([2])[0]
        gallery.upsert([Entry("/" + "k" * 300, "u" * 300, vector, thumbnail(picture(3)))])

    report = reembed(folder, other, tmp_path / "new", from_thumbnails=True)

    assert report.from_thumbnails == 1 and not report.skipped


def test_nothing_is_left_where_no_image_can_be_read(tmp_path: Path, folder: Path, other: Engine) -> None:
    shutil.rmtree(tmp_path / "photos")

    with pytest.raises(DataError, match="none of the"):
        reembed(folder, other, tmp_path / "new")

    assert [path.name for path in tmp_path.iterdir()] == ["g"]
