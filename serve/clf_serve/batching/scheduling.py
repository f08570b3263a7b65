"""When to start a batch and of what size, so that the mean time from arrival to answer is the least.

Images that wait for one model are a queue in front of a server that works in batches. With Poisson arrivals the best
rule depends on the number waiting alone (Deb and Serfozo, "Optimal control of batch service queues", Advances in
Applied Probability 5, 1973), and Howard's policy iteration for semi-Markov decision processes finds it (Puterman,
"Markov Decision Processes", 1994, chapter 11). Whether to wait, to fill a batch up with blanks, or to cut the crowd in
several batches all follows from what batches take and how fast images come; nothing is set by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clf_serve.batching.pace import Pace

WAIT = 0
_CROWD = 0.95  # of the model's best rate: beyond it the queue is bounded by refusals, and the rule hardly changes
_LEAST = 1e-3  # of that rate: fewer arrivals are as good as none
_SAME = 0.03  # a change of durations that calls for no new rule
_SAME_RATE = 0.15
_EQUAL = 0.02  # rates that differ by less are the same
_PATIENCE = 3.0  # mean gaps; when nothing came in so long a time, the rate is not what it was

Floats = NDArray[np.float64]


class Choice(NamedTuple):
    size: int
    """Of the batch to run now, or WAIT."""
    patience: float = math.inf
    """Seconds after which waiting has to end even if nothing comes."""


class Facts(NamedTuple):
    """What a rule is made for."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    requests_per_second: float
    images_per_request: int

    def near(self, other: Facts) -> bool:
        """Whether the same rule serves both."""
        if (self.sizes, self.images_per_request) != (other.sizes, other.images_per_request):
            return False
        near = all(abs(mine - theirs) <= _SAME * mine for mine, theirs in zip(self.seconds, other.seconds, strict=True))
        return near and abs(self.requests_per_second - other.requests_per_second) <= _SAME_RATE * max(
            self.requests_per_second, other.requests_per_second
        )


