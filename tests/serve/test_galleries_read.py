"""What a gallery tells of itself: facts, pages of images, vectors, thumbnails; names, keys and metrics."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from api_helpers import LIMITS, error, wait_ready
from gallery_api import TOP, WRITABLE, live
from serve_helpers import DIM, served, service_of, write_model, write_pictures

from clf_serve.deployment import Opened
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity, Where
from clf_serve.gallery_memory import Memory
from clf_serve.service import Service, public_names
from clf_serve.sync.indexing import index_images


@pytest.fixture(scope="module")
def client(engine: Engine, indexed: Path) -> Any:
    """Of the gallery of the twenty photos, in the folder ``g``."""
    with served(service_of(engine, Gallery(indexed), LIMITS)) as client:
        wait_ready(client)
        yield client


def test_a_gallery_says_what_it_holds(client: httpx.Client, engine: Engine) -> None:
    [listed] = client.get("/v1/galleries").json()["data"]
    one = client.get("/v1/galleries/g").json()

    assert {name: one[name] for name in listed} == listed
    assert (one["id"], one["images"], one["model"], one["dim"]) == ("g", 20, "tiny", DIM)
    assert (one["writable"], one["index"]["recall"], one["index"]["kind"]) == (False, 1.0, "flat")
    assert one["fields"]["@folder"]["entries"] == 20


def test_pages_hold_every_image_once(client: httpx.Client) -> None:
    found, after, pages = [], 0, 0
    while after is not None:
        page = client.get("/v1/galleries/g/images", params={"limit": 7, "after": after}).json()
        found += [item["id"] for item in page["images"]]
        after, pages = page["next"], pages + 1
        assert page["matching"] == 20

    assert found == sorted(set(found)) and len(found) == 20 and pages == 3
    whole = client.get("/v1/galleries/g/images", params={"limit": 20}).json()
    assert [item["id"] for item in whole["images"]] == found and whole["next"] is None


def test_a_page_may_be_filtered(client: httpx.Client) -> None:
    where = json.dumps({"@id": {"$gt": 3, "$lte": 12}})
    page = client.get("/v1/galleries/g/images", params={"where": where, "limit": 5}).json()
    assert [item["id"] for item in page["images"]] == [4, 5, 6, 7, 8]
    assert (page["next"], page["matching"]) == (8, 9)
    rest = client.get("/v1/galleries/g/images", params={"where": where, "limit": 5, "after": 8}).json()
    assert [item["id"] for item in rest["images"]] == [9, 10, 11, 12] and rest["next"] is None


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"limit": "0"}, "invalid_limit"),
        ({"limit": "1001"}, "invalid_limit"),
        ({"limit": "x"}, "invalid_limit"),
        ({"after": "-1"}, "invalid_after"),
        ({"where": "{"}, "invalid_filter"),
        ({"where": '{"$or": 1}'}, "invalid_filter"),
        ({"where": "[" * 12_000}, "invalid_filter"),
    ],
)
def test_a_bad_listing_is_refused(client: httpx.Client, params: dict[str, str], code: str) -> None:
    error(client.get("/v1/galleries/g/images", params=params), 400, code)


def test_a_vector_comes_in_three_kinds(client: httpx.Client, indexed: Path) -> None:
    url = "/v1/galleries/g/images/3/vector"
    with Gallery(indexed) as gallery:
        stored = gallery.vector(3)
    assert stored is not None
    tree = client.get(url).json()
    assert tree["id"] == 3
    np.testing.assert_array_equal(np.array(tree["vector"], np.float32), stored)
    raw = client.get(url, headers={"Accept": "application/octet-stream"})
    assert (raw.headers["x-shape"], raw.headers["x-dtype"]) == (str(DIM), "<f4")
    np.testing.assert_array_equal(np.frombuffer(raw.content, "<f4"), stored)
    file = client.get(url, headers={"Accept": "application/x-npy"})
    np.testing.assert_array_equal(np.load(io.BytesIO(file.content)), stored)


def test_thumbnails_may_be_kept(client: httpx.Client) -> None:
    url = client.get("/v1/galleries/g/images/1").json()["thumbnail"]
    reply = client.get(url)
    assert reply.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert reply.content == client.get("/thumbnails/1").content
    again = client.get(url.partition("?")[0], headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status_code, again.content, again.headers["cache-control"]) == (304, b"", "private, no-cache")
    assert client.head(url).headers["content-length"] == str(len(reply.content))


@pytest.mark.parametrize("end", ["", "/vector", "/thumbnail"])
@pytest.mark.parametrize(
    ("id_", "status", "code"),
    [("999", 404, "unknown_id"), ("x", 400, "invalid_id"), *((str(n), 404, "unknown_id") for n in (-1, 2**63, 2**70))],
)
def test_an_unknown_image_is_told(client: httpx.Client, end: str, id_: str, status: int, code: str) -> None:
    error(client.get(f"/v1/galleries/g/images/{id_}{end}"), status, code)


def test_an_unknown_gallery_is_told_before_a_body_is_read(client: httpx.Client, engine: Engine) -> None:
    for method, path in (("GET", ""), ("POST", "/search"), ("POST", "/images"), ("DELETE", "/images/1")):
        found = error(client.request(method, f"/v1/galleries/gg{path}"), 404, "gallery_not_found")
        assert "Did you mean 'g'" in found["message"]
    assert len(error(client.get(f"/v1/galleries/{'x' * 5000}"), 404, "gallery_not_found")["message"]) < 300
    with served(service_of(engine)) as bare:
        wait_ready(bare)
        assert bare.get("/v1/galleries").json()["data"] == []
        error(bare.get(TOP), 404, "gallery_not_found")
        assert bare.get("/docs").status_code == 200


def test_keys_are_asked_for(engine: Engine, gallery: Path) -> None:
    with served(service_of(engine, Gallery(gallery), WRITABLE), api_keys=["secret"]) as client:
        paths = client.get("/openapi.json", headers={"X-API-Key": "secret"}).json()["paths"]
        ours = [(method, path) for path in paths if path.startswith("/v1/galleries") for method in paths[path]]
        assert len(ours) == 12
        for method, path in [*ours, ("options", TOP), ("put", TOP)]:
            url = path.replace("{gallery}", "gallery").replace("{image_id}", "1")
            error(client.request(method, url), 401, "invalid_api_key")
        assert client.get(TOP, headers={"X-API-Key": "secret"}).status_code in (200, 503)


def test_the_metrics_have_one_series_for_each_gallery(engine: Engine, tmp_path: Path) -> None:
    with live(engine, tmp_path / "gallery") as server:
        server.put({"vector": [1.0] * DIM, "key": "a"}, {"vector": [2.0] + [1.0] * (DIM - 1), "key": "b"})
        server.put({"vector": [1.0] * DIM, "key": "a"})
        server.search({"id": 1})
        for name in ("nothing", "x" * 50, "a/b"):
            server.client.get(f"/v1/galleries/{name}/search")
        server.client.get("/metrics")
        lines = server.client.get("/metrics").text.splitlines()
        for name in range(50):
            server.client.get(f"/v1/galleries/{name}")
        again = server.client.get("/metrics").text.splitlines()

    for line in (
        'clf_gallery_searches_total{gallery="gallery"} 1.0',
        'clf_gallery_changes_total{change="created",gallery="gallery"} 2.0',
        'clf_gallery_changes_total{change="replaced",gallery="gallery"} 1.0',
        'clf_gallery_images{gallery="gallery"} 2.0',
        'clf_gallery_index_recall{gallery="gallery"} 1.0',
    ):
        assert line in lines
    assert any(line.startswith('clf_requests_total{route="/v1/galleries",status="200"}') for line in lines)
    assert len(again) == len(lines)


def test_the_metrics_do_not_wait_for_an_index_that_is_being_read(
    engine: Engine, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Gallery] = []
    monkeypatch.setattr(Gallery, "facts", asked.append)
    with Gallery(gallery) as opened:
        asyncio.run(service_of(engine, opened, LIMITS).measure_galleries())  # it is not started, and so not warm
    assert asked == []


def test_what_is_remembered_of_large_filters_is_small(gallery: Path) -> None:
    memory = Memory()
    with Gallery(gallery) as opened:
        for number in range(3):
            where = Where.parse({"label": {"$in": [f"{number}" + "x" * 4000] * 250}})
            assert memory.count(opened, where) == 0
        assert memory.count(opened, None) == memory.count(opened, Where.parse({"@id": {"$gte": 0}})) == 20
        assert len(pickle.dumps(memory._known[opened])) < 10_000


def test_two_models_have_each_their_gallery(engine: Engine, indexed: Path, tmp_path: Path) -> None:
    other = Engine(write_model(tmp_path / "other", name="team/other", dim=3, cells=1), "cpu")
    write_pictures(tmp_path / "photos", 4)
    with Gallery.open_or_create(tmp_path / "g", Identity.of(other.manifest), other.folder) as opened:
        index_images(opened, other, tmp_path / "photos")
    service = Service([Opened(engine, Gallery(indexed)), Opened(other, Gallery(tmp_path / "g"))], LIMITS)
    with served(service) as client:
        wait_ready(client)
        names = {each["id"]: each["images"] for each in client.get("/v1/galleries").json()["data"]}
        assert names == {"g-tiny": 20, "g-team_other": 4}
        for name, images in names.items():
            found = client.get(f"/v1/galleries/{name}/search", params={"id": 1, "k": 30}).json()
            assert (len(found["hits"]), found["gallery"]) == (images - 1, name)
            assert client.get(found["hits"][0]["thumbnail"]).status_code == 200


def test_public_names_are_told_apart() -> None:
    def named(**folders: str) -> dict[str, str]:
        return public_names({model: SimpleNamespace(name=name) for model, name in folders.items()})  # type: ignore[misc]

    assert named(a="photos", b="art") == {"a": "photos", "b": "art"}
    assert named(a="photos", b="photos") == {"a": "photos-a", "b": "photos-b"}
    assert named(a="photos", b="photos", c="photos-a") == {"a": "photos-a-2", "b": "photos-b", "c": "photos-a"}
    assert named(a="") == {"a": "gallery"}
    assert named(a="50% off?/#\n") == {"a": "50_ off____"}
    assert named(a="caf\udce9") == {"a": "caf_"}
