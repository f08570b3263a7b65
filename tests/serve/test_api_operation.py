"""Keys, facts, health, and trouble inside, over real connections."""

from __future__ import annotations

import base64
import http.client
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from api_helpers import PHOTO, TEXT, Gate, embed, error, in_background, vectors, wait_ready
from PIL import Image
from serve_helpers import DIM, encoded, served, service_of, until

from clf_serve.batching.scheduling import Scheduler
from clf_serve.engine import Engine
from clf_serve.limits import ServeLimits


def test_the_model_is_listed_with_its_facts(client: httpx.Client, engine: Engine) -> None:
    (model,) = client.get("/v1/models").json()["data"]

    assert (model["id"], model["dim"], model["sha256"]) == ("tiny", DIM, engine.manifest.sha256)
    assert model["gallery_images"] == 20


def test_the_documents_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs")

    base = str(client.base_url).rstrip("/")
    assert f"curl -F image=@photo.jpg -F k=5 {base}/search" in page.text and "https://" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert {"/search", "/v1/embeddings", "/health/ready"} <= set(client.get("/openapi.json").json()["paths"])


def test_what_is_not_there_is_refused_in_the_same_shape(client: httpx.Client) -> None:
    error(client.get("/nothing"), 404, "http_error")
    error(client.get("/search"), 405, "http_error")


def test_stage_times_are_in_the_headers_and_the_metrics(client: httpx.Client) -> None:
    embed(client, b"no image")
    reply = client.post("/search", json={"image": TEXT})
    stages = [part.split(";")[0] for part in reply.headers["server-timing"].split(", ")]
    assert stages == ["read", "decode", "queue", "inference", "search"]

    text = client.get("/metrics").text
    assert 'clf_requests_total{route="/search",status="200"}' in text
    assert 'clf_refusals_total{reason="invalid_image"}' in text
    assert "clf_images_inside 0.0" in text
    for name in ("clf_batch_images_bucket", 'clf_stage_seconds_count{stage="search"}', "clf_ready 1.0"):
        assert name in text


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer two"},
        {"X-API-Key": "one"},
        {"Authorization": "Basic " + base64.b64encode(b"anyone:two").decode()},
    ],
)
def test_a_key_opens_everything(engine: Engine, headers: dict[str, str]) -> None:
    with served(service_of(engine), api_keys=["one", "two"]) as client:
        wait_ready(client)
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_without_a_key_only_health_answers(engine: Engine) -> None:
    bad = [{}, {"Authorization": "Bearer no"}, {"Authorization": "Basic ?"}, {"X-API-Key": ""}, {"X-API-Key": "onetwo"}]
    with served(service_of(engine), api_keys=["one", "two"]) as client:
        wait_ready(client)
        for headers in bad:
            for path in (
                *("/v1/models", "/metrics", "/docs", "/openapi.json", "/thumbnails/1", "/", "//health", "/health/x"),
                *("/health/%2e%2e/v1/models", "/health%2flive%2f..%2f..%2fmetrics", "/v2/health/../models/tiny"),
                *("/health/heartbeat/x", "/HEALTH", "/v1/models/", "/admin/reload"),
            ):
                reply = client.get(path, headers=headers)
                if path.startswith("/v2"):
                    assert (reply.status_code, set(reply.json())) == (401, {"error"})
                else:
                    assert error(reply, 401, "invalid_api_key")["type"] == "authentication_error"
                assert reply.headers["www-authenticate"].startswith("Basic")


def test_more_images_than_the_queue_holds_are_refused_at_once(gate: tuple[Gate, Engine]) -> None:
    model, engine = gate
    service = service_of(engine, limits=ServeLimits(queue=3, max_images=3))
    with served(service) as client:
        wait_ready(client)
        model.open.clear()
        pool, waiting = in_background(client, PHOTO, 3)
        until(lambda: service.default.batcher._inside == 3)

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
    monkeypatch.setattr(Scheduler, "stale", lambda *_: None)  # nothing is learned: the largest batch that can be filled
    service = service_of(engine)
    with served(service) as client:
        wait_ready(client)
        model.open.clear()
        model.seen.clear()
        first, one = in_background(client, PHOTO, 1)
        until(lambda: model.seen == [1])
        pool, waiting = in_background(client, PHOTO, 10)
        until(lambda: len(service.default.batcher._waiting) == 10)
        model.open.set()

        replies = [vectors(reply.result()) for reply in (*one, *waiting)]
        assert model.seen == [1, 8, 2]
        assert all(np.array_equal(reply, replies[0]) for reply in replies)
        first.shutdown()
        pool.shutdown()


