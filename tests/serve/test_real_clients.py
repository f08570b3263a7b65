"""Other people's clients from PyPI, unchanged, against a live server; each in an interpreter that cannot leave here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import real_clients
from real_clients import Task
from serve_helpers import SIZE, encoded, picture, served, service_of, until

from clf_serve.engine import Engine
from clf_serve.problems import Problem
from clf_serve.service import Service


@pytest.fixture(scope="module")
def live(engine: Engine) -> Iterator[tuple[Service, str]]:
    service = service_of(engine)
    with served(service) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        yield service, str(client.base_url).rstrip("/")


@pytest.fixture
def run(live: tuple[Service, str], engine: Engine, tmp_path: Path) -> Callable[[str], None]:
    """``run("openai,triton")`` runs those programs of real_clients.py, in one interpreter, against the server."""
    pixels = np.stack([np.asarray(picture(seed, SIZE, SIZE)) for seed in range(3)])
    blobs = [encoded(picture(seed, SIZE, SIZE)) for seed in range(3)]
    Task(live[1], blobs, pixels, engine.embed(pixels)).write(tmp_path / "task.npz")

    def start(names: str) -> None:
        words = [sys.executable, real_clients.__file__, names, live[1], str(tmp_path / "task.npz")]
        clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=clean, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.endswith("all is as it should be\n")

    return start


@pytest.mark.parametrize("name", ["infinity", pytest.param("litellm", marks=pytest.mark.slow), "triton"])
def test_a_client_from_pypi_works_unchanged(name: str, run: Callable[[str], None]) -> None:
    run(name)


@pytest.mark.slow
def test_openai_s_client_works_unchanged_and_comes_back_when_it_is_told_to(
    live: tuple[Service, str], run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _ = live
    refusals = iter([Problem(429, "overloaded", "the server is busy; try again in 2 s", retry_after=2)])

    def check_room(*_: object) -> None:
        for refusal in refusals:
            raise refusal

    monkeypatch.setattr(service, "check_room", check_room)
    run("openai_retry,openai,langchain")  # the last is made of the first, and importing that takes seconds
    assert next(refusals, None) is None  # it was refused once


def test_nothing_could_have_left_the_machine() -> None:
    """The hook of the programs above, tried on what it is there to stop."""
    program = f"""if True:
        import socket, sys
        sys.path.insert(0, {str(Path(real_clients.__file__).parent)!r})
        import real_clients
        refused = real_clients.stay_here()
        here = socket.create_server(("127.0.0.1", 0))
        socket.create_connection(here.getsockname()).close()
        for attempt in (
            lambda: socket.create_connection(("example.com", 80)),
            lambda: socket.socket().connect(("192.0.2.1", 80)),
            lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
            lambda: socket.gethostbyname("example.com"),
        ):
            try:
                attempt()
            except OSError as error:
                assert "leave the machine" in str(error)
            else:
                raise AssertionError
        print(refused)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("example.com") == 2 and done.stdout.count("192.0.2.1") == 2


def test_a_file_of_tasks_holds_what_was_put_in(tmp_path: Path) -> None:
    task = Task("http://x", [b"a", b"bcd", b"e\x00"], np.zeros((3, 2, 2, 3), np.uint8), np.eye(3, 4, dtype=np.float32))
    task.write(tmp_path / "t.npz")
    found = Task.read("http://x", tmp_path / "t.npz")

    assert found.blobs == task.blobs
    found.check(task.vectors)
    with pytest.raises(AssertionError):
        found.check(task.vectors + 1e-3)
