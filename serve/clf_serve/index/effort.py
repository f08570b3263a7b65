"""How far an approximate search must look, learned for a few ranks and carried over to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Effort:
    """``steps``: (rank, width) pairs, rising: to find the neighbours up to that rank, look that wide.

    Width is nprobe for inverted lists and efSearch for graphs. ``factor``: how many times as many candidates as asked
    for are scored with the finer codes (inverted lists).
    """

    steps: tuple[tuple[int, int], ...]
    factor: int = 1

    def widths(self, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Between the learned ranks straight on a log-log scale; beyond the last in proportion to the rank."""
        known = np.log([rank for rank, _ in self.steps])
        wanted = np.log([width for _, width in self.steps])
        logs = np.log(np.maximum(ranks, 1))
        found: NDArray[np.float64] = np.exp(np.interp(logs, known, wanted) + np.maximum(logs - known[-1], 0))
        return found

    def width(self, rank: float) -> int:
        return int(np.ceil(self.widths(np.array([rank], np.float64))[0] - 1e-6))

    @classmethod
    def parse(cls, steps: Sequence[Sequence[int]], factor: int) -> Effort:
        """Raises ValueError unless both rise from 1 or more."""
        pairs = tuple((int(rank), int(width)) for rank, width in steps)
        ranks = [rank for rank, _ in pairs]
        if not pairs or min(min(pair) for pair in pairs) < 1 or ranks != sorted(set(ranks)) or factor < 1:
            raise ValueError("steps of a search must rise from 1")
        return cls(pairs, int(factor))
