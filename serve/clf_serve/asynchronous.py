"""The encoder in an asyncio program, without HTTP: many callers, one model, batches made of whatever waits."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from clf.errors import ClfError, ImageError, ServeError
from clf_serve.call import Call
from clf_serve.deployment import Deployment, Opened
from clf_serve.engine import Engine, Vectors
from clf_serve.limits import ServeLimits
from clf_serve.metrics import Metrics
from clf_serve.priority import give_way
from clf_serve.problems import Problem
from clf_serve.runtime import usable_cores


class AsyncEngine:
    """An :class:`clf_serve.engine.Engine` for one event loop, with decoding threads and a batcher.

    ::

        async with AsyncEngine(Engine(folder)) as engine:
            vectors = await engine.embed([photo])  # photo: bytes of a file, or a Path

    Args:
        engine: is warmed up on entering and closed on leaving.
        limits: ``queue`` images are inside at a time, ``max_images`` in one call; ``image`` says what one may cost.
    """

    def __init__(self, engine: Engine, limits: ServeLimits | None = None) -> None:
        self.engine = engine
        self._limits = limits or ServeLimits()
        self._decoders: ThreadPoolExecutor | None = None
        self._deployment: Deployment | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        """Raises ModelError when the model does not run, ServeError when it is open already."""
        if self._deployment is not None:
            raise ServeError("the engine is open already; make another AsyncEngine, or share this one")
        self._loop = asyncio.get_running_loop()
        self._decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="clf-decode", initializer=give_way)
        self._deployment = Deployment(Opened(self.engine, owned=True), self._limits, Metrics(), self._decoders)
        self._deployment.start()
        try:
            await self._deployment.warm_up()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def embed(self, images: Sequence[bytes | Path], timeout: float | None = None) -> Vectors:
        """Unit vectors (n, D) float32 of n encoded images, in order. Any number of tasks may call it at a time.

        Args:
            timeout: seconds after which the answer is not wanted any more; nothing is computed for it then.

        Raises:
            ImageError: an image cannot be used; the message says which.
            TimeoutError: no answer in time.
            ServeError: too many images in one call or inside, or the engine is not open in this event loop.
        """
        if self._deployment is None:
            raise ServeError("the engine is not open; use it inside: async with AsyncEngine(...) as engine")
        if self._loop is not asyncio.get_running_loop():
            raise ServeError("the engine belongs to another event loop; open one in each")
        if not images:
            return self.engine.embed(self.engine.blank()[None][:0])
        call = Call(deadline=time.monotonic() + timeout if timeout is not None else math.inf)
        try:
            async with asyncio.timeout(timeout):
                return await self._deployment.embed(images, call)
        except Problem as problem:
            raise _as_error(problem) from problem

    async def _close(self) -> None:
        deployment, decoders = self._deployment, self._decoders
        self._deployment = self._decoders = None
        if deployment is not None:
            await deployment.stop()
        if decoders is not None:
            decoders.shutdown(wait=True, cancel_futures=True)


def _as_error(problem: Problem) -> ClfError | TimeoutError:
    if problem.status == 422:
        return ImageError(problem.message)
    if problem.code == "deadline_exceeded":
        return TimeoutError(problem.message)
    return ServeError(problem.message)
