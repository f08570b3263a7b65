"""Search and thumbnails over real connections."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_helpers import PHOTO, TEXT, error, wait_ready
from PIL import Image
from serve_helpers import DIM, served, service_of, write_pictures

from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.sync.indexing import index_images


def test_a_search_finds_what_brute_force_finds(client: httpx.Client, engine: Engine, photos: Path) -> None:
    paths = sorted(photos.iterdir())
    bank = engine.embed(np.stack([engine.prepare(path) for path in paths]))
    query = engine.embed(engine.prepare(PHOTO)[None])[0]
    truth = sorted(zip((bank @ query).tolist(), map(str, paths), strict=True), reverse=True)[:4]

    reply = client.post("/search?k=4", content=PHOTO, headers={"Content-Type": "image/png"}).json()

    assert [hit["uri"] for hit in reply["hits"]] == [path for _, path in truth]
    np.testing.assert_allclose([hit["score"] for hit in reply["hits"]], [score for score, _ in truth], atol=1e-6)
    assert reply["hits"][0]["metadata"] == {} and reply["model"] == "tiny"


def test_every_form_of_search_gives_the_same_hits(client: httpx.Client, engine: Engine) -> None:
    vector = engine.embed(engine.prepare(PHOTO)[None])[0]
    replies = [
        client.post("/search?k=3", content=PHOTO, headers={"Content-Type": "image/png"}),
        client.post("/search", files={"image": PHOTO}, data={"k": "3"}),
        client.post("/search?k=3", files={"image": PHOTO}),
        client.post("/search", json={"image": TEXT, "k": 3}),
        client.post("/search", json={"vector": vector.tolist(), "k": 3}),
        client.post("/search", json={"vector": (vector.astype(float) * 1e300).tolist(), "k": 3}),
    ]

    ids = [[hit["id"] for hit in reply.json()["hits"]] for reply in replies]
    assert len(ids[0]) == 3 and ids == [ids[0]] * len(ids)
    assert client.post("/search", json={"image": TEXT}).json()["hits"][:3] == replies[3].json()["hits"]


def test_a_search_by_id_leaves_that_image_out(client: httpx.Client) -> None:
    hits = client.post("/search", json={"id": 4, "k": 50}).json()["hits"]

    assert len(hits) == 19 and 4 not in [hit["id"] for hit in hits]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "one_query"),
        ({"id": 1, "image": TEXT}, 400, "one_query"),
        ({"id": 10**6}, 404, "unknown_id"),
        ({"id": 10**30}, 400, "invalid_id"),
        ({"id": "1"}, 400, "invalid_id"),
        ({"id": 1, "k": 0}, 400, "invalid_k"),
        ({"id": 1, "k": 51}, 400, "invalid_k"),
        ({"id": 1, "k": True}, 400, "invalid_k"),
        ({"id": 1, "k": 2.5}, 400, "invalid_k"),
        ({"vector": [1.0]}, 400, "invalid_vector"),
        ({"vector": [0.0] * DIM}, 400, "invalid_vector"),
        ({"vector": [10**400] + [0] * (DIM - 1)}, 400, "invalid_json"),
        ({"vector": ["1"] * DIM}, 400, "invalid_vector"),
        ({"image": "https://example.org/a.jpg"}, 400, "url_input"),
        ({"image": "a cat"}, 400, "invalid_base64"),
        ({"image": {"image": base64.b64encode(b"no").decode()}}, 422, "invalid_image"),
    ],
)
def test_a_bad_search_is_refused_with_the_reason(
    client: httpx.Client, body: dict[str, Any], status: int, code: str
) -> None:
    error(client.post("/search", json=body), status, code)


def test_numbers_json_does_not_know_are_refused(client: httpx.Client) -> None:
    text = json.dumps({"vector": [float("nan")] * DIM})

    error(client.post("/search", content=text, headers={"Content-Type": "application/json"}), 400, "invalid_json")
    error(client.post("/search", files=[("a", PHOTO), ("b", PHOTO)]), 400, "one_image")
    error(client.post("/search?k=x", content=PHOTO, headers={"Content-Type": "image/png"}), 400, "invalid_k")


def test_thumbnails_may_be_kept(client: httpx.Client) -> None:
    url = client.post("/search", json={"id": 1, "k": 1}).json()["hits"][0]["thumbnail"]

    reply = client.get(url)
    assert Image.open(io.BytesIO(reply.content)).size == (48, 40)
    assert reply.headers["content-type"] == "image/jpeg"
    assert reply.headers["cache-control"] == "private, max-age=31536000, immutable"
    tag, bare = reply.headers["etag"], url.partition("?")[0]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(bare, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["cache-control"] == "private, no-cache"
    assert client.get(bare, headers={"If-None-Match": '"other"'}).status_code == 200
    head = client.head(bare)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(reply.content)))


@pytest.mark.parametrize(("path", "status"), [("999", 404), ("-1", 404), (str(2**70), 404), ("x", 400)])
def test_unknown_thumbnails_are_refused(client: httpx.Client, path: str, status: int) -> None:
    assert client.get(f"/thumbnails/{path}").json()["error"]["type"] == "invalid_request_error"
    assert client.get(f"/thumbnails/{path}").status_code == status


def test_without_a_gallery_there_is_no_search(engine: Engine) -> None:
    with served(service_of(engine)) as client:
        wait_ready(client)
        error(client.post("/search", json={"id": 1}), 404, "no_gallery")
        error(client.get("/thumbnails/1"), 404, "no_gallery")
        assert "gallery_images" not in client.get("/v1/models").json()["data"][0]


def test_images_indexed_while_the_server_runs_are_found(tmp_path: Path, engine: Engine) -> None:
    photos = tmp_path / "photos"
    write_pictures(photos, 2)
    identity = Identity.of(engine.manifest)
    with Gallery.open_or_create(tmp_path / "g", identity, engine.folder) as writer:
        index_images(writer, engine, photos)
    with served(service_of(engine, Gallery(tmp_path / "g", identity))) as client:
        wait_ready(client)
        (new,) = write_pictures(photos, 1, first=40)
        with Gallery(tmp_path / "g", identity, write=True) as writer:
            index_images(writer, engine, photos)

        hits = client.post("/search", content=new.read_bytes(), headers={"Content-Type": "image/png"}).json()["hits"]
        assert len(hits) == 3 and hits[0]["uri"] == str(new)


def test_a_gallery_that_breaks_gives_no_traceback(tmp_path: Path, engine: Engine, gallery: Path) -> None:
    opened = Gallery(gallery)
    with served(service_of(engine, opened)) as client:
        wait_ready(client)
        with Gallery(gallery, write=True) as writer, writer._db.writing() as (connection, _):
            connection.execute("DROP TABLE thumbnails")

        error(client.get("/thumbnails/1"), 503, "gallery_unavailable")
