"""Any order of writes by two writers, of which some die and arrive late, against a table in memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("qdrant_client", reason="needs qdrant-client")
pytest.importorskip("qdrant_edge", reason="needs qdrant-edge-py, Qdrant's engine")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from qdrant_client import models
from qdrant_near import Fault, Line, Near, near

from clf.errors import GalleryError
from clf_serve.stores import ConflictError, Row
from clf_serve.stores.bench import ABOUT, by_id, differs, nearest, rows, units
from clf_serve.stores.qdrant import writing

_POOL = units(30, 7)
_IDS = st.lists(st.integers(1, 8), unique=True, max_size=4)


class Writers(RuleBasedStateMachine):
    """``late`` holds writers that died, with what they wrote, of whom one request is still on its way."""

    store: type[Near]

    def __init__(self) -> None:
        super().__init__()
        self.store.empty("machine")
        self.handle = self.store.open("qdrant://localhost/machine", write=True, create=ABOUT)
        self.table: dict[int, Row] = {}
        self.generation = 0
        self.late: list[tuple[Line, list[Row], list[int]]] = []
        self.made = 0

    def rows(self, ids: list[int]) -> list[Row]:
        self.made += 1
        return [
            replace(rows(1, first=id_)[0], key=f"k{id_}-{self.made}", vector=_POOL[(id_ * 7 + self.made) % 30])
            for id_ in ids
        ]

    def become(self, put: list[Row], gone: list[int]) -> None:
        self.table = {id_: row for id_, row in self.table.items() if id_ not in gone} | {row.id: row for row in put}
        self.generation += 1

    @rule(put=_IDS, gone=_IDS)
    def write(self, put: list[int], gone: list[int]) -> None:
        made = self.rows(put)
        self.handle.write(made, gone, {}, at=self.generation)
        self.become(made, gone)

    @rule(put=_IDS, gone=_IDS)
    def is_late(self, put: list[int], gone: list[int]) -> None:
        with pytest.raises(ConflictError):
            self.handle.write(self.rows(put), gone, {}, at=self.generation - 1)

    @rule(put=_IDS, gone=_IDS, fault=st.sampled_from(["before", "after", "late"]), step=st.integers(0, 5))
    def dies(self, put: list[int], gone: list[int], fault: Fault, step: int) -> None:
        made, line = self.rows(put), Line(self.store.api, fault, step)
        with suppress(GalleryError):
            self.store.by(line, "machine").write(made, gone, {}, at=self.generation)
        if fault == "late" and line.dead:
            self.late.append((line, made, gone))
        if self.handle.state().generation > self.generation:
            assert not line.dead or fault == "after"
            self.become(made, gone)
        elif not line.dead:
            raise AssertionError("a write that met no fault was not kept")

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def arrives(self, data: st.DataObject) -> None:
        line, made, gone = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        line.arrive()
        if self.handle.state().generation > self.generation:  # a commit, and nobody has written since
            self.become(made, gone)

    @invariant()
    def is_what_was_written(self) -> None:
        state = self.handle.state()
        there = by_id(self.handle.scan(0, 100, vectors=True, thumbnails=True), "scan")
        assert there.keys() == self.table.keys() and (state.generation, state.images) == (self.generation, len(there))
        assert not any(differs(row, there[id_]) for id_, row in self.table.items())
        assert dict(self.handle.find([row.key for row in self.table.values()])) == {
            row.key: row.id for row in self.table.values()
        }
        nearest(self.handle, list(self.table.values()), _POOL[0], 3)

    def teardown(self) -> None:
        """Two writes on, nothing of what was replaced or given up is left."""
        for line, *_ in self.late:
            line.arrive()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writing, "KEEP_SECONDS", -1.0)
            for _ in range(2):
                generation = self.handle.state().generation
                self.handle.write([], [], {}, at=generation)
        assert self.handle._server.count(models.Filter()) == 1 + self.handle.state().images


def test_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CLAIM_SECONDS", 0.02)
    monkeypatch.setattr(writing._Beat, "__call__", lambda self: None)  # which come by the clock: steps must not
    monkeypatch.setattr(writing, "_PAUSE", 0.005)
    monkeypatch.setattr(writing, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(Writers, "store", near(tmp_path), raising=False)
    run_state_machine_as_test(
        Writers,
        settings=settings(
            max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
