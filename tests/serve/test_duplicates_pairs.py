"""Close pairs against all products at once, and groups against the definition."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clf_serve.duplicates import pairs as duplicates_pairs
from clf_serve.duplicates.groups import Partition
from clf_serve.duplicates.pairs import Pairs, close_pairs, complete_link
from clf_serve.duplicates.threshold import Chance


def unit(n: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def naive(vectors: NDArray[np.float32], least: float) -> set[tuple[int, int]]:
    products = vectors @ vectors.T
    return {(i, j) for i, j in combinations(range(len(vectors)), 2) if products[i, j] >= least}


@pytest.mark.parametrize("n", [0, 1, 2, 511, 513, 1100])
def test_all_close_pairs_are_found_across_blocks(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates_pairs, "_COLUMNS", 300)
    vectors = unit(n, 6)
    told: list[int] = []

    pairs = close_pairs(vectors, vectors, 0.9, told.append, most=n + 1)

    assert set(pairs) == naive(vectors, 0.9) and len(pairs) == len(set(pairs))
    np.testing.assert_allclose(pairs.score, (vectors[pairs.i] * vectors[pairs.j]).sum(axis=1), atol=1e-6)
    assert sum(told) == n * (n + 1) // 2


def test_of_one_image_the_closest_partners_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates_pairs, "_COLUMNS", 64)
    vectors = unit(200, 3, seed=1)

    pairs = close_pairs(vectors, vectors, 0.0, most=5)

    for i in range(200):
        ours = np.sort(pairs.score[pairs.i == i])[::-1]
        np.testing.assert_allclose(
            ours, [s for s in np.sort(vectors[i + 1 :] @ vectors[i])[::-1][:5] if s >= 0], atol=1e-6
        )


def on_a_circle(*degrees: float) -> NDArray[np.float32]:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_a_chain_is_not_one_group() -> None:
    vectors = on_a_circle(0, 8, 16, 24, 32, 40)  # each 8 degrees from the next, the ends 40 degrees apart
    least = float(np.cos(np.radians(10)))

    groups = complete_link(vectors, close_pairs(vectors, vectors, least), least)

    assert sorted(map(len, groups)) == [2, 2, 2]


def test_the_closest_pair_comes_first() -> None:
    vectors = on_a_circle(0, 9, 11)  # the first two are near, the last two are nearer, all three are not
    least = float(np.cos(np.radians(10)))

    assert complete_link(vectors, close_pairs(vectors, vectors, least), least) == [[1, 2]]


def test_many_equal_vectors_are_split_at_the_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates_pairs, "LARGEST", 40)
    vectors = np.repeat(unit(1, 4), 100, axis=0)

    groups = complete_link(vectors, close_pairs(vectors, vectors, 0.99), 0.99)

    assert max(map(len, groups)) == 40 and len({row for group in groups for row in group}) == 100


@given(st.integers(2, 40), st.floats(0.3, 0.99), st.integers(0, 1000))
def test_every_two_of_a_group_are_alike_and_no_two_groups_could_be_one(n: int, least: float, seed: int) -> None:
    vectors = unit(n, 3, seed)

    groups = complete_link(vectors, close_pairs(vectors, vectors, least), least)

    products = vectors @ vectors.T
    assert all(products[i, j] >= least - 1e-5 for group in groups for i, j in combinations(group, 2))
    single = set(range(n)) - {row for group in groups for row in group}
    parts = [*groups, *([row] for row in single)]
    for one, other in combinations(parts, 2):
        assert products[np.ix_(one, other)].min() < least + 1e-5
    assert sum(map(len, parts)) == n


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_a_partition_is_what_the_merges_make_it(merges: list[tuple[int, int]]) -> None:
    partition, naive = Partition(20), [{position} for position in range(20)]
    for one, other in merges:
        partition.join([[one, other]])
        naive[one] |= naive[other]
        for position in naive[one]:
            naive[position] = naive[one]

    several = {tuple(sorted(members)) for members in naive if len(members) > 1}
    assert sorted(map(tuple, partition.several())) == sorted(several)
    assert all(partition.first(position) == min(naive[position]) for position in range(20))


def test_best_first_is_by_score_then_position() -> None:
    pairs = Pairs(np.array([0, 0, 1], np.int32), np.array([2, 1, 2], np.int32), np.array([0.5, 0.5, 0.9], np.float32))

    assert list(pairs.best_first()) == [(1, 2), (0, 1), (0, 2)] and list(pairs.at_least(0.6)) == [(1, 2)]


@pytest.mark.parametrize("dim", [4, 8])
def test_chance_extrapolates_what_can_be_counted_in_a_larger_gallery(dim: int) -> None:
    chance = Chance.of(unit(600, dim), 600)
    everyone = unit(4000, dim, seed=5)
    distances = 2 - 2 * (everyone @ everyone.T)[np.triu_indices(4000, 1)]

    for partners in (0.01, 0.1, 1.0):
        cosine = chance.cosine(partners)
        share = (distances <= 2 - 2 * cosine).mean()
        assert 0.2 < share / (partners / 599) < 2, partners  # it errs on the careful side
        assert chance.partners(cosine) == pytest.approx(partners)


def test_duplicates_hardly_move_the_threshold() -> None:
    plain = unit(800, 8)
    copies = plain[np.repeat(np.arange(200), 3)] + 0.01 * unit(600, 8, seed=2)
    copies /= np.linalg.norm(copies, axis=1, keepdims=True)
    doubled = np.concatenate([plain, copies])

    without, with_copies = Chance.of(plain, 1400), Chance.of(doubled, 1400)

    assert abs(np.arccos(without.threshold) - np.arccos(with_copies.threshold)) < 0.15 * np.arccos(without.threshold)


def test_too_few_or_equal_images_tell_nothing() -> None:
    few, equal = Chance.of(unit(20, 8), 20), Chance.of(np.repeat(unit(1, 8), 100, axis=0), 100)

    for chance in (few, equal):
        assert chance.distance is None and chance.threshold == 0.95 and chance.partners(0.99) is None


def test_of_thousands_of_equal_vectors_the_first_partners_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates_pairs, "_COLUMNS", 64)
    sorted_: list[int] = []
    whole = duplicates_pairs._most
    monkeypatch.setattr(duplicates_pairs, "_most", lambda pairs, most: sorted_.append(len(pairs)) or whole(pairs, most))
    vectors = np.zeros((600, 4), np.float32)
    vectors[:, 0] = 1

    pairs = close_pairs(vectors, vectors, 0.5, most=5)

    assert set(pairs) == {(i, j) for i in range(600) for j in range(i + 1, min(i + 6, 600))}
    assert sum(sorted_) < 600 * (64 + 5) * 3  # and not again in each of ten blocks of columns


def test_the_first_of_a_group_is_its_least_position() -> None:
    groups = Partition(9)
    groups.join([[5, 7], [8, 3], [7, 8], [6, 1, 2]])

    for position in range(9):
        assert groups.first(position) == min(groups.members(groups.of(position)))
    assert [groups.first(position) for position in range(9)] == [0, 1, 1, 3, 4, 3, 1, 3, 3]
