"""Brings waiting images together into batches, as the model's pace makes it pay, and each answer back to its asker."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np

from clf_serve.batching.admission import Admission
from clf_serve.batching.pace import Pace
from clf_serve.batching.scheduling import WAIT, Scheduler, covering, solve
from clf_serve.batching.waiting import Asker, Job, Waiting
from clf_serve.engine import Pixels, Vectors
from clf_serve.metrics import Metrics
from clf_serve.problems import Problem, broken, draining, too_late
from clf_serve.worker import Worker

__all__ = ["Batcher", "Job"]

_log = logging.getLogger(__name__)
_NEW_RULE = 1.0  # seconds between two rules; making one costs milliseconds of a core
_FIRST_RULES = 0.05  # the same while there is much to learn from each batch
_YOUNG = 100  # batches
_FIRST_RULE = 0.5  # seconds that the first rule is waited for; its thread may be one that all share
_DRAIN = 10.0  # seconds that what is inside is given at the end

Run = Callable[[Pixels], Vectors]


class Batcher:
    """One model, one thread that runs it, one bounded queue.

    When the model becomes free, the scheduler says how many of the waiting images it takes, or that waiting for the
    next one pays, which it never does where a batch costs as much as its images one by one. Batches have exactly the
    sizes of the engine, filled up with blanks where that is quicker than two batches. Turns are given by request
    (:class:`clf_serve.batching.waiting.Waiting`). Images whose askers have gone, or whose deadline has passed, are not
    computed. A batch that fails is tried again in halves, so only the guilty image gets the error, and the loop lives
    on.

    Args:
        run: (n, S, S, 3) uint8 -> (n, D); called in a thread, never twice at a time.
        buckets: the batch sizes, smallest first.
        capacity: images admitted at a time, in any stage from decoding to the answer.
        clock: seconds; deadlines are given by it.
        model: runs ``run``; in a thread of its own unless a simulation says otherwise.
        aside: runs a function of some milliseconds without holding up the event loop.
    """

    def __init__(
        self,
        run: Run,
        buckets: Callable[[], Sequence[int]],
        capacity: int,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        model: Callable[[Callable[[], Vectors]], Awaitable[Vectors]] | None = None,
        aside: Callable[..., Awaitable[list[int]]] = asyncio.to_thread,
    ) -> None:
        self._run = run
        self._buckets = buckets
        self._metrics = metrics
        self._clock = clock
        self._worker = Worker("clf-model") if model is None else None
        self._model = model or self._worker
        self._aside = aside
        self.pace = Pace()
        self._admission = Admission(capacity, self.pace, buckets)
        self._scheduler = Scheduler(self.pace)
        self._waiting = Waiting()
        self._running: list[Job] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._backlog_since: float | None = None
        self._rule_at = -math.inf
        self._ruling: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None
        self.closing = False
        self.last_success = -math.inf
        """When a batch last came back whole, by the clock."""

    def start(self) -> None:
        self._loop = asyncio.create_task(self._work(), name="clf-batcher")
        self._loop.add_done_callback(self._ended)

    @property
    def alive(self) -> bool:
        return self._loop is not None and not self._loop.done()

    async def stop(self, within: float = _DRAIN) -> None:
        """Takes nothing new, answers what is inside for so many seconds, and tells whoever still waits then."""
        self.closing = True
        self._wake.set()
        until = time.monotonic() + within
        if self.alive:
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._idle.wait()
        for task in (self._loop, self._ruling):
            if task is not None and not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._tell_all(draining)
        if self._worker is not None and not await self._worker.close(max(1.0, until - time.monotonic())):
            _log.error("the model did not come back; its thread is left behind")

    @contextmanager
    def admitted(self, n: int, deadline: float = math.inf) -> Iterator[None]:
        """Holds n places while a request is worked on.

        Raises:
            Problem: 429 there is no room, or none in time; 413 there never will be; 503 shutting down, or broken.
        """
        self._check_open()
        start = self._clock()
        expected = self._admission.enter(n, start, deadline)
        self._metrics.inside.inc(n)
        finished = False
        try:
            yield
            finished = True
        finally:
            now = self._clock()
            self._admission.leave(n)
            if finished or now >= deadline:
                self._admission.learn(expected, now - start)
            self._metrics.inside.dec(n)

    def check_room(self, n: int = 1, deadline: float = math.inf) -> None:
        """What :meth:`admitted` would say, in microseconds, before anything is read. Raises Problem."""
        self._check_open()
        self._admission.check(n, self._clock(), deadline)

    async def embed(self, pixels: Sequence[Pixels], deadline: float = math.inf) -> tuple[Vectors, list[Job]]:
        """Vectors (n, D) of n images (S, S, 3), and their jobs for the times they took. Cancel it to withdraw them.

        Raises:
            Problem: of the first image that the model has no vector for, named by ``param``; 503 when the deadline
                passes, or when the batcher ends.
        """
        self._check_open()
        now = self._clock()
        futures = [asyncio.get_running_loop().create_future() for _ in pixels]
        jobs = [Job(image, answer, now, deadline) for image, answer in zip(pixels, futures, strict=True)]
        asker = Asker(deque(jobs))
        self._waiting.add(asker)
        self.pace.arrived(now, len(jobs))
        self._idle.clear()
        self._wake.set()
        scope = asyncio.timeout(None if math.isinf(deadline) else max(0.0, deadline - now))
        try:
            async with scope:
                answers = await asyncio.gather(*futures)
        except TimeoutError:
            raise (too_late(deadline - now) if scope.expired() else _named(jobs)) from None
        except Problem:
            raise _named(jobs) from None
        finally:
            self._withdraw(asker, jobs)
        return np.stack(answers), jobs

    @property
    def _inside(self) -> int:
        return self._admission.inside

    def _check_open(self) -> None:
        if self.closing:
            raise draining()
        if self._loop is not None and self._loop.done():
            raise broken()

    def _withdraw(self, asker: Asker, jobs: list[Job]) -> None:
        left = self._waiting.withdraw(asker)
        if left:
            self._metrics.not_computed("late" if self._clock() >= jobs[0].deadline else "gone", left)
        for job in jobs:
            job.answer.cancel()

    async def _work(self) -> None:
        while True:
            if not self._waiting:
                self._idle.set()
                self._backlog_since = None
                self._wake.clear()
                await self._wake.wait()
                continue
            sizes = tuple(self._buckets())
            await self._renew_rule(sizes)
            if not self._waiting:  # they have left meanwhile
                continue
            now = self._clock()
            choice = self._scheduler.choose(len(self._waiting), sizes, now)
            size = choice.size
            if size == WAIT:
                if not self.closing and await self._another(min(choice.patience, self._spare(now, sizes))):
                    continue
                size = covering(len(self._waiting), sizes)
            self._running = self._take(size)
            if self._running:
                await self._answer(self._running, sizes)
            self._running = []

    async def _another(self, patience: float) -> bool:
        """Waits for the next arrival; False when none came in time."""
        self._wake.clear()
        if patience <= 0:
            return False
        try:
            async with asyncio.timeout(patience):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    def _spare(self, now: float, sizes: Sequence[int]) -> float:
        """Seconds for which all that wait can wait."""
        earliest = min(job.deadline for job in self._waiting)
        return earliest - now - 2 * self.pace.seconds(covering(len(self._waiting), sizes))

    async def _renew_rule(self, sizes: tuple[int, ...]) -> None:
        now = self._clock()
        if now - self._rule_at < (_NEW_RULE if self.pace.observations > _YOUNG else _FIRST_RULES) or (
            self._ruling is not None and not self._ruling.done()
        ):
            return
        facts = self._scheduler.stale(sizes, now)
        if facts is None:
            return
        self._rule_at = now

        async def renew() -> None:
            self._scheduler.adopt(facts, await self._aside(solve, facts))

        self._ruling = asyncio.create_task(renew(), name="clf-rule")
        self._ruling.add_done_callback(_log_failure)
        if not self._scheduler.has_rule:  # the first is worth waiting for
            await asyncio.wait([self._ruling], timeout=_FIRST_RULE)

    def _take(self, most: int) -> list[Job]:
        batch: list[Job] = []
        now = self._clock()
        while self._waiting and len(batch) < most:
            job = self._waiting.pop()
            if job.answer.done():
                self._metrics.not_computed("gone")
            elif now >= job.deadline:
                self._metrics.not_computed("late")
                _settle(job, too_late(job.deadline - job.arrived))
            else:
                batch.append(job)
        return batch

    async def _answer(self, batch: list[Job], sizes: Sequence[int]) -> None:
        start = self._clock()
        for job in batch:
            job.started = start
        size = covering(len(batch), sizes)
        try:
            vectors = await self._compute(batch, size)
        except Exception as error:
            self._backlog_since = None
            if len(batch) == 1:
                _log.error("the model failed on an image", exc_info=error)
                _settle(batch[0], error)
                return
            middle = len(batch) // 2
            await self._answer(batch[:middle], sizes)
            await self._answer(batch[middle:], sizes)
            return
        now = self.last_success = self._clock()
        self.pace.observe(size, now - start)
        self._count(batch, now)
        self._metrics.batch_size.observe(len(batch))
        self._metrics.stage("inference").observe(now - start)
        for job, vector in zip(batch, vectors, strict=True):
            job.done = now
            self._metrics.stage("queue").observe(job.started - job.arrived)
            _settle(job, vector if np.isfinite(vector).all() else _no_vector())

    async def _compute(self, batch: list[Job], size: int) -> Vectors:
        def compute() -> Vectors:
            pixels = np.stack([job.pixels for job in batch])
            if size > len(batch):
                blanks = np.zeros((size - len(batch), *pixels.shape[1:]), pixels.dtype)
                pixels = np.concatenate([pixels, blanks])
            return self._run(pixels)

        assert self._model is not None
        vectors = await self._model(compute)
        if len(vectors) != size:
            raise ValueError(f"the model returned {len(vectors)} rows for {size} images")
        return vectors[: len(batch)]

    def _count(self, batch: list[Job], now: float) -> None:
        """Learns the throughput, of times in which there was enough behind a batch for another."""
        if self._backlog_since is not None:
            self.pace.finished(len(batch), now - self._backlog_since)
        behind = max(self._inside, len(self._waiting) + len(batch)) - len(batch)
        self._backlog_since = now if behind >= len(batch) else None

    def _ended(self, loop: asyncio.Task[None]) -> None:
        if loop.cancelled() or self.closing:
            return
        _log.critical("the batcher has ended, and with it this model; restart the server", exc_info=loop.exception())
        self._tell_all(broken)

    def _tell_all(self, why: Callable[[], Problem]) -> None:
        for job in (*self._running, *self._waiting):
            _settle(job, why())


def _settle(job: Job, answer: Vectors | Exception) -> None:
    if job.answer.done():
        return
    if isinstance(answer, Exception):
        job.answer.set_exception(answer)
    else:
        job.answer.set_result(answer)


def _named(jobs: list[Job]) -> BaseException:
    """The first failure among the jobs; a Problem says of which image."""
    for index, job in enumerate(jobs):
        if job.answer.done() and not job.answer.cancelled() and (error := job.answer.exception()) is not None:
            if isinstance(error, Problem):
                error.param = error.param or f"input[{index}]"
            return error
    return broken()


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("no new rule for batches could be made; the last one stays", exc_info=task.exception())


def _no_vector() -> Problem:
    return Problem(422, "no_embedding", "the model has no finite embedding for this image")
