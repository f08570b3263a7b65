"""Clients and servers of PostgreSQL that die at any moment: what was acknowledged is there, and nothing by halves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import pytest
from gallery_helpers import entries
from postgres_helpers import Postgres, make, new_home, read, standby_of

from clf.errors import GalleryError
from clf_serve.stores import ConflictError
from clf_serve.stores.bench import ABOUT, expect, rows

psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL")

from clf_serve.stores.postgres import PostgresStore, lines, putting  # noqa: E402

_ROWS = 20
_WRITER = """
import sys, time
from clf_serve.stores.bench import rows  # noqa: E402
from clf_serve.stores.postgres import PostgresStore  # noqa: E402
store = PostgresStore.open(sys.argv[1], write=True)
for at in range(store.state().generation, 10_000):
    store.write(rows(20, first=20 * at + 1), [], {"last": str(at)}, at=at)
    print(at + 1, flush=True)
"""


@contextmanager
def writing(url: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[int], int]]]:
    """A process that writes 20 rows at a time; and a function that waits until it has said so many generations."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", _WRITER, url], stdout=pipe, stderr=pipe, text=True, env=env)
    assert child.stdout is not None and child.stderr is not None
    said: IO[str] = child.stdout
    try:
        yield child, lambda n: _last(said, n)
    finally:
        child.kill()
        child.wait(20)
        child.stdout.close()
        child.stderr.close()


def _last(stream: IO[str], wanted: int) -> int:
    told = 0
    while told < wanted and (line := stream.readline()).endswith("\n"):
        told = int(line)
    return told


def whole(url: str, acknowledged: int) -> int:
    """The generation, of which nothing is missing and nothing is half there."""
    store = PostgresStore.open(url, write=True)
    generation = store.state().generation
    assert generation in (acknowledged, acknowledged + 1)
    expect(store, [row for at in range(generation) for row in rows(_ROWS, first=_ROWS * at + 1)], "after a kill")
    assert store.state().about.get("last", "-1") == str(generation - 1)
    where: Any = store.ids(None)
    assert len(where) == _ROWS * generation
    with store.lines.one() as line:
        [(facts,)] = line.execute("SELECT count(DISTINCT id) FROM facts").fetchall()
    assert facts == _ROWS * generation
    store.close()
    return generation


def test_a_client_that_is_killed_leaves_whole_writes(postgres: Postgres) -> None:
    url = postgres.url()
    PostgresStore.open(url, write=True, create=ABOUT).close()
    random, before = np.random.default_rng(1), 0
    for _ in range(3):
        with writing(url) as (child, last):
            told = last(before + 2)
            time.sleep(float(random.uniform(0, 0.02)))
            child.kill()
            before = whole(url, max(told, _last(child.stdout, 10_000)))  # type: ignore[arg-type]
    assert before >= 6


def test_a_server_that_is_killed_has_all_that_was_acknowledged_and_nothing_half(postgres: Postgres) -> None:
    url = postgres.url()
    PostgresStore.open(url, write=True, create=ABOUT).close()
    before = 0
    for seconds in (0.0, 0.01):
        with writing(url) as (child, last):
            told = last(before + 3)
            time.sleep(seconds)
            postgres.kill()
            child.kill()
            told = max(told, _last(child.stdout, 10_000))  # type: ignore[arg-type]
            postgres.start()
        before = whole(url, told)


def test_a_writer_goes_on_when_its_server_comes_back(postgres: Postgres) -> None:
    url = postgres.url()
    PostgresStore.open(url, write=True, create=ABOUT).close()
    with writing(url) as (child, last):
        told = last(3)
        postgres.kill()
        postgres.start()
        told = last(told + 5)
        assert child.poll() is None and told >= 8
        child.kill()
        whole(url, max(told, _last(child.stdout, 10_000)))  # type: ignore[arg-type]


def test_reads_are_asked_again_when_a_connection_was_cut(postgres: Postgres) -> None:
    with make(postgres.url()) as gallery, read(str(gallery.place)) as reader:
        gallery.upsert(entries(0, 5))
        for _ in range(2):
            postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            assert len(reader) == 5 and reader.items([2])[0].key == "k1"
            assert reader.search(entries(0, 5)[3].vector, 1)[0].id == 4


