"""How much two rankings agree: by hand, by the definition, and of two real galleries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clf_serve.compare import Rbo, Side, common, compare, kendall, rbo, same_image
from clf_serve.gallery import Entry, Gallery, Identity

DIM = 4


def defined(first: Sequence[int], second: Sequence[int], p: float) -> float:
    """RBO by its definition, (1 - p) sum p^(d-1) A_d, of rankings long enough to leave nothing over."""
    agreement = [len(set(first[:d]) & set(second[:d])) / d for d in range(1, len(first) + 1)]
    return (1 - p) * sum(a * p**d for d, a in enumerate(agreement))


def continued(first: list[int], second: list[int], length: int, *, alike: bool) -> tuple[list[int], list[int]]:
    """Rankings that go on with what agrees the most, or with nothing in common."""
    new = itertools.count(1000)
    if not alike:
        return first + [next(new) for _ in range(length)], second + [next(new) for _ in range(length)]
    only, others = [x for x in first if x not in second], [x for x in second if x not in first]
    rest = [next(new) for _ in range(length)]
    return first + others + rest, second + only + rest


@pytest.mark.parametrize(
    ("first", "second", "p", "extrapolated"),
    [
        ("ab", "ab", 0.5, 1.0),
        ("ab", "cd", 0.5, 0.0),
        ("ab", "ba", 0.5, 0.5),  # A = 0, 1: (1-p)/p (0 p + 1 p^2) + p^2 = 0.25 + 0.25
        ("abc", "bad", 0.9, 2 / 3 * 0.729 + 0.1 / 0.9 * (0.81 + 2 / 3 * 0.729)),  # A = 0, 1, 2/3
        ("a", "a", 0.9, 1.0),
        ("abcd", "a", 0.9, 1.0),  # cut to one rank each
    ],
)
def test_extrapolated_overlap_by_hand(first: str, second: str, p: float, extrapolated: float) -> None:
    assert rbo(first, second, p).extrapolated == pytest.approx(extrapolated, abs=1e-12)
    assert rbo(second, first, p).extrapolated == pytest.approx(extrapolated, abs=1e-12)


def test_bounds_by_hand() -> None:
    """One shared item at rank 1, p = 1/2: at least ln 2, when no other is ever shared."""
    assert rbo("a", "a", 0.5) == Rbo(1.0, pytest.approx(math.log(2)), pytest.approx(1.0))
    assert rbo("", "", 0.5) == Rbo(0.0, 0.0, 1.0)
    # nothing shared at rank 1; at best A_2 = 1 and all that follow: 1 - (1 - p)
    assert rbo("a", "b", 0.5) == Rbo(0.0, 0.0, pytest.approx(0.5))


def test_the_first_ten_ranks_weigh_86_percent() -> None:
    """The weight that the module's text states: with ten equal ranks, no less than that."""
    p = 0.9
    weight = 1 - p**9 + (1 - p) / p * 10 * (-math.log(1 - p) - sum(p**i / i for i in range(1, 10)))
    assert round(weight, 2) == 0.86
    assert rbo(range(10), range(10), p).least == pytest.approx(weight)


rankings = st.lists(st.integers(0, 12), unique=True, min_size=1, max_size=8)


@given(rankings, rankings, st.sampled_from([0.3, 0.5, 0.8]))
def test_bounds_are_those_of_the_best_and_the_worst_continuation(first: list[int], second: list[int], p: float) -> None:
    k = min(len(first), len(second))
    first, second = first[:k], second[:k]
    found = rbo(first, second, p)

    assert found.least == pytest.approx(defined(*continued(first, second, 150, alike=False), p), abs=1e-9)
    assert found.least - 1e-12 <= found.extrapolated <= found.most + 1e-12
    best = continued(first, second, 150, alike=True)
    assert found.most == pytest.approx(defined(*best, p), abs=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "tau"),
    [("abc", "abc", 1), ("abc", "cba", -1), ("abc", "acb", 1 / 3), ("axbc", "acyb", 1 / 3), ("ab", "bc", None)],
)
def test_kendall_by_hand(first: str, second: str, tau: float | None) -> None:
    assert kendall(first, second) == (None if tau is None else pytest.approx(tau))


