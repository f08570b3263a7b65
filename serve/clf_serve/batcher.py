"""Brings waiting images together into batches, the moment the model is free, and each answer back to its asker."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np

from clf_serve.engine import Pixels, Vectors
from clf_serve.metrics import Metrics
from clf_serve.problems import Problem, draining, overloaded

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One image on its way through the model. Times are of the monotonic clock."""

    pixels: Pixels
    answer: asyncio.Future[Vectors]
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    done: float = 0.0


class Batcher:
    """One model, one thread that runs it, one bounded queue.

    There is no waiting for more: whatever waits when the model becomes free is the next batch, so a lone request is
    never delayed and a crowd shares batches. Images whose askers have gone are not computed. A batch that fails is
    tried again image by image, so only the guilty one gets the error, and the loop lives on.

    Args:
        run: (n, S, S, 3) uint8 -> (n, D); called in a thread, never twice at a time.
        largest: the number of images of the largest batch.
        capacity: images admitted at a time, in any stage from decoding to the answer.
    """

    def __init__(
        self, run: Callable[[Pixels], Vectors], largest: Callable[[], int], capacity: int, metrics: Metrics
    ) -> None:
        self._run = run
        self._largest = largest
        self._capacity = capacity
        self._metrics = metrics
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._wake = asyncio.Event()
        self._inside = 0
        self._pace = 0.0  # seconds per image, a moving average
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clf-model")
        self._loop: asyncio.Task[None] | None = None
        self.closing = False
        self.last_success = -math.inf
        """When a batch last came back whole, on the monotonic clock."""

    def start(self) -> None:
        self._loop = asyncio.create_task(self._work(), name="clf-batcher")

    @property
    def alive(self) -> bool:
        return self._loop is not None and not self._loop.done()

    async def stop(self) -> None:
        """Ends the loop. Whoever still waits is told."""
        self.closing = True
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop
        for job in (*self._running, *self._waiting):
            _settle(job, draining())
        self._waiting.clear()
        self._thread.shutdown(wait=True)

    @contextmanager
    def admitted(self, n: int) -> Iterator[None]:
        """Holds n places while a request is worked on.

        Raises:
            Problem: 429 when there are not as many places.
        """
        if self._inside + n > self._capacity:
            raise overloaded(self.seconds_of_work())
        self._inside += n
        self._metrics.inside.set(self._inside)
        try:
            yield
        finally:
            self._inside -= n
            self._metrics.inside.set(self._inside)

    def seconds_of_work(self) -> int:
        """How long it would take to work off what is inside, at least one second."""
        return max(1, math.ceil(self._inside * self._pace))

    def submit(self, pixels: Pixels) -> Job:
        """Queues one image (S, S, 3); await ``job.answer`` for its vector (D,). Cancel that to withdraw it."""
        job = Job(pixels, asyncio.get_running_loop().create_future())
        if self.closing:
            job.answer.set_exception(draining())
        else:
            self._waiting.append(job)
            self._wake.set()
        return job

    async def embed(self, pixels: Sequence[Pixels]) -> tuple[Vectors, list[Job]]:
        """Vectors (n, D) of n images, and their jobs for the times they took.

        Raises:
            Problem: of the first image that the model has no vector for; ``param`` names it.
        """
        jobs = [self.submit(image) for image in pixels]
        try:
            answers = await asyncio.gather(*(job.answer for job in jobs), return_exceptions=True)
        finally:
            for job in jobs:
                job.answer.cancel()
        for index, answer in enumerate(answers):
            if isinstance(answer, Problem):
                answer.param = answer.param or f"input[{index}]"
                raise answer
            if isinstance(answer, BaseException):
                raise answer
        return np.stack([answer for answer in answers if not isinstance(answer, BaseException)]), jobs

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while batch := self._take():
                self._running = batch
                await self._answer(batch)
            self._running = []

    def _take(self) -> list[Job]:
        batch: list[Job] = []
        while self._waiting and len(batch) < self._largest():
            job = self._waiting.popleft()
            if not job.answer.done():  # else nobody waits for it any more
                batch.append(job)
        return batch

    async def _answer(self, batch: list[Job]) -> None:
        now = time.monotonic()
        for job in batch:
            job.started = now
        try:
            vectors = await self._compute(batch)
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    await self._answer([job])
                return
            _log.exception("the model failed on an image")
            _settle(batch[0], error)
            return
        self.last_success = time.monotonic()
        seconds = self.last_success - now
        self._pace = 0.8 * self._pace + 0.2 * seconds / len(batch) if self._pace else seconds / len(batch)
        self._metrics.batch_size.observe(len(batch))
        self._metrics.stage("inference").observe(seconds)
        for job, vector in zip(batch, vectors, strict=True):
            job.done = self.last_success
            self._metrics.stage("queue").observe(job.started - job.arrived)
            _settle(job, vector if np.isfinite(vector).all() else _no_vector())

    async def _compute(self, batch: list[Job]) -> Vectors:
        pixels = np.stack([job.pixels for job in batch])
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, pixels)


def _settle(job: Job, answer: Vectors | Exception) -> None:
    if job.answer.done():
        return
    if isinstance(answer, Exception):
        job.answer.set_exception(answer)
    else:
        job.answer.set_result(answer)


def _no_vector() -> Problem:
    return Problem(422, "no_embedding", "the model has no finite embedding for this image")
