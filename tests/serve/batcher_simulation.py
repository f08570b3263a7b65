"""The true batcher on a clock that jumps: hours of traffic in seconds, always the same; and fixed batchers beside.

``python tests/benchmarks/overload.py --simulate`` prints the comparison, ``test_batcher_simulation.py`` holds a part of
it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from clf_serve.batching.batcher import Batcher
from clf_serve.engine import Pixels, Vectors
from clf_serve.metrics import Metrics

T = TypeVar("T")


class JumpingClock(selectors.DefaultSelector):
    """Waits for nothing: whenever nothing is ready, the time of the next timer comes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits for everything"
            self.now += timeout
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = JumpingClock()
        super().__init__(self.clock)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.clock.now


def simulated(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of ``main``, on a loop whose clock jumps."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main())


@dataclass(frozen=True)
class Model:
    """A batch of n images takes fixed + each * n seconds."""

    name: str
    fixed: float
    each: float
    sizes: tuple[int, ...]

    def seconds(self, size: int) -> float:
        return self.fixed + self.each * size

    @property
    def capacity(self) -> float:
        """Images per second in the best batch size."""
        return max(size / self.seconds(size) for size in self.sizes)


CPU = Model("CPU-like", 0.0, 0.020, (1, 2, 4, 8, 16))
GPU = Model("GPU-like", 0.005, 0.0002, (1, 2, 4, 8, 16, 32, 64, 128))


class Outcome(NamedTuple):
    latency: float
    """Mean seconds from arrival to answer, of the second half of the traffic."""
    throughput: float
    """Images per second from the middle of the traffic to the last answer."""


def poisson(rate: float, images: int, seed: int = 0) -> list[float]:
    """Moments of arrival."""
    arrivals: list[float] = np.random.default_rng(seed).exponential(1 / rate, images).cumsum().tolist()
    return arrivals


def batcher_of(model: Model, capacity: int = 10**9, run: Callable[[Pixels], Vectors] | None = None) -> Batcher:
    """The batcher with a simulated model; belongs to a simulated loop."""
    loop = asyncio.get_running_loop()

    def answer(pixels: Pixels) -> Vectors:
        return pixels.reshape(len(pixels), -1)[:, :1].astype(np.float32)

    async def work(call: Callable[[], Vectors]) -> Vectors:
        size = 0

        def counted(pixels: Pixels) -> Vectors:
            nonlocal size
            size = len(pixels)
            assert size in model.sizes
            return (run or answer)(pixels)

        batcher._run = counted
        try:
            return call()
        finally:
            await asyncio.sleep(model.seconds(size))

    async def aside(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    batcher = Batcher(run or answer, lambda: model.sizes, capacity, Metrics(), clock=loop.time, model=work, aside=aside)
    return batcher


def learned(model: Model, arrivals: Sequence[float]) -> Outcome:
    """What the batcher makes of requests of one image each."""

    async def main() -> Outcome:
        loop = asyncio.get_running_loop()
        batcher = batcher_of(model)
        batcher.start()
        done: list[float] = [0.0] * len(arrivals)
        blank = np.zeros((1, 1, 3), np.uint8)

        async def ask(index: int) -> None:
            with batcher.admitted(1):
                await batcher.embed([blank])
            done[index] = loop.time()

        tasks = []
        for index, moment in enumerate(arrivals):
            if moment > loop.time():
                await asyncio.sleep(moment - loop.time())
            tasks.append(asyncio.create_task(ask(index)))
        await asyncio.gather(*tasks)
        await batcher.stop()
        return _outcome(arrivals, done)

    return simulated(main)


def fixed(model: Model, arrivals: Sequence[float], size: int, window: float) -> Outcome:
    """What the usual batcher makes of them: a batch starts when ``size`` wait, or the first has for ``window``."""
    waiting: deque[float] = deque()
    done: list[float] = []
    free, upcoming = 0.0, 0
    while len(done) < len(arrivals):
        if not waiting:
            waiting.append(arrivals[upcoming])
            upcoming += 1
        ready = max(free, waiting[0])
        until = max(ready, waiting[0] + window)
        while upcoming < len(arrivals) and (
            arrivals[upcoming] <= ready or (len(waiting) < size and arrivals[upcoming] <= until)
        ):
            waiting.append(arrivals[upcoming])
            upcoming += 1
        full = waiting[size - 1] if len(waiting) >= size else until
        start = max(ready, min(until, full))
        batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        free = start + model.seconds(next(bucket for bucket in model.sizes if bucket >= len(batch)))
        done += [free] * len(batch)
    return _outcome(arrivals, done)


def best_fixed(model: Model, arrivals: Sequence[float], windows: Sequence[float]) -> tuple[Outcome, int, float]:
    """The pair of a grid with the least mean latency: its outcome, size and window."""
    tried = [
        (fixed(model, arrivals, size, window), size, window) for size, window in itertools.product(model.sizes, windows)
    ]
    return min(tried, key=lambda row: row[0].latency)


def closed(model: Model, clients: int, think: float, images: int, policy: tuple[int, float] | None) -> Outcome:
    """Clients that each send the next image ``think`` seconds (on average) after an answer.

    Args:
        policy: size and window of a fixed batcher; None for the learned one.
    """
    pauses = np.random.default_rng(1).exponential(think, images + clients)
    if policy is not None:
        return _closed_fixed(model, clients, pauses.tolist(), images, *policy)

    async def main() -> Outcome:
        loop = asyncio.get_running_loop()
        batcher = batcher_of(model)
        batcher.start()
        left = iter(pauses.tolist()[:images])
        began: list[float] = []
        done: list[float] = []

        async def client() -> None:
            for pause in left:
                await asyncio.sleep(pause)
                start = loop.time()
                with batcher.admitted(1):
                    await batcher.embed([np.zeros((1, 1, 3), np.uint8)])
                began.append(start)
                done.append(loop.time())

        await asyncio.gather(*(client() for _ in range(clients)))
        await batcher.stop()
        return _outcome(began, done)

    return simulated(main)


def _closed_fixed(model: Model, clients: int, pauses: list[float], images: int, size: int, window: float) -> Outcome:
    pause = iter(pauses)
    coming = [next(pause) for _ in range(clients)]
    heapq.heapify(coming)
    waiting: deque[float] = deque()
    began: list[float] = []
    done: list[float] = []
    free = 0.0
    while len(done) < images:
        if not waiting:
            waiting.append(heapq.heappop(coming))
        ready = max(free, waiting[0])
        until = max(ready, waiting[0] + window)
        while coming and (coming[0] <= ready or (len(waiting) < size and coming[0] <= until)):
            waiting.append(heapq.heappop(coming))
        full = waiting[size - 1] if len(waiting) >= size else until
        start = max(ready, min(until, full))
        batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        free = start + model.seconds(next(bucket for bucket in model.sizes if bucket >= len(batch)))
        for moment in batch:
            began.append(moment)
            done.append(free)
            heapq.heappush(coming, free + next(pause, math.inf))
    return _outcome(began[:images], done[:images])


def _outcome(began: Sequence[float], done: Sequence[float]) -> Outcome:
    half = len(began) // 2
    latencies = [end - start for start, end in zip(began[half:], done[half:], strict=True)]
    return Outcome(sum(latencies) / len(latencies), len(latencies) / (max(done) - began[half]))
