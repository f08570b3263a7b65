"""Images that wait for the model, and whose turn it is."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from clf_serve.engine import Pixels, Vectors


@dataclass(eq=False)
class Job:
    """One image on its way through the model. Times are of the batcher's clock."""

    pixels: Pixels
    answer: asyncio.Future[Vectors]
    arrived: float
    deadline: float = math.inf
    started: float = 0.0
    done: float = 0.0


@dataclass(eq=False)
class Asker:
    """One request: its images that wait, in order."""

    jobs: deque[Job] = field(default_factory=deque)


class Waiting:
    """Every second turn belongs to the request that came first, the others go around among all requests.

    So a request with one image is served after at most two images of each request before it, however large they are,
    and a large one has at least half of the model once it is the oldest, however many small ones follow. Requests with
    one image each are served in the order of their coming.
    """

    def __init__(self) -> None:
        self._askers: OrderedDict[Asker, None] = OrderedDict()
        self._ring: deque[Asker] = deque()
        self._oldest_next = False
        self._n = 0

    def __len__(self) -> int:
        """Images."""
        return self._n

    def __iter__(self) -> Iterator[Job]:
        for asker in self._askers:
            yield from asker.jobs

    def add(self, asker: Asker) -> None:
        """A request with all its images."""
        if asker.jobs:
            self._askers[asker] = None
            self._ring.append(asker)
            self._n += len(asker.jobs)

    def pop(self) -> Job:
        """The image whose turn it is. Raises IndexError when none waits."""
        if not self._n:
            raise IndexError("nothing waits")
        self._oldest_next = not self._oldest_next
        if self._oldest_next:
            asker = next(iter(self._askers))
            job = asker.jobs.popleft()
        else:
            asker = self._next()
            job = asker.jobs.popleft()
            if asker.jobs:
                self._ring.append(asker)
        self._n -= 1
        if not asker.jobs:
            del self._askers[asker]
        return job

    def withdraw(self, asker: Asker) -> int:
        """Takes a request's images out and returns how many those were."""
        if asker not in self._askers:
            return 0
        del self._askers[asker]
        n = len(asker.jobs)
        self._n -= n
        asker.jobs.clear()
        if len(self._ring) > 2 * len(self._askers) + 64:  # many came and left again before their turn
            self._ring = deque(asker for asker in self._ring if asker in self._askers)
        return n

    def _next(self) -> Asker:
        while (asker := self._ring.popleft()) not in self._askers:
            pass  # served to its end in the other half of the turns, or withdrawn
        return asker
