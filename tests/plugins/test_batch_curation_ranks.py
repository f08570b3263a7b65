"""Batch curation: ranks, thresholds, conflicts and the masked loss, on hand-made embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from curation_toys import all_ranks, units
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clf import losses
from clf_batch_curation.loss import masked_nt_xent
from clf_batch_curation.ranks import (
    RunningMedian,
    RunningQuantile,
    conflicts,
    crop_iou,
    cross_similarity,
    evictions,
    pair_ranks,
)


def naive_ranks(a: Tensor, b: Tensor, similarity: Callable[[Tensor, Tensor], float]) -> list[float]:
    """The definition, written out."""
    n = len(a)
    ranks = []
    for i in range(n):
        own = similarity(a[i], b[i])
        others = [
            similarity(u, v)
            for j in range(n)
            if j != i
            for u, v in ((a[i], b[j]), (b[i], a[j]), (a[i], a[j]), (b[i], b[j]))
        ]
        ranks.append(sum(value >= own for value in others) / (4 * (n - 1)))
    return ranks


def test_ranks_of_three_pairs_in_the_plane() -> None:
    """Angles in degrees: pairs (0, 60), (10, 20), (90, 180).

    Pair 0, cos 60: nearer or as near are a0 a1 (10), a0 b1 (20), b0 a1 (50), b0 b1 (40), b0 a2 (30): 5 of 8.
    Pair 1, cos 10: only a1 a0 (10), a tie: 1 of 8. Pair 2, cos 90: a2 a0 (90, a tie), a2 b0 (30), a2 a1 (80), a2 b1
    (70), none of b2: 4 of 8.
    """
    angle = torch.tensor([[0.0, 60.0], [10.0, 20.0], [90.0, 180.0]], dtype=torch.float64) * math.pi / 180
    a, b = (torch.stack([x.cos(), x.sin()], dim=1) for x in angle.unbind(1))
    assert all_ranks(a, b).tolist() == [5 / 8, 1 / 8, 4 / 8]


def test_a_perfect_batch_ranks_0_and_one_without_differences_1() -> None:
    eye = torch.eye(5)
    assert all_ranks(eye, eye).tolist() == [0.0] * 5
    same = units(1, 37, 0, torch.float32).expand(70, -1)  # whatever blocks the matrix product works in
    assert all_ranks(same, same).tolist() == [1.0] * 70


def test_pairs_at_random_rank_in_the_middle() -> None:
    assert all_ranks(units(256, 128, 0), units(256, 128, 1)).mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "similarity",
    [
        lambda u, v: float(u @ v),
        lambda u, v: math.exp(5 * float(u @ v)),
        lambda u, v: -float((u - v).norm()),
    ],
    ids=["cosine", "exp of it", "distance"],
)
def test_ranks_are_those_of_the_definition_for_every_similarity_that_rises(similarity: Any) -> None:
    a = units(24, 5, 2)
    b = F.normalize(a + 0.8 * units(24, 5, 3), dim=1)
    assert all_ranks(a, b).tolist() == pytest.approx(naive_ranks(a, b, similarity), abs=1e-12)


def test_a_candidate_is_ranked_against_the_batch_without_its_own_place() -> None:
    za, zb = units(12, 4, 0), units(12, 4, 1)
    a, b = units(2, 4, 5), units(2, 4, 6)
    for new, place in ((0, 7), (1, 3)):
        batch_a, batch_b = za.clone(), zb.clone()
        batch_a[place], batch_b[place] = a[new], b[new]
        expected = naive_ranks(batch_a, batch_b, lambda u, v: float(u @ v))[place]
        assert pair_ranks(a, b, torch.tensor([7, 3]), za, zb)[new].item() == pytest.approx(expected, abs=1e-12)
    among = torch.arange(12) < 6
    few = pair_ranks(a[:1], b[:1], torch.tensor([7]), za, zb, among)
    assert few.item() == pytest.approx(
        pair_ranks(a[:1], b[:1], torch.tensor([6]), torch.cat([za[:6], a[:1]]), torch.cat([zb[:6], b[:1]])).item()
    )


def test_cross_similarity_is_the_mean_of_four_cosines() -> None:
    a, b = units(6, 4, 0), units(6, 4, 1)
    expected = (a @ a.T + a @ b.T + b @ a.T + b @ b.T) / 4
    torch.testing.assert_close(cross_similarity(a, b, a, b), expected)
    found = conflicts(a, b, torch.tensor(0.1))
    assert torch.equal(found, (expected > 0.1) & ~torch.eye(6, dtype=torch.bool))


def test_evictions_take_the_most_conflicting_image_and_of_equal_ones_the_last() -> None:
    """A star 0-1, 0-2, 0-3 and an edge 4-5: 0 goes first, then 5, then nothing is in conflict."""
    conflict = torch.zeros(6, 6, dtype=torch.bool)
    for i, j in ((0, 1), (0, 2), (0, 3), (4, 5)):
        conflict[i, j] = conflict[j, i] = True
    assert evictions(conflict, 6) == [0, 5]
    assert evictions(conflict, 1) == [0]
    assert int(conflict.sum()) == 8


def test_overlap_of_crops() -> None:
    one = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 0.5], [0.2, 0.2, 0.4, 0.4]])
    other = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.0, 0.5, 1.0, 0.5], [0.2, 0.2, 0.4, 0.4]])
    assert crop_iou(one, other).tolist() == pytest.approx([0.0625 / 0.4375, 0.0, 1.0])


def test_the_budget_rejects_its_share_of_ranks_at_random_and_none_of_a_perfect_batch() -> None:
    budget = RunningQuantile(1 - 0.1, 0.99)
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(1000):
        ranks = torch.rand(128, generator=generator)
        shares.append((ranks > budget.update(ranks).clamp(min=0.0)).float().mean())
    assert torch.stack(shares).mean().item() == pytest.approx(0.1, abs=0.01)
    perfect = RunningQuantile(1 - 0.1, 0.99)
    for _ in range(3):
        assert perfect.update(torch.zeros(64)).clamp(min=0.02).item() == pytest.approx(0.02)


def test_a_running_quantile_starts_at_the_first_batch_and_follows_slowly() -> None:
    q = RunningQuantile(0.5, 0.9)
    assert q.update(torch.tensor([1.0, 2.0, 3.0])).item() == 2.0
    assert q.update(torch.tensor([3.0, 4.0, 5.0])).item() == pytest.approx(0.9 * 2 + 0.1 * 4)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_running_median_is_the_weighted_median_of_all_that_came(values: list[int], decay: float) -> None:
    median = RunningMedian(decay).double()
    found = [median.update(torch.tensor(float(value))).item() for value in values][-1]
    weights = [decay**age for age in range(len(values))][::-1]
    below = sum(w for value, w in zip(values, weights, strict=True) if value < found)
    above = sum(w for value, w in zip(values, weights, strict=True) if value > found)
    assert found in values
    assert max(below, above) <= sum(weights) / 2 + 1e-9


def test_the_masked_loss_against_a_double_loop_and_without_conflicts_nt_xent() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    none = torch.zeros(4, 4, dtype=torch.bool)
    plain = losses.nt_xent(a, b, 0.5)
    torch.testing.assert_close(masked_nt_xent(a, b, 0.5, none, gather=lambda x: x), plain)
    conflict = none.clone()
    conflict[0, 2] = conflict[2, 0] = True
    z = F.normalize(torch.cat([a, b]).detach(), dim=1)
    total = 0.0
    for i in range(8):
        others = [k for k in range(8) if k != i and not bool(conflict[i % 4, k % 4])]
        denominator = sum(math.exp(float(z[i] @ z[k]) / 0.5) for k in others)
        total -= float(z[i] @ z[(i + 4) % 8]) / 0.5 - math.log(denominator)
    loss = masked_nt_xent(a, b, 0.5, conflict, gather=lambda x: x)
    assert loss.item() == pytest.approx(total / 8, abs=1e-12)
    assert torch.autograd.gradcheck(lambda u, v: masked_nt_xent(u, v, 0.5, conflict, gather=lambda x: x), (a, b))
