"""Three replicas behind the HAProxy and the nginx that serve/haproxy.cfg and serve/nginx.conf describe."""

from __future__ import annotations

import base64
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from browsers import chromium, needs_browser
from proxy_helpers import KINDS, Ask, Load, Proxy, Replica, both, program, replicas
from serve_helpers import SLOW, encoded, picture, until
from ui_helpers import Tab, names, neighbours

from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.sync.indexing import index_images

VECTOR = {"Accept": "application/octet-stream"}
DRAIN = 2
"""Seconds in which the second and the third replica leave; the first goes at once."""


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    for kind in KINDS:
        program(kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, engine: Engine, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("proxies")
    with Gallery.open_or_create(folder / "gallery", Identity.of(engine.manifest), engine.folder) as gallery:
        index_images(gallery, engine, photos)
    return folder


@pytest.fixture(scope="module")
def three(folder: Path, model: Path) -> Iterator[list[Replica]]:
    words = (model, "--gallery", folder / "gallery", "--no-ui", "--writable", "--threads", 1)
    told = ("--access-log", "--log-clients")
    commands = [(*words, *told), *[(*words, *told, "--drain", DRAIN)] * 2]
    with replicas(folder, commands) as every:
        yield every


@pytest.fixture(scope="module")
def proxies(folder: Path, three: list[Replica]) -> Iterator[list[Proxy]]:
    with both(folder, three) as made:
        yield made


def sized(seed: int, width: int, height: int) -> bytes:
    """A file of 3 bytes a pixel."""
    return encoded(picture(seed, width, height), "BMP")


def raw(engine: Engine, blob: bytes) -> Ask:
    """One image as the body: the vector must be the engine's own, to the bit."""
    wanted = engine.embed(engine.prepare(blob)[None]).tobytes()

    def ask(client: httpx.Client) -> str:
        reply = client.post("/v1/embeddings", content=blob, headers={**VECTOR, "Content-Type": "image/png"})
        return judged(reply, reply.content == wanted)

    return ask


def several(engine: Engine, blobs: Sequence[bytes]) -> Ask:
    wanted = engine.embed(np.stack([engine.prepare(blob) for blob in blobs])).tobytes()
    body = {"input": [base64.b64encode(blob).decode() for blob in blobs]}

    def ask(client: httpx.Client) -> str:
        reply = client.post("/v1/embeddings", json=body, headers=VECTOR)
        return judged(reply, reply.content == wanted)

    return ask


def searched(blob: bytes, wanted: list[int]) -> Ask:
    def ask(client: httpx.Client) -> str:
        reply = client.post("/search?k=1", content=blob, headers={"Content-Type": "image/png"})
        return judged(reply, reply.is_success and [hit["id"] for hit in reply.json()["hits"]] == wanted)

    return ask


def upserted(blob: bytes, keys: Iterator[int]) -> Ask:
    """A new image each time, under its own key."""

    def ask(client: httpx.Client) -> str:
        reply = client.post(
            f"/v1/galleries/gallery/images?key=up-{next(keys)}", content=blob, headers={"Content-Type": "image/png"}
        )
        return judged(reply, True)

    return ask


def judged(reply: httpx.Response, right: bool) -> str:
    if not reply.is_success:
        return f"{reply.status_code}: {reply.text[:200]}"
    return "" if right else "a wrong answer"


@pytest.fixture(scope="module")
def small(engine: Engine, three: list[Replica]) -> list[Ask]:
    """Requests of up to 0.2 MB, which both proxies can send again."""
    blobs = [encoded(picture(seed)) for seed in range(40, 46)]
    probe = encoded(picture(3))  # it is in the gallery; whatever else gets there meanwhile is less like it
    hits = [hit["id"] for hit in neighbours(three[2].base, probe, 1)]
    asks = [raw(engine, blob) for blob in (*blobs[:3], sized(46, 290, 240))]
    return [*asks, several(engine, blobs), searched(probe, hits)]


@pytest.fixture(scope="module")
def large(engine: Engine, small: list[Ask]) -> list[Ask]:
    """And some of 3 MB, which only nginx can send again."""
    return [*small, raw(engine, sized(47, 1000, 1000))]


def test_vectors_are_those_of_a_direct_server(proxies: list[Proxy], three: list[Replica], large: list[Ask]) -> None:
    direct = Proxy("haproxy", three[0].base, "")
    for made in (direct, *proxies):
        with made.client() as client:
            assert [ask(client) for ask in large] == [""] * len(large)


def test_a_proxy_tells_the_truth_about_the_client_and_keeps_operations_to_itself(
    proxies: list[Proxy], three: list[Replica]
) -> None:
    for number, made in enumerate(proxies):
        with made.client(f"127.0.0.{8 + number}") as client:
            headers = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Host": "evil.example", "Origin": made.base}
            assert client.get("/v1/models", headers=headers).status_code == 200
            change = client.post("/v1/galleries/gallery/delete", json={"ids": [987654]}, headers=headers)
            assert change.status_code == 200, change.text  # though the other proxy chose another replica to write
            assert client.get("/metrics").status_code == client.post("/admin/reload").status_code == 404
            assert client.get("/openapi.json").json()["openapi"].startswith("3.")
            too_large = client.post("/v1/embeddings", content=bytes(65 * 2**20), headers={"Content-Type": "image/png"})
            assert too_large.status_code == 413
    logs = "".join(each.log.read_text() for each in three)
    assert "127.0.0.8" in logs and "127.0.0.9" in logs and "203.0.113.9" not in logs
    assert "haproxy_server_status" in httpx.get(f"{proxies[0].stats}/metrics", trust_env=False).text
    assert "Active connections" in httpx.get(proxies[1].stats, trust_env=False).text


@pytest.mark.slow
def test_a_replica_killed_under_load_costs_no_request(
    proxies: list[Proxy], three: list[Replica], small: list[Ask], large: list[Ask]
) -> None:
    keys = iter(range(10**6))
    uploads = [upserted(encoded(picture(60)), keys)]
    haproxy, nginx = proxies
    with Load(haproxy, small, 4) as one, Load(nginx, large, 4) as other, Load(haproxy, uploads, 1) as writing:
        for load in (one, other):
            load.more(100)
        writing.more(20)
        three[0].end(signal.SIGKILL)
        until(lambda: haproxy.states() == ["DOWN", "UP", "UP"])
        for load in (one, other):
            load.more(100)
        writing.more(20)
        three[0].start()
        until(three[0].ready, 120)
        until(lambda: haproxy.states() == ["UP"] * 3)
        until(lambda: three[0].answered() > 20, 60)
        writing.more(20)
    one.fine()
    other.fine()
    writing.fine()
    with haproxy.client() as client:
        gone = next(keys)
        kept = client.get("/v1/galleries/gallery").json()["images"]
    assert kept == 20 + gone  # every acknowledged upsert, each once


@pytest.mark.slow
def test_rolling_reload_and_rolling_restart_cost_no_request(
    proxies: list[Proxy], three: list[Replica], small: list[Ask], large: list[Ask]
) -> None:
    """SIGHUP, then SIGTERM and a new start. Through HAProxy, requests too large to be sent again need --drain."""
    haproxy, nginx = proxies
    uploads = [upserted(encoded(picture(61)), iter(range(10**6, 2 * 10**6)))]
    with Load(nginx, large, 3) as other, Load(haproxy, uploads, 1) as writing:
        with Load(haproxy, small, 3) as one:
            for each in three:
                each.process.send_signal(signal.SIGHUP)
                until(lambda each=each: "was reloaded" in each.log.read_text(), 60)  # type: ignore[misc]
                one.more(30)
            three[0].restart(signal.SIGTERM)
            writing.more(10)
        with Load(haproxy, large, 3) as whole:
            for each in three[1:]:
                until(lambda: haproxy.states() == ["UP"] * 3)
                each.restart(signal.SIGTERM)
                assert each.process.poll() is None
                writing.more(10)
            whole.more(30)
    for load in (one, other, whole, writing):
        load.fine()


@pytest.mark.slow
def test_a_busy_replica_and_one_that_leaves(folder: Path, model: Path, engine: Engine, three: list[Replica]) -> None:
    """One replica takes a second for each image and holds one at a time; then it is told to end in the middle."""
    blob = encoded(picture(50))
    wanted = engine.embed(engine.prepare(blob)[None]).tobytes()

    def ask(made: Proxy) -> httpx.Response:
        with made.client() as client:
            return client.post("/v1/embeddings", content=blob, headers={**VECTOR, "Content-Type": "image/png"})

    slow = [(model, "--no-ui", "--queue", 1, "--threads", 1)]
    with ExitStack() as stack:
        (tired,) = stack.enter_context(replicas(folder, slow, name="slow", program=SLOW))
        haproxy, nginx = stack.enter_context(both(folder / "busy", [tired, *three[:2]]))
        with ThreadPoolExecutor(12) as pool:
            for made in (haproxy, nginx):
                replies = [*pool.map(ask, [made] * 36)]
                good = [reply for reply in replies if reply.status_code == 200]
                refused = [reply for reply in replies if reply.status_code == 429]
                assert {reply.content for reply in good} == {wanted} and len(good) + len(refused) == 36
                assert all(int(reply.headers["Retry-After"]) > 0 for reply in refused)
                if made is nginx:
                    assert not refused  # it tries another
            begun = [pool.submit(ask, made) for made in (haproxy, nginx) * 6]
            until(lambda: "clf_images_inside 1.0" in httpx.get(f"{tired.base}/metrics", trust_env=False).text)
            tired.process.send_signal(signal.SIGTERM)
            after = [pool.submit(ask, made) for made in (haproxy, nginx) * 6]
            answers = [task.result() for task in (*begun, *after)]
    assert {reply.status_code for reply in answers} <= {200, 429}
    assert {reply.content for reply in answers if reply.status_code == 200} == {wanted}


@pytest.mark.slow
@needs_browser
def test_the_page_works_and_goes_on_when_its_replica_dies(folder: Path, model: Path, photos: Path) -> None:
    words = (model, "--gallery", folder / "gallery", "--threads", 1, "--access-log")
    photo = sorted(photos.iterdir())[4]
    with ExitStack() as stack:
        first, second = stack.enter_context(replicas(folder, [words] * 2, name="page"))
        made = stack.enter_context(both(folder / "page", [first, second, second]))
        driver = stack.enter_context(chromium(folder / "profile", ("performance", "browser")))
        hits = names(neighbours(second.base, photo.read_bytes(), 5))
        for number, one in enumerate(made):
            tab = Tab(driver, one.base)
            tab.open()
            tab.upload(photo)
            assert tab.uris()[:5] == hits and tab.severe() == []
            assert sorted(shares(one, [first, second])) == [0, 8], number
        first.end(signal.SIGKILL)
        for one in made:
            tab = Tab(driver, one.base)
            tab.open()
            tab.upload(photo)
            assert tab.uris()[:5] == hits


def shares(made: Proxy, every: Sequence[Replica]) -> list[int]:
    """How many of eight requests of one browser for a part of the page came to each replica."""

    def served(each: Replica) -> int:
        return each.log.read_text().count("/page/gallery")

    before = [served(each) for each in every]
    with made.client() as client:
        client.get("/").raise_for_status()
        for _ in range(8):
            client.get("/page/gallery").raise_for_status()
    until(lambda: sum(map(served, every)) >= sum(before) + 8)  # a line follows its reply
    return [served(each) - n for each, n in zip(every, before, strict=True)]
