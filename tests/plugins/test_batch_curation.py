"""Batch curation on hand-made networks: refreshing, exchanging, hygiene, and every mode."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from curation_toys import SIZE, ChannelMeans, Here, Plain, Small, all_ranks, colours, context, make, stream
from torch import Tensor, nn

import clf
from clf import losses
from clf.data.stream import Stream
from clf_batch_curation import BatchCuration, Masked
from clf_batch_curation.config import BatchCurationConfig
from clf_batch_curation.curate import Curation
from clf_batch_curation.loss import masked_nt_xent
from clf_batch_curation.oracle import ClassRates, Oracle
from clf_batch_curation.ranks import (
    conflicts,
    crop_iou,
    evictions,
)


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