def direction(angle: float) -> NDArray[np.float32]:
    """Unit vector; the cosine with direction(0) falls as the angle rises to pi."""
    return np.array([math.cos(angle), math.sin(angle), 0, 0], np.float32)


def put(gallery: Gallery, order: Sequence[str], *, prefix: str = "") -> None:
    """So that direction(0) finds them in this order. The bytes of "a" are "sha-a"."""
    gallery.upsert(
        [Entry(prefix + name, name, direction(0.1 * i), sha256=f"sha-{name}") for i, name in enumerate(order, 1)]
    )


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Gallery, Gallery]]:
    with (
        Gallery.open_or_create(tmp_path / "one", Identity("one", "1" * 64, DIM), tmp_path) as one,
        Gallery.open_or_create(tmp_path / "two", Identity("two", "2" * 64, DIM), tmp_path) as two,
    ):
        yield one, two


def ranks(comparison_side: Sequence[object]) -> list[tuple[str, int | None, bool]]:
    return [(found.hit.uri, found.rank, found.present) for found in comparison_side]  # type: ignore[attr-defined]


@pytest.mark.parametrize("prefix", ["", "elsewhere/"])  # the same keys, or only the same bytes
def test_two_galleries_side_by_side(pair: tuple[Gallery, Gallery], prefix: str) -> None:
    one, two = pair
    put(one, "abcdef")
    put(two, "bafxyzcw", prefix=prefix)
    query = direction(0)

    found = compare(Side(one, query), Side(two, query), k=4, depth=6)

    assert ranks(found.first) == [("a", 2, True), ("b", 1, True), ("c", None, True), ("d", None, False)]
    assert ranks(found.second) == [("b", 2, True), ("a", 1, True), ("f", 6, True), ("x", None, False)]
    assert (found.k, found.depth, found.shared, found.overlap) == (4, 6, 2, 0.5)
    assert found.tau == -1
    assert found.rbo == rbo("abcd", "bafx")
    deeper = compare(Side(one, query), Side(two, query), k=4, depth=7)
    assert ranks(deeper.first)[2] == ("c", 7, True)


def test_the_query_itself_is_left_out(pair: tuple[Gallery, Gallery]) -> None:
    one, two = pair
    put(one, "abc")
    put(two, "xa", prefix="elsewhere/")
    query = one.find("a")
    assert query is not None
    there = same_image(query, two)
    assert there is not None and there.uri == "a"
    same = one.find("b")
    assert same is not None and same_image(same, two) is None

    found = compare(Side(one, direction(0), [query.id]), Side(two, direction(0), [there.id]), k=2)

    assert ranks(found.first) == [("b", None, False), ("c", None, False)]
    assert ranks(found.second) == [("x", None, False)]


def test_one_picture_twice_is_matched_once(pair: tuple[Gallery, Gallery]) -> None:
    one, two = pair
    entries = [Entry(f"{key}", key, direction(0.1 * i), sha256="same") for i, key in enumerate("abc", 1)]
    one.upsert(entries)
    two.upsert(entries[:1])

    found = compare(Side(one, direction(0)), Side(two, direction(0)), k=3)

    assert ranks(found.first) == [("a", 1, True), ("b", None, True), ("c", None, True)]
    assert (found.shared, found.overlap) == (1, pytest.approx(1 / 3))


def test_empty_galleries_have_nothing_to_compare(pair: tuple[Gallery, Gallery]) -> None:
    found = compare(Side(pair[0], direction(0)), Side(pair[1], direction(0)), k=5)

    assert (found.k, found.shared, found.overlap, found.tau) == (0, 0, 0.0, None)
    assert common(*pair) == (0.0, True)


def test_the_share_of_images_in_common(pair: tuple[Gallery, Gallery], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = pair
    put(one, "abcd")
    put(two, "bx", prefix="elsewhere/")
    put(two, "apqrst")
    assert common(one, two) == common(two, one) == (0.5, True)

    monkeypatch.setattr("clf_serve.compare.SAMPLE", 2)
    share, exact = common(one, two)
    assert share in (0, 0.5, 1)
    assert not exact
