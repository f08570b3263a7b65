"""A thread for what has to happen in one and the same thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

from clf_serve.backends.base import closed

P = ParamSpec("P")
T = TypeVar("T")


class OneThread:
    """Runs calls from any thread one after another in its own.

    A daemon: a device that hangs cannot hold up the end of the process, as a ThreadPoolExecutor's thread would, which
    the interpreter joins without a bound.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open = True
        self._order = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Its result, or its exception. Raises RuntimeError: the thread has been closed."""
        return self._begun(lambda: function(*args, **kwargs)).result()

    def _begun(self, function: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()

        def work() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)

        with self._order:
            if not self._open:
                raise closed()
            self._calls.put(work)
        return answer

    def close(self, last: Callable[[], None], within: float) -> None:
        """Ends the thread after what it was given and ``last``; waits for that no longer than so many seconds."""
        with self._order:
            if self._open:
                self._open = False
                self._calls.put(last)
                self._calls.put(None)
        self._thread.join(within)

    def _work(self) -> None:
        while (work := self._calls.get()) is not None:
            work()
            del work  # or it would keep the last images alive
