"""Galleries in Qdrant: the suite of stores over HTTP and in qdrant-client's local mode, writers and servers killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qdrant_client", reason="needs qdrant-client")
pytest.importorskip("qdrant_edge", reason="needs qdrant-edge-py, Qdrant's engine")

from qdrant_client import QdrantClient, models
from qdrant_helpers import Standin, standin

from clf.errors import GalleryError
from clf_serve.stores import ConflictError, conformance
from clf_serve.stores.bench import ABOUT, expect, nearest, rows, units
from clf_serve.stores.checks import CHECKS, run_checks
from clf_serve.stores.qdrant import QdrantStore, writing
from clf_serve.stores.qdrant.address import Address
from clf_serve.stores.qdrant.server import Server

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
_numbers = count()
_servers: list[Standin] = []


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with standin(tmp_path_factory.mktemp("qdrant")) as started:
        _servers.append(started)
        yield started
    _servers.clear()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed writer is not waited for as long as in earnest."""
    monkeypatch.setattr(writing, "CLAIM_SECONDS", 1.0)


def _url(folder: Path, name: str) -> str:
    return _servers[0].url(f"{name}-{next(_numbers)}")


test_conformance = conformance(QdrantStore, _url)


class Alone(QdrantClient):
    """In local mode the client is the server: several threads take turns, and it outlives a handle."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self._turn = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        def alone(*args: Any, **named: Any) -> Any:
            with self._turn:
                return found(*args, **named)

        return alone

    def close(self, *args: Any, **named: Any) -> None:
        pass


class LocalServer(Server):
    """Where there is no collection, local mode raises an error of its own; and it has no indexes of payload."""

    def create_indexes(self) -> None:
        pass

    def collection(self) -> models.CollectionInfo | None:
        return super().collection() if self._client.collection_exists(self._name) else None


def _local() -> type[QdrantStore]:
    client = Alone()

    class Local(QdrantStore):
        """In the local mode of qdrant-client, which is Qdrant written anew in Python."""

        @classmethod
        def connect(cls, address: Address) -> Server:
            return LocalServer(client, address)

    return Local


def test_local_mode_conforms() -> None:
    """Filters, searches and conditions mean the same to another implementation than Qdrant's own engine."""
    left_out = {"killed writer", "threads", "history"}  # no other process can, and the engine has shown them
    only = [check.name for check in CHECKS if check.name not in left_out]
    found = run_checks(_local(), lambda folder, name: f"qdrant://localhost/{name}-{next(_numbers)}", only=only)
    assert not [outcome.explain() for outcome in found.outcomes if outcome.state != "passed"]
    assert len(found.outcomes) == len(CHECKS) - len(left_out)


_PROGRAM = """
import sys
from clf_serve.stores import ConflictError
from clf_serve.stores.bench import rows
from clf_serve.stores.qdrant import QdrantStore
url, first, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
handle = QdrantStore.open(url, write=True)
for row in rows(n, first=first):
    while True:
        try:
            handle.write([row], [], {}, at=handle.state().generation)
        except ConflictError:
            continue
        break
    print(row.id, flush=True)
"""


def _writer(url: str, first: int, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PROGRAM, url, str(first), str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_write_at_a_time_and_lose_nothing(server: Standin) -> None:
    url = server.url("two")
    handle = QdrantStore.open(url, write=True, create=ABOUT)
    writers = [_writer(url, first, 3) for first in (100, 200)]
    for writer in writers:
        out, err = writer.communicate(timeout=100)
        assert writer.returncode == 0 and len(out.split()) == 3, err
    state = handle.state()
    assert (state.generation, state.images) == (6, 6)
    expect(handle, [row for first in (100, 200) for row in rows(3, first=first)], "after two processes")
    handle.close()


def test_a_server_that_is_killed_while_a_process_writes_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    with standin(tmp_path / "q") as server:
        url = server.url("killed")
        QdrantStore.open(url, write=True, create=ABOUT).close()
        writer = _writer(url, 1, 500)
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(5)]
        server.kill()
        out, err = writer.communicate(timeout=100)
        acknowledged = len(said) + len(out.split())
        assert writer.returncode == 1 and "can be reached" in err.splitlines()[-1]
        server.start()
        handle = QdrantStore.open(url, write=True)
        images = handle.state().images
        assert images in (acknowledged, acknowledged + 1) and handle.state().generation == images
        expect(handle, rows(images), "after the server was killed")
        handle.write([], [1], {}, at=images)
        expect(handle, rows(images)[1:], "after the next write")
        handle.close()


def test_many_rows_go_in_several_requests_and_many_ids_in_several_filters(
    server: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clf_serve.stores.qdrant import points, store

    for module, name, value in ((points, "_MOST_POINTS", 7), (writing, "_MOST_IDS", 5), (store, "_MOST_KEYS", 6)):
        monkeypatch.setattr(module, name, value)
    for name, value in (("_PAGE", 8), ("_ID_PAGE", 9), ("_MOST_ALLOWED", 10)):
        monkeypatch.setattr(store, name, value)
    handle = QdrantStore.open(server.url("many"), write=True, create=ABOUT)
    table = rows(60)
    handle.write(table, [], {}, at=0)
    handle.write(table[:20], [60, 59, 58, 57, 56, 55], {}, at=1)
    expect(handle, table[:54], "in parts")
    every = handle.ids(None)
    assert every is not None and every.tolist() == list(range(1, 55))
    for k in (3, 15, 54):
        nearest(handle, table[:54], units(1, 3)[0], k)
        nearest(handle, table[:54], units(1, 4)[0], k, np.arange(5, 50))
    handle.close()


def test_large_rows_are_sent_in_requests_that_qdrant_takes() -> None:
    from clf_serve.stores.bench import row
    from clf_serve.stores.qdrant.points import batches, point_of

    large = [row(i, f"k{i}", {}, units(1)[0], bytes(1_000_000)) for i in range(1, 11)]
    parts = list(batches([point_of(each, 1) for each in large]))
    assert sum(map(len, parts)) == 10
    assert all(sum(len(point.model_dump_json()) for point in part) < 5 << 20 for part in parts)


def test_a_write_of_another_generation_changes_nothing_and_claims_nothing(server: Standin) -> None:
    handle = QdrantStore.open(server.url("claims"), write=True, create=ABOUT)
    handle.write(rows(2), [], {}, at=0)
    before = handle._server.ledger()
    with pytest.raises(ConflictError):
        handle.write([], [1], {}, at=0)
    assert handle._server.ledger() == before
    handle._server._client.delete_collection("claims")
    with pytest.raises(GalleryError, match="there is no collection claims at http://127"):
        handle.state()
    handle.close()
