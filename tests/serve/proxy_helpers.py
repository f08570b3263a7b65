"""Replicas of ``clf serve`` in processes of their own, HAProxy and nginx before them, and clients that never retry."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import httpx
import pytest
from running import free_port
from serve_helpers import PROGRAM, until

SERVE = Path(__file__).resolve().parents[2] / "serve"
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
ADDRESSES = ("127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003")
"""The replicas in the files that users copy."""

Kind = Literal["haproxy", "nginx"]


def program(name: Kind) -> str:
    """Its path; skips the test where it is not installed."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"needs {name} (apt-get install {name})")
    return found


@dataclass
class Replica:
    """One ``clf serve`` on a port that it keeps when it is started again."""

    words: Sequence[str]
    log: Path
    port: int = field(default_factory=free_port)
    program: str = PROGRAM

    def start(self) -> None:
        command = [sys.executable, "-c", self.program, "serve", *self.words, "--port", str(self.port)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.base}/health/ready", trust_env=False, timeout=20).status_code == 200
        except httpx.TransportError:
            return False

    def answered(self) -> int:
        """Embeddings that it gave, by its own count."""
        text = httpx.get(f"{self.base}/metrics", trust_env=False, timeout=20).text
        found = re.findall(r'^clf_requests_total\{route="/v1/embeddings",status="200"\} (\S+)', text, re.MULTILINE)
        return int(float(found[0])) if found else 0

    def end(self, number: signal.Signals) -> None:
        """Sends a signal that ends it, and waits until it has ended."""
        self.process.send_signal(number)
        self.process.wait(60)

    def restart(self, number: signal.Signals) -> None:
        self.end(number)
        self.start()
        until(self.ready, 120)


@contextmanager
def replicas(
    folder: Path, commands: Sequence[Sequence[object]], name: str = "replica", program: str = PROGRAM
) -> Iterator[list[Replica]]:
    """Replicas that are ready, one for each command line; ``folder`` gets their logs."""
    every = [
        Replica([*map(str, words)], folder / f"{name}{number}.log", program=program)
        for number, words in enumerate(commands, 1)
    ]
    try:
        for each in every:
            each.start()
        for each in every:
            until(each.ready, 120)
        yield every
    finally:
        for each in every:
            each.process.kill()
            each.process.wait(20)


@dataclass(frozen=True)
class Proxy:
    kind: Kind
    base: str
    stats: str
    pid: int = 0

    def client(self, address: str | None = None) -> httpx.Client:
        """Of a client that never asks twice, and perhaps comes from another address of this machine."""
        transport = httpx.HTTPTransport(local_address=address)
        return httpx.Client(base_url=self.base, transport=transport, trust_env=False, timeout=60)

    def states(self) -> list[str]:
        """UP or DOWN for each replica that embeds, by HAProxy."""
        text = httpx.get(f"{self.stats}/;csv", trust_env=False, timeout=20).text
        rows = [line.split(",") for line in text.splitlines()]
        column = rows[0].index("status")
        return [row[column].split()[0] for row in rows if row[0] == "replicas" and row[1] != "BACKEND"]


@contextmanager
def proxy(kind: Kind, folder: Path, ports: Sequence[int]) -> Iterator[Proxy]:
    """The configuration that users copy, with other ports."""
    folder.mkdir(parents=True, exist_ok=True)
    front, stats = free_port(), free_port()
    text = (SERVE / ("haproxy.cfg" if kind == "haproxy" else "nginx.conf")).read_text()
    changes = {"127.0.0.1:8080": f"127.0.0.1:{front}", "127.0.0.1:8404": f"127.0.0.1:{stats}"}
    changes |= {address: f"127.0.0.1:{port}" for address, port in zip(ADDRESSES, ports, strict=True)}
    if kind == "nginx":
        changes |= {"user www-data;": "user root;", "/run/nginx.pid": str(folder / "nginx.pid")}
        changes |= {"client_body_temp_path /var/lib/nginx/body;": temporary(folder)}
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    config = folder / f"{kind}.conf"
    config.write_text(text)
    with (folder / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(command_of(kind, config), stdout=log, stderr=log)
    try:
        made = Proxy(kind, f"http://127.0.0.1:{front}", f"http://127.0.0.1:{stats}", process.pid)
        until(lambda: process.poll() is not None or reachable(made), 20)
        assert process.poll() is None, (folder / f"{kind}.log").read_text()
        yield made
    finally:
        process.terminate()
        process.wait(20)


def temporary(folder: Path) -> str:
    """Where nginx may write when it does not run as root."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return " ".join(f"{kind}_temp_path {folder / kind};" for kind in kinds)


def command_of(kind: Kind, config: Path) -> list[str]:
    if kind == "haproxy":
        return [program(kind), "-db", "-f", str(config)]
    return [program(kind), "-e", "stderr", "-p", str(config.parent), "-c", str(config), "-g", "daemon off;"]


def reachable(made: Proxy) -> bool:
    try:
        return httpx.get(f"{made.base}/health/ready", trust_env=False, timeout=20).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def both(folder: Path, every: Sequence[Replica]) -> Iterator[list[Proxy]]:
    """HAProxy and nginx before the same replicas; HAProxy has found all of them well."""
    with ExitStack() as stack:
        made = [stack.enter_context(proxy(kind, folder / kind, [each.port for each in every])) for kind in KINDS]
        until(lambda: made[0].states() == ["UP"] * len(every), 30)
        yield made


KINDS: tuple[Kind, ...] = ("haproxy", "nginx")

Ask = Callable[[httpx.Client], str]
"""Sends one request and says what is wrong with the answer, or nothing."""


class Load:
    """Clients that ask one thing after another until the block ends, and keep what went wrong."""

    def __init__(self, made: Proxy, asks: Sequence[Ask], clients: int) -> None:
        self._proxy = made
        self._asks = asks
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self._clients = clients
        self.wrong: Counter[str] = Counter()
        self.answered = 0

    def __enter__(self) -> Self:
        self._tasks = [self._pool.submit(self._one, number) for number in range(self._clients)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown()
        if error is None:
            for task in self._tasks:
                task.result()

    def _one(self, number: int) -> None:
        with self._proxy.client() as client:
            turn = number
            while not self._stop.is_set():
                turn += 1
                try:
                    wrong = self._asks[turn % len(self._asks)](client)
                except httpx.HTTPError as error:
                    wrong = f"{type(error).__name__}: {error}"
                if wrong:
                    self.wrong[wrong] += 1
                self.answered += 1

    def more(self, n: int) -> None:
        """Waits until so many further requests were answered."""
        aim = self.answered + n
        until(lambda: self.answered >= aim, 60)

    def fine(self) -> None:
        assert not self.wrong, (self._proxy.kind, self.wrong)
        assert self.answered > 50
