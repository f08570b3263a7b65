"""``clf serve`` as a process: starting, ending, and a rough day in between."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import trustme
from PIL import Image
from serve_helpers import PROGRAM, SLOW, Server, encoded, picture, until, write_model

from clf_serve.engine import Engine

Start = Callable[..., Server]


@contextmanager
def client_of(server: Server) -> Iterator[httpx.Client]:
    """A client, once the server is ready."""
    with httpx.Client(base_url=server.base, timeout=30, trust_env=False) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        yield client


def png(width: int, height: int, kind: int, data: bytes) -> bytes:
    """A PNG whose header says what one likes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bad_images() -> list[bytes]:
    jpeg, photo = encoded(picture(1, 200, 150), "JPEG"), encoded(picture(2))
    noise = random.Random(0)
    flipped = bytearray(jpeg)
    flipped[4:20] = noise.randbytes(16)
    return [
        b"",
        b"\x00",
        b"GIF89a",
        b"BM" + bytes(60),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        noise.randbytes(5000),
        jpeg[: len(jpeg) // 2],
        jpeg[:25],
        bytes(flipped),
        photo[:-30],
        photo[:50],
        encoded(picture(1), "WEBP")[:60],
        encoded(picture(1), "TIFF")[:100],
        png(50_000, 50_000, 0, zlib.compress(bytes(1000))),  # a bomb by its header
        png(100, 100, 2, zlib.compress(bytes(10))),  # too few pixels
        png(0, 0, 2, b""),
        encoded(Image.new("1", (9000, 9000)), "PNG"),  # 81 million pixels in 10 kB
    ]


def odd_images() -> list[bytes]:
    """Unusual, and right."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 8
    frames = [picture(seed, 50, 50) for seed in range(3)]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    return [
        encoded(picture(1, 90, 60), "JPEG", exif=exif),
        encoded(picture(2).convert("CMYK"), "JPEG"),
        encoded(picture(3).convert("LA"), "PNG"),
        encoded(picture(4).convert("P"), "PNG"),
        encoded(picture(5).convert("1"), "PNG"),
        encoded(Image.fromarray(rng.integers(0, 65536, (40, 40), dtype=np.uint16)), "PNG"),
        encoded(Image.new("RGBA", (1, 1), (9, 8, 7, 60)), "PNG"),
        encoded(picture(6, 3000, 2), "PNG"),
        encoded(picture(7), "WEBP"),
        encoded(picture(8), "BMP"),
        animated.getvalue(),
    ]


def test_a_rough_day(serve: Start, model: Path, gallery: Path, engine: Engine) -> None:
    """Bad images among good ones, from many clients at once: every answer is right, none is a 5xx, none is missing."""
    server = serve(model, "--gallery", gallery, "--no-ui")
    good, bad = odd_images(), bad_images()
    solo = [engine.embed(engine.prepare(blob)[None])[0] for blob in good]

    def ask(client: httpx.Client, number: int) -> str:
        draw = random.Random(number)
        kind = draw.choice(["raw", "json", "form", "search"])
        several = kind in ("json", "form")
        picked = [draw.randrange(len(good)) for _ in range(draw.randrange(1, 6) if several else 1)]
        blobs = [good[i] for i in picked]
        spoilt = draw.randrange(len(blobs)) if draw.random() < 0.3 else None
        if spoilt is not None:
            blobs[spoilt] = draw.choice(bad)
        reply = post(client, kind, blobs)
        if spoilt is not None:
            text = kind == "json" and len(blobs[spoilt]) < 24  # base64 so short is taken for a word
            assert reply.status_code == (400 if text else 422), (kind, reply.text)
            assert reply.json()["error"]["param"] == f"input[{spoilt}]"
        elif kind == "search":
            assert len(reply.json()["hits"]) == 3
        else:
            rows = [row["embedding"] for row in reply.json()["data"]]
            np.testing.assert_array_equal(np.array(rows, np.float32), [solo[i] for i in picked])
        return kind

    with client_of(server) as client:
        with ThreadPoolExecutor(12) as pool:
            kinds = list(pool.map(lambda number: ask(client, number), range(300)))
        metrics = client.get("/metrics").text
        assert client.get("/health/ready").status_code == 200

    assert set(kinds) == {"raw", "json", "form", "search"}
    trouble = [line for line in metrics.splitlines() if 'status="5' in line and "/health" not in line]
    assert trouble == [] and "clf_images_inside 0.0" in metrics


def post(client: httpx.Client, kind: str, blobs: list[bytes]) -> httpx.Response:
    if kind == "json":
        return client.post("/v1/embeddings", json={"input": [base64.b64encode(blob).decode() for blob in blobs]})
    if kind == "form":
        return client.post("/v1/embeddings", files=[("f", ("x", blob)) for blob in blobs])
    path = "/search?k=3" if kind == "search" else "/v1/embeddings"
    return client.post(path, content=blobs[0], headers={"Content-Type": "image/jpeg"})


def test_a_taken_port_is_known_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [sys.executable, "-c", PROGRAM, "serve", str(tmp_path / "no model"), "--port", str(port)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    words = " ".join(done.stderr.split())  # type: ignore[assignment]
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in words and "--port" in words
    assert "no model" not in words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_finish(serve: Start, model: Path, number: signal.Signals) -> None:
    server = serve(model, "--no-ui", program=SLOW)
    with client_of(server) as client, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(post, client, "raw", [encoded(picture(1))])
        until(lambda: "clf_images_inside 1.0" in client.get("/metrics").text)
        server.process.send_signal(number)
        assert reply.result().status_code == 200

    assert server.process.wait(20) == 0
    assert "Traceback" not in "".join(server.log)
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.base, trust_env=False)


def test_the_server_needs_no_torch_and_an_open_page_does_not_hold_up_its_end(
    serve: Start, model: Path, gallery: Path
) -> None:
    program = (
        "import sys\n"
        "class Never:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision', 'timm'):\n"
        "            raise AssertionError(name + ' was imported')\n"
        "sys.meta_path.insert(0, Never())\n"
    ) + PROGRAM
    server = serve(model, "--gallery", gallery, program=program)
    with client_of(server) as client:
        assert client.post("/search", json={"id": 1}).status_code == 200
        assert client.get("/").status_code == 200
        with client.stream("GET", "/gradio_api/heartbeat/abc") as beat:  # what an open page holds
            assert beat.status_code == 200
            server.process.terminate()
            assert server.process.wait(25) == 0  # the grace for requests is longer

    assert "was imported" not in "".join(server.log)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux counts")
def test_a_server_with_a_page_sleeps_while_nobody_asks(serve: Start, model: Path) -> None:
    """Gradio would look into its empty queue a thousand times a second."""
    server = serve(model)
    with client_of(server) as client:
        assert client.get("/").status_code == 200
    pid = server.process.pid

    def woken() -> int:
        status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
        return int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)[0])

    before = woken()
    time.sleep(3)
    assert woken() - before < 300


def test_keys_come_from_the_environment(serve: Start, model: Path) -> None:
    server = serve(model, "--no-ui", env={"CLF_API_KEYS": "alpha,beta gamma"})

    with client_of(server) as client:
        for key, status in (("alpha", 200), ("beta", 200), ("gamma", 200), ("alpha,beta", 401), ("", 401)):
            assert client.get("/v1/models", headers={"X-API-Key": key}).status_code == status


def test_everything_at_once(serve: Start, model: Path, gallery: Path, tmp_path: Path) -> None:
    """TLS, keys in a file, other pages, a JSON log with clients, two models, a gallery, limits; and a reload of it."""
    authority = trustme.CA()
    made, cert, key = authority.issue_cert("127.0.0.1"), tmp_path / "cert", tmp_path / "key"
    cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    page, large = "https://app.example.org", write_model(tmp_path / "large", name="large", cells=4, dim=48)
    server = serve(
        *(model, large, "--gallery", gallery, "--no-ui", "--threads", 1, "--provider", "cpu", "--variant", "fp32"),
        *("--tls-cert", cert, "--tls-key", key, "--api-key-file", keys, "--api-key", "fixed", "--cors", page),
        *("--log-format", "json", "--access-log", "--log-clients", "--allow-urls", "--max-images", 2, "--max-mib", 1),
        *("--queue", 3, "--timeout", 20),
    )
    assert server.base.startswith("https://127.0.0.1:")
    photo = base64.b64encode(encoded(picture(1))).decode()
    with httpx.Client(base_url=server.base, verify=trust, timeout=30, trust_env=False) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        assert client.get("/v1/models", headers={"Origin": page}).headers["Access-Control-Allow-Origin"] == page
        client.headers.update({"X-API-Key": "first", "Origin": page, "X-Request-ID": "mine"})
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["tiny", "large"]
        for name, dim in (("tiny", 12), ("large", 48)):
            body = {"input": [photo], "model": name, "encoding_format": "float"}
            reply = client.post("/v1/embeddings", json=body)
            assert len(reply.json()["data"][0]["embedding"]) == dim
            assert "X-Request-ID" in reply.headers["Access-Control-Expose-Headers"]
        assert client.post("/search", json={"id": 1, "k": 3}).json()["model"] == "tiny"
        assert client.get("/thumbnails/1").status_code == 200
        assert client.post("/v1/embeddings", json={"input": [photo] * 3}).status_code == 413
        assert client.post("/v1/embeddings", content=bytes(2**20 + 1)).status_code == 413
        local = client.post("/v1/embeddings", json={"input": ["http://127.0.0.1/a.jpg"]})
        assert local.status_code == 400 and "start" not in local.json()["error"]["message"]

        keys.write_text("second\n")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: client.get("/v1/models").status_code == 401)
        assert client.get("/v1/models", headers={"X-API-Key": "fixed"}).status_code == 200
        client.headers["X-API-Key"] = "second"
        until(lambda: 'clf_reloads_total{outcome="reloaded"} 2.0' in client.get("/metrics").text)

    server.process.terminate()
    assert server.process.wait(25) == 0
    until(lambda: any("was reloaded" in line for line in server.log))
    events = [json.loads(line) for line in server.log]
    found = next(event for event in events if event.get("route") == "/search")
    assert (found["request_id"], found["client"], found["status"]) == ("mine", "127.0.0.1", 200)
    assert {"/v1/embeddings", "/v1/models", "/thumbnails/{image_id}"} <= {event.get("route") for event in events}
    assert not [line for line in server.log if any(key in line for key in ("first", "second", "fixed"))]


SLOW_WARM_UP = """
import time
from clf_serve.engine import Engine
def warm_up(self):
    print("on http://warming", flush=True)
    time.sleep(60)
Engine.warm_up = warm_up
"""
SLOW_OPENING = """
import time
from clf_serve.deployment import Folders
def open(self):
    print("on http://opening", flush=True)
    time.sleep(60)
Folders.open = open
"""


@pytest.mark.parametrize(("slow", "number"), [(SLOW_OPENING, signal.SIGTERM), (SLOW_WARM_UP, signal.SIGINT)])
def test_a_signal_while_it_starts_ends_it_at_once(
    serve: Start, model: Path, slow: str, number: signal.Signals, tmp_path: Path
) -> None:
    program = slow + "import clf_serve.deployment\nclf_serve.deployment._LEFT = 0.1\n" + PROGRAM
    server = serve(model, program=program, env={"TMPDIR": str(tmp_path)})
    if slow is SLOW_WARM_UP:
        until(lambda: any("warming" in line for line in server.log))
    server.process.send_signal(signal.SIGHUP)
    server.process.send_signal(number)
    assert server.process.wait(30) == 0
    assert "Traceback" not in "".join(server.log) and not list(tmp_path.glob("clf-page-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="where nobody can say whether a process runs")
def test_what_people_uploaded_to_a_server_that_was_killed_goes_at_the_next_start(
    serve: Start, model: Path, tmp_path: Path
) -> None:
    killed, running = (serve(model, env={"TMPDIR": str(tmp_path)}) for _ in range(2))
    both = set(tmp_path.glob("clf-page-*"))
    for folder in both:
        (folder / "uploads").mkdir(exist_ok=True)
        (folder / "uploads" / "photo.png").write_bytes(b"private")
    assert len(both) == 2
    killed.process.kill()
    killed.process.wait(10)
    third = serve(model, env={"TMPDIR": str(tmp_path)})
    now = set(tmp_path.glob("clf-page-*"))
    assert len(now) == 2 and len(both & now) == 1
    assert (both & now).pop().joinpath("uploads", "photo.png").is_file()
    for each in (running, third):
        each.process.send_signal(signal.SIGTERM)
        assert each.process.wait(30) == 0
    assert not list(tmp_path.glob("clf-page-*"))


def test_an_open_address_without_keys_is_pointed_out(serve: Start, model: Path) -> None:
    server = serve(model, "--no-ui", "--host", "0.0.0.0")

    until(lambda: "set CLF_API_KEYS" in "".join(server.log))
