"""What becomes of a server when its surroundings fail: disks, models, galleries, signals. Real processes throughout."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from running import Running, free_port, retrain, running
from serve_helpers import PROGRAM, SLOW, encoded, picture, until, write_model, write_pictures

from clf.manifest import MODEL_FILE
from clf_serve.batching.batcher import Batcher
from clf_serve.engine import Engine, Pixels, Vectors
from clf_serve.gallery import Gallery, Identity
from clf_serve.metrics import Metrics
from clf_serve.sync.indexing import index_images

PHOTO = encoded(picture(1))


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A model that a test may spoil."""
    return write_model(tmp_path / "model")


@contextmanager
def full_disk() -> Iterator[int]:
    with Path("/dev/full").open("wb", buffering=0) as full:
        yield full.fileno()


def test_killed_and_started_again_on_the_same_port_at_once(model: Path) -> None:
    port = free_port()
    with running(model, port=port) as server:
        before = server.embed(PHOTO)
        server.process.kill()  # with connections open, which then linger
        server.process.wait(20)
        with running(model, port=port) as again:
            assert again.embed(PHOTO) == before


@pytest.mark.parametrize("both", [False, True], ids=["errors", "all output"])
def test_a_full_disk_costs_log_lines_and_nothing_else(own_model: Path, both: bool) -> None:
    with full_disk() as full, running(own_model, stdout=full if both else None, stderr=full) as server:
        before = server.embed(PHOTO)
        (own_model / MODEL_FILE).write_bytes(b"no model")
        for _ in range(3):
            server.reload("refused")  # each writes to the log
        assert server.embed(PHOTO) == before
        server.process.terminate()
        assert server.process.wait(40) == 0


def test_closed_outputs_cost_log_lines_and_nothing_else(own_model: Path) -> None:
    with running(own_model, closed=(1, 2)) as server:
        before = server.embed(PHOTO)
        (own_model / MODEL_FILE).write_bytes(b"no model")
        server.reload("refused")
        assert server.embed(PHOTO) == before
        for descriptor in (1, 2):  # else what a library prints would go into somebody's answer
            link = Path(f"/proc/{server.process.pid}/fd/{descriptor}")
            assert not link.is_symlink() or "socket" not in str(link.readlink())
        server.process.terminate()
        assert server.process.wait(40) == 0


def test_a_model_swapped_or_deleted_under_a_running_server(own_model: Path, tmp_path: Path) -> None:
    """The old one serves on until a whole one is there and a reload is asked for."""
    with running(own_model) as server:
        before = server.embed(PHOTO)
        whole = (own_model / MODEL_FILE).read_bytes()
        (own_model / MODEL_FILE).write_bytes(whole[: len(whole) // 2])
        assert server.embed(PHOTO) == before
        server.reload("refused")
        assert server.embed(PHOTO) == before
        shutil.rmtree(own_model)
        assert server.embed(PHOTO) == before
        server.reload("refused")
        assert server.embed(PHOTO) == before
        write_model(own_model, cells=1, dim=12)  # a manifest that says another length than the graph has
        server.reload("refused")
        assert server.embed(PHOTO) == before
        write_model(own_model)
        retrain(own_model, 50.0)
        assert server.embed(PHOTO) == before
        server.reload()
        after = server.embed(PHOTO)
        engine = Engine(own_model, "cpu")
        assert after == [engine.embed(engine.prepare(PHOTO)[None])[0].tobytes()] != before
        assert server.client.get("/health/ready").status_code == 200


def test_a_model_that_differs_from_its_manifest_does_not_start(own_model: Path) -> None:
    with (own_model / MODEL_FILE).open("ab") as file:
        file.write(b"\0")
    words = [sys.executable, "-c", PROGRAM, "serve", str(own_model), "--no-ui", "--port", str(free_port())]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)

    said = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert "encoder.onnx" in said and "manifest" in said and "Traceback" not in said


def test_a_gallery_deleted_and_made_anew_under_a_running_server(
    model: Path, engine: Engine, gallery: Path, tmp_path: Path
) -> None:
    with running(model, "--gallery", gallery) as server:
        before = server.embed(PHOTO)
        assert len(server.client.post("/search", json={"id": 1, "k": 3}).json()["hits"]) == 3
        shutil.rmtree(gallery)
        for _ in range(3):
            assert server.client.post("/search", json={"id": 1, "k": 3}).status_code in (200, 503)
            assert server.embed(PHOTO) == before
        server.reload("refused")
        write_pictures(tmp_path / "others", 2, first=100)
        with Gallery.open_or_create(gallery, Identity.of(engine.manifest), engine.folder) as opened:
            index_images(opened, engine, tmp_path / "others")
        server.reload()
        reply = server.client.post("/search?k=9", content=PHOTO, headers={"Content-Type": "image/png"})
        assert reply.status_code == 200 and len(reply.json()["hits"]) == 2
        assert all("others" in hit["uri"] for hit in reply.json()["hits"])


def test_an_upload_that_never_ends_holds_the_end_up_for_the_grace_only(model: Path) -> None:
    program = "import clf_serve.server\nclf_serve.server._GRACE = 2\n" + PROGRAM
    with running(model, program=program) as server, socket.create_connection(("127.0.0.1", server.port)) as upload:
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n\r\n"
        upload.sendall(head.encode() + PHOTO[:50])
        time.sleep(0.3)
        server.process.terminate()
        start = time.monotonic()
        with suppress(ConnectionError):  # at the end of the grace the server hangs up
            while server.process.poll() is None and time.monotonic() - start < 20:
                upload.send(b"x")  # as slow as can be, and never silent
                time.sleep(0.25)
        assert server.process.wait(20) == 0


def test_a_second_signal_to_end_takes_nothing_back(model: Path) -> None:
    with running(model, program=SLOW) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.embed, PHOTO)
        until(lambda: "clf_images_inside 1.0" in server.client.get("/metrics").text)
        server.process.terminate()
        time.sleep(0.1)
        server.process.terminate()
        assert len(answer.result()) == 1
        assert server.process.wait(40) == 0


