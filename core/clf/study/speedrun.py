"""The least wall time to a mark of linear accuracy on CIFAR-10, without labels.

A training reaches a mark at the first of its evaluations that does. Its time is what it took until then, preparation
included and evaluations not. Times of different machines and networks are not compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clf.study.evidence import Evidence, data_set, machine
from clf.study.records import Record
from clf.study.sections import duration, heading, line

MARKS: Mapping[str, tuple[float, ...]] = {"gpu": (0.80, 0.85, 0.90), "cpu": (0.40, 0.45, 0.50)}
"""By scale, the highest last."""
_SET = "cifar10"
_STUDY = "speedrun"


@dataclass(frozen=True)
class Entry:
    """The trainings of one cell on one machine."""

    name: str
    network: str
    machine: str
    epochs: int
    study: str
    times: tuple[tuple[float | None, ...], ...]
    """Seconds to each mark, of each seed; None: not reached."""
    best: tuple[float, ...]
    """Of each seed the highest linear accuracy."""

    def median(self, mark: int) -> float | None:
        """Seconds to a mark; None unless all seeds reach it."""
        reached = [times[mark] for times in self.times]
        return statistics.median(t for t in reached if t is not None) if None not in reached else None


def speedrun(every: Sequence[Evidence]) -> list[str]:
    """A table for each scale, machine and network; what has not been run says so."""
    lines: list[str] = []
    for scale, marks in MARKS.items():
        names = _marks(marks)
        lines += [f"### {names} at scale {scale}", ""]
        entries = _entries([each for each in every if each.study.scale == scale], marks)
        groups = dict.fromkeys((entry.machine, entry.network) for entry in entries)
        for where, network in sorted(groups):
            mine = [entry for entry in entries if (entry.machine, entry.network) == (where, network)]
            lines += [f"{network} on {where}:", "", *_table(mine, marks), ""]
        if not entries:
            lines += ["No entry yet.", ""]
    return lines


def _entries(every: Iterable[Evidence], marks: Sequence[float]) -> list[Entry]:
    """Cells of the speedrun, and those of other studies whose seeds all reach the first mark."""
    found = []
    for evidence in every:
        for row, column in evidence.cells:
            by_machine: dict[tuple[str, str], list[Record]] = {}
            for record in evidence.of(row, column):
                if data_set(record) == _SET and "linear" in record.scores and not record.builds_on:
                    by_machine.setdefault((machine(record), record.backbone), []).append(record)
            for (where, network), records in by_machine.items():
                entry = _entry(evidence, row, column, where, network, records, marks)
                if evidence.study.name == _STUDY or entry.median(0) is not None:
                    found.append(entry)
    return found


def _entry(
    evidence: Evidence,
    row: str,
    column: str,
    where: str,
    network: str,
    records: Sequence[Record],
    marks: Sequence[float],
) -> Entry:
    curves = [_curve(record) for record in records]
    return Entry(
        name=row if column == "end" else f"{row}, {column}",
        network=network,
        machine=where,
        epochs=max(record.epochs for record in records),
        study=str(evidence),
        times=tuple(tuple(_first(curve, mark) for mark in marks) for curve in curves),
        best=tuple(max(score for _, score in curve) for curve in curves),
    )


def _curve(record: Record) -> list[tuple[float, float]]:
    """Seconds and linear accuracy of each evaluation, in order."""
    before = record.preparation_seconds or 0.0
    early = [
        (before + found["wall_seconds"], found["linear"])
        for _, found in sorted(record.after.items(), key=lambda item: int(item[0]))
        if {"linear", "wall_seconds"} <= set(found)
    ]
    return [*early, (before + record.wall_seconds, record.scores["linear"])]


def _first(curve: Iterable[tuple[float, float]], mark: float) -> float | None:
    return next((seconds for seconds, score in curve if score >= mark), None)


def _table(entries: Sequence[Entry], marks: Sequence[float]) -> list[str]:
    """The fastest first; those who reach fewer marks after those who reach more."""

    def place(entry: Entry) -> tuple[float, ...]:
        times = [entry.median(i) for i in reversed(range(len(marks)))]
        return (*(float("inf") if t is None else t for t in times), -statistics.fmean(entry.best))

    head = ["", "study", "seeds", "epochs", *(f"{100 * mark:.0f} %" for mark in marks), "best linear"]
    lines = heading(head)
    for entry in sorted(entries, key=place):
        times = [_word(entry, i) for i in range(len(marks))]
        best = f"{100 * statistics.fmean(entry.best):.1f}"
        lines.append(line([entry.name, entry.study, str(len(entry.times)), str(entry.epochs), *times, best]))
    return lines


def _word(entry: Entry, mark: int) -> str:
    """The median time, with how many seeds reach the mark where not all do."""
    reached = [times[mark] for times in entry.times if times[mark] is not None]
    if not reached:
        return "not reached"
    median = entry.median(mark)
    return f"{len(reached)} of {len(entry.times)} seeds" if median is None else duration(median)


def _marks(marks: Sequence[float]) -> str:
    words = [f"{100 * mark:.0f}" for mark in marks]
    return f"{', '.join(words[:-1])} and {words[-1]} %"
