"""The HTTP API over real connections: every form of input, every refusal, and trouble inside."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from serve_helpers import DIM, encoded, picture, served, until, write_pictures

from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.indexing import index_images
from clf_serve.service import ServeLimits, Service

LIMITS = ServeLimits(max_bytes=200_000, max_pixels=1_000_000, max_images=5, max_k=50, timeout=20)
PHOTO = encoded(picture(3))
TEXT = base64.b64encode(PHOTO).decode()


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory, engine: Engine, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("indexed") / "g"
    with Gallery.open_or_create(folder, Identity.of(engine.manifest), engine.folder) as opened:
        index_images(opened, engine, photos)
    return folder


@pytest.fixture(scope="module")
def client(engine: Engine, indexed: Path) -> Iterator[httpx.Client]:
    service = Service(engine, Gallery(indexed), LIMITS)
    with served(service) as client:
        wait_ready(client)
        yield client


def wait_ready(client: httpx.Client) -> None:
    until(lambda: client.get("/health/ready").status_code == 200)


def vectors(reply: httpx.Response) -> NDArray[np.float32]:
    assert reply.status_code == 200, reply.text
    return np.array([row["embedding"] for row in reply.json()["data"]], np.float32)


def error(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    found: dict[str, Any] = reply.json()["error"]
    assert set(found) == {"message", "type", "param", "code"} and found["code"] == code
    return found


def embed(client: httpx.Client, blob: bytes) -> httpx.Response:
    return client.post("/v1/embeddings", content=blob, headers={"Content-Type": "image/png"})


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {"input": TEXT}},
        {"json": {"input": TEXT.rstrip("=")}},
        {"json": {"input": base64.encodebytes(PHOTO).decode()}},
        {"json": {"input": "data:image/png;base64," + TEXT}},
        {"json": {"input": [TEXT], "model": "tiny", "encoding_format": "float", "dimensions": DIM, "user": "u"}},
        {"json": {"input": [{"image": TEXT}]}},
        {"json": {"input": {"image": "data:image/png;base64," + TEXT}}},
        {"content": PHOTO, "headers": {"Content-Type": "image/png"}},
        {"content": PHOTO, "headers": {"Content-Type": "application/octet-stream"}},
        {"files": {"image": ("a.png", PHOTO, "image/png")}},
        {
            "files": [
                ("images", ("a.png", PHOTO)),
            ],
            "data": {"model": "tiny"},
        },
    ],
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_every_form_of_input_gives_the_same_vector(
    client: httpx.Client, engine: Engine, request_: dict[str, Any], path: str
) -> None:
    reply = client.post(path, **request_)

    np.testing.assert_array_equal(vectors(reply), engine.embed(engine.prepare(PHOTO)[None]))


def test_the_reply_has_the_shape_of_openai_s_api(client: httpx.Client) -> None:
    reply = client.post("/v1/embeddings", json={"input": [TEXT, TEXT]}).json()

    assert {key: reply[key] for key in ("object", "model")} == {"object": "list", "model": "tiny"}
    assert [(row["object"], row["index"]) for row in reply["data"]] == [("embedding", 0), ("embedding", 1)]
    assert reply["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


def test_base64_replies_are_the_same_numbers(client: httpx.Client) -> None:
    reply = client.post("/v1/embeddings", json={"input": TEXT, "encoding_format": "base64"}).json()

    raw = np.frombuffer(base64.b64decode(reply["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(raw, vectors(embed(client, PHOTO))[0])


def test_many_files_come_back_in_order(client: httpx.Client, engine: Engine) -> None:
    blobs = [encoded(picture(seed), kind) for seed, kind in enumerate(["PNG", "JPEG", "WEBP", "GIF", "BMP"])]

    reply = client.post("/v1/embeddings", files=[("images", (f"{i}", blob)) for i, blob in enumerate(blobs)])

    np.testing.assert_array_equal(vectors(reply), engine.embed(np.stack([engine.prepare(blob) for blob in blobs])))


def test_a_turned_photo_is_embedded_upright(client: httpx.Client) -> None:
    upright = picture(5, 40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)

    np.testing.assert_array_equal(vectors(embed(client, turned)), vectors(embed(client, encoded(upright))))


def bomb() -> bytes:
    return encoded(Image.new("1", (2000, 1000)))


JSON_REFUSALS: list[tuple[Any, int, str, str | None]] = [
    ({}, 400, "no_images", "input"),
    ({"input": []}, 400, "no_images", "input"),
    ({"input": None}, 400, "invalid_input", "input"),
    ({"input": 7}, 400, "invalid_input", "input"),
    ({"input": {"text": "x"}}, 400, "invalid_input", "input"),
    ({"input": [1, 2, 3]}, 400, "text_input", "input"),
    ({"input": [[1, 2], [3]]}, 400, "text_input", "input"),
    ({"input": "a photo of a cat"}, 400, "invalid_base64", "input"),
    ({"input": [TEXT, "ä" * 9]}, 400, "invalid_base64", "input[1]"),
    ({"input": "https://example.org/cat.jpg"}, 400, "url_input", "input"),
    ({"input": [TEXT, "FILE:///etc/passwd"]}, 400, "url_input", "input[1]"),
    ({"input": "data:image/png,%89PNG"}, 400, "invalid_data_uri", "input"),
    ({"input": TEXT, "encoding_format": "int8"}, 400, "invalid_encoding", "encoding_format"),
    ({"input": TEXT, "model": "gpt"}, 404, "model_not_found", "model"),
    ({"input": TEXT, "model": 3}, 400, "invalid_model", "model"),
    ({"input": TEXT, "dimensions": DIM - 1}, 400, "invalid_dimensions", "dimensions"),
    ({"input": TEXT, "dimensions": True}, 400, "invalid_dimensions", "dimensions"),
    ({"input": [TEXT] * 6}, 413, "too_many_images", "input"),
    ({"input": ""}, 422, "invalid_image", "input[0]"),
    ({"input": base64.b64encode(b"plain text").decode()}, 422, "invalid_image", "input[0]"),
    ({"input": [TEXT, base64.b64encode(PHOTO[:70]).decode(), TEXT]}, 422, "invalid_image", "input[1]"),
    ({"input": base64.b64encode(bomb()).decode()}, 422, "invalid_image", "input[0]"),
    ([], 400, "invalid_json", None),
    ("x", 400, "invalid_json", None),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), JSON_REFUSALS)
def test_a_bad_embedding_request_is_refused_with_the_reason(
    client: httpx.Client, body: Any, status: int, code: str, param: str | None
) -> None:
    found = error(client.post("/v1/embeddings", json=body), status, code)

    assert found["param"] == param
    assert found["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"\xff\xfe", "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b'{"input": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_json"),
        (b"", "image/png", 422, "invalid_image"),
        (PHOTO, "text/plain", 415, "unsupported_content_type"),
        (PHOTO, "application/x-www-form-urlencoded", 415, "unsupported_content_type"),
        (PHOTO, "", 415, "unsupported_content_type"),
        (b"--x--", "multipart/form-data", 400, "invalid_form"),
        (b"garbage", "multipart/form-data; boundary=x", 400, "invalid_form"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 400, "no_images"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(
    client: httpx.Client, content: bytes, kind: str, status: int, code: str
) -> None:
    error(client.post("/v1/embeddings", content=content, headers={"Content-Type": kind}), status, code)


def test_a_large_body_is_refused_before_and_while_it_comes(client: httpx.Client) -> None:
    large = bytes(LIMITS.max_bytes + 1)
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=20)
    connection.putrequest("POST", "/v1/embeddings")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()  # and not one byte of it
    reply = connection.getresponse()
    assert (reply.status, json.loads(reply.read())["error"]["code"]) == (413, "too_large")
    connection.close()

    pieces = (large[i : i + 50_000] for i in range(0, len(large), 50_000))  # no Content-Length
    error(client.post("/v1/embeddings", content=pieces, headers={"Content-Type": "image/png"}), 413, "too_large")


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
        ({"id": 1, "k": 2.0}, 400, "invalid_k"),
        ({"vector": [1.0]}, 400, "invalid_vector"),
        ({"vector": [0.0] * DIM}, 400, "invalid_vector"),
        ({"vector": [10**400] + [0] * (DIM - 1)}, 400, "invalid_vector"),
        ({"vector": ["1"] * DIM}, 400, "invalid_vector"),
        ({"image": "https://example.org/a.jpg"}, 400, "url_input"),
        ({"image": base64.b64encode(b"no").decode()}, 422, "invalid_image"),
    ],
)
def test_a_bad_search_is_refused_with_the_reason(
    client: httpx.Client, body: dict[str, Any], status: int, code: str
) -> None:
    error(client.post("/search", json=body), status, code)


def test_numbers_json_does_not_know_are_refused(client: httpx.Client) -> None:
    text = json.dumps({"vector": [float("nan")] * DIM})

    error(client.post("/search", content=text, headers={"Content-Type": "application/json"}), 400, "invalid_vector")
    error(client.post("/search", files=[("a", PHOTO), ("b", PHOTO)]), 400, "one_image")
    error(client.post("/search?k=x", content=PHOTO, headers={"Content-Type": "image/png"}), 400, "invalid_k")


def test_thumbnails_may_be_kept(client: httpx.Client) -> None:
    url = client.post("/search", json={"id": 1, "k": 1}).json()["hits"][0]["thumbnail"]

    reply = client.get(url)
    assert Image.open(io.BytesIO(reply.content)).size == (48, 40)
    assert reply.headers["content-type"] == "image/jpeg"
    assert reply.headers["cache-control"] == "private, max-age=31536000, immutable"
    again = client.get(url.partition("?")[0], headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(("path", "status"), [("999", 404), ("-1", 404), (str(2**70), 404), ("x", 400)])
def test_unknown_thumbnails_are_refused(client: httpx.Client, path: str, status: int) -> None:
    assert client.get(f"/thumbnails/{path}").json()["error"]["type"] == "invalid_request_error"
    assert client.get(f"/thumbnails/{path}").status_code == status


def test_the_model_is_listed_with_its_facts(client: httpx.Client, engine: Engine) -> None:
    (model,) = client.get("/v1/models").json()["data"]

    assert (model["id"], model["dim"], model["sha256"]) == ("tiny", DIM, engine.manifest.sha256)
    assert model["gallery_images"] == 20


def test_the_documents_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs")

    base = str(client.base_url).rstrip("/")
    assert f"curl -F image=@photo.jpg {base}/v1/embeddings" in page.text and "https://" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert {"/search", "/v1/embeddings", "/health/ready"} <= set(client.get("/openapi.json").json()["paths"])


def test_what_is_not_there_is_refused_in_the_same_shape(client: httpx.Client) -> None:
    error(client.get("/nothing"), 404, "http_error")
    error(client.get("/search"), 405, "http_error")


def test_stage_times_are_in_the_headers_and_the_metrics(client: httpx.Client) -> None:
    reply = client.post("/search", json={"image": TEXT})
    stages = [part.split(";")[0] for part in reply.headers["server-timing"].split(", ")]
    assert stages == ["read", "decode", "queue", "inference", "search"]

    text = client.get("/metrics").text
    assert 'clf_requests_total{route="/search",status="200"}' in text
    assert 'clf_refusals_total{reason="invalid_image"}' in text
    assert "clf_images_inside 0.0" in text
    for name in ("clf_batch_images_bucket", 'clf_stage_seconds_count{stage="search"}', "clf_ready 1.0"):
        assert name in text


def test_without_a_gallery_there_is_no_search(engine: Engine) -> None:
    with served(Service(engine)) as client:
        wait_ready(client)
        error(client.post("/search", json={"id": 1}), 404, "no_gallery")
        error(client.get("/thumbnails/1"), 404, "no_gallery")
        assert "gallery_images" not in client.get("/v1/models").json()["data"][0]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer two"},
        {"X-API-Key": "one"},
        {"Authorization": "Basic " + base64.b64encode(b"anyone:two").decode()},
    ],
)
def test_a_key_opens_everything(engine: Engine, headers: dict[str, str]) -> None:
    with served(Service(engine), api_keys=["one", "two"]) as client:
        wait_ready(client)
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_without_a_key_only_health_answers(engine: Engine) -> None:
    bad = [{}, {"Authorization": "Bearer no"}, {"Authorization": "Basic ?"}, {"X-API-Key": ""}, {"X-API-Key": "onetwo"}]
    with served(Service(engine), api_keys=["one", "two"]) as client:
        wait_ready(client)
        for headers in bad:
            for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/thumbnails/1", "/"):
                reply = client.get(path, headers=headers)
                assert error(reply, 401, "invalid_api_key")["type"] == "authentication_error"
                assert reply.headers["www-authenticate"].startswith("Basic")


class Gate:
    """Stands in for the model: closed, it holds every batch."""

    def __init__(self, engine: Engine) -> None:
        self.open = threading.Event()
        self.open.set()
        self.seen: list[int] = []
        self._engine = engine
        self._embed = engine.embed

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.seen.append(len(pixels))
        assert self.open.wait(30)
        rows = self._embed(pixels)
        means = pixels.reshape(len(pixels), -1).mean(axis=1)
        if (means == 255).any():
            raise RuntimeError("the model chokes on white")
        rows[means == 0] = np.nan
        return rows


@pytest.fixture
def gate(model: Path) -> tuple[Gate, Engine]:
    engine = Engine(model, "cpu")
    gate = Gate(engine)
    engine.embed = gate  # type: ignore[method-assign]
    return gate, engine


def in_background(client: httpx.Client, blob: bytes, n: int) -> tuple[ThreadPoolExecutor, list[Any]]:
    pool = ThreadPoolExecutor(n)
    return pool, [pool.submit(embed, client, blob) for _ in range(n)]


def test_more_images_than_the_queue_holds_are_refused_at_once(gate: tuple[Gate, Engine]) -> None:
    model, engine = gate
    service = Service(engine, limits=ServeLimits(queue=3, max_images=3))
    with served(service) as client:
        wait_ready(client)
        model.open.clear()
        pool, waiting = in_background(client, PHOTO, 3)
        until(lambda: service.batcher._inside == 3)

        refused = embed(client, PHOTO)
        assert error(refused, 429, "overloaded")["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1

        model.open.set()
        assert [reply.result().status_code for reply in waiting] == [200, 200, 200]
        assert embed(client, PHOTO).status_code == 200  # the places are free again
        pool.shutdown()


def test_what_waits_becomes_one_batch(gate: tuple[Gate, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine = gate
    monkeypatch.setattr(engine, "warm_up", lambda: setattr(engine, "buckets", (1, 2, 4, 8)))
    service = Service(engine)
    with served(service) as client:
        wait_ready(client)
        model.open.clear()
        model.seen.clear()
        first, one = in_background(client, PHOTO, 1)
        until(lambda: model.seen == [1])
        pool, waiting = in_background(client, PHOTO, 10)
        until(lambda: len(service.batcher._waiting) == 10)
        model.open.set()

        replies = [vectors(reply.result()) for reply in (*one, *waiting)]
        assert model.seen == [1, 8, 2]
        assert all(np.array_equal(reply, replies[0]) for reply in replies)
        first.shutdown()
        pool.shutdown()


def test_a_poisoned_image_fails_alone(gate: tuple[Gate, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine = gate
    monkeypatch.setattr(engine, "warm_up", lambda: setattr(engine, "buckets", (1, 2, 4, 8)))
    service = Service(engine)
    white, black = encoded(Image.new("RGB", (40, 40), "white")), encoded(Image.new("RGB", (40, 40), "black"))
    with served(service) as client:
        wait_ready(client)
        solo = vectors(embed(client, PHOTO))
        model.open.clear()
        model.seen.clear()
        pools = [in_background(client, blob, n) for blob, n in ((PHOTO, 1), (white, 1), (PHOTO, 3), (black, 1))]
        until(lambda: len(service.batcher._waiting) + len(service.batcher._running) == 6)
        model.open.set()
        (one,), (poisoned,), three, (void,) = [[reply.result() for reply in replies] for _, replies in pools]

        for good in (one, *three):
            np.testing.assert_array_equal(vectors(good), solo)
        error(poisoned, 500, "internal_error")
        error(void, 422, "no_embedding")
        np.testing.assert_array_equal(vectors(embed(client, PHOTO)), solo)  # and life goes on
        assert client.get("/health/live").status_code == 200
        for pool, _ in pools:
            pool.shutdown()


def test_images_of_a_client_that_went_away_are_not_computed(gate: tuple[Gate, Engine]) -> None:
    model, engine = gate
    service = Service(engine)
    with served(service) as client:
        wait_ready(client)
        model.open.clear()
        model.seen.clear()
        pool, one = in_background(client, PHOTO, 1)
        until(lambda: model.seen == [1])
        impatient = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=20)
        impatient.request("POST", "/v1/embeddings", PHOTO, {"Content-Type": "image/png"})
        until(lambda: len(service.batcher._waiting) == 1)
        impatient.close()
        until(lambda: service.batcher._inside == 1)
        model.open.set()

        assert one[0].result().status_code == 200
        assert embed(client, PHOTO).status_code == 200
        assert sum(model.seen) == 2
        assert "clf_abandoned_requests_total 1.0" in client.get("/metrics").text
        pool.shutdown()


def test_a_request_that_takes_too_long_is_told(gate: tuple[Gate, Engine]) -> None:
    model, engine = gate
    service = Service(engine, limits=ServeLimits(timeout=0.3))
    with served(service) as client:
        wait_ready(client)
        model.open.clear()
        late = embed(client, PHOTO)
        assert error(late, 503, "deadline_exceeded")["type"] == "server_error" and late.headers["retry-after"] == "1"

        def slow() -> Iterator[bytes]:
            yield PHOTO[:10]
            time.sleep(0.6)
            yield PHOTO[10:]

        reply = client.post("/v1/embeddings", content=slow(), headers={"Content-Type": "image/png"})
        error(reply, 408, "upload_timeout")
        model.open.set()
        assert embed(client, PHOTO).status_code == 200


def test_all_bodies_together_are_limited(gate: tuple[Gate, Engine]) -> None:
    model, engine = gate
    service = Service(engine, limits=ServeLimits(max_bytes_together=len(PHOTO) + 10))
    with served(service) as client:
        wait_ready(client)
        model.open.clear()
        pool, one = in_background(client, PHOTO, 1)
        until(lambda: service.batcher._inside == 1)
        error(embed(client, PHOTO), 429, "overloaded")
        model.open.set()
        assert one[0].result().status_code == 200
        assert embed(client, PHOTO).status_code == 200
        pool.shutdown()


def test_ready_is_a_real_inference_and_not_a_clock(gate: tuple[Gate, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine = gate
    monkeypatch.setattr("clf_serve.service._PROBE", 0.2)
    warm = threading.Event()
    monkeypatch.setattr(engine, "warm_up", lambda: warm.wait(30) and None)
    service = Service(engine)
    with served(service) as client:
        assert client.get("/health/ready").json() == {"status": "warming up"}
        error(embed(client, PHOTO), 503, "warming_up")
        assert client.get("/health/live").status_code == 200
        warm.set()
        wait_ready(client)

        service.batcher.last_success = -1e9  # nothing for a long time
        model.open.clear()  # and the model hangs
        stuck = client.get("/health/ready")
        assert stuck.status_code == 503 and "was not embedded" in stuck.json()["status"]
        model.open.set()
        wait_ready(client)


def test_a_model_that_does_not_warm_up_is_never_ready(
    gate: tuple[Gate, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, engine = gate

    def fail() -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine, "warm_up", fail)
    with served(Service(engine)) as client:
        until(lambda: "failed" in client.get("/health/ready").json()["status"])
        assert client.get("/health/ready").status_code == 503


def test_images_indexed_while_the_server_runs_are_found(tmp_path: Path, engine: Engine) -> None:
    photos = tmp_path / "photos"
    write_pictures(photos, 2)
    identity = Identity.of(engine.manifest)
    with Gallery.open_or_create(tmp_path / "g", identity, engine.folder) as writer:
        index_images(writer, engine, photos)
    with served(Service(engine, Gallery(tmp_path / "g", identity))) as client:
        wait_ready(client)
        (new,) = write_pictures(photos, 1, first=40)
        with Gallery(tmp_path / "g", identity, write=True) as writer:
            index_images(writer, engine, photos)

        hits = client.post("/search", content=new.read_bytes(), headers={"Content-Type": "image/png"}).json()["hits"]
        assert len(hits) == 3 and hits[0]["uri"] == str(new)


def test_a_gallery_that_breaks_gives_no_traceback(tmp_path: Path, engine: Engine, gallery: Path) -> None:
    opened = Gallery(gallery)
    with served(Service(engine, opened)) as client:
        wait_ready(client)
        with Gallery(gallery, write=True) as writer, writer._db.writing() as (connection, _):
            connection.execute("DROP TABLE thumbnails")

        error(client.get("/thumbnails/1"), 503, "gallery_unavailable")
