"""The one thread that runs a model."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from clf_serve.priority import give_way

T = TypeVar("T")


class Worker:
    """Runs calls one after another.

    A daemon thread: a model that hangs cannot hold up the end of the process, as a ThreadPoolExecutor's thread would,
    which the interpreter joins without a bound.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def __call__(self, call: Callable[[], T]) -> T:
        """The result of ``call``, or its exception; what is no Exception, as SystemExit, comes as a RuntimeError."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def deliver(result: T | None, error: BaseException | None) -> None:
            if answer.done():  # nobody waits any more
                return
            if error is None:
                answer.set_result(result)  # type: ignore[arg-type]
            else:
                answer.set_exception(error)

        def work() -> None:
            result, error = None, None
            try:
                result = call()
            except Exception as caught:
                error = caught
            except BaseException as caught:
                error = RuntimeError(f"the model raised {type(caught).__name__}: {caught}")
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(deliver, result, error)

        self._calls.put(work)
        return await answer

    async def close(self, within: float) -> bool:
        """Ends the thread after what it was given; False when that takes longer than so many seconds."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join, within)
        return not self._thread.is_alive()

    def _work(self) -> None:
        give_way()
        while (work := self._calls.get()) is not None:
            work()
            del work  # or it would keep the last images alive
