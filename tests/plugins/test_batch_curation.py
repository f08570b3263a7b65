"""Batch curation on hand-made embeddings and networks: ranks, thresholds, refreshing, exchanging, hygiene."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rank_threads import on_ranks
from torch import Tensor, nn

import clf
from clf import losses
from clf.data.stream import Stream
from clf_batch_curation import BatchCuration, Masked
from clf_batch_curation.config import BatchCurationConfig
from clf_batch_curation.curate import Curation
from clf_batch_curation.loss import masked_nt_xent
from clf_batch_curation.oracle import ClassRates, Oracle, load_labels, load_oracle, save_oracle
from clf_batch_curation.ranks import (
    RunningMedian,
    RunningQuantile,
    conflicts,
    crop_iou,
    cross_similarity,
    evictions,
    pair_ranks,
)

SIZE = 16


class Here:
    """The context of one process."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, source: Tensor, step: int = 0, epoch: int = 0) -> None:
        self.source, self.step, self.epoch = source, step, epoch
        self.logged: dict[str, float] = {}
        self.asked: list[str] = []

    def generator(self, name: str) -> torch.Generator:
        self.asked.append(name)
        return torch.Generator().manual_seed(1000 * self.step + sum(map(ord, name)))

    def gather(self, x: Tensor) -> Tensor:
        return x

    def images(self, index: Tensor) -> Tensor:
        return self.source[index]

    def log(self, **metrics: float | Tensor) -> None:
        self.logged |= {name: float(value) for name, value in metrics.items()}


class ChannelMeans(nn.Module):
    """(N, C, H, W) -> (N, C): the same for an image and its mirror image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) - 0.5


class Small(nn.Module):
    """A network with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.drop(self.norm(self.conv(x)).relu())
        return h.flatten(1)


