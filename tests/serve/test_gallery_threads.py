"""Many threads and processes at one gallery: what a search answers is always one whole state of it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import MODEL, entries, make

from clf_serve.gallery import Entry, Gallery, Where
from clf_serve.index import Found, VectorIndex

EAST, NORTH = np.eye(6, dtype=np.float32)[:2]


def together(*workers: Callable[[], None]) -> None:
    """Runs them in threads; the first error of any is raised."""
    with ThreadPoolExecutor(len(workers)) as pool:
        for done in [pool.submit(worker) for worker in workers]:
            done.result(120)


def test_searches_of_several_threads_run_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits in the index until all have arrived there, so one lock around it would stop them for good."""
    barrier = threading.Barrier(4, timeout=30)
    search = VectorIndex.search

    def meet(self: VectorIndex, *args: object, **options: object) -> Found:
        barrier.wait()
        return search(self, *args, **options)  # type: ignore[arg-type]

    with Gallery(make(tmp_path / "g", 10)) as reader:
        reader.load_index()
        monkeypatch.setattr(VectorIndex, "search", meet)
        together(*[lambda: reader.search(EAST, 3) and None] * 4)


def test_every_answer_is_of_one_state(tmp_path: Path) -> None:
    """A writer turns all images from one direction to the other and back, and replaces them by others, in single
    transactions; a search that saw parts of two states would find both directions, or too few."""
    n = 30
    stop = threading.Event()
    folder = make(tmp_path / "g")
    writer = Gallery(folder, write=True)
    writer.upsert([Entry(f"k{i}", "east", EAST, metadata={"turn": 0}) for i in range(n)])
    turns = 0

    def write() -> None:
        nonlocal turns
        try:
            end = time.monotonic() + 4
            while time.monotonic() < end:
                turns += 1
                vector, uri = (NORTH, "north") if turns % 2 else (EAST, "east")
                writer.upsert([Entry(f"k{i}", uri, vector, metadata={"turn": turns}) for i in range(n)])
                if turns % 5 == 0:
                    writer.save_index()
        finally:
            stop.set()

    def read(gallery: Gallery) -> None:
        seen = 0
        while not stop.is_set():
            hits = gallery.search(EAST, n)
            assert len(hits) == n and len({hit.uri for hit in hits}) == 1
            assert {hit.score for hit in hits} == {1.0 if hits[0].uri == "east" else 0.0}
            (turn,) = {hit.metadata["turn"] for hit in hits}
            assert turn >= seen  # time does not go back
            seen = turn
            assert len(gallery.search(EAST, 5, where=Where.parse({"turn": {"$gte": seen}}))) == 5
            assert len(gallery.within(EAST, -1)) == n

    reader = Gallery(folder)
    with writer, reader:
        together(write, lambda: read(reader), lambda: read(reader), lambda: read(writer))
    assert turns > 5


def test_a_search_is_never_short_while_images_come_and_go(tmp_path: Path) -> None:
    folder = make(tmp_path / "g", 60)
    stop = threading.Event()

    def write() -> None:
        try:
            with Gallery(folder, write=True) as writer:
                end = time.monotonic() + 3
                while time.monotonic() < end:
                    ids = writer.upsert(entries(100, 20, seed=1))
                    writer.delete(ids)
        finally:
            stop.set()

    def read(reader: Gallery) -> None:
        query = entries(0, 1)[0].vector
        while not stop.is_set():
            hits = reader.search(query, 1000)
            assert len(hits) in (60, 80)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            assert len(reader.search(query, 10)) == 10

    with Gallery(folder) as reader:
        together(write, lambda: read(reader), lambda: read(reader))


def test_searches_go_on_while_the_index_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "g", 20)
    rebuild = VectorIndex.rebuild
    found: list[int] = []
    with Gallery(folder, write=True) as writer:
        query = entries(0, 1)[0].vector
        writer.load_index()

        def slow(self: VectorIndex, *args: object, **options: object) -> object:
            info = rebuild(self, *args, **options)  # type: ignore[arg-type]
            with ThreadPoolExecutor(1) as pool:  # another thread, so that no lock of this one lets it pass
                pool.submit(writer.upsert, entries(20, 5, seed=1)).result(30)
                found.append(len(pool.submit(writer.search, query, 100).result(30)))
            return info

        monkeypatch.setattr(VectorIndex, "rebuild", slow)
        info = writer.optimize()
        assert (found, info.vectors, len(writer.search(query, 100))) == ([25], 25, 25)


def test_closing_lets_a_search_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go = threading.Event(), threading.Event()
    search = VectorIndex.search

    def wait(self: VectorIndex, *args: object, **options: object) -> Found:
        inside.set()
        assert go.wait(30)
        return search(self, *args, **options)  # type: ignore[arg-type]

    reader = Gallery(make(tmp_path / "g", 10))
    reader.load_index()
    monkeypatch.setattr(VectorIndex, "search", wait)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(reader.search, EAST, 5)
        assert inside.wait(30)
        reader.close()
        go.set()
        assert len(answer.result(30)) == 5


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from clf_serve.gallery import Entry, Gallery
gallery = Gallery(Path(sys.argv[1]), write=True)
east = np.eye(6, dtype=np.float32)[0]
for i in range(10):
    print(*gallery.upsert([Entry(f"mine{i}{j}", "", east, bytes(5000)) for j in range(20)]), flush=True)
connection = gallery._db._writer
connection.execute("BEGIN IMMEDIATE")
connection.execute("DELETE FROM images")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_what_was_acknowledged_survives_a_kill_and_the_lock_does_not(tmp_path: Path) -> None:
    folder = make(tmp_path / "g", 3)
    with Gallery(folder) as reader:
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], capture_output=True, text=True, check=False)
        acknowledged = [int(id_) for id_ in done.stdout.split()]
        assert done.returncode < 0 and len(acknowledged) == 200
        assert reader.ids().tolist() == [1, 2, 3, *acknowledged]
        assert len(reader.search(EAST, 1000)) == 203
    with Gallery(folder, MODEL, write=True) as writer:  # the lock died with its holder
        assert len(writer) == 203
