"""One request on its way through the server: until when its answer is wanted, and where its time went."""

from __future__ import annotations

import math
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

_KEY = "clf.call"


class Stage(NamedTuple):
    name: str
    """One of read, decode, queue, inference, search, store, write."""
    start: float
    """On the monotonic clock, in seconds."""
    end: float


@dataclass
class Call:
    """Handed from the outermost middleware down to the batcher. Times are of ``time.monotonic``."""

    deadline: float = math.inf
    """When nobody wants the answer any more."""
    id: str = ""
    """What logs, traces and the reply's X-Request-ID call it."""
    stages: list[Stage] = field(default_factory=list)
    images: int = 0
    """Images that were embedded for it."""
    bytes_in: int = 0
    """Of its body, as far as it was read."""
    model: str = ""
    refusal: str = ""
    """The code of the Problem that it was answered with."""
    trace: str = ""
    """The id of its trace, where requests are traced."""

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> Self:
        """The call of an ASGI scope, which is begun where there is none."""
        call: Self = scope.setdefault(_KEY, cls())
        return call

    @property
    def left(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def since(self, stage: str, start: float) -> float:
        """Notes a stage that began at ``start`` and ends now; its seconds."""
        end = time.monotonic()
        self.stages.append(Stage(stage, start, end))
        return end - start

    def add(self, stage: str, start: float, end: float) -> None:
        self.stages.append(Stage(stage, start, end))

    @property
    def seconds(self) -> dict[str, float]:
        """Of each stage; a stage that came more than once is summed."""
        total: dict[str, float] = {}
        for name, start, end in self.stages:
            total[name] = total.get(name, 0.0) + end - start
        return total

    @property
    def header(self) -> str:
        """For Server-Timing, in milliseconds."""
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in self.seconds.items())
