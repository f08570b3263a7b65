"""Writes to a served gallery: found by the next search, kept over ends and reloads, one writer at a time."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_helpers import error
from gallery_api import TOP, WRITABLE, Live, live, png, truth
from running import running as process
from serve_helpers import DIM, running, until, write_model, write_pictures

from clf_serve import writing
from clf_serve.call import Call
from clf_serve.deployment import Folders
from clf_serve.engine import Engine
from clf_serve.gallery import Entry, Gallery, Identity
from clf_serve.ingest import Incoming
from clf_serve.problems import Problem
from clf_serve.stores import AnyGallery, open_gallery
from clf_serve.sync.indexing import index_images
from clf_serve.writing import Writer

PNG = {"Content-Type": "image/png"}


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_REST", 0.3)
    monkeypatch.setattr("clf_serve.gallery.lock.PATIENCE", 1.0)


@pytest.fixture
def server(engine: Engine, tmp_path: Path) -> Iterator[Live]:
    with live(engine, tmp_path / "gallery") as server:
        yield server


def text(blob: bytes) -> str:
    return base64.b64encode(blob).decode()


def directions(n: int, seed: int = 0) -> list[list[float]]:
    vectors = np.random.default_rng(seed).normal(size=(n, DIM))
    found: list[list[float]] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tolist()
    return found


@pytest.mark.slow
def test_each_writer_finds_at_once_what_it_wrote(server: Live) -> None:
    """Eight write while four search; whatever was acknowledged is found, and nothing is there twice."""
    rows = directions(160)
    ended = threading.Event()
    wrong: list[Any] = []

    def write(start: int) -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=60, trust_env=False) as client:
            for place in range(start, len(rows), 8):
                body = {"images": [{"key": str(place), "vector": rows[place], "metadata": {"place": place}}]}
                [written] = client.post(f"{TOP}/images", json=body).json()["images"]
                search = {"vector": rows[place], "k": 1, "where": {"place": place}}
                hits = client.post(f"{TOP}/search", json=search).json()["hits"]
                nearest = client.post(f"{TOP}/search", json={"vector": rows[place], "k": 1}).json()["hits"]
                if [hit["id"] for hit in hits + nearest] != [written["id"]] * 2:
                    wrong.append((place, written, hits, nearest))

    def search() -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=60, trust_env=False) as client:
            while not ended.is_set():
                found = client.post(f"{TOP}/search", json={"vector": rows[0], "k": 50}).json()["hits"]
                if len({hit["id"] for hit in found}) != len(found):
                    wrong.append(found)

    with ThreadPoolExecutor(12) as pool:
        searches = [pool.submit(search) for _ in range(4)]
        writes = [pool.submit(write, start) for start in range(8)]
        try:
            for each in writes:
                each.result()
        finally:
            ended.set()
        for each in searches:
            each.result()

    assert not wrong
    items = server.client.get(f"{TOP}/images", params={"limit": 1000}).json()["images"]
    assert Counter(item["key"] for item in items) == Counter(map(str, range(160)))


def test_writes_that_wait_share_a_transaction(engine: Engine, tmp_path: Path) -> None:
    identity = Identity.of(engine.manifest)
    Gallery.open_or_create(tmp_path / "g", identity, engine.folder).close()
    vectors = np.array(directions(30), np.float32)

    async def main() -> list[Any]:
        writer = Writer(tmp_path / "g")
        entries = [Entry(str(i % 20), "u", vector) for i, vector in enumerate(vectors)]
        written = await asyncio.gather(*(writer.upsert([entry], identity) for entry in entries))
        await writer.close()
        with pytest.raises(Problem, match="shutting down"):
            await writer.upsert(entries, identity)
        return [row for rows in written for row in rows]

    rows = asyncio.run(main())
    assert [row.created for row in rows] == [True] * 20 + [False] * 10
    assert [row.id for row in rows[20:]] == [row.id for row in rows[:10]]
    with Gallery(tmp_path / "g") as gallery:
        assert gallery.generation <= 2 and len(gallery) == 20
        np.testing.assert_array_equal(gallery.vector(rows[0].id), vectors[20])


def test_a_write_that_fails_takes_no_other_with_it(engine: Engine, tmp_path: Path) -> None:
    identity = Identity.of(engine.manifest)
    Gallery.open_or_create(tmp_path / "g", identity, engine.folder).close()
    vector = np.array(directions(1)[0], np.float32)

    def fail(gallery: Gallery) -> None:
        raise KeyError("no")

    async def main() -> None:
        writer = Writer(tmp_path / "g")
        before = asyncio.ensure_future(writer.upsert([Entry("a", "u", vector)], identity))
        wrong = asyncio.ensure_future(writer.change(fail, identity))
        gone = asyncio.ensure_future(writer.upsert([Entry("gone", "u", vector)], identity))
        after = asyncio.ensure_future(writer.upsert([Entry("b", "u", vector)], identity))
        await asyncio.sleep(0)
        gone.cancel()  # its caller has gone before it was begun
        assert (await before)[0].created and (await after)[0].created
        with pytest.raises(KeyError):
            await wrong
        other = Identity("other", "0" * 64, DIM)
        with pytest.raises(Problem, match="replaced") as caught:
            await writer.upsert([Entry("c", "u", vector)], other)
        assert (caught.value.status, caught.value.retry_after) == (503, 1)
        await writer.close()

    asyncio.run(main())
    with Gallery(tmp_path / "g") as gallery:
        assert {item.key for item in gallery.page()} == {"a", "b"}


def test_an_entry_that_cannot_be_kept_is_refused_alone(engine: Engine, tmp_path: Path) -> None:
    identity = Identity.of(engine.manifest)
    Gallery.open_or_create(tmp_path / "g", identity, engine.folder).close()
    vector = np.array(directions(1)[0], np.float32)
    entries = [Entry("a", "u", vector), Entry("nul", "u", vector, metadata={"a": "\0"}), Entry("long", "u", 2 * vector)]

    async def main() -> list[Any]:
        writer = Writer(tmp_path / "g")
        outcomes = [writer.upsert([entry], identity) for entry in (*entries, Entry("b", "u", vector))]
        found = await asyncio.gather(*outcomes, return_exceptions=True)
        await writer.close()
        return found

    first, nul, long, last = asyncio.run(main())
    assert first[0].created and last[0].created and isinstance(long, ValueError)
    assert isinstance(nul, Problem) and (nul.status, nul.code) == (400, "invalid_entry")
    with Gallery(tmp_path / "g") as gallery:
        assert {item.key for item in gallery.page()} == {"a", "b"}


def test_the_writer_rests_so_that_others_may_write(server: Live, engine: Engine) -> None:
    server.put({"image": text(png(1))})
    assert server.writer_is_open()
    until(lambda: not server.writer_is_open())
    with Gallery(server.folder, Identity.of(engine.manifest), write=True) as other:
        busy = error(server.client.post(f"{TOP}/images", content=png(2), headers=PNG), 409, "gallery_busy")
        assert "another process" in busy["message"]
        reply = server.client.delete(f"{TOP}/images/1")
        assert (reply.status_code, reply.headers["retry-after"]) == (409, "5")
        other.upsert([Entry("theirs", "u", np.array(directions(1)[0], np.float32))])
        assert server.client.get(TOP).json()["images"] == 2
    assert server.client.post(f"{TOP}/images", content=png(2), headers=PNG).status_code == 200
    assert server.client.get(TOP).json()["images"] == 3


def test_all_that_wait_for_another_process_are_told_at_once(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = Identity.of(engine.manifest)
    attempts = []

    def opened(*args: Any, **options: Any) -> AnyGallery:
        attempts.append(args)
        return open_gallery(*args, **options)

    async def main() -> list[Any]:
        writer = Writer(tmp_path / "g")
        changes = [writer.change(lambda gallery: gallery.delete([1]), identity) for _ in range(12)]
        found = await asyncio.gather(*changes, return_exceptions=True)
        await writer.close()
        return found

    monkeypatch.setattr(writing, "open_gallery", opened)
    with Gallery.open_or_create(tmp_path / "g", identity, engine.folder):
        found = asyncio.run(main())
    assert [each.code for each in found] == ["gallery_busy"] * 12
    assert len(attempts) == 1


def test_a_save_of_the_index_holds_up_neither_searches_nor_writes(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving, go_on = threading.Event(), threading.Event()
    save = Gallery.save_index

    def slow(self: Gallery) -> None:
        saving.set()
        assert go_on.wait(30)
        save(self)

    monkeypatch.setattr(Gallery, "save_index", slow)
    server.put({"image": text(png(1))})
    assert saving.wait(20)
    server.put({"image": text(png(2))})
    assert len(server.search({"image": text(png(2))})["hits"]) == 2
    assert server.writer_is_open()
    go_on.set()
    until(lambda: not server.writer_is_open())
    server.put({"image": text(png(3))})
    assert server.client.get(TOP).json()["images"] == 3


def test_an_index_that_cannot_be_saved_is_no_loss(
    server: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Gallery) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Gallery, "save_index", fail)
    server.put({"image": text(png(1))})
    until(lambda: not server.writer_is_open())
    assert "No space left on device" in caplog.text
    assert len(server.search({"image": text(png(1))})["hits"]) == 1


@pytest.mark.parametrize(
    ("code", "status", "problem"),
    [
        (sqlite3.SQLITE_FULL, 507, "disk_full"),
        (sqlite3.SQLITE_READONLY, 503, "gallery_not_writable"),
        (sqlite3.SQLITE_CORRUPT, 503, "gallery_unavailable"),
    ],
)
def test_what_the_disk_refuses_is_told(
    server: Live, monkeypatch: pytest.MonkeyPatch, code: int, status: int, problem: str
) -> None:
    from clf.errors import GalleryError

    def fail(self: Gallery, entries: Any) -> Any:
        cause = sqlite3.OperationalError("the disk says no")
        cause.sqlite_errorcode = code
        raise GalleryError("the gallery cannot be written") from cause

    server.put({"image": text(png(1))})
    monkeypatch.setattr(Gallery, "upsert", fail)
    error(server.client.post(f"{TOP}/images", content=png(2), headers=PNG), status, problem)
    monkeypatch.undo()
    assert server.put({"image": text(png(2))})[0]["created"]


def test_a_full_database_takes_all_of_a_request_or_nothing(server: Live) -> None:
    server.put({"image": text(png(1))})
    gallery = next(iter(server.service._writers.values()))._gallery
    assert gallery is not None

    def allow(pages: int) -> int:
        with gallery._db.writing() as (connection, _):
            connection.execute(f"PRAGMA max_page_count = {pages}")
            return int(connection.execute("PRAGMA page_count").fetchone()[0])

    allow(allow(10**6) + 1)
    images = [{"image": text(png(seed)), "metadata": {"x": "y" * 9000}} for seed in range(2, 12)]
    error(server.client.post(f"{TOP}/images", json={"images": images}), 507, "disk_full")
    assert server.client.get(TOP).json()["images"] == 1
    assert [hit["id"] for hit in server.search({"image": text(png(3)), "k": 20})["hits"]] == [1]
    allow(10**6)
    assert all(row["created"] for row in server.put(*images))
    assert server.client.get(TOP).json()["images"] == 11


def test_a_reload_in_the_middle_of_writes_loses_none(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    engine = Engine(folder, "cpu")
    Gallery.open_or_create(tmp_path / "g", Identity.of(engine.manifest), folder).close()
    rows = directions(60, seed=2)

    async def main() -> None:
        async with running(Folders(folder, tmp_path / "g"), limits=WRITABLE) as service:

            async def write(place: int) -> int:
                await asyncio.sleep(place * 0.01)
                with service.using() as deployment:
                    vector = np.array(rows[place], np.float32)
                    items = [Incoming(str(place), "u", vector, {})]
                    return (await service.ingest(deployment).upsert(items, Call()))[0].id

            writes = [asyncio.ensure_future(write(place)) for place in range(60)]
            for _ in range(3):
                assert await service.reload() == {"tiny": None}
            ids = await asyncio.gather(*writes)
            with service.using() as deployment:
                for place, id_ in enumerate(ids):
                    [hit] = await deployment.neighbours(np.array(rows[place], np.float32), 1, Call())
                    assert hit.id == id_
            assert len(set(ids)) == 60

    asyncio.run(main())
    with Gallery(tmp_path / "g") as gallery:
        assert len(gallery) == 60


def test_after_a_reload_writes_go_to_the_gallery_that_is_there_now(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    engine = Engine(folder, "cpu")
    identity = Identity.of(engine.manifest)
    for name in ("g", "new"):
        Gallery.open_or_create(tmp_path / name, identity, folder).close()

    async def main() -> None:
        async with running(Folders(folder, tmp_path / "g"), limits=WRITABLE) as service:

            async def write(key: str) -> None:
                with service.using() as deployment:
                    vector = np.array(directions(1)[0], np.float32)
                    await service.ingest(deployment).upsert([Incoming(key, "u", vector, {})], Call())

            await write("old")
            (tmp_path / "g").rename(tmp_path / "old")
            (tmp_path / "new").rename(tmp_path / "g")
            assert await service.reload() == {"tiny": None}
            await write("new")
            with service.using() as deployment:
                assert [item.key for item in deployment.require_gallery().page()] == ["new"]

    asyncio.run(main())
    with Gallery(tmp_path / "old") as old, Gallery(tmp_path / "g") as new:
        assert ([item.key for item in old.page()], [item.key for item in new.page()]) == (["old"], ["new"])


def test_clf_index_and_the_server_take_turns(server: Live, engine: Engine, tmp_path: Path) -> None:
    """Uploads and files lie side by side; an index run keeps the uploads."""
    server.put({"image": text(png(30)), "metadata": {"by": "upload"}})
    until(lambda: not server.writer_is_open())
    write_pictures(tmp_path / "photos", 3)
    with Gallery(server.folder, Identity.of(engine.manifest), write=True) as writer:
        index_images(writer, engine, tmp_path / "photos")
    found = server.search({"image": text(png(30)), "k": 9})
    assert len(found["hits"]) == 4 and found["hits"][0]["metadata"] == {"by": "upload"}
    stored = server.client.get(f"{TOP}/images/1/vector", headers={"Accept": "application/octet-stream"}).content
    np.testing.assert_array_equal(np.frombuffer(stored, "<f4"), truth(engine, png(30))[0])


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_kill(model: Path, gallery: Path) -> None:
    with process(model, "--gallery", gallery, "--writable") as server:
        keys = []
        for seed in range(40, 52):
            reply = server.client.post(f"{TOP}/images", content=png(seed), headers=PNG)
            keys.append(reply.json()["images"][0]["key"])
        server.process.kill()
        server.process.wait(20)
    with process(model, "--gallery", gallery, "--writable") as server:
        for key, seed in zip(keys, range(40, 52), strict=True):
            [hit] = server.client.post(f"{TOP}/search?k=1", content=png(seed), headers=PNG).json()["hits"]
            assert server.client.get(f"{TOP}/images/{hit['id']}").json()["key"] == key
        assert server.client.get(TOP).json()["images"] == 32
        server.client.post(f"{TOP}/images", content=png(60), headers=PNG)
        server.process.terminate()
        assert server.process.wait(40) == 0
    with Gallery(gallery, write=True) as opened:  # nobody holds it
        assert len(opened) == 33
