"""From a folder of photos to a search over HTTP, with the gallery in a store that a package brings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from command_helpers import Run, one_error
from gallery_helpers import MODEL, entries
from serve_helpers import Server, encoded, picture, until, write_model, write_pictures
from store_helpers import child_environment, install_shelf

from clf.errors import GalleryError
from clf_serve.gallery import Gallery
from clf_serve.stores import open_gallery, open_or_create
from clf_serve.transfer.snapshot import snapshot


@pytest.fixture
def site(install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return install_shelf(install)


@pytest.fixture
def url(site: Path, tmp_path: Path) -> str:
    return f"shelf://{tmp_path}/pets.db"


@pytest.fixture
def own(photos: Path, tmp_path: Path) -> Path:
    """Photos that a test may change."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    return folder


def done(outcome: tuple[int, str, str]) -> Any:
    """The JSON that a command printed."""
    assert outcome[0] == 0, outcome
    return json.loads(outcome[1])


def test_index_and_search_say_what_they_say_of_a_folder(
    run: Run, url: str, model: Path, own: Path, tmp_path: Path
) -> None:
    told = {}
    for place in (url, tmp_path / "folder"):
        rehearsed = done(run("index", model, own, "-o", place, "--dry-run", "--json"))
        assert rehearsed["added"] == 20 and rehearsed["gallery"] == str(place)
        first = done(run("index", model, own, "-o", place, "--json"))
        (own / "0003.png").rename(own / "moved.png")
        picture(500).save(own / "0004.png")
        (own / "0005.png").unlink()
        (own / "broken.png").write_bytes(b"no picture")
        second = done(run("index", model, own, "-o", place, "--json"))
        third = done(run("index", model, own, "-o", place, "--json"))
        found = done(run("search", place, own / "0007.png", "-k", "4", "--json"))
        assert found["hits"][0]["uri"].endswith("0007.png")
        told[place] = [{**one, "gallery": None} for one in (first, second, third)], found
        (own / "moved.png").rename(own / "0003.png")
        write_pictures(own, 2, 4)
        (own / "broken.png").unlink()
    ours, theirs = told.values()
    assert ours == theirs
    assert (ours[0][1]["renamed"], ours[0][1]["updated"], ours[0][1]["removed"], ours[0][2]["unchanged"]) == (
        1,
        1,
        1,
        19,
    )
    with open_gallery(url) as store, Gallery(tmp_path / "folder") as folder:
        pairs = [[replace(item, mtime_ns=0) for item in gallery.page()] for gallery in (store, folder)]
    assert pairs[0] == pairs[1]