def test_reads_recover_when_the_server_is_restarted_and_fail_in_words_until_then(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_PAUSES", (0.0, 0.1))
    with make(postgres.url()) as gallery:
        gallery.upsert(entries(0, 5))
        postgres.kill()
        try:
            with pytest.raises(GalleryError, match=r"cannot be reached to read the gallery's state: .*refused"):
                len(gallery)
            with pytest.raises(GalleryError, match="cannot be reached"):
                gallery.upsert(entries(9, 1))
        finally:
            postgres.start()
        assert len(gallery) == 5
        assert gallery.upsert(entries(5, 1)) == [6]


@pytest.mark.parametrize("came_through", [True, False], ids=["committed", "rolled back"])
def test_a_commit_whose_answer_is_lost_is_looked_up_and_not_guessed(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, came_through: bool
) -> None:
    """The connection breaks just before, or just after the server has committed."""
    store = PostgresStore.open(postgres.url(), write=True, create=ABOUT)
    carry_out, cuts = putting.Put.carry_out, 0

    def cut(self: putting.Put, line: Any, at: int) -> None:
        nonlocal cuts
        cuts += 1
        if cuts > 1:
            return carry_out(self, line, at)
        if came_through:
            carry_out(self, line, at)
        else:
            [(pid,)] = line.execute("SELECT pg_backend_pid()").fetchall()
            with line.transaction():
                line.execute("DELETE FROM images")
                postgres.execute("SELECT pg_terminate_backend(%s)", pid)
                line.execute("SELECT 1")
        raise psycopg.OperationalError("the connection was lost")

    monkeypatch.setattr(putting.Put, "carry_out", cut)
    store.write(rows(5), [], {}, at=0)
    assert cuts == 2
    expect(store, rows(5), "after a lost answer")
    assert store.state().generation == 1
    store.close()


def test_of_two_writes_whose_answers_are_lost_each_knows_its_own(postgres: Postgres) -> None:
    url = postgres.url()
    store, other = (PostgresStore.open(url, write=True, create=ABOUT) for _ in range(2))
    lost = putting.Put(rows(2), [], {}, putting.UUID(int=7))
    with store.lines.one() as line:
        lost.carry_out(line, 0)
    other.write(rows(1, first=9), [], {}, at=1)
    with store.lines.one() as line:
        lost.carry_out(line, 0)  # again, as after a lost answer: it is there, though others have written since
    stranger = putting.Put(rows(2), [], {}, putting.UUID(int=8))
    with pytest.raises(ConflictError), store.lines.one() as line:
        stranger.carry_out(line, 0)
    expect(store, [*rows(2), *rows(1, first=9)], "after all")
    assert store.state().generation == 2
    store.close()
    other.close()


def test_a_commit_of_unknown_fate_says_so(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_PAUSES", (0.0,))
    store = PostgresStore.open(postgres.url(), write=True, create=ABOUT)

    def lose(self: putting.Put, line: Any, at: int) -> None:
        self.in_doubt = True
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(putting.Put, "carry_out", lose)
    with pytest.raises(GalleryError, match="broke off while it was being committed: all of it is there, or nothing"):
        store.write(rows(1), [], {}, at=0)
    store.close()


def test_a_server_that_hangs_is_given_up(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_GRACE", 0.0)
    url = postgres.url() + "&options=-cstatement_timeout%3D200ms"
    with make(url) as gallery:
        store: Any = gallery.calls.store
        with store.lines.one() as line:
            [(pid,)] = line.execute("SELECT pg_backend_pid()").fetchall()
        os.kill(pid, signal.SIGSTOP)
        try:
            with (
                pytest.raises(GalleryError, match="cannot be reached to look: the server does not answer"),
                _limited(store, 0.3),
            ):
                store.rows("look", "SELECT 1")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert len(gallery) == 0


@contextmanager
def _limited(store: Any, seconds: float) -> Iterator[None]:
    again = store.lines.again
    store.lines.again = lambda purpose, ask: again(purpose, ask, seconds)
    yield
    del store.lines.again


def test_a_standby_serves_reads_and_refuses_writes_in_words(postgres: Postgres) -> None:
    url = postgres.url("copied")
    with make(url) as gallery, new_home() as home:
        gallery.upsert(entries(0, 50))
        copy = standby_of(postgres, home)
        try:
            theirs = copy.url("copied")
            with read(theirs) as reader:
                gallery.upsert(entries(50, 1))
                end = time.monotonic() + 30
                while len(reader) < 51 and time.monotonic() < end:
                    time.sleep(0.02)
                assert reader.search(entries(0, 50)[3].vector, 1)[0].id == 4
                assert reader.listing() == gallery.listing() and reader.fields() == gallery.fields()
            with pytest.raises(GalleryError, match="is a standby server, where galleries can be read"):
                read(theirs, write=True)
            with pytest.raises(GalleryError, match="is a standby server"):
                make(copy.url("new"))
        finally:
            copy.stop()


def test_many_threads_share_one_handle(postgres: Postgres) -> None:
    with make(postgres.url()) as gallery:
        vectors = [entry.vector for entry in entries(0, 40)]
        gallery.upsert(entries(0, 40))
        errors: list[BaseException] = []

        def look(number: int) -> None:
            try:
                for i in range(40):
                    assert gallery.search(vectors[(i + number) % 40], 1)[0].id == (i + number) % 40 + 1
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=look, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors
        used = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'clf'"
        assert postgres.execute(used)[0][0] <= lines._KEPT
    end = time.monotonic() + 20  # backends take a moment to end
    while postgres.execute(used)[0][0]:
        assert time.monotonic() < end
        time.sleep(0.02)
