"""A writer that dies, stands still or is late at any of its steps leaves the state before its write, or that after."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("qdrant_client", reason="needs qdrant-client")
pytest.importorskip("qdrant_edge", reason="needs qdrant-edge-py, Qdrant's engine")

from qdrant_client import models
from qdrant_near import Fault, Line, Near, near

from clf.errors import GalleryError
from clf_serve.stores import ConflictError, Row
from clf_serve.stores.bench import ABOUT, expect, nearest, rows, units
from clf_serve.stores.qdrant import QdrantStore, ledger, writing

STEPS = 5  # changes that a write of these rows makes: claim, upsert, mark, commit; beyond the last nothing fails


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Near]]:
    yield near(tmp_path_factory.mktemp("engine"))


class Scene:
    """A gallery of six rows in two writes, a reader, and the write that goes wrong."""

    def __init__(self, store: type[Near], patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.store, self.name = store, "scene"
        store.empty(self.name)
        self.reader = store.open(f"qdrant://localhost/{self.name}", write=True, create=ABOUT)
        self.reader.write(rows(6), [], {}, at=0)
        self.reader.write([replace(rows(1)[0], key="/again.jpg")], [6], {}, at=1)
        self.old = [replace(rows(1)[0], key="/again.jpg"), *rows(5)[1:]]
        self.put = [replace(self.old[1], key="/moved.jpg", vector=units(1, 9)[0]), rows(1, first=20)[0]]
        self.new = [self.old[0], self.put[0], *self.old[3:], self.put[1]]
        self.about = {"uuid": "written"}

    def handle(self, line: Line) -> QdrantStore:
        return self.store.by(line, self.name)

    def line(self, fault: Fault, step: int) -> Line:
        return Line(self.store.api, fault, step)

    def write(self, handle: QdrantStore) -> None:
        """Replaces row 2, adds 20, removes 3."""
        handle.write(self.put, [3], self.about, at=2)

    def is_written(self) -> bool:
        """Raises Failed unless the state is the one before or the one after, in all that can be read of it."""
        state = self.reader.state()
        written = state.generation == 3
        table = self.new if written else self.old
        assert state.about["uuid"] == ("written" if written else "one")
        assert written or state.generation == 2
        self.holds(table)
        return written

    def holds(self, table: list[Row]) -> None:
        expect(self.reader, table, "after a fault")
        every = self.reader.ids(None)
        assert every is not None and every.tolist() == sorted(row.id for row in table)
        for query in (table[0].vector, self.put[0].vector):
            nearest(self.reader, table, query, 3)
            nearest(self.reader, table, query, 3, np.array([1, 2, 3, 20]))

    def goes_on(self) -> list[Row]:
        """Another write, worked out from the present state; what is there after it."""
        self.patch.setattr(writing, "CLAIM_SECONDS", 0.05)
        state = self.reader.state()
        table = [row for row in (self.new if state.generation == 3 else self.old) if row.id != 4]
        changed = replace(table[1], key="/changed.jpg")
        self.reader.write([changed, rows(1, first=30)[0]], [4], {"uuid": "next"}, at=state.generation)
        table = [table[0], changed, *table[2:], rows(1, first=30)[0]]
        self.holds(table)
        return table

    def points(self) -> int:
        found = self.reader._server.count(models.Filter())
        assert isinstance(found, int)
        return found


@pytest.mark.parametrize("fault", ["before", "after", "late"])
@pytest.mark.parametrize("step", range(STEPS))
def test_a_writer_dies(store: type[Near], fault: Fault, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(store, monkeypatch)
    line = scene.line(fault, step)
    try:
        scene.write(scene.handle(line))
        survived = True
    except GalleryError as error:
        survived = False
        assert "did not answer" in str(error) or "is not known" in str(error)
    assert survived == (step >= line.steps)
    written = scene.is_written()
    assert written == (survived or (fault == "after" and step == 3))
    if fault == "late" and step == 0:
        line.arrive()  # a claim of nobody
        assert scene.reader._ledger().writer
    table = scene.goes_on()
    line.arrive()
    scene.holds(table)
    monkeypatch.setattr(writing, "KEEP_SECONDS", -1.0)
    scene.reader.write([], [], {}, at=scene.reader.state().generation)
    scene.reader.write([], [], {}, at=scene.reader.state().generation)
    scene.holds(table)
    assert scene.points() == len(table) + 1, "versions that nobody can see were left behind"


@pytest.mark.parametrize("step", range(STEPS - 1))
def test_a_writer_stands_still_and_goes_on_when_another_has_written(
    store: type[Near], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(store, monkeypatch)
    line = scene.line("pause", step)
    ends: list[Any] = []

    def work() -> None:
        try:
            scene.write(scene.handle(line))
            ends.append(None)
        except Exception as error:
            ends.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert line.waiting.wait(60)
    assert not scene.is_written()
    table = scene.goes_on()
    line.go.set()
    thread.join(60)
    assert [type(end) for end in ends] == [ConflictError]
    scene.holds(table)
    assert scene.reader.state().about["uuid"] == "next"


def test_the_answer_to_the_commit_is_lost_and_the_write_is_reported_as_kept(
    store: type[Near], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(store, monkeypatch)

    class Lossy(Line):
        """The answer to one change is lost."""

        def _fail(self, request: Any) -> Any:
            self._send(request)
            raise httpx.ReadTimeout("lost")

    scene.write(scene.handle(Lossy(scene.store.api, "after", 3)))
    assert scene.is_written()


def test_a_commit_that_does_not_get_through_is_undone_and_cannot_arrive_later(
    store: type[Near], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(store, monkeypatch)

    class Slow(Line):
        """One change is held back, and the others get through."""

        def _fail(self, request: Any) -> Any:
            self._held.append(request)
            raise httpx.ReadTimeout("slow")

    line = Slow(scene.store.api, "late", 3)
    with pytest.raises(GalleryError, match="did not answer within 60 s"):
        scene.write(scene.handle(line))
    assert not scene.is_written()
    line.arrive()
    assert not scene.is_written()
    assert scene.reader._ledger().writer == ""
    scene.goes_on()


def test_a_number_is_forgotten_only_when_nothing_bears_it(store: type[Near], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(store, monkeypatch)
    monkeypatch.setattr(ledger, "_FAILED_KEPT", 2)
    with pytest.raises(GalleryError):
        scene.write(scene.handle(scene.line("after", 2)))  # which marked rows as ended, and died
    monkeypatch.setattr(writing, "CLAIM_SECONDS", 0.05)
    for generation in range(2, 5):
        scene.reader.write([], [], {}, at=generation)
        with pytest.raises(GalleryError):
            scene.store.by(scene.line("after", 0), scene.name).write([], [], {}, at=generation + 1)
    assert len(scene.reader._ledger().failed) == 2
    scene.holds(scene.old)


def test_a_slow_writer_shows_that_it_lives(store: type[Near], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(store, monkeypatch)
    monkeypatch.setattr(writing, "CLAIM_SECONDS", 0.0)
    line = Line(store.api)
    scene.write(scene.handle(line))
    assert scene.is_written() and line.steps == 6  # two more than without
