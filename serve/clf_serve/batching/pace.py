"""How fast a model and its server are, learned while they work. All times in seconds, of the caller's clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_FADE = 1 - 1 / 1000  # of what is known of a size, with each batch of another
_WINDOW = 16  # batches of a size over which its duration is averaged
_RECENT = 5  # durations of a size of which the median counts, so that single pauses do not
_IDLE = 100  # batches of other sizes after which a size is supposed to change as those do
_FIRST = 0.1  # weight of the first run of a size, which may have had to prepare for it; the second replaces it
_PRIOR = 0.5  # weight of the supposition that half of a batch's time is fixed, and of the line beside a size's own time
_GAPS = 64.0  # arrivals that the rate remembers
_BUSY = 10.0  # seconds of work that the throughput remembers


@dataclass
class _Size:
    """What is known of batches of one size."""

    seconds: float
    runs: int = 0
    weight: float = _FIRST
    last: int = 0
    """Number of the batch."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))


def fit(known: Iterable[tuple[int, float, float]]) -> tuple[float, float]:
    """a and b, not negative, of seconds = a + b n through (n, seconds, weight), by least squares of relative distance.

    A weak prior says that half of the mean time is fixed.
    """
    w = wn = wt = wnn = wnt = 0.0
    for n, t, weight in known:
        each = weight / n**2
        w, wn, wt, wnn, wnt = w + each, wn + each * n, wt + each * t, wnn + each * n * n, wnt + each * n * t
    n_mean, t_mean = wn / w, wt / w
    prior = _PRIOR / 10 * n_mean**2 / w
    covered = max(0.0, wnn / w - n_mean**2) + prior
    slope = (wnt / w - n_mean * t_mean + prior * t_mean / (2 * n_mean)) / covered
    b = min(max(slope, 0.0), t_mean / n_mean)
    return t_mean - b * n_mean, b


class Pace:
    """Learns what a batch of n images takes, how fast images arrive, and how many the whole server finishes.

    A batch takes about a + b n seconds; what each size really took counts for more the oftener it ran, as no hardware
    is a line. Before sizes have been compared, half of the time is supposed to be fixed: then larger batches look worth
    a try, and one try tells. What is known of a size fades slowly while it is not used, so a wrong opinion is tested
    again; what makes others slower meanwhile, as other work on the machine, is supposed to do so with it. A single
    pause teaches nothing, as medians of a few batches are averaged; a lasting change is believed after a few.
    """

    def __init__(self) -> None:
        self._a = self._b = 0.0
        self._sizes: dict[int, _Size] = {}
        self._arrivals = self._images = self._gaps = self._elapsed = 0.0
        self._last_arrival = -math.inf
        self._done = self._busy = 0.0
        self._best: dict[tuple[int, ...], float] = {}
        self.observations = 0

    def observe(self, n: int, seconds: float) -> None:
        """A batch of n images took so long."""
        seconds = max(seconds, 1e-9)
        size = self._sizes.setdefault(n, _Size(seconds))
        size.runs += 1
        size.recent.append(seconds)
        usual = sorted(size.recent)[(len(size.recent) - 1) // 2]
        before = size.seconds
        size.seconds += (usual - before) / min(max(1, size.runs - 1), _WINDOW)
        size.last = self.observations
        idle = [known for known in self._sizes.values() if self.observations - known.last > _IDLE]
        if size.runs > _WINDOW:
            for known in idle:
                known.seconds *= (size.seconds / before) ** (1 / (len(self._sizes) - len(idle)))
        for known in self._sizes.values():
            known.weight *= _FADE
        size.weight = _FIRST if size.runs == 1 else min(size.weight + 1, 2 * _WINDOW)
        self._a, self._b = fit((m, known.seconds, known.weight) for m, known in self._sizes.items())
        self.observations += 1
        self._best.clear()

    def seconds(self, n: int) -> float:
        """What a batch of n images is expected to take; 0 before the first observation."""
        size = self._sizes.get(n)
        if size is None:
            return self._line(n)
        return (size.seconds * size.weight + self._line(n) * _PRIOR) / (size.weight + _PRIOR)

    def _line(self, n: int) -> float:
        return self._a + self._b * n

    def arrived(self, now: float, images: int = 1) -> None:
        """Images of one request were queued for the model."""
        if self._arrivals:
            keep = 1 - 1 / _GAPS
            self._arrivals, self._images = self._arrivals * keep, self._images * keep
            self._gaps = self._gaps * keep + 1
            self._elapsed = self._elapsed * keep + max(0.0, now - self._last_arrival)
        self._arrivals += 1
        self._images += images
        self._last_arrival = now

    def requests_per_second(self, now: float) -> float:
        """Of late; falls as soon as they fail to come. 0 before the second one."""
        silence = max(0.0, now - self._last_arrival)
        if self._elapsed <= 0:
            return 0.0
        rate = self._gaps / self._elapsed
        return rate if silence * rate < 3 else (self._gaps + 1) / (self._elapsed + silence)

    @property
    def images_per_request(self) -> float:
        return self._images / self._arrivals if self._arrivals else 1.0

    def finished(self, images: int, seconds: float) -> None:
        """So many came out of the server in so long a time, during which others waited."""
        keep = math.exp(-seconds / _BUSY)
        self._done = self._done * keep + images
        self._busy = self._busy * keep + seconds

    def throughput(self, sizes: Sequence[int]) -> float:
        """Images per second of the server at work: what it did of late, at first what the model alone could do.

        Decoding and all else share the cores with the model, so its own pace is not the whole truth. Infinite before
        the first observation.
        """
        alone = self.best_rate(sizes)
        if math.isinf(alone):
            return alone
        doubt = 4 * self.seconds(sizes[0])
        return (self._done + alone * doubt) / (self._busy + doubt)

    def best_rate(self, sizes: Sequence[int]) -> float:
        """Images per second of the model in its best batch size. Every request asks for it, so it is kept."""
        if not self.observations:
            return math.inf
        key = tuple(sizes)
        if key not in self._best:
            self._best[key] = max(n / self.seconds(n) for n in key)
        return self._best[key]
