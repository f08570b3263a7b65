"""``clf serve`` as an operator runs it: on a port of one's own, with its output going wherever one likes."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import numpy as np
import onnx
from onnx import numpy_helper
from serve_helpers import PROGRAM, sign, until

from clf.manifest import MODEL_FILE


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    port: int
    client: httpx.Client

    def embed(self, *blobs: bytes) -> list[bytes]:
        """The vectors' bytes. Fails unless the answer is 200."""
        images = [base64.b64encode(blob).decode() for blob in blobs]
        reply = self.client.post("/v1/embeddings", json={"input": images, "encoding_format": "base64"})
        assert reply.status_code == 200, reply.text
        return [base64.b64decode(row["embedding"]) for row in reply.json()["data"]]

    def reloads(self, outcome: str = "reloaded") -> int:
        """How many models were ``reloaded``, or ``refused``, by the metrics."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f'clf_reloads_total{{outcome="{outcome}"}}'):
                return int(float(line.split()[-1]))
        return 0

    def reload(self, outcome: str = "reloaded") -> None:
        """Asks for it by SIGHUP, and waits until it came out so."""
        before = self.reloads(outcome)
        self.process.send_signal(signal.SIGHUP)
        until(lambda: self.reloads(outcome) > before, 60)


@contextmanager
def running(
    *words: object,
    port: int = 0,
    program: str = PROGRAM,
    stdout: int | IO[bytes] | None = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = subprocess.DEVNULL,
    closed: tuple[int, ...] = (),
    env: dict[str, str] | None = None,
) -> Iterator[Running]:
    """A server that is ready; it is killed at the end if it still runs.

    Args:
        closed: descriptors that it starts without, as by ``2>&-``.
    """
    port = port or free_port()
    command = [sys.executable, "-c", program, "serve", *map(str, words), "--no-ui", "--port", str(port)]
    if closed:
        shell = " ".join(f"{descriptor}>&-" for descriptor in closed)
        command = ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *command]
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env={**os.environ, **(env or {})})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            until(lambda: ready(process, client), 120)
            yield Running(process, port, client)
    finally:
        process.kill()
        process.wait(20)


def ready(process: subprocess.Popen[bytes], client: httpx.Client) -> bool:
    assert process.poll() is None, f"the server has ended with status {process.returncode}"
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def retrain(folder: Path, shift: float) -> None:
    """Changes the encoder of :func:`serve_helpers.write_model` so that its vectors differ, and signs it."""
    graph = onnx.load(str(folder / MODEL_FILE))
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(shift, np.float32), "one"))
    draft = folder / "draft"
    draft.write_bytes(graph.SerializeToString())
    draft.rename(folder / MODEL_FILE)
    sign(folder)