def test_a_hangup_before_the_model_is_warm_does_not_end_the_server(model: Path) -> None:
    port = free_port()
    words = [sys.executable, "-u", "-c", PROGRAM, "serve", str(model), "--no-ui", "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the greeting: from here on it serves
        process.send_signal(signal.SIGHUP)
        time.sleep(1.0)
        assert process.poll() is None
        process.terminate()
        process.stdout.read()
        assert process.wait(40) == 0


def test_reloads_under_load_lose_no_call_and_mix_no_models(own_model: Path) -> None:
    """Every answer is wholly the one model's or wholly the other's, and nothing is left of those that were replaced."""
    from vitals import vitals

    photos = [encoded(picture(seed)) for seed in range(3)]
    with running(own_model) as server:
        answers = [tuple(server.embed(*photos))]
        retrain(own_model, 50.0)
        server.reload()
        answers.append(tuple(server.embed(*photos)))
        for _ in range(2):
            server.reload()
        before = vitals(server.process.pid)
        seen = _ask_while_reloading(server, own_model, photos, times=10)
        assert set(seen) <= set(answers) and len(set(answers)) == 2
        # Pools of threads may still grow to their bounds, and callers hold connections: ten lost models have more.
        until(lambda: vitals(server.process.pid).threads <= before.threads + 8)
        until(lambda: vitals(server.process.pid).files <= before.files + 6)
        assert vitals(server.process.pid).rss - before.rss < 48 * 2**20
        assert tuple(server.embed(*photos)) == answers[1]


def _ask_while_reloading(server: Running, folder: Path, photos: list[bytes], times: int) -> list[tuple[bytes, ...]]:
    done = False

    def ask() -> list[tuple[bytes, ...]]:
        found = []
        while not done:
            found.append(tuple(server.embed(*photos)))
        return found

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(ask) for _ in range(4)]
        try:
            for number in range(times):
                retrain(folder, 1.0 if number % 2 == 0 else 50.0)
                server.reload()
        finally:
            done = True
        return [answer for caller in callers for answer in caller.result()]


def test_the_only_caller_leaves_while_the_batcher_makes_its_rule() -> None:
    """The batcher had nothing to choose from then, and died of it."""

    async def scene() -> bool:
        solving, solved = asyncio.Event(), asyncio.Event()

        async def aside(solve: Callable[..., list[int]], *facts: object) -> list[int]:
            solving.set()
            await solved.wait()
            return solve(*facts)

        def embed(pixels: Pixels) -> Vectors:
            time.sleep(0.002)
            return np.ones((len(pixels), 4), np.float32)

        batcher = Batcher(embed, lambda: (1, 2, 4), 64, Metrics(), aside=aside)
        batcher.start()
        noticed = asyncio.create_task(solving.wait())
        while not solving.is_set():
            caller = asyncio.create_task(batcher.embed([np.zeros((4, 4, 3), np.uint8)]))
            await asyncio.wait({caller, noticed}, return_when=asyncio.FIRST_COMPLETED)
        caller.cancel()
        await asyncio.wait({caller})
        solved.set()
        vectors, _ = await batcher.embed([np.zeros((4, 4, 3), np.uint8)])
        await batcher.stop()
        return vectors.shape == (1, 4)

    assert asyncio.run(scene())


def test_a_reload_by_http_needs_a_key_and_says_what_it_could_not_do(own_model: Path) -> None:
    with running(own_model) as server:
        assert server.client.post("/admin/reload").status_code == 403
    with running(own_model, env={"CLF_API_KEYS": "secret"}) as server:
        assert server.client.post("/admin/reload").status_code == 401
        server.client.headers["X-API-Key"] = "secret"
        assert server.client.post("/admin/reload").json() == {"reloaded": ["tiny"]}
        before = server.embed(PHOTO)
        (own_model / MODEL_FILE).unlink()
        refused = server.client.post("/admin/reload")
        assert refused.status_code == 409 and "encoder.onnx" in refused.json()["error"]["message"]
        assert server.embed(PHOTO) == before
