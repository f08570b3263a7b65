"""What the command and its replicas tell each other: log lines, metrics, reloads, and why one could not start.

Plain Python, made an actor by ``clf_serve.replicas.cluster``. Each replica reports every half second and is told in
return what it is to do; so nothing has to reach a replica by itself, however many there are, whenever they began.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import Metric

PERIOD = 0.5  # seconds between two reports of a replica
_GONE = 15.0  # seconds without a report after which a replica counts for nothing
_LINES = 10_000  # that wait for the command


@dataclass(frozen=True)
class Report:
    """Of one replica.

    Args:
        metrics: as they stand now.
        lines: of its log, since the last report.
        done: how many of the reloads it has been asked for are done.
        outcomes: of reloads done since the last report, by their number: for each model None or why not.
    """

    pid: int
    ready: bool
    metrics: list[Metric] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    done: int = 0
    outcomes: dict[int, dict[str, str | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """What a replica is to do."""

    reloads: list[str | None]
    """Beyond those it has done; for each the name of a model, or None for all."""
    leaving: bool = False
    """Whether probes are told that it goes, while it answers still."""
    ending: bool = False
    """Whether it answers no new request."""


@dataclass(frozen=True)
class News:
    """For the command."""

    lines: list[str]
    failures: list[str]
    """Why replicas could not start."""
    ready: int
    """Replicas that would answer."""
    present: int
    """Replicas that have not ended."""


@dataclass
class _Replica:
    report: Report
    heard: float


class Board:
    """Args: clock: of the times of reports."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._replicas: dict[str, _Replica] = {}
        self._asked: list[tuple[str | None, frozenset[str]]] = []
        self._outcomes: dict[int, dict[str, dict[str, str | None]]] = {}
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._failures: list[str] = []
        self._leaving = self._ending = False

    def report(self, replica: str, report: Report) -> Order:
        """From a replica, of which a first report says nothing but that it has begun: it holds what is on disk now."""
        self._replicas[replica] = _Replica(report, self._clock())
        self._lines.extend(report.lines)
        for number, outcome in report.outcomes.items():
            self._outcomes.setdefault(number, {})[replica] = outcome
        return Order([name for name, _ in self._asked[report.done :]], self._leaving, self._ending)

    def begin(self) -> int:
        """To a replica that is about to open its models: how many reloads it need not do."""
        return len(self._asked)

    def fail(self, reason: str, lines: list[str]) -> None:
        """From a replica that could not start."""
        self._lines.extend(lines)
        self._failures.append(reason)

    def leave(self, replica: str, lines: list[str]) -> None:
        """From a replica that has ended in order."""
        self._lines.extend(lines)
        self._replicas.pop(replica, None)

    def ask(self, model: str | None) -> int:
        """Asks all replicas to reload a model, or all; the number of this reload."""
        self._asked.append((model, frozenset(self._living())))
        return len(self._asked) - 1

    def outcome(self, number: int) -> dict[str, str | None] | None:
        """For each model None or why a replica did not reload it; None while one of those asked has yet to answer."""
        given = self._outcomes.get(number, {})
        if (self._asked[number][1] & set(self._living())) - set(given):
            return None
        result: dict[str, str | None] = {}
        for outcome in given.values():
            for model, reason in outcome.items():
                result[model] = result.get(model) or reason
        return result

    def metrics(self, but: str) -> dict[str, list[Metric]]:
        """Of all replicas but one, by their names."""
        return {name: each.report.metrics for name, each in self._living().items() if name != but}

    def news(self) -> News:
        """What has come since the last time."""
        lines, self._lines = list(self._lines), deque(maxlen=_LINES)
        failures, self._failures = self._failures, []
        living = self._living().values()
        return News(lines, failures, sum(each.report.ready for each in living), len(living))

    def end(self, *, at_once: bool) -> None:
        """From now on replicas are told to answer no new request, or first that they are going to."""
        self._leaving, self._ending = True, at_once

    def _living(self) -> dict[str, _Replica]:
        now = self._clock()
        return {name: each for name, each in self._replicas.items() if now - each.heard < _GONE}
