"""Several models in one server, refusals before the body is read, and examples that work."""

from __future__ import annotations

import asyncio
import http.client
import shutil
import subprocess
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_helpers import LIMITS, PHOTO, TEXT, Gate, embed, error, in_background, vectors, wait_ready
from serve_helpers import DIM, picture, served, service_of, until, write_model

from clf_serve.call import Call
from clf_serve.deployment import Opened
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery
from clf_serve.http.api import routes
from clf_serve.http.attend import Attended, fetched
from clf_serve.http.doc_examples import EXAMPLES, GALLERY_EXAMPLES, WRITING_EXAMPLES, examples
from clf_serve.http.openapi import document
from clf_serve.http.shapes import Url
from clf_serve.limits import ServeLimits
from clf_serve.problems import Problem
from clf_serve.service import Service

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def two(engine: Engine, indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The usual model without a gallery, and ``team/other`` with one of its own."""
    from clf_serve.gallery import Identity
    from clf_serve.sync.indexing import index_images

    folder = tmp_path_factory.mktemp("two")
    other = Engine(write_model(folder / "other", name="team/other", dim=3, cells=1), "cpu")
    other.warm_up()
    picture(5).save(folder / "five.png")
    with Gallery.open_or_create(folder / "g", Identity.of(other.manifest), other.folder) as opened:
        index_images(opened, other, folder)
    service = Service([Opened(engine), Opened(other, Gallery(folder / "g"))], LIMITS)
    with served(service) as client:
        wait_ready(client)
        yield client


def test_a_request_says_which_model_it_means(two: httpx.Client) -> None:
    assert [model["id"] for model in two.get("/v1/models").json()["data"]] == ["tiny", "team/other"]
    assert two.get("/v1/models/team/other").json()["dim"] == 3
    assert two.get("/v1/models/team%2Fother").json()["gallery_images"] == 1
    error(two.get("/v1/models/none"), 404, "model_not_found")

    replies = [
        two.post("/v1/embeddings", json={"input": TEXT, "model": "team/other"}),
        two.post("/v1/embeddings?model=team/other", content=PHOTO, headers=PNG),
        two.post("/v1/embeddings", files={"a": PHOTO}, data={"model": "team/other"}),
    ]
    for reply in replies:
        assert vectors(reply).shape == (1, 3) and reply.json()["model"] == "team/other"
    assert vectors(embed(two, PHOTO)).shape == (1, DIM)
    both = two.post("/v1/embeddings?model=tiny", json={"input": TEXT, "model": "team/other"})
    error(both, 400, "invalid_model")
    for path in ("/v2/models/team/other/infer", "/v2/models/team%2Fother/versions/1/infer"):
        output = two.post(path, content=PHOTO, headers={"Inference-Header-Content-Length": "0"}).json()["outputs"][0]
        np.testing.assert_array_equal(np.array([output["data"]], np.float32), vectors(replies[0]))


def test_a_search_is_in_the_gallery_of_its_model(two: httpx.Client) -> None:
    error(two.post("/search", json={"image": TEXT}), 404, "no_gallery")

    (hit,) = two.post("/search", json={"image": TEXT, "model": "team/other"}).json()["hits"]
    assert two.get(hit["thumbnail"]).headers["content-type"] == "image/jpeg"
    assert two.post("/search?model=team/other", content=PHOTO, headers=PNG).json()["hits"] == [hit]
    error(two.get(f"/thumbnails/{hit['id']}"), 404, "no_gallery")


def test_a_refusal_before_the_body_is_read_leaves_the_connection_alive(gate: tuple[Gate, Engine]) -> None:
    model, engine = gate
    service = service_of(engine, limits=ServeLimits(queue=1))
    large = PHOTO + bytes(5_000_000)  # far more than any buffer on the way
    with served(service) as client:
        wait_ready(client)
        model.open.clear()
        pool, waiting = in_background(client, PHOTO, 1)
        until(lambda: _full(service))
        one = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=30)
        for _ in range(3):
            one.request("POST", "/v1/embeddings", large, PNG)
            reply = one.getresponse()
            reply.read()
            assert reply.status == 429 and int(reply.headers["retry-after"]) >= 1
        connection = one.sock
        model.open.set()
        assert waiting[0].result().status_code == 200
        one.request("POST", "/v1/embeddings", PHOTO, PNG)
        assert one.getresponse().status == 200 and one.sock is connection
        one.close()
        pool.shutdown()


def _full(service: Service) -> bool:
    try:
        service.check_room()
    except Problem:
        return True
    return False


def test_images_by_url_are_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0

    async def fetch(url: str, limits: ServeLimits, deadline: float, *, param: str, take: Any) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        if url == "bad":
            raise Problem(422, "url_failed", "no", param=param)
        return url.encode()

    monkeypatch.setattr("clf_serve.fetching.fetch_image", fetch)
    job = Attended(b"", Call(), lambda n: True)
    limits = ServeLimits(max_bytes=60, max_images=20, allow_urls=True)

    def run(*names: str) -> list[bytes]:
        return asyncio.run(fetched([b"here", *(Url(name, f"input[{name}]") for name in names)], limits, job))

    assert run(*"abcdefghijklmnop") == [b"here", *(name.encode() for name in "abcdefghijklmnop")]
    assert 1 < most <= 8
    for names, code in ((("a", "bad"), "url_failed"), (("x" * 61,), "too_large"), (tuple("a" * 21), "too_many_images")):
        with pytest.raises(Problem) as caught:
            run(*names)
        assert caught.value.code == code


def test_the_document_and_the_routes_are_the_same(engine: Engine) -> None:
    service = service_of(engine)
    served_paths = {
        (route.path.replace(":path", ""), method.lower())  # type: ignore[attr-defined]
        for route in routes(service).routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    for secured in (True, False):
        tree = document(service, secured=secured)
        told = {(path, method) for path, operations in tree["paths"].items() for method in operations}
        assert told == served_paths | {("/admin/reload", "post")}
        answers = tree["paths"]["/v1/embeddings"]["post"]["responses"]
        assert ("401" in answers) == secured


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs curl and bash")
def test_the_examples_of_the_page_work(engine: Engine, gallery: Path, tmp_path: Path) -> None:
    picture(1).save(tmp_path / "photo.jpg")
    picture(2).save(tmp_path / "other.png")
    with served(service_of(engine, Gallery(gallery), ServeLimits(writable=True))) as client:
        wait_ready(client)
        base = str(client.base_url).rstrip("/")
        page = client.get("/docs").text
        for name in (*EXAMPLES, *GALLERY_EXAMPLES, *WRITING_EXAMPLES):
            method, _, path = name.rpartition(" ")
            assert f"<b>{method}</b>{path}</h2>" in page if method else f"</b>{path}</h2>" in page
            for line in examples(path, base, "tiny", "gallery", method):
                assert escape(line) in page
                command = line.replace("curl ", "curl -fsS --noproxy '*' ")
                done = subprocess.run(
                    ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
                )
                assert done.returncode == 0, (line, done.stderr)
        left = client.get("/v1/galleries/gallery/images", params={"limit": 3}).json()
    assert np.load(tmp_path / "vectors.npy").shape == (1, 2)
    assert np.load(tmp_path / "vector.npy").shape == (DIM,)
    assert [image["id"] for image in left["images"]] == [1, 5, 6] and left["matching"] == 17
    assert left["images"][0]["metadata"] == {"colour": "red"}
