"""Mean and spread over seeds, and differences paired by seed with their 95 % interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""0.975 quantiles of Student's t for 1 to 30 degrees of freedom."""


@dataclass(frozen=True)
class Spread:
    """What several values of one quantity say."""

    mean: float
    std: float | None
    """Sample standard deviation (n - 1); None for a single value."""
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean by Student's t; None for a single value, and for values that are all the
        same up to rounding, whose spread is not known."""
        if self.std is None or self.std <= 1e-12 * max(1.0, abs(self.mean)):
            return None
        half = t_975(self.n - 1) * self.std / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    @property
    def sign(self) -> int:
        """1 or -1 where there is an interval and it leaves zero out, else 0: no difference could be told."""
        if self.interval is None:
            return 0
        low, high = self.interval
        return (low > 0) - (high < 0)

    def text(self, scale: float = 100, digits: int = 1, signed: bool = False) -> str:
        """``84.1 ± 0.3``, in percent unless another scale is given; without ± for a single value.

        >>> Spread(0.8412, 0.0031, 3).text()
        '84.1 ± 0.3'
        >>> Spread(-0.004, None, 1).text(signed=True)
        '-0.4'
        """
        form = f"{'+' if signed else ''}.{digits}f"
        words = format(round(scale * self.mean, digits) + 0.0, form)  # no minus before a zero
        return words if self.std is None else f"{words} ± {scale * self.std:.{digits}f}"


def spread(values: Sequence[float]) -> Spread:
    """
    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired(ours: Mapping[K, float], theirs: Mapping[K, float]) -> Spread | None:
    """Ours less theirs for each key, a seed as a rule, that both have; None when they share no key."""
    shared = [key for key in ours if key in theirs]
    return spread([ours[key] - theirs[key] for key in shared]) if shared else None


def t_975(freedom: int) -> float:
    """0.975 quantile of Student's t, beyond 30 degrees of freedom by the first terms of its
    expansion about the normal's (Abramowitz and Stegun 26.7.5).

    Raises:
        ValueError: freedom < 1.
    """
    if freedom < 1:
        raise ValueError(f"at least one degree of freedom is needed, got {freedom}")
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
