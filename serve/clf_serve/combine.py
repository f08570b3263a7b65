"""Several queries as one vector: more like this, less like that."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_LEAST = 1e-6  # of the sum's length to that of the longest term; less is rounding, and points nowhere


def combine(vectors: ArrayLike, weights: ArrayLike) -> NDArray[np.float32]:
    """The direction of the weighted sum (Rocchio 1971): sum_i w_i v_i / |sum_i w_i v_i|.

    One vector alone with a positive weight comes back as it is, to the bit.

    Args:
        vectors: (n, D), of unit length each.
        weights: (n,), positive for what is wanted and negative for what is not.

    Returns:
        (D,), of unit length.

    Raises:
        ValueError: there is no vector, a number is not finite, the shapes differ, or the terms cancel out.
    """
    v = np.asarray(vectors, np.float32)
    w = np.asarray(weights, np.float64)
    if v.ndim != 2 or not len(v) or w.shape != (len(v),):
        raise ValueError(f"expected vectors (n, D) and weights (n,), got {v.shape} and {w.shape}")
    if not (np.isfinite(v).all() and np.isfinite(w).all()):
        raise ValueError("a vector or a weight is not finite")
    largest = np.abs(w).max()
    if not largest:
        raise ValueError("the weights are all zero: no direction is left to search in")
    if len(v) == 1 and w[0] > 0:
        alone: NDArray[np.float32] = v[0].copy()
        return alone
    total = (w / largest) @ v.astype(np.float64)  # (D,)
    length = np.linalg.norm(total)
    if length < _LEAST:
        raise ValueError("the queries cancel each other out: no direction is left to search in")
    direction: NDArray[np.float32] = (total / length).astype(np.float32)
    return direction