class Plain(nn.Module):
    """A network whose rows do not see each other in train mode either."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(x).relu()
        return h.flatten(1)


FLIPS = clf.Recipe(size=SIZE, crop_area=(1, 1), crop_ratio=(1, 1), flip=0.5, jitter=0, grayscale=0)


def colours(n: int, seed: int = 0) -> Tensor:
    """(n, 3, SIZE, SIZE) uint8 images whose mean colours point in all directions, with noise on top."""
    generator = torch.Generator().manual_seed(seed)
    means = 128 + 90 * F.normalize(torch.randn(n, 3, generator=generator), dim=1)
    noise = 20 * torch.randn(n, 3, SIZE, SIZE, generator=generator)
    return (means[:, :, None, None] + noise).clamp(0, 255).to(torch.uint8)


def make(
    network: Callable[[], nn.Module] | None = None, n: int = 64, images: int = 256, **settings: Any
) -> BatchCuration:
    """A method that is curated from the start, with a network of its own and no projector if there is none."""
    torch.manual_seed(0)
    config = BatchCurationConfig.model_validate({"start_epoch": 0, "projection_dim": 8, **settings})
    data = clf.DataSpec("made", images, SIZE, 3, n, images / n, 4, "print")
    method = BatchCuration(clf.Backbone((network or ChannelMeans)(), "made", 3, SIZE), config, data)
    if network is None:
        method.projector = nn.Sequential()
    return method


def stream(source: Tensor, n: int = 64, recipe: clf.Recipe = FLIPS) -> Stream:
    return Stream(source, [recipe, recipe], n, seed=0)


def context(here: Here) -> clf.Context:
    return cast(clf.Context, here)


def units(n: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


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


def all_ranks(a: Tensor, b: Tensor) -> Tensor:
    return pair_ranks(a, b, torch.arange(len(a)), a, b)


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


def curation(method: BatchCuration, batch: clf.Batch, here: Here) -> Curation:
    with torch.no_grad(), method._scoring(context(here)):
        return Curation(batch, context(here), method.embed, method.embed)


def planted(source: Tensor, wrong: Tensor) -> clf.Batch:
    """A batch in which the second view of some rows shows another image."""
    batch = stream(source, 100).next()
    a, b = batch.views
    b = b.clone()
    b[wrong] = batch.views[1][(wrong + 37) % 100]
    return dataclasses.replace(batch, views=(a, b))


class Given:
    """A stream of given batches."""

    def __init__(self, *batches: clf.Batch) -> None:
        self.batches = iter(batches)

    def next(self) -> clf.Batch:
        return next(self.batches)


def test_planted_wrong_pairs_are_rejected_and_replaced_and_the_good_ones_stay() -> None:
    """The network sees mean colours, which no flip changes: a right pair has the same embedding twice."""
    source = colours(100)
    wrong = torch.arange(0, 100, 10)
    batch = planted(source, wrong)
    here = Here(source)
    method = make(n=100, images=100, phi=0.15, rho_min=0.02)
    curated = method.next_batch(Given(batch), context(here))
    changed = torch.stack([(new != old).flatten(1).any(1) for new, old in zip(curated.views, batch.views, strict=True)])
    rejected = changed.any(0).nonzero()[:, 0]
    assert set(rejected.tolist()) <= set(wrong.tolist())
    assert len(rejected) >= 9
    assert here.logged["rejected_share"] >= 0.09 and here.logged["open_share"] == 0
    means = [view.mean((2, 3)) for view in curated.views]
    torch.testing.assert_close(means[0][rejected], means[1][rejected], atol=1e-4, rtol=0)
    torch.testing.assert_close(means[0], batch.images.float().mean((2, 3)) / 255, atol=1e-3, rtol=0)
    (title,) = method.pictures()
    pictures = method.pictures()[title]
    assert pictures.shape == (6, 4, 3, SIZE, SIZE)
    first = int(rejected[0])
    expected = torch.stack([v[first] for v in (*batch.views, *curated.views)])
    assert (pictures[0] - expected).abs().max() <= 0.5 / 255 + 1e-6
    labels = torch.zeros(100, dtype=torch.long)
    assert ClassRates(0.99).update(labels, changed.any(0)).item() == 0


def test_what_is_accepted_stays_as_the_loader_gave_it_in_the_loaders_order() -> None:
    recipe = clf.simclr_recipe(SIZE)
    source = colours(256)
    method, curated_stream, plain = make(Small), stream(source, recipe=recipe), stream(source, recipe=recipe)
    replaced = 0
    for step in range(8):
        here = Here(source, step)
        batch, loaded = method.next_batch(curated_stream, context(here)), plain.next()
        assert torch.equal(batch.index, loaded.index) and torch.equal(batch.images, loaded.images)
        with torch.no_grad(), method._scoring(context(here)):
            ranks = all_ranks(*(F.normalize(z, dim=1) for z in method.embed(loaded.views)))
        kept = ranks <= here.logged["rank_threshold"]
        for new, old in zip(batch.views, loaded.views, strict=True):
            assert torch.equal(new[kept], old[kept])
        replaced += int((batch.views[0] != loaded.views[0]).flatten(1).any(1).sum())
        assert not (batch.views[0].requires_grad or batch.views[1].requires_grad)
        assert here.logged["redraws_per_image"] <= 2 * here.logged["rejected_share"]
        assert here.logged["cost_units"] == pytest.approx(1 + here.logged["redraws_per_image"])
    assert curated_stream.position == plain.position == 8
    assert replaced > 0


def test_recorded_ranks_never_get_worse_and_an_image_leaves_with_its_first_acceptable_pair() -> None:
    source = colours(256)
    method, batch = make(Small), stream(source, recipe=clf.simclr_recipe(SIZE)).next()
    limit = torch.tensor(0.1)
    done = []
    for rounds in (1, 4):
        here = Here(source)
        c = curation(method, batch, here)
        with torch.no_grad(), method._scoring(context(here)):
            c.refresh(limit, rounds)
        assert (c.ranks <= c.first_ranks).all() and (c.ranks < c.first_ranks).any()
        assert here.asked == [f"curation, round {i + 1}" for i in range(rounds)]
        done.append(c)
    one, four = done
    passed = one.ranks <= limit
    assert torch.equal(one.batch.views[0][passed], four.batch.views[0][passed])
    still = ~passed & (four.ranks < one.ranks)
    assert still.any() and (one.batch.views[0][still] != four.batch.views[0][still]).flatten(1).any(1).all()


def test_what_stays_of_an_image_whose_new_pairs_are_all_rejected() -> None:
    source = colours(256)
    batch = stream(source, recipe=clf.simclr_recipe(SIZE)).next()
    found = {}
    for fallback in ("best", "original", "drop"):
        here = Here(source)
        method = make(Small, threshold="fixed", rho=0.02, rounds=1, fallback=fallback)
        found[fallback] = method.next_batch(Given(batch), context(here)), here.logged["open_share"]
    best, original, dropped = (found[name][0] for name in ("best", "original", "drop"))
    assert found["best"][1] == found["drop"][1] > 0
    assert len(dropped) == round(64 * (1 - found["drop"][1])) == len(dropped.views[1]) == len(dropped.images)
    assert set(dropped.index.tolist()) < set(batch.index.tolist())
    from_loader = (original.views[0] == batch.views[0]).flatten(1).all(1)
    assert int(from_loader.sum()) > int((best.views[0] == batch.views[0]).flatten(1).all(1).sum())
    assert torch.equal(original.views[0][~from_loader], best.views[0][~from_loader])


@pytest.mark.parametrize("score_mode", ["eval", "train"])
def test_scoring_leaves_no_trace(score_mode: str) -> None:
    source = colours(256)
    method = make(Small, score_mode=score_mode).train()
    cast(Small, method.backbone.model).norm.eval()
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    modes = {name: module.training for name, module in method.named_modules()}
    noise = torch.get_rng_state()
    here = Here(source)
    batch = method.next_batch(stream(source, recipe=clf.simclr_recipe(SIZE)), context(here))
    assert here.logged["redraws_per_image"] > 0
    assert {name: module.training for name, module in method.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in method.backbone.state_dict().items())
    assert all(p.grad is None for p in method.parameters())
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(view.grad_fn is None for view in batch.views)


def test_modes_come_back_after_an_error() -> None:
    method = make(Small).train()
    with pytest.raises(RuntimeError, match="no such luck"), method._scoring(context(Here(colours(8)))):
        assert not method.training
        raise RuntimeError("no such luck")
    assert all(module.training for module in method.modules())


def test_eval_scores_do_not_depend_on_who_else_is_in_the_batch_and_train_scores_do() -> None:
    source = colours(256)
    batch = stream(source).next()
    half = [view[:32] for view in batch.views]
    for mode, same in (("eval", True), ("train", False)):
        method = make(Small, score_mode=mode).train()
        here = Here(source)
        with torch.no_grad(), method._scoring(context(here)):
            torch.manual_seed(0)
            alone = method.embed(half)[0]
            torch.manual_seed(0)
            among = method.embed(batch.views)[0][:32]
        assert torch.allclose(alone, among, atol=1e-5) is same


@pytest.mark.parametrize("space", ["z", "h"])
def test_the_space_that_is_ranked(space: str) -> None:
    source = colours(256)
    method = make(Small, space=space).eval()
    views = stream(source).next().views
    with torch.no_grad():
        expected = method.backbone(torch.cat(views))
        expected = method.projector(expected) if space == "z" else expected
        torch.testing.assert_close(torch.cat(method._score(views)), expected)


class Counting:
    """A stream that notes what it gave."""

    def __init__(self, inner: Stream) -> None:
        self.inner = inner
        self.batches: list[clf.Batch] = []

    def next(self) -> clf.Batch:
        self.batches.append(self.inner.next())
        return self.batches[-1]


def test_exchanged_images_are_neither_lost_nor_doubled() -> None:
    """Over three epochs: what was drawn is what was trained on, what was discarded when the queue was filled, and what
    waits."""
    source = colours(256)
    counted = Counting(stream(source, recipe=clf.simclr_recipe(SIZE)))
    method = make(Small, sides="both", conflict_quantile=0.9, evict_share=0.125)
    trained: Counter[int] = Counter()
    swapped = 0.0
    for step in range(12):
        here = Here(source, step)
        batch = method.next_batch(counted, context(here))
        assert len(set(batch.index.tolist())) == len(batch) == 64
        assert torch.equal(batch.images, source[batch.index])
        assert not (method.waiting < 0).any() and len(method.waiting) == 32
        assert here.logged["popped"] <= 2 * here.logged["evicted"] <= 16
        assert here.logged["swapped"] <= here.logged["evicted"]
        trained.update(batch.index.tolist())
        swapped += here.logged["swapped"]
    batches = [each.index.tolist() for each in counted.batches]
    assert swapped > 0 and len(batches) == 12 + 1
    drawn = Counter(index for each in batches for index in each)
    discarded = Counter(batches[1][32:])
    assert drawn - trained - discarded == Counter(method.waiting.tolist())
    assert trained + discarded + Counter(method.waiting.tolist()) == drawn


def test_a_newcomer_fits_its_place() -> None:
    """It shows its own image, and is in conflict with none that stays and with no other newcomer."""
    source = colours(256)
    method = make(n=64, sides="both", phi=0.0, evict_share=0.25)
    method.alike.update(torch.full((64,), 0.9))  # of the cosines in three dimensions one in twenty is above
    loaded, found = stream(source), 0
    for step in range(4):
        here, counted = Here(source, step), Counting(loaded)
        batch = method.next_batch(counted, context(here))
        drawn = counted.batches[0]
        alike = torch.tensor(here.logged["conflict_threshold"])
        before = [F.normalize(z, dim=1) for z in method.embed(drawn.views)]
        leaving = evictions(conflicts(before[0], before[1], alike), 16)
        news = (batch.index != drawn.index).nonzero()[:, 0]
        assert set(news.tolist()) <= set(leaving) and len(leaving) == here.logged["evicted"]
        means = batch.views[0].mean((2, 3))
        torch.testing.assert_close(means[news], source[batch.index[news]].float().mean((2, 3)) / 255, atol=1e-3, rtol=0)
        after = [F.normalize(z, dim=1) for z in method.embed(batch.views)]
        beside = [place for place in range(64) if place not in leaving] + news.tolist()
        assert not conflicts(after[0], after[1], alike)[news][:, beside].any()
        found += len(news)
    assert found > 0


def test_masked_conflicts_leave_the_denominators() -> None:
    source = colours(256)
    method = make(Small, sides="both", dissimilar_action="mask", conflict_quantile=0.2).eval()
    here = Here(source)
    batch = method.next_batch(stream(source), context(here))
    assert isinstance(batch, Masked)
    assert torch.equal(batch.conflict, batch.conflict.T) and batch.conflict.any()
    assert here.logged["conflicts_per_image"] == pytest.approx(batch.conflict.sum().item() / 64)
    a, b = method.embed(batch.views)
    output = method.training_step(batch, context(here))
    torch.testing.assert_close(output.loss, masked_nt_xent(a, b, 0.5, batch.conflict, gather=lambda x: x))
    assert output.loss < losses.nt_xent(a, b, 0.5)


def curated(mode: str, **settings: Any) -> tuple[Curation, Here]:
    """A batch after one of the modes, with what it was before."""
    source = colours(256)
    method = make(Small, mode=mode, **settings)
    batch = stream(source, recipe=clf.simclr_recipe(SIZE)).next()
    here = Here(source)
    c = curation(method, batch, here)
    with torch.no_grad(), method._scoring(context(here)):
        method._curated(c, context(here))
    return c, here


def test_best_of_k_keeps_the_set_of_views_with_the_lowest_mean_rank() -> None:
    c, here = curated("best_of_k", trials=3)
    method = make(Small).eval()
    means = [c.first_ranks.mean()]
    for trial in (2, 3):
        views = c.loaded.redraw(torch.arange(64), here.generator(f"curation, trial {trial}"))
        with torch.no_grad():
            means.append(all_ranks(*(F.normalize(z, dim=1) for z in method.embed(views))).mean())
    assert int(torch.stack(means).argmin()) > 0
    assert c.ranks.mean().item() == pytest.approx(torch.stack(means).min().item(), abs=1e-4)
    assert here.logged["cost_units"] == 3


def test_reject_batch_draws_again_only_while_the_share_is_above_the_median() -> None:
    _, here = curated("reject_batch", rho=0.3)
    assert here.logged["redraws_per_image"] == 0  # the first share is the median
    source = colours(256)
    method = make(Small, mode="reject_batch", rho=0.0, trials=4)
    for _ in range(50):
        method.shares.update(torch.tensor(0.01))
    here = Here(source)
    method.next_batch(stream(source, recipe=clf.simclr_recipe(SIZE)), context(here))
    assert here.logged["redraws_per_image"] == 3 and here.logged["cost_units"] == 4
    for _ in range(500):
        method.shares.update(torch.tensor(1.0))
    here = Here(source, 1)
    method.next_batch(stream(source, recipe=clf.simclr_recipe(SIZE)), context(here))
    assert here.logged["redraws_per_image"] == 0


def test_random_refresh_replaces_its_share_whatever_the_network_thinks() -> None:
    c, _ = curated("random_refresh", phi=0.25)
    places = (c.batch.views[0] != c.loaded.views[0]).flatten(1).any(1)
    assert int(places.sum()) == 16
    other = make(mode="random_refresh", phi=0.25)
    batch = other.next_batch(stream(colours(256), recipe=clf.simclr_recipe(SIZE)), context(Here(colours(256))))
    assert torch.equal((batch.views[0] != c.loaded.views[0]).flatten(1).any(1), places)


def test_hard_keeps_the_less_similar_of_two_pairs() -> None:
    c, here = curated("hard")
    method = make(Small).eval()
    views = c.loaded.redraw(torch.arange(64), here.generator("curation, round 1"))
    with torch.no_grad():
        a, b = method.embed(views)
    new = F.cosine_similarity(a, b)
    torch.testing.assert_close(c.pairs, torch.minimum(new, c.first_pairs))


def test_the_oracle_rejects_what_a_classifier_takes_for_another_class() -> None:
    """Its classifier tells dark from bright; some views are made negatives of themselves."""

    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = x.mean((1, 2, 3)) - 0.5
            return torch.stack([-bright, bright], dim=1)

    source = colours(100)
    source = torch.where((torch.arange(100) % 2 == 0)[:, None, None, None], source // 4, 255 - source // 4)
    labels = torch.arange(100) % 2
    labels[7] = -1
    batch = stream(source, 100).next()
    wrong = torch.tensor([3, 50, 51])
    a = batch.views[0].clone()
    a[wrong] = 1 - a[wrong]
    unknown = (batch.index == 7).nonzero()[0]
    a[unknown] = 1 - a[unknown]
    method = make(n=100, images=100, mode="oracle", oracle="made here")
    method._oracle = Oracle(Bright(), labels)
    here = Here(source)
    curated_batch = method.next_batch(Given(dataclasses.replace(batch, views=(a, batch.views[1]))), context(here))
    changed = (curated_batch.views[0] != a).flatten(1).any(1).nonzero()[:, 0]
    assert sorted(changed.tolist()) == sorted(wrong.tolist())
    assert here.logged["rejected_share"] == pytest.approx(0.03) and here.logged["open_share"] == 0
    assert method._oracle.mislabelled((a, batch.views[1]), batch.index)[wrong].tolist() == [0.5] * 3


def test_a_single_pass_takes_the_same_step_where_rows_do_not_see_each_other() -> None:
    """Without batch norm and dropout the training forward scores as eval mode does."""

    source, steps = colours(256), []
    for single in (False, True):
        method = make(Plain, layers=1, single_pass=single, single_pass_images=2, phi=0.2).train()
        here = Here(source)
        loss = method.training_step(
            method.next_batch(stream(source, recipe=clf.simclr_recipe(SIZE)), context(here)), context(here)
        ).loss
        loss.backward()  # type: ignore[no-untyped-call]
        steps.append((loss.detach(), [p.grad for p in method.parameters()], here))
    assert steps[0][2].logged["redraws_per_image"] == steps[1][2].logged["redraws_per_image"] > 0
    torch.testing.assert_close(steps[1][0], steps[0][0])
    torch.testing.assert_close(steps[1][1], steps[0][1])
    assert steps[1][2].logged["cost_units"] == pytest.approx(3 * steps[1][2].logged["redraws_per_image"])
    few = make(Plain, layers=1, single_pass=True, single_pass_images=12, phi=0.2)
    few.budget.update(torch.ones(64))  # so that next to nothing is above the budget
    here = Here(source)
    few.training_step(few.next_batch(stream(source), context(here)), context(here))
    assert here.logged["redraws_per_image"] == 0 and here.asked == []


def test_curation_keeps_to_its_epochs_and_steps() -> None:
    source = colours(256)
    method = make(start_epoch=2, stop_epoch=4, every=3)
    for epoch, step, due in ((1, 6, 0), (2, 6, 1), (2, 7, 0), (3, 9, 1), (4, 12, 0)):
        here = Here(source, step, epoch)
        method.next_batch(stream(source), context(here))
        assert here.logged["curated"] == due and ("rank_mean" in here.logged) is bool(due)
    assert method.budget.batches == 2


@pytest.mark.parametrize(("epochs", "start"), [(1, 0), (2, 1), (25, 3), (100, 10), (1000, 10)])
def test_curation_starts_after_the_warm_up(epochs: int, start: int) -> None:
    data = clf.DataSpec("made", 256, SIZE, 3, 64, 4, epochs, "print")
    method = BatchCuration(clf.Backbone(ChannelMeans(), "made", 3, SIZE), BatchCurationConfig(), data)
    assert method.start_epoch == start


def test_curation_that_would_stop_before_it_starts_by_itself_is_refused() -> None:
    data = clf.DataSpec("made", 256, SIZE, 3, 64, 4, 100, "print")
    with pytest.raises(clf.ConfigError, match=r"method\.stop_epoch = 10 .* starts with epoch 10; set"):
        BatchCuration(clf.Backbone(ChannelMeans(), "made", 3, SIZE), BatchCurationConfig(stop_epoch=10), data)


def test_crops_of_rejected_pairs_are_compared() -> None:
    source = colours(256)
    recipe = dataclasses.replace(clf.simclr_recipe(SIZE), crop_area=(0.04, 0.2))
    loaded = stream(source, recipe=recipe)
    here = Here(source)
    make().next_batch(loaded, context(here))
    one, other = stream(source, recipe=recipe).next().crops
    apart = crop_iou(one, other) < 0.1
    assert here.logged["low_iou_share"] == pytest.approx(apart.float().mean().item())
    assert 0 < here.logged["low_iou_share_of_rejected"] <= 1


def test_rates_of_classes_with_decay() -> None:
    rates = ClassRates(0.5)
    labels = torch.tensor([0, 0, 1, 1, 1, -1])
    rejected = torch.tensor([True, False, False, False, False, True])
    assert rates.update(labels, rejected).item() == pytest.approx(0.5)
    assert rates.update(labels, torch.zeros(6, dtype=torch.bool)).item() == pytest.approx(0.5 / 3)


def test_labels_are_recorded_and_change_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.arange(256) % 4)
    source, batches = colours(256), []
    for labels in (None, str(tmp_path / "labels.npy")):
        method = make(Small, labels=labels, sides="both", dissimilar_action="mask", conflict_quantile=0.2)
        here = Here(source)
        batches.append(method.next_batch(stream(source, recipe=clf.simclr_recipe(SIZE)), context(here)))
    assert torch.equal(batches[0].views[0], batches[1].views[0])
    assert isinstance(batches[1], Masked)
    conflict = batches[1].conflict
    y = batches[1].index % 4
    same = (y[:, None] == y)[conflict].float().mean().item()
    assert here.logged["same_class_share_of_conflicts"] == pytest.approx(same)
    assert 0 <= here.logged["class_rejection_spread"] <= 1


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"mode": "oracle"}, "mode = oracle needs method.oracle"),
    ({"oracle": "file"}, "oracle is read with method.mode=oracle only"),
    ({"sides": "both", "mode": "hard"}, "sides = both goes with method.mode=refresh only"),
    ({"sides": "both", "fallback": "drop"}, "fallback = drop goes with"),
    ({"dissimilar_action": "mask"}, "dissimilar_action = mask is of method.sides=both"),
    ({"trials": 8}, "trials are of method.mode=best_of_k"),
    ({"single_pass": True, "space": "h"}, "single_pass goes with"),
    ({"single_pass": True, "fallback": "drop"}, "single_pass cannot drop images"),
    ({"start_epoch": 3, "stop_epoch": 3}, "stop_epoch = 3 must be above method.start_epoch = 3"),
    ({"phi": 1.0}, "less than 1"),
    ({"rounds": -1}, "greater than or equal to 0"),
]


@pytest.mark.parametrize(("settings", "sentence"), MISFITS)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        BatchCurationConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("n", "settings", "sentence"),
    [
        (4, {}, "train.batch_size = 4 is too small to rank pairs by"),
        (8, {"start_epoch": 4}, "method.start_epoch = 4 leaves nothing to curate in train.epochs = 4"),
        (8, {"sides": "both"}, "method.evict_share = 0.0625 of a batch of 8 is less than one image"),
        (64, {"single_pass": True}, "rejects about 6 of a batch of 64: raise train.batch_size"),
    ],
)
def test_settings_that_do_not_fit_the_batch(n: int, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(clf.ConfigError, match=sentence):
        make(n=n, **settings)


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    method = make(Small)
    np.save(tmp_path / "short.npy", np.arange(5))
    np.save(tmp_path / "words.npy", np.array(["a"] * 256))
    (tmp_path / "text.pt").write_text("nothing")
    with pytest.raises(clf.ConfigError, match="must hold 256 whole numbers"):
        load_labels(tmp_path / "short.npy", method.data)
    with pytest.raises(clf.ConfigError, match="must hold 256 whole numbers"):
        load_labels(tmp_path / "words.npy", method.data)
    for path in ("none.npy", "text.pt"):
        with pytest.raises(clf.ConfigError, match="cannot be read as"):
            load_labels(tmp_path / path, method.data)
    with pytest.raises(clf.ConfigError, match="cannot be read: No such file"):
        load_oracle(tmp_path / "none.pt", method.backbone, method.data)
    with pytest.raises(clf.ConfigError, match="is no oracle: write one with"):
        load_oracle(tmp_path / "text.pt", method.backbone, method.data)
    head = nn.Linear(method.backbone.dim, 4)
    labels = torch.arange(256) % 4
    save_oracle(tmp_path / "other.pt", method.backbone, head, labels, "another print")
    with pytest.raises(clf.ConfigError, match="was made for other training images"):
        load_oracle(tmp_path / "other.pt", method.backbone, method.data)
    save_oracle(tmp_path / "good.pt", method.backbone, head, labels, "print")
    with pytest.raises(clf.ConfigError, match="holds another backbone than"):
        load_oracle(tmp_path / "good.pt", make().backbone, method.data)
    loaded = load_oracle(tmp_path / "good.pt", method.backbone, method.data)
    assert not any(module.training for module in loaded.network.modules())
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_several_processes_cannot_drop_images() -> None:
    here = Here(colours(256))
    here.world_size = 2
    with pytest.raises(clf.ConfigError, match="leaves the 2 processes with batches of different sizes"):
        make(fallback="drop").next_batch(stream(colours(256)), context(here))


def test_a_single_pass_in_chunks_is_not_compiled() -> None:
    method = make(Small, single_pass=True, single_pass_images=2)
    method.backbone.compiled, method.backbone.chunk_size = True, 8
    with pytest.raises(clf.ConfigError, match=r"cannot be compiled, and with train\.chunk_size"):
        method.next_batch(stream(colours(256)), context(Here(colours(256))))


EVERY_WAY: list[dict[str, Any]] = [
    {"phi": 0.4},
    {"phi": 0.4, "score_mode": "train", "fallback": "original"},
    {"phi": 0.4, "sides": "both", "conflict_quantile": 0.9, "evict_share": 0.25},
    {"sides": "both", "dissimilar_action": "mask", "conflict_quantile": 0.9},
    {"phi": 0.4, "single_pass": True, "single_pass_images": 1},
    {"mode": "best_of_k"},
    {"mode": "reject_batch", "rho": 0.0},
    {"mode": "random_refresh"},
    {"mode": "hard"},
]


@pytest.mark.parametrize("settings", EVERY_WAY, ids=str)
@pytest.mark.parametrize("count", [2, 4])
def test_ranks_curate_together_what_one_process_curates(settings: dict[str, Any], count: int) -> None:
    """Over three steps: images, views, loss and everything that is kept, in float64."""
    source = colours(256)
    recipe = clf.simclr_recipe(SIZE)

    def work(method: BatchCuration, rank: int, ranks: int, gather: Callable[[Tensor], Tensor]) -> list[Any]:
        loaded = Stream(source, [recipe, recipe], 64, 0, rank=rank, world_size=ranks, dtype=torch.float64)
        steps = []
        for step in range(3):
            here = Here(source, step)
            here.rank, here.world_size, here.gather = rank, ranks, gather  # type: ignore[method-assign, assignment]
            batch = method.next_batch(loaded, context(here))
            loss = method.training_step(batch, context(here)).loss.detach()
            steps.append((batch.index, *batch.views, loss.view(1), here.logged))
        return steps

    (one,) = on_ranks(1, lambda rank, gather: work(make(Plain, layers=1, **settings).double(), rank, 1, lambda x: x))
    methods = [make(Plain, layers=1, **settings).double() for _ in range(count)]
    several = on_ranks(count, lambda rank, gather: work(methods[rank], rank, count, gather))
    for step, (index, a, b, loss, logged) in enumerate(one):
        parts = [each[step] for each in several]
        assert torch.equal(torch.cat([part[0] for part in parts]), index)
        for view, expected in ((1, a), (2, b)):
            torch.testing.assert_close(torch.cat([part[view] for part in parts]), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.cat([part[3] for part in parts]).mean(), loss[0], rtol=1e-10, atol=0)
        means = {name: sum(part[4][name] for part in parts) / count for name in logged}
        assert means == pytest.approx(logged, rel=1e-10)
        assert (
            logged["redraws_per_image"] > 0 or settings.get("dissimilar_action") or settings["mode"] == "reject_batch"
        )
    for method in methods[1:]:
        assert all(torch.equal(value, methods[0].state_dict()[name]) for name, value in method.state_dict().items())
