"""The right to write to a gallery passes from one process to another that waits for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from serve_helpers import DIM, until

from clf.errors import GalleryError
from clf_serve import writing
from clf_serve.engine import Engine
from clf_serve.gallery import Entry, Gallery, Identity
from clf_serve.gallery.lock import WriteLock
from clf_serve.writing import Writer


@pytest.fixture
def folder(engine: Engine, tmp_path: Path) -> Path:
    Gallery.open_or_create(tmp_path / "g", Identity.of(engine.manifest), engine.folder).close()
    return tmp_path / "g"


def entry(key: str) -> Entry:
    return Entry(key, "u", np.eye(1, DIM, dtype=np.float32)[0])


@contextmanager
def beside(work: threading.Thread) -> Iterator[None]:
    work.start()
    try:
        yield
    finally:
        work.join(60)
        assert not work.is_alive()


def test_writers_that_never_rest_take_turns(engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three servers, each under load for some turns: every write is acknowledged, and every one is there."""
    monkeypatch.setattr(writing, "_TURN", 0.2)
    monkeypatch.setattr(writing, "_PASS", 0.2)
    identity = Identity.of(engine.manifest)

    async def load(writer: Writer, name: str, turns: list[str]) -> int:
        end = time.monotonic() + 4
        count = 0
        while time.monotonic() < end or not {"a", "b", "c"} <= {*turns}:
            await writer.upsert([entry(f"{name}{count}")], identity)
            turns.append(name)
            count += 1
        return count

    async def main() -> tuple[list[int], list[str]]:
        turns: list[str] = []
        writers = {name: Writer(folder) for name in "abc"}
        counts = await asyncio.gather(*(load(writer, name, turns) for name, writer in writers.items()))
        await asyncio.gather(*(writer.close() for writer in writers.values()))
        assert not any(writer.is_open for writer in writers.values())
        return counts, turns

    counts, turns = asyncio.run(main())
    with Gallery(folder) as gallery:
        assert len(gallery) == sum(counts) and min(counts) > 0
    changes = sum(one != other for one, other in pairwise(turns))
    assert 2 <= changes < len(turns) / 2  # many writes to a turn: opening a gallery takes time


def test_a_server_at_rest_lets_go_at_once(engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_REST", 600.0)
    identity = Identity.of(engine.manifest)

    async def main() -> None:
        writer = Writer(folder)
        await writer.upsert([entry("mine")], identity)
        assert writer.is_open
        other = await asyncio.to_thread(Gallery, folder, write=True)
        with closing(other):
            assert not writer.is_open or writer._gallery is None
            other.upsert([entry("theirs")])
        await writer.upsert([entry("mine too")], identity)
        await writer.close()

    asyncio.run(main())
    with Gallery(folder) as gallery:
        assert {item.key for item in gallery.page()} == {"mine", "theirs", "mine too"}


@pytest.mark.slow
def test_who_waits_for_a_save_of_the_index_is_heard(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = threading.Event()
    save = Gallery.save_index

    def slow(self: Gallery) -> None:
        saving.set()
        time.sleep(6)
        save(self)

    monkeypatch.setattr(writing, "_REST", 0.2)
    monkeypatch.setattr("clf_serve.gallery.lock.PATIENCE", 3.0)
    monkeypatch.setattr(Gallery, "save_index", slow)
    identity = Identity.of(engine.manifest)

    async def main() -> None:
        writer = Writer(folder)
        await writer.upsert([entry("mine")], identity)
        assert await asyncio.to_thread(saving.wait, 20)
        (await asyncio.to_thread(Gallery, folder, write=True)).close()
        await writer.close()

    asyncio.run(main())
    assert (folder / "index").exists()


def test_a_turn_that_was_promised_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than for a process that does not answer."""
    monkeypatch.setattr("clf_serve.gallery.lock.PATIENCE", 0.5)
    holder = WriteLock(folder)

    def let_go() -> None:
        until(holder.is_wanted)
        time.sleep(2)
        holder.close()

    with beside(threading.Thread(target=let_go)):
        start = time.monotonic()
        WriteLock(folder).close()
        assert time.monotonic() - start > 1


def test_a_promise_that_is_not_kept_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clf_serve.gallery.lock.PATIENCE", 0.3)
    monkeypatch.setattr("clf_serve.gallery.lock._HANDOVER", 0.6)
    with closing(WriteLock(folder)) as holder:
        hearing = beside(threading.Thread(target=lambda: until(holder.is_wanted)))
        wanted = r"another process is writing to the gallery .*\(process \d+ on"
        with hearing, pytest.raises(GalleryError, match=wanted):
            WriteLock(folder)
        holder.is_wanted()
        with pytest.raises(GalleryError, match="another process is writing"):  # nobody hears this one
            WriteLock(folder)
        assert not holder.is_wanted()  # who has given up wants nothing any more


def test_a_wish_of_a_process_that_died_is_no_wish(folder: Path) -> None:
    (folder / "write.lock-wanted").touch()
    with closing(WriteLock(folder)) as lock:
        assert not lock.is_wanted()
    assert not (folder / "write.lock-wanted").exists()