def test_metadata_filters_ids_and_pages_work_on_the_command_line(
    run: Run, url: str, model: Path, own: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.csv").write_text("file,label\n0001.png,cat\n0002.png,cat\n0003.png,dog\n")
    assert done(run("index", model, own, "-o", url, "--metadata", tmp_path / "m.csv", "--json"))["added"] == 20
    found = done(run("search", url, "--id", 1, "--where", '{"label": "cat"}', "--json"))
    assert [Path(hit["uri"]).name for hit in found["hits"]] in (["0001.png", "0002.png"], ["0002.png", "0001.png"])
    assert done(run("search", url, own / "0001.png", "--min-score", "0.9999", "--json"))["hits"][0]["score"] > 0.9999
    code, _, _ = run("search", url, own / "0001.png", "--html", tmp_path / "page.html")
    assert code == 0 and "data:image/jpeg" in (tmp_path / "page.html").read_text()
    assert "no image with the id 99" in one_error(run("search", url, "--id", 99))
    facts = done(run("gallery", "info", url, "--json"))
    assert facts["fields"]["label"]["values"] == [["cat", 2], ["dog", 1]]
    assert (facts["index"]["kind"], facts["index"]["exact"], facts["model"]["state"]) == ("shelf", True, "there")
    code, out, _ = run("gallery", "info", url)
    assert code == 0 and "20 images" in out and "exact: every vector is compared" in out
    assert facts["index"]["why"] == "searched by the store 'shelf' (clf-shelf 1.0)"
    assert done(run("duplicates", url, "--json", "--level", "bytes"))["groups"] == []
    assert done(run("gallery", "delete", url, "--where", '{"label": "cat"}', "--yes", "--json"))["removed"] == 2
    own.rename(tmp_path / "elsewhere")
    assert done(run("gallery", "move", url, own, tmp_path / "elsewhere", "--json")) == {
        "gallery": url,
        "moved": 18,
        "missing": 0,
    }
    code, out, _ = run("gallery", "check", url)
    assert code == 0 and out.count(" ok ") == 5


def test_a_gallery_in_a_store_is_embedded_anew_into_a_folder(
    run: Run, url: str, model: Path, own: Path, tmp_path: Path
) -> None:
    assert done(run("index", model, own, "-o", url, "--json"))["added"] == 20
    other = write_model(tmp_path / "other", name="other", cells=4, dim=48)
    done(run("gallery", "reembed", url, other, "-o", tmp_path / "new", "--json"))
    with open_gallery(url) as old, Gallery(tmp_path / "new") as new:
        assert new.model.dim == 48 and new.ids().tolist() == old.ids().tolist()


def test_what_only_folders_have_says_so(run: Run, url: str, model: Path, own: Path, tmp_path: Path) -> None:
    assert done(run("index", model, own, "-o", url, "--json"))["added"] == 20
    for words in (("backup", url, tmp_path / "b"),):
        said = one_error(run("gallery", *words))
        assert f"clf gallery {words[0]}" in said and "is for galleries in folders" in said and "store 'shelf'" in said
        assert f"a copy in a folder: clf gallery copy {url} FOLDER" in said
    assert "--replace is for" in one_error(run("gallery", "restore", tmp_path / "b", "-o", url, "--replace"))
    assert "leave out --index" in one_error(run("index", model, own, "-o", url, "--index", "hnsw"))
    assert "kept by the store 'shelf'" in one_error(run("gallery", "optimize", url))
    assert not (tmp_path / "b").exists() and not Path("shelf:").exists()


@pytest.mark.parametrize("suffix", [".npz", ".jsonl", ".csv"])
def test_an_export_is_that_of_a_folder(run: Run, url: str, model: Path, own: Path, tmp_path: Path, suffix: str) -> None:
    files = []
    for place, name in ((url, "store"), (tmp_path / "folder", "folder")):
        assert done(run("index", model, own, "-o", place, "--json"))["added"] == 20
        files.append(tmp_path / f"{name}{suffix}")
        words = ("--thumbnails",) if suffix != ".csv" else ()
        where = ("--where", '{"@id": {"$gt": 3}}')
        told = done(run("gallery", "export", place, files[-1], *words, *where, "--json"))
        assert told["images"] == 17 and told["gallery"] == str(place)
    if suffix != ".npz":
        assert files[0].read_bytes() == files[1].read_bytes()
        return
    done(run("gallery", "import", files[0], "-o", tmp_path / "back", "--model", model, "--json"))
    with open_gallery(url) as store, Gallery(tmp_path / "back") as back:
        assert back.page() == store.page(after=3)
        assert back.thumbnail(9) == store.thumbnail(9)
        np.testing.assert_array_equal(back.vectors([5, 6]), store.vectors([5, 6]))


def test_an_export_fails_where_somebody_writes_meanwhile(site: Path, url: str, tmp_path: Path) -> None:
    with open_or_create(url, MODEL, tmp_path) as gallery:
        gallery.upsert(entries(0, 3))
        with snapshot(url) as images, pytest.raises(GalleryError, match="was written to while it was read; run this"):
            gallery.delete([1])
            list(images.batches())


def test_another_model_is_refused_and_so_is_an_unknown_scheme(
    run: Run, url: str, model: Path, own: Path, tmp_path: Path
) -> None:
    assert done(run("index", model, own, "-o", url, "--json"))["added"] == 20
    other = write_model(tmp_path / "other", name="other", cells=4, dim=48)
    for words in (("index", other, own, "-o", url), ("index", other, own, "-o", url, "--dry-run")):
        assert "was made with model tiny" in one_error(run(*words))
    for words in (
        ("index", model, own, "-o", "shelv://x"),
        ("search", "shelv://x", own / "0001.png"),
        ("gallery", "info", "shelv://x"),
    ):
        assert "Did you mean 'shelf'?" in one_error(run(*words))
    assert "there is no gallery at shelf:///nowhere.db" in one_error(
        run("search", "shelf:///nowhere.db", own / "0001.png")
    )


def test_check_finds_what_a_store_has_lost(
    run: Run, install: Callable[..., Path], url: str, model: Path, own: Path
) -> None:
    assert done(run("index", model, own, "-o", url, "--json"))["added"] == 20
    with open_gallery(url) as gallery:
        db: Any = gallery.calls.store.db  # type: ignore[attr-defined]
        db.execute("UPDATE rows SET thumbnail = 'no picture' WHERE id = 3")
        db.execute("UPDATE rows SET vector = zeroblob(48) WHERE id = 4")
        db.execute("UPDATE rows SET facts = '[]' WHERE id = 5")
    code, out, _ = run("gallery", "check", url, "--json")
    found = {row["part"]: row for row in json.loads(out)["findings"]}
    assert code == 1 and [name for name, row in found.items() if not row["sound"]] == [
        "rows",
        "vectors",
        "thumbnails",
        "search",
    ]
    assert "the facts of row 5" in found["rows"]["what"] and found["rows"]["remedy"]


@pytest.mark.slow
def test_a_store_is_served_over_http_and_written_to(
    serve: Callable[..., Server], run: Run, site: Path, url: str, model: Path, own: Path
) -> None:
    assert done(run("index", model, own, "-o", url, "--json"))["added"] == 20
    server = serve(model, "--gallery", url, "--writable", env=child_environment(site))
    top = "/v1/galleries/pets.db"
    with httpx.Client(base_url=server.base, timeout=60, trust_env=False) as client:
        until(lambda: client.get("/health/ready").status_code == 200, 60)
        listed = client.get("/v1/galleries").json()["data"]
        assert [(row["id"], row["images"], row["index"]["kind"]) for row in listed] == [("pets.db", 20, "shelf")]
        photo = (own / "0007.png").read_bytes()
        hits = client.post(f"{top}/search?k=3", content=photo, headers={"Content-Type": "image/png"}).json()["hits"]
        assert hits[0]["uri"].endswith("0007.png") and hits[0]["score"] > 0.9999 and hits[0]["percentile"] > 0.9
        assert client.get(hits[0]["thumbnail"]).headers["content-type"] == "image/jpeg"
        assert client.get("/page/gallery").json()["images"] == client.get("/page/map").json()["images"] == 20
        shown = client.post("/page/search", json={"queries": [{"id": 1}]}).json()
        assert (shown["images"], shown["generation"]) == (20, listed[0]["generation"])
        new = encoded(picture(900))
        put = client.post(f"{top}/images?key=mine", content=new, headers={"Content-Type": "image/png"}).json()
        id_ = put["images"][0]["id"]
        assert put["images"] == [{"id": 21, "key": "mine", "created": True}]
        assert client.patch(f"{top}/images/{id_}", json={"metadata": {"label": "cat"}}).json()["metadata"] == {
            "label": "cat"
        }
        found = client.post(f"{top}/search", json={"id": 1, "where": {"label": "cat"}, "k": 5}).json()
        assert [hit["id"] for hit in found["hits"]] == [id_] and found["matching"] == 1
        vector = np.array(client.get(f"{top}/images/{id_}/vector").json()["vector"])
        assert abs(np.linalg.norm(vector) - 1) < 1e-5
        page = client.get(f"{top}/images?limit=5&after=18").json()
        assert [row["id"] for row in page["images"]] == [19, 20, 21] and page["matching"] == 21
        assert client.get(top).json()["fields"]["label"]["entries"] == 1
        (own / "0001.png").unlink()  # clf index writes while it is served
        assert done(run("index", model, own, "-o", url, "--json"))["removed"] == 1
        assert client.get(f"{top}/images/2").status_code == 404 and client.get(top).json()["images"] == 20
        assert client.post(f"{top}/delete", json={"ids": [id_, 3]}).json() == {"deleted": 2}
        Path(url.removeprefix("shelf://")).write_bytes(b"no database" * 1000)
        gone = client.post(f"{top}/search?k=3", content=photo, headers={"Content-Type": "image/png"})
        assert gone.status_code == 503 and gone.json()["error"]["code"] == "gallery_unavailable"
        until(lambda: any("the store 'shelf' (clf-shelf 1.0) failed in " in line for line in server.log))