def test_a_poisoned_image_fails_alone(gate: tuple[Gate, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine = gate
    monkeypatch.setattr(engine, "warm_up", lambda: setattr(engine, "buckets", (1, 2, 4, 8)))
    service = service_of(engine)
    white, black = encoded(Image.new("RGB", (40, 40), "white")), encoded(Image.new("RGB", (40, 40), "black"))
    with served(service) as client:
        wait_ready(client)
        solo = vectors(embed(client, PHOTO))
        model.open.clear()
        model.seen.clear()
        pools = [in_background(client, blob, n) for blob, n in ((PHOTO, 1), (white, 1), (PHOTO, 3), (black, 1))]
        until(lambda: len(service.default.batcher._waiting) + len(service.default.batcher._running) == 6)
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
    service = service_of(engine)
    with served(service) as client:
        wait_ready(client)
        model.open.clear()
        model.seen.clear()
        pool, one = in_background(client, PHOTO, 1)
        until(lambda: model.seen == [1])
        impatient = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=20)
        impatient.request("POST", "/v1/embeddings", PHOTO, {"Content-Type": "image/png"})
        until(lambda: len(service.default.batcher._waiting) == 1)
        impatient.close()
        until(lambda: service.default.batcher._inside == 1)
        model.open.set()

        assert one[0].result().status_code == 200
        assert embed(client, PHOTO).status_code == 200
        assert sum(model.seen) == 2
        assert "clf_abandoned_requests_total 1.0" in client.get("/metrics").text
        pool.shutdown()


def test_a_request_that_takes_too_long_is_told(gate: tuple[Gate, Engine]) -> None:
    model, engine = gate
    service = service_of(engine, limits=ServeLimits(timeout=0.3))
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
    service = service_of(engine, limits=ServeLimits(max_bytes_together=len(PHOTO) + 10))
    with served(service) as client:
        wait_ready(client)
        model.open.clear()
        pool, one = in_background(client, PHOTO, 1)
        until(lambda: service.default.batcher._inside == 1)
        error(embed(client, PHOTO), 429, "overloaded")
        model.open.set()
        assert one[0].result().status_code == 200
        assert embed(client, PHOTO).status_code == 200
        pool.shutdown()


def test_images_copied_out_of_a_body_count_too(engine: Engine) -> None:
    text = b'{"input": "%s"}' % TEXT.encode()
    service = service_of(engine, limits=ServeLimits(max_bytes_together=len(text) + len(PHOTO) - 1))
    with served(service) as client:
        wait_ready(client)
        json, form = {"content": text, "headers": {"Content-Type": "application/json"}}, {"files": {"a": PHOTO}}
        infer = {"json": {"inputs": [{"name": "encoded", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]}}
        for path, request in (("v1/embeddings", json), ("v1/embeddings", form), ("v2/models/tiny/infer", infer)):
            for _ in range(3):
                assert client.post(path, **request).status_code == 429  # type: ignore[arg-type]
        assert embed(client, PHOTO).status_code == 200  # sent as it is, there is no copy; and all was given back


def test_ready_is_a_real_inference_and_not_a_clock(gate: tuple[Gate, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine = gate
    monkeypatch.setattr("clf_serve.deployment._PROBE", 0.2)
    warm = threading.Event()
    monkeypatch.setattr(engine, "warm_up", lambda: warm.wait(30) and None)
    service = service_of(engine)
    with served(service) as client:
        assert client.get("/health/ready").json() == {"status": "warming up"}
        error(embed(client, PHOTO), 503, "warming_up")
        assert client.get("/health/live").status_code == 200
        warm.set()
        wait_ready(client)

        service.default.batcher.last_success = -1e9  # nothing for a long time
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
    with served(service_of(engine)) as client:
        until(lambda: "failed" in client.get("/health/ready").json()["status"])
        assert client.get("/health/ready").status_code == 503
