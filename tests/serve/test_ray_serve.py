"""``clf serve --engine ray`` as a process: real replicas under a real Ray Serve, behind its HAProxy, on loopback."""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import signal
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from running import Running, retrain, running
from serve_helpers import encoded, picture, until, write_model

from clf.manifest import MODEL_FILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None or not sys.platform.startswith("linux"),
        reason="Ray is not installed, or there is no HAProxy ingress on this system",
    ),
]

KEY = "the-key-of-a-customer"
PHOTO = encoded(picture(3))
PNG = {"Content-Type": "image/png"}


@dataclass
class Replicas:
    """The command, and whatever it has started."""

    running: Running
    changing: Path
    """A model that tests may replace."""
    mark: str

    @property
    def client(self) -> httpx.Client:
        return self.running.client

    def processes(self) -> dict[int, str]:
        """Name of each process that the command, or one of its own, has started; itself included."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(folder.name)] = words.strip()
            except OSError:  # it has ended meanwhile
                continue
        return {pid: words for pid, words in found.items() if words}  # those without are zombies

    def embed(self) -> str:
        """What some replica makes of the photo with the changing model. Fails unless the answer is 200."""
        reply = self.client.post("/v1/embeddings?model=changing", content=PHOTO, headers=PNG)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["data"][0]["embedding"])

    def pids(self) -> list[int]:
        """Of the replicas."""
        return sorted(pid for pid, words in self.processes().items() if words.startswith("ray::ServeReplica"))

    def reloaded(self) -> list[int]:
        """Models that were reloaded, by each replica."""
        text = self.client.get("/metrics").text
        return [int(float(n)) for n in re.findall(r'clf_reloads_total\{outcome="reloaded",replica="\w+"\} (\S+)', text)]

    def requests(self) -> dict[str, float]:
        """Embedding requests answered, by replica."""
        text = self.client.get("/metrics").text
        pattern = r'clf_requests_total\{replica="(\w+)",route="/v1/embeddings",status="200"\} (\S+)'
        return {name: float(value) for name, value in re.findall(pattern, text)}


@contextmanager
def replicas(folder: Path, *words: object) -> Iterator[Replicas]:
    """Args: folder: where a model is made that tests may replace, and the log is written."""
    changing = write_model(folder / "changing", name="changing")
    mark = f"CLF_TEST={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    environment = {name: value, "CLF_API_KEYS": KEY, "OMP_NUM_THREADS": "1"}
    log = folder / "log"
    with log.open("wb") as file:
        try:
            with running(*words, changing, "--engine", "ray", env=environment, stderr=file) as server:
                server.client.headers["X-API-Key"] = KEY
                yield Replicas(server, changing, mark)
        finally:
            print(log.read_text())  # shown when a test fails


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path, indexed: Path) -> Iterator[Replicas]:
    """Two replicas with a gallery that they share; one for the whole file, as Ray takes its time to start."""
    with replicas(tmp_path_factory.mktemp("ray"), model, "--gallery", indexed, "--replicas", 2) as started:
        until(lambda: len(started.pids()) == 2, 60)
        yield started


@dataclass
class Load:
    """Clients that ask again and again."""

    statuses: Counter[object] = field(default_factory=Counter)
    vectors: set[str] = field(default_factory=set)
    late: Counter[object] = field(default_factory=Counter)
    """Of requests that were sent after the server was told to end."""
    told: threading.Event = field(default_factory=threading.Event)


@contextmanager
def load(base: httpx.URL, clients: int = 4) -> Iterator[Load]:
    seen, ended = Load(), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=base, timeout=60, trust_env=False, headers={"X-API-Key": KEY}) as client:
            while not ended.is_set():
                statuses = seen.late if seen.told.is_set() else seen.statuses
                try:
                    reply = client.post("/v1/embeddings?model=changing", content=PHOTO, headers=PNG)
                except httpx.TransportError as error:
                    statuses[f"{type(error).__name__}: {error}"] += 1
                    ended.wait(0.01)
                    continue
                statuses[reply.status_code] += 1
                if reply.status_code == 200:
                    seen.vectors.add(str(reply.json()["data"][0]["embedding"]))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)


def bodies() -> list[tuple[str, dict[str, object]]]:
    """Requests, good ones and bad ones."""
    return [
        ("/v1/embeddings", {"content": PHOTO, "headers": PNG}),
        ("/v1/embeddings", {"json": {"input": [base64.b64encode(PHOTO).decode()] * 3, "encoding_format": "base64"}}),
        ("/search?k=5", {"content": PHOTO, "headers": PNG}),
        ("/search", {"json": {"id": 2, "k": 3}}),
        ("/v1/embeddings", {"content": PHOTO[:40], "headers": PNG}),
        ("/v1/embeddings", {"content": b"", "headers": PNG}),
        ("/v1/embeddings", {"json": {"input": ["some words"]}}),
        ("/v1/embeddings", {"json": {"input": ["data:image/png;base64,AAAA"], "model": "another"}}),
        ("/v1/embeddings", {"content": b"x" * (3 * 2**20), "headers": PNG}),
        ("/v1/galleries/g/images", {"content": PHOTO, "headers": PNG}),
        ("/nowhere", {"content": b""}),
    ]


def test_each_answer_and_each_refusal_is_that_of_one_server(server: Replicas, model: Path, indexed: Path) -> None:
    with running(model, server.changing, "--gallery", indexed, env={"CLF_API_KEYS": KEY}) as alone:
        alone.client.headers["X-API-Key"] = KEY
        for path, request in bodies():
            one, many = (client.post(path, **request) for client in (alone.client, server.client))  # type: ignore[arg-type]
            assert (many.status_code, many.content) == (one.status_code, one.content), (path, many.text)
            assert many.headers["content-type"] == one.headers["content-type"]
            assert "," not in many.headers["x-request-id"]
    assert httpx.post(server.client.base_url.join("/search"), trust_env=False).status_code == 401


def test_both_replicas_work_and_metrics_are_of_both(server: Replicas) -> None:
    def both() -> bool:
        server.running.embed(PHOTO)
        return len(server.requests()) == 2

    until(both, 30)
    assert len(server.pids()) == 2


def test_nothing_of_it_listens_beyond_this_machine(server: Replicas) -> None:
    inodes = set()
    for pid in server.processes():
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(str(link.readlink()).removeprefix("socket:[").rstrip("]"))
            except OSError:
                continue
    listening = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].partition(":")[0])
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert len(listening) > 5
    assert set(listening) <= loopback


def test_a_model_is_replaced_in_every_replica_without_a_lost_request(server: Replicas) -> None:
    before = server.embed()
    with load(server.client.base_url) as seen:
        until(lambda: seen.statuses[200] > 50, 60)
        retrain(server.changing, 90.0)
        server.running.process.send_signal(signal.SIGHUP)
        until(lambda: server.reloaded() == [2, 2], 60)
        after = seen.statuses[200]
        until(lambda: seen.statuses[200] > after + 50, 60)
    assert set(seen.statuses) == {200}
    now = {server.embed() for _ in range(40)}
    assert len(now) == 1
    assert seen.vectors == {before, *now}


def test_a_reload_over_http_is_one_of_all_replicas_and_a_bad_model_is_refused_by_all(server: Replicas) -> None:
    before = server.embed()
    good = (server.changing / MODEL_FILE).read_bytes()
    (server.changing / MODEL_FILE).write_bytes(good[:-10])
    refused = server.client.post("/admin/reload?model=changing")
    assert refused.status_code == 409
    assert "SHA-256" in refused.text
    assert {server.embed() for _ in range(40)} == {before}
    (server.changing / MODEL_FILE).write_bytes(good)
    retrain(server.changing, 40.0)
    assert server.client.post("/admin/reload?model=changing").json() == {"reloaded": ["changing"]}
    now = {server.embed() for _ in range(40)}
    assert len(now) == 1
    assert now != {before}


def test_a_replica_that_is_killed_under_load_loses_at_most_what_it_was_at_and_another_takes_its_place(
    server: Replicas,
) -> None:
    first, second = server.pids()
    with load(server.client.base_url) as seen:
        until(lambda: seen.statuses[200] > 100, 60)
        os.kill(first, signal.SIGKILL)
        until(lambda: len(server.pids()) == 2 and first not in server.pids(), 90)
        after = seen.statuses[200]
        until(lambda: seen.statuses[200] > after + 100, 60)
    assert second in server.pids()
    lost = seen.statuses.total() - seen.statuses[200]
    print(f"lost with the replica: {lost} of {seen.statuses.total()}")
    assert lost <= 4, seen.statuses  # one for each client


def test_ctrl_c_answers_what_has_begun_and_leaves_no_process_and_no_file(server: Replicas) -> None:
    folders = {match for words in server.processes().values() for match in re.findall(r"/tmp/clf-[a-z0-9_]+", words)}
    assert any(Path(folder).is_dir() for folder in folders)
    with load(server.client.base_url) as seen:
        until(lambda: seen.statuses[200] > 50, 60)
        seen.told.set()
        server.running.process.send_signal(signal.SIGINT)
        assert server.running.process.wait(90) == 0
    assert set(seen.statuses) <= {200, 503}  # the latter where it was on its way when the server was told
    assert {status for status in seen.late if isinstance(status, int)} <= {200, 503}
    until(lambda: not server.processes(), 30)
    assert not [folder for folder in folders if Path(folder).exists()]
