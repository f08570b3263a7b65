"""From a folder of photos to a search over HTTP, with the gallery in PostgreSQL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_helpers import Run, one_error
from postgres_helpers import Postgres
from serve_helpers import Server, encoded, picture, until

from clf_serve.gallery import Gallery
from clf_serve.stores import open_gallery

pytest.importorskip("psycopg")


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgres: Postgres) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return postgres.url()


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
    (tmp_path / "m.csv").write_text("file,label\n0001.png,cat\n0002.png,cat\n0007.png,dog\n")
    told = {}
    for place in (url, tmp_path / "folder"):
        first = done(run("index", model, own, "-o", place, "--metadata", tmp_path / "m.csv", "--json"))
        (own / "0003.png").rename(own / "moved.png")
        second = done(run("index", model, own, "-o", place, "--json"))
        assert (first["added"], second["renamed"], second["total"]) == (20, 1, 20)
        where = ("--where", '{"label": {"$in": ["cat", "dog"]}}')
        found = done(run("search", place, own / "0007.png", "-k", "4", *where, "--json"))
        assert found["hits"][0]["uri"].endswith("0007.png") and len(found["hits"]) == 3
        told[place] = {**first, "gallery": None}, {**second, "gallery": None}, found
        (own / "moved.png").rename(own / "0003.png")
    ours, theirs = told.values()
    assert ours == theirs
    with open_gallery(url) as store, Gallery(tmp_path / "folder") as folder:
        pairs = [[replace(item, mtime_ns=0) for item in gallery.page()] for gallery in (store, folder)]
        assert pairs[0] == pairs[1] and store.fields() == folder.fields()


def test_info_check_optimize_and_delete(run: Run, url: str, model: Path, own: Path, tmp_path: Path) -> None:
    assert done(run("index", model, own, "--store", url, "--json"))["added"] == 20
    facts = done(run("gallery", "info", url, "--json"))
    assert (facts["images"], facts["index"]["kind"], facts["index"]["exact"]) == (20, "flat", True)
    assert facts["bytes"] > 100_000 and facts["gallery"] == url
    told = done(run("gallery", "optimize", url, "--index", "hnsw", "--json"))
    assert (told["index"]["kind"], told["index"]["recall"]) == ("hnsw", 1.0)
    code, out, _ = run("gallery", "info", url)
    assert code == 0 and "hnsw (m 16, ef_construction 64" in out and "1.0000, mean of 20 searches" in out
    code, out, _ = run("gallery", "check", url)
    assert code == 0 and out.count(" ok ") == 5
    assert done(run("index", model, own, "-o", url, "--index", "flat", "--json"))["unchanged"] == 20
    assert done(run("gallery", "info", url, "--json"))["index"]["kind"] == "flat"
    assert "ivf is of galleries in folders" in one_error(run("gallery", "optimize", url, "--index", "ivf"))
    assert done(run("gallery", "delete", url, "--where", '{"@id": {"$lte": 5}}', "--yes", "--json"))["removed"] == 5
    assert "is for galleries in folders" in one_error(run("gallery", "backup", url, tmp_path / "b"))
    nowhere = url.split("?")[0] + "?gallery=nowhere"
    assert f"make one: clf index MODEL IMAGES -o {nowhere}" in one_error(run("gallery", "info", nowhere))


def test_a_password_is_never_printed(run: Run, url: str, postgres: Postgres, model: Path, own: Path) -> None:
    wrong = f"postgresql://guarded:sw0rdfish@127.0.0.1:{postgres.port}/postgres"
    for words in (("index", model, own, "-o", wrong), ("gallery", "info", wrong), ("search", wrong, own / "0001.png")):
        outcome = run(*words)
        assert "password authentication failed" in one_error(outcome) and "sw0rdfish" not in "".join(outcome[1:])


@pytest.mark.slow
def test_a_server_shows_searches_and_takes_images_and_outlives_its_database(
    run: Run, serve: Callable[..., Server], url: str, model: Path, own: Path, postgres: Postgres
) -> None:
    assert done(run("index", model, own, "-o", url, "--json"))["added"] == 20
    server = serve(model, "--gallery", url, "--writable", "--no-ui")
    name, photo = url.rpartition("=")[2], (own / "0007.png").read_bytes()
    with httpx.Client(base_url=server.base, timeout=60, trust_env=False) as client:
        until(lambda: client.get("/health/ready").status_code == 200, 60)
        [listed] = client.get("/v1/galleries").json()["data"]
        assert (listed["id"], listed["images"], listed["index"]["kind"]) == (name, 20, "flat")
        assert _first(client, name, photo)["uri"].endswith("0007.png")
        postgres.kill()
        try:
            reply = client.post(f"/v1/galleries/{name}/search?k=1", content=photo, headers=PNG)
            assert reply.status_code == 503 and reply.json()["error"]["code"] == "gallery_unavailable"
        finally:
            postgres.start()
        assert _first(client, name, photo)["uri"].endswith("0007.png")
        new = encoded(picture(777))
        put = client.post(f"/v1/galleries/{name}/images?key=mine", content=new, headers=PNG).json()
        assert put["images"] == [{"id": 21, "key": "mine", "created": True}]
        assert _first(client, name, new)["id"] == 21
    assert "Traceback" not in "".join(server.log)
    with open_gallery(url) as gallery:
        assert len(gallery) == 21


PNG = {"Content-Type": "image/png"}


def _first(client: httpx.Client, name: str, photo: bytes) -> Any:
    reply = client.post(f"/v1/galleries/{name}/search?k=1", content=photo, headers=PNG)
    assert reply.status_code == 200, reply.text
    return reply.json()["hits"][0]