class Scheduler:
    """Chooses by the newest rule. Making one takes time, which is the caller's: ``stale``, ``solve``, ``adopt``."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._facts: Facts | None = None
        self._rule: list[int] = []

    @property
    def has_rule(self) -> bool:
        return self._facts is not None

    def choose(self, waiting: int, sizes: Sequence[int], now: float) -> Choice:
        """What to do with so many images while the model is free.

        Args:
            sizes: of batches that the model runs, smallest first.
        """
        if self._facts is None or self._facts.sizes != tuple(sizes):
            return Choice(max((size for size in sizes if size <= waiting), default=sizes[0]))
        size = self._rule[min(waiting, len(self._rule) - 1)]
        if size != WAIT:
            return Choice(size)
        rate = self._pace.requests_per_second(now)
        if rate < self._facts.requests_per_second / 2:  # they have stopped coming
            return Choice(covering(waiting, sizes))
        return Choice(WAIT, _PATIENCE / rate)

    def stale(self, sizes: Sequence[int], now: float) -> Facts | None:
        """The facts as they are, when they are not those that the rule was made for."""
        facts = self._learned(tuple(sizes), now)
        if facts is None or (self._facts is not None and facts.near(self._facts)):
            return None
        return facts

    def adopt(self, facts: Facts, rule: list[int]) -> None:
        self._facts, self._rule = facts, rule

    def _learned(self, sizes: tuple[int, ...], now: float) -> Facts | None:
        pace = self._pace
        if not pace.observations:
            return None
        together = max(1, min(round(pace.images_per_request), sizes[-1]))
        best = pace.best_rate(sizes) / together
        rate = min(max(pace.requests_per_second(now), _LEAST * best), _CROWD * best)
        return Facts(sizes, tuple(pace.seconds(size) for size in sizes), rate, together)


def covering(waiting: int, sizes: Sequence[int]) -> int:
    """The least size that holds all, or the largest."""
    return next((size for size in sizes if size >= waiting), sizes[-1])


def solve(facts: Facts) -> list[int]:
    """The best rule: for each number waiting, from 0 on, the size of the batch to run, or WAIT.

    Requests of ``images_per_request`` arrive at random moments; the cost is the number of images inside, of which the
    mean over time is the rate times the mean latency (Little). Its last entry holds for all larger numbers.
    """
    sizes, rate, together = facts.sizes, facts.requests_per_second, facts.images_per_request
    rates = [size / seconds for size, seconds in zip(sizes, facts.seconds, strict=True)]
    best = next(size for size, fast in zip(sizes, rates, strict=True) if fast >= max(rates) * (1 - _EQUAL))
    if best == sizes[0]:  # batches do not pay, so whoever came first is served first, one by one
        return [WAIT, best]
    n = np.arange(max(2 * sizes[-1], 64) + 1)
    actions = len(sizes) + 1
    seconds, cost = np.empty((actions, n.size)), np.empty((actions, n.size))
    step = np.zeros((actions, n.size, n.size))  # (actions, states, next states)
    seconds[0], cost[0] = 1 / rate, n / rate
    step[0, n, np.minimum(n + together, n[-1])] = 1.0
    cost[0, -1] = np.inf
    for action, (size, duration) in enumerate(zip(sizes, facts.seconds, strict=True), 1):
        seconds[action] = duration
        cost[action] = n * duration + together * rate * duration**2 / 2
        _serve(step[action], n, size, rate * duration, together)
        cost[action, : sizes[action - 2] + 1 if action > 1 else 1] = np.inf  # a smaller batch would hold all
    policy = np.array([0, *(sizes.index(covering(i, sizes)) + 1 for i in range(1, n.size))])
    for _ in range(50):
        bias, gain = _evaluate(policy, seconds, cost, step)
        value = cost - gain * seconds + np.einsum("asn,n->as", step, bias)
        least = value.min(axis=0)
        better = np.where(value[policy, n] <= least + 1e-9 * (1 + np.abs(least)), policy, value.argmin(axis=0))
        if np.array_equal(better, policy):
            break
        policy = better
    rule = [(WAIT, *sizes)[action] for action in policy[: n.size - sizes[-1]]]  # the end feels that the states end
    return [*rule, best]


def _serve(step: Floats, n: NDArray[np.int64], size: int, mean: float, together: int) -> None:
    """Writes the chances (n, n) of the next number waiting: ``size`` fewer, and Poisson arrivals with this mean."""
    counts = np.arange(math.ceil(mean + 8 * math.sqrt(mean) + 8) + 1)
    factorials = np.concatenate([[0.0], np.log(counts[1:]).cumsum()])
    chance = np.exp(counts * math.log(mean) - mean - factorials)
    reached = np.minimum(np.maximum(n - size, 0)[:, None] + together * counts, n[-1])
    np.add.at(step, (n[:, None], reached), chance / chance.sum())


def _evaluate(policy: NDArray[np.int64], seconds: Floats, cost: Floats, step: Floats) -> tuple[Floats, float]:
    """Bias of each state, 0 in an empty queue, and the cost per second of a policy."""
    n = np.arange(policy.size)
    equations = np.eye(policy.size) - step[policy, n]
    equations = np.concatenate([equations[:, 1:], seconds[policy, n][:, None]], axis=1)
    found = _solved(equations, cost[policy, n])
    bias: Floats = np.concatenate([[0.0], found[:-1]])
    return bias, float(found[-1])


def _solved(a: Floats, b: Floats) -> Floats:
    """x of a x = b, by elimination with pivots.

    Not by LAPACK: its threads wait for each other by spinning, on cores that the model needs.
    """
    last = len(a) - 1
    for i in range(last):
        pivot = i + int(np.abs(a[i:, i]).argmax())
        a[[i, pivot]], b[[i, pivot]] = a[[pivot, i]], b[[pivot, i]]
        rows = i + 1 + np.flatnonzero(a[i + 1 :, i])
        factors = a[rows, i] / a[i, i]
        a[rows, i + 1 :] -= factors[:, None] * a[i, i + 1 :]
        b[rows] -= factors * b[i]
    for i in range(last, -1, -1):
        b[i] = (b[i] - (a[i, i + 1 :] * b[i + 1 :]).sum()) / a[i, i]
    return b
