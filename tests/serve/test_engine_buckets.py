"""Cutting images into batches, against all ways to do it."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clf_serve.batching.buckets import cheapest_cut, next_padded_size, next_size


@pytest.mark.parametrize(
    ("n", "sizes", "pieces"),
    [(13, (1, 4, 8), [8, 4, 1]), (3, (1,), [1, 1, 1]), (33, (1, 16), [16, 16, 1]), (8, (1, 2, 8), [8])],
)
def test_without_padding_the_largest_go_first(n: int, sizes: tuple[int, ...], pieces: list[int]) -> None:
    found = []
    while n:
        found.append(next_size(n, sizes))
        n -= found[-1]

    assert found == pieces


@given(
    st.integers(1, 14),
    st.dictionaries(st.sampled_from([2, 3, 4, 8, 16]), st.integers(1, 50), max_size=3),
    st.integers(1, 20),
)
def test_with_padding_the_cut_is_the_cheapest_there_is(n: int, others: dict[int, int], one: int) -> None:
    durations = ((1, float(one)), *((size, float(seconds)) for size, seconds in sorted(others.items())))
    seconds = dict(durations)

    cut = cheapest_cut(n, durations)

    assert sum(cut) >= n and list(cut) == sorted(cut, reverse=True)
    every = (
        sum(seconds[size] for size in way)
        for batches in range(1, n + 1)
        for way in itertools.combinations_with_replacement(seconds, batches)
        if sum(way) >= n
    )
    assert math.isclose(sum(seconds[size] for size in cut), min(every))


@given(st.integers(1, 500))
def test_any_number_is_covered_with_padding_in_the_last_batch_only(n: int) -> None:
    durations = ((1, 1.0), (8, 1.6), (32, 3.0), (128, 9.0))
    left = n
    while left > 0:
        size = next_padded_size(left, durations)
        assert size <= left or left == n % 128 or left < 128
        left -= size

    assert -128 < left <= 0
