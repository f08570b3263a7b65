"""Who may come in: as many as there are places for, and only who can be answered in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from clf_serve.batching.pace import Pace
from clf_serve.problems import Problem, overloaded

_UP, _DOWN = 1.02, 1.02 ** (-1 / 50)  # so that one forecast in fifty is exceeded
_CERTAIN, _UNSURE = 1.0, 2.0
_SHARE = 0.75  # of the time left that a forecast may fill; the rest is for the way there and back, and for surprises


class Admission:
    """Counts the images inside, and foresees when one more request would be answered.

    The forecast is the work ahead over the server's throughput. A request of several images may be overtaken by those
    that come later, but they get no more than half of the model (:class:`clf_serve.batching.waiting.Waiting`). The
    forecast is stretched by a factor learned from how far earlier ones were exceeded.
    """

    def __init__(self, capacity: int, pace: Pace, buckets: Callable[[], Sequence[int]]) -> None:
        self._capacity = capacity
        self._pace = pace
        self._buckets = buckets
        self._requests = 0
        self._stretch = 1.2
        self.inside = 0
        """Images, in any stage from decoding to the answer."""

    def expected(self, n: int, now: float) -> float:
        """Seconds until n further images would be answered; of none, until all that is inside is."""
        sizes = self._buckets()
        rate = self._pace.throughput(sizes)
        if math.isinf(rate):
            return 0.0
        if n == 0:
            return self.inside / rate
        ahead = min(self.inside + n, 2 * n * (self._requests + 1))
        if n > 1:
            arrivals = self._pace.requests_per_second(now) * self._pace.images_per_request
            rate = max(rate / 2, rate - arrivals)
        return max(ahead / rate, self._pace.seconds(sizes[0])) * self._stretch

    def check(self, n: int, now: float, deadline: float) -> float:
        """Seconds until n images would be answered.

        An empty server takes whatever it has places for: there is no better moment, and the forecast may be wrong.

        Raises:
            Problem: 429 no room now, or the answer would come too late; 413 more images than there are places.
        """
        if n > self._capacity:
            text = f"{n} images are more than the {self._capacity} this server has room for; send fewer at a time"
            raise Problem(413, "too_many_images", text, param="input")
        expected = self.expected(n, now)
        if not self.inside:
            return expected
        missing = self.inside + n - self._capacity
        if missing > 0:
            raise overloaded(_whole(missing / self._pace.throughput(self._buckets())))
        if expected > _SHARE * (deadline - now):
            everything = self.expected(0, now) * self._stretch
            raise overloaded(_whole(min(expected - _SHARE * (deadline - now), everything)))
        return expected

    def enter(self, n: int, now: float, deadline: float) -> float:
        """Takes n places, and returns when to expect the answer. Raises Problem as :meth:`check`."""
        expected = self.check(n, now, deadline)
        self.inside += n
        self._requests += 1
        return expected

    def leave(self, n: int) -> None:
        self.inside -= n
        self._requests -= 1

    def learn(self, expected: float, seconds: float) -> None:
        """A request of which ``expected`` was said took so long. A short queue teaches nothing about long ones."""
        if expected > 10 * self._pace.seconds(self._buckets()[0]):
            step = _UP if seconds > expected else _DOWN
            self._stretch = min(max(self._stretch * step, _CERTAIN), _UNSURE)


def _whole(seconds: float) -> int:
    """Retry-After knows whole seconds only."""
    return max(1, math.ceil(seconds))
