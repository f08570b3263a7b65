"""Models without torch, pictures, and servers in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_helpers import LIMITS, Gate, wait_ready
from command_helpers import Run
from postgres_helpers import Postgres, a_server
from serve_helpers import PROGRAM, Server, served, service_of, write_model, write_pictures
from ui_helpers import Site, Tab, site

from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.sync.indexing import index_images


def pytest_configure(config: pytest.Config) -> None:
    # SWIG's types in faiss and onnxruntime lack __module__; nothing of ours
    config.addinivalue_line("filterwarnings", "ignore:builtin type [Ss]wig.*:DeprecationWarning")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def engine(model: Path) -> Engine:
    engine = Engine(model, "cpu")
    engine.warm_up()
    return engine


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_pictures(folder, 20)
    return folder


@pytest.fixture
def gallery(tmp_path: Path, engine: Engine, photos: Path) -> Path:
    """A gallery of the twenty photos."""
    folder = tmp_path / "gallery"
    with Gallery.open_or_create(folder, Identity.of(engine.manifest), engine.folder) as opened:
        index_images(opened, engine, photos)
    return folder


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory, engine: Engine, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("indexed") / "g"
    with Gallery.open_or_create(folder, Identity.of(engine.manifest), engine.folder) as opened:
        index_images(opened, engine, photos)
    return folder


@pytest.fixture(scope="module")
def client(engine: Engine, indexed: Path) -> Iterator[httpx.Client]:
    service = service_of(engine, Gallery(indexed), LIMITS)
    with served(service) as client:
        wait_ready(client)
        yield client


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for all tests of a worker; one that kills it starts it again."""
    with a_server() as server:
        yield server


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Site]:
    """One for all tests of the search tab: a server with its page takes seconds to start."""
    with site(tmp_path_factory.mktemp("page"), engine) as opened:
        yield opened


@pytest.fixture(scope="module")
def tab(page: Site) -> Tab:
    """The window, on a page that was loaded anew."""
    page.tab.media()
    page.tab.size(1280, 900)
    page.tab.open()
    page.tab.severe()
    return page.tab


@pytest.fixture
def run(run_cli: Callable[..., Any]) -> Run:
    def start(*words: object) -> tuple[int, str, str]:
        outcome = run_cli(*map(str, words))
        return outcome.code, outcome.out, outcome.err

    return start


@pytest.fixture
def gate(model: Path) -> tuple[Gate, Engine]:
    engine = Engine(model, "cpu")
    gate = Gate(engine)
    engine.embed = gate  # type: ignore[method-assign]
    return gate, engine


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """``serve(MODEL, "--gallery", GALLERY)`` starts a server on a free port and returns when it has said where."""
    started: list[tuple[subprocess.Popen[str], threading.Thread]] = []

    def start(*words: object, env: dict[str, str] | None = None, program: str = PROGRAM) -> Server:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", *map(str, words), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )
        assert process.stdout is not None
        log: list[str] = []
        for line in process.stdout:
            log.append(line)
            if found := re.search(r"on (https?://[^\s\"]+)", line):
                reader = threading.Thread(target=log.extend, args=(process.stdout,))
                reader.start()
                started.append((process, reader))
                return Server(found[1], process, log)
        process.stdout.close()
        process.wait(10)
        raise AssertionError("the server did not start:\n" + "".join(log))

    yield start
    for process, reader in started:
        process.kill()
        process.wait(10)
        reader.join(10)
        assert process.stdout is not None
        process.stdout.close()
