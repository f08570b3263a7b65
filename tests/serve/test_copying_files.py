"""Galleries made in a store, or a folder, of exports, backups, another encoder's vectors, and bulk embedding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import Run, one_error
from copying_helpers import everything, next_id, small_parts
from PIL import Image
from serve_helpers import picture, write_model, write_pictures

from clf_serve.copying import diff
from clf_serve.gallery import Gallery, Identity
from clf_serve.stores import open_gallery
from clf_serve.sync.indexing import index_images

pytest.importorskip("pyarrow")


@pytest.fixture
def url(install: Callable[..., Path], tmp_path: Path) -> str:
    install("clf-shelf", entry_points="[clf.indexes]\nshelf = shelf_store:Shelf\n")
    return f"shelf://{tmp_path}/new.db"


@pytest.fixture
def folder(gallery: Path) -> Path:
    """A gallery of twenty photos, with metadata and gaps among the ids."""
    with Gallery(gallery, write=True) as opened:
        opened.set_metadata({id_: {"label": f"class {id_ % 3}"} for id_ in opened.ids().tolist()})
        opened.delete([3, 20])
    return gallery


def done(outcome: tuple[int, str, str]) -> Any:
    """The JSON that a command printed."""
    assert outcome[0] == 0, outcome
    return json.loads(outcome[1])


@pytest.mark.parametrize("name", ["x.parquet", "x.npz"])
def test_an_export_is_imported_into_a_store(
    run: Run, url: str, folder: Path, model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, 7)
    done(run("gallery", "export", folder, tmp_path / name, "--thumbnails", "--json"))

    found = done(run("gallery", "import", tmp_path / name, "-o", url, "--model", model, "--json"))

    assert (found["images"], found["different"], found["gallery"]) == (18, 0, url)
    assert everything(url) == everything(folder) and diff(folder, url).same
    with open_gallery(url) as opened:
        assert opened.model_path == model.resolve()
    assert next_id(url) == 20  # an export knows of no id after its last


def test_an_export_that_cannot_be_used_begins_nothing(
    run: Run, url: str, folder: Path, model: Path, tmp_path: Path
) -> None:
    done(run("gallery", "export", folder, tmp_path / "x.npz", "--json"))
    done(run("gallery", "export", folder, tmp_path / "none.npz", "--no-vectors", "--json"))
    other = write_model(tmp_path / "other", name="other", cells=4, dim=48)
    for file, of, words in (
        ("x.npz", other, "holds vectors of model tiny"),
        ("none.npz", model, "holds no vectors"),
        ("gone.npz", model, "does not exist"),
        ("x.jsonl", model, "a gallery is made of .parquet and .npz"),
    ):
        assert words in one_error(run("gallery", "import", tmp_path / file, "-o", url, "--model", of))
    assert "--thumbnails is for the shards" in one_error(
        run("gallery", "import", tmp_path / "x.npz", "-o", url, "--model", model, "--thumbnails")
    )
    assert "there is no gallery at" in one_error(run("gallery", "info", url))


def test_a_backup_is_restored_into_a_store(run: Run, url: str, folder: Path, tmp_path: Path) -> None:
    done(run("gallery", "backup", folder, tmp_path / "b", "--json"))

    assert done(run("gallery", "restore", tmp_path / "b", "-o", url, "--json"))["images"] == 18

    assert everything(url) == everything(folder) and next_id(url) == 21
    assert "is left as it is" in one_error(run("gallery", "restore", tmp_path / "b", "-o", url))
    assert "does not exist" in one_error(run("gallery", "restore", tmp_path / "c", "-o", url + "2"))
    (tmp_path / "c").write_bytes(b"no database" * 1000)
    assert "is damaged" in one_error(run("gallery", "restore", tmp_path / "c", "-o", url + "2"))


def test_images_are_embedded_anew_into_a_store(
    run: Run, url: str, folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_model(tmp_path / "other", name="other", cells=4, dim=48)
    words = ("gallery", "reembed", folder, other, "-o")

    from clf_serve.stores import changing

    upsert, calls = changing.upsert, []

    def stopped(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return upsert(*given)

    monkeypatch.setattr(changing, "upsert", stopped)
    code, _, err = run(*words, url, "--batch-size", 5)
    assert code == 130 and "run the same command again to go on" in err
    assert "is not whole yet" in one_error(run("search", url, photos / "0001.png"))
    found = done(run(*words, url, "--batch-size", 5, "--json"))
    assert (found["images"], found["resumed"]) == (18, 10)
    done(run(*words, tmp_path / "anew", "--json"))
    assert diff(tmp_path / "anew", url).same and everything(url) == everything(tmp_path / "anew")
    assert "is left as it is" in one_error(run(*words, url))


def test_shards_of_bulk_embedding_become_a_gallery_that_indexing_goes_on_with(
    run: Run, url: str, model: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    write_pictures(photos, 12)
    write_pictures(photos / "sub", 5, first=50)
    (photos / "broken.png").write_bytes(b"no picture")
    for form in ("parquet", "npy"):
        out = tmp_path / form
        done(run("embed", model, photos, "-o", f"{out}/", "--format", form, "--shard-size", 4, "--json"))
    words = ("--model", model, "--json")

    into_store = done(run("gallery", "import", tmp_path / "parquet", "-o", url, *words))
    into_folder = done(run("gallery", "import", tmp_path / "npy", "-o", tmp_path / "new", *words))

    assert into_store["images"] == into_folder["images"] == 17 and into_store["compared"]["thumbnails"] == 0
    assert everything(url) == everything(tmp_path / "new")
    with Gallery.open_or_create(tmp_path / "indexed", _identity(model), model) as indexed:
        from clf_serve.engine import Engine

        index_images(indexed, Engine(model, "cpu"), photos)
    wanted, found = _by_key(tmp_path / "indexed"), _by_key(tmp_path / "new")
    assert wanted == found
    again = done(run("index", model, photos, "-o", tmp_path / "new", "--json"))
    assert (again["unchanged"], again["added"], again["updated"]) == (17, 0, 0)
    hits = done(run("search", url, photos / "0003.png", "--json"))["hits"]
    assert hits[0]["uri"] == str(photos / "0003.png") and hits[0]["score"] > 0.9999


def _identity(model: Path) -> Identity:
    from clf.manifest import read_manifest

    return Identity.of(read_manifest(model))


def _by_key(folder: Path) -> dict[str, tuple[Any, ...]]:
    return {
        item.key: (item.sha256, item.width, item.height, item.size, item.mtime_ns, item.folder, vector)
        for item, vector, _ in everything(folder)
    }


def test_thumbnails_of_shards_are_those_of_the_files(run: Run, model: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_pictures(photos, 6)
    done(run("embed", model, photos, "-o", tmp_path / "out", "--json"))
    (photos / "0002.png").unlink()
    picture(99).save(photos / "0004.png")

    found = done(
        run("gallery", "import", tmp_path / "out", "-o", tmp_path / "new", "--model", model, "--thumbnails", "--json")
    )

    assert found["images"] == 6 and found["compared"]["thumbnails"] == 4
    with Gallery(tmp_path / "new") as gallery:
        assert [gallery.thumbnail(id_) is None for id_ in range(1, 7)] == [False, False, True, False, True, False]
        small = gallery.thumbnail(1)
        assert small is not None
        (tmp_path / "small.jpg").write_bytes(small.data)
    with Image.open(tmp_path / "small.jpg") as opened:
        assert np.abs(np.asarray(opened, np.float64) - np.asarray(picture(0))).mean() < 3


def test_shards_that_cannot_be_used_say_why(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(run("embed", model, photos, "-o", out, "--shard-size", 8, "--json"))
    words = ("gallery", "import", out, "-o", tmp_path / "new", "--model")
    other = write_model(tmp_path / "other", name="other", cells=4, dim=48)
    assert "holds vectors of model tiny (fp32, SHA-256" in one_error(run(*words, other))
    part = out / "part-00001.parquet"
    data = bytearray(part.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(each ^ 255 for each in data[middle : middle + 64])
    part.write_bytes(bytes(data))
    said = one_error(run(*words, model))
    assert "part-00001.parquet is" in said and "damaged" in said and "clf embed again" in said
    part.unlink()
    assert "is not whole: part-00001.parquet is missing" in one_error(run(*words, model))
    done(run("embed", model, photos, "-o", out, "--shard-size", 8, "--json"))
    assert done(run(*words, model, "--json"))["images"] == 20
    assert "exists; name a new folder" in one_error(run(*words, model))
