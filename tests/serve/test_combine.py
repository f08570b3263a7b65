"""Weighted sums of queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clf_serve.combine import combine

X, Y = np.eye(3, dtype=np.float32)[:2]


def test_one_query_comes_back_to_the_bit() -> None:
    vector = np.array([[0.1, 0.2, 0.97468]], np.float32)
    for weight in (1.0, 0.3, 1e-300):
        np.testing.assert_array_equal(combine(vector, [weight]), vector[0])


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ([1, 1], [0.5**0.5, 0.5**0.5, 0]),
        ([1, -0.5], [0.8**0.5, -(0.2**0.5), 0]),
        ([3, 4], [0.6, 0.8, 0]),
        ([1e-200, 0], [1, 0, 0]),
        ([1e300, 1e300], [0.5**0.5, 0.5**0.5, 0]),
        ([-1, 0], [-1, 0, 0]),
    ],
)
def test_the_sum_has_unit_length(weights: list[float], wanted: list[float]) -> None:
    found = combine([X, Y], weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-7)


@pytest.mark.parametrize(
    ("vectors", "weights", "words"),
    [
        ([X, X], [1, -1], "cancel each other out"),
        ([X, -X], [2, 2], "cancel each other out"),
        ([X, Y], [0, 0], "all zero"),
        ([X, Y], [1], "expected vectors"),
        (np.empty((0, 3)), [], "expected vectors"),
        ([X], [np.nan], "not finite"),
        ([[np.inf, 0, 0]], [1], "not finite"),
    ],
)
def test_no_direction_is_told(vectors: Any, weights: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        combine(vectors, weights)
