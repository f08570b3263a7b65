"""MoCo: values of the paper's equations, what is a negative when, the momentum encoder, shuffled keys, ranks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes import FakeContext, backbone, batch, data, rows_of
from pydantic import ValidationError
from rank_equality import IMAGES, assert_ranks_equal_one_process
from rank_threads import Gather, on_ranks
from torch import Tensor

import clf
from clf.method import DataSpec
from clf_moco import MoCo, MoCoConfig


def moco(*, norm: bool = False, spec: DataSpec | None = None, **changes: Any) -> MoCo:
    """In float64, on four images a step; the key encoder has other weights than the query encoder."""
    settings = MoCoConfig(**{"queue_size": 8, "projection_dim": 5, **changes})
    method = MoCo(backbone(norm=norm), settings, spec or data()).double().train()
    with torch.no_grad():
        for p in method.momentum_encoder.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype))
    return method


def plain_loss(method: MoCo, x: Tensor, y: Tensor) -> Tensor:
    """Equation 1 with both encoders applied to all rows in order."""
    q = F.normalize(method.projector(method.backbone(x)), dim=1)
    with torch.no_grad():
        k = F.normalize(method.momentum_encoder(y), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue.rows.T], dim=1) / method.config.temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))


def test_golden_values_of_the_contrast() -> None:
    i, d = torch.arange(6, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)[None, :]
    a = torch.sin(1.0 + 1.7 * i[:4] + 0.9 * d)
    b = a + 0.25 * torch.cos(0.5 + 0.8 * i[:4] + 1.3 * d)
    a, b, queue = (F.normalize(x, dim=1) for x in (a, b, torch.cos(0.3 + 0.7 * i + 1.1 * d)))
    assert moco().contrast(a, b, queue, FakeContext()).loss.item() == pytest.approx(0.5808821270, abs=1e-9)
    assert moco(temperature=0.07).contrast(b, a, queue, FakeContext()).loss.item() == pytest.approx(0.4419271588)


def test_a_step_is_equation_1_against_the_queue_of_before() -> None:
    method, images = moco(), batch()
    expected, before = plain_loss(method, *images.views), method.queue.rows
    out = method.training_step(images, FakeContext())
    torch.testing.assert_close(out.loss, expected)
    k = F.normalize(method.momentum_encoder(images.views[1]), dim=1)
    torch.testing.assert_close(method.queue.rows[:4], k)
    assert torch.equal(method.queue.rows[4:], before[4:])


def test_metrics_have_their_meaning() -> None:
    """Two queries; one is nearer to its key than to the queue, one is not."""
    e = torch.eye(3, dtype=torch.float64)
    found = moco().contrast(e[:2], torch.stack([e[0], -e[1]]), e, FakeContext()).metrics
    assert found["contrast_accuracy"] == 0.0  # equal to the best negative is not nearer
    found = moco().contrast(e[:2], torch.stack([e[0], -e[1]]), e[2:], FakeContext()).metrics
    assert found["contrast_accuracy"] == 0.5
    assert found["positive_similarity"] == 0.0 and found["negative_similarity"] == 0.0
    method = moco(queue_size=16)
    shares = [method.training_step(batch(), FakeContext()).metrics["queue_fill"] for _ in range(5)]
    assert shares == [0.0, 0.25, 0.5, 0.75, 1.0]  # when the step began


def test_all_equal_embeddings_give_the_log_of_the_number_of_candidates() -> None:
    method = moco(queue_size=12)
    row = F.normalize(torch.ones(4, 5, dtype=torch.float64), dim=1)
    loss = method.contrast(row, row, row[:1].expand(12, 5), FakeContext()).loss
    assert loss.item() == pytest.approx(math.log(13))


def test_the_symmetric_loss_is_the_sum_of_two_against_the_same_queue() -> None:
    one, images = moco(symmetric=True), batch()
    x, y = images.views
    expected = plain_loss(one, x, y) + plain_loss(one, y, x)
    torch.testing.assert_close(one.training_step(images, FakeContext()).loss, expected)
    keys = F.normalize(one.momentum_encoder(torch.cat([y, x])), dim=1)
    torch.testing.assert_close(one.queue.rows, keys)


def test_the_key_encoder_is_outside_the_optimizer_and_gets_no_gradient() -> None:
    method = moco(symmetric=True)
    trained = {id(p) for group in method.parameter_groups().values() for p in group}  # type: ignore[union-attr]
    keys = list(method.momentum_encoder.parameters())
    assert keys and not trained & {id(p) for p in keys}
    assert trained == {id(p) for part in (method.backbone, method.projector) for p in part.parameters()}
    method.training_step(batch(), FakeContext()).loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None and not p.requires_grad for p in keys)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.projector.parameters())


def test_both_encoders_start_equal_and_the_keys_follow() -> None:
    method = MoCo(backbone(norm=True), MoCoConfig(queue_size=8, momentum=0.9), data())
    pairs = list(zip(method.momentum_encoder.parameters(), method._query_encoder().parameters(), strict=True))
    assert pairs and all(torch.equal(k, q) and k is not q for k, q in pairs)
    start = [k.clone() for k, _ in pairs]
    with torch.no_grad():
        for _, q in pairs:
            q.add_(1.0)
    for _ in range(3):
        method.after_step(FakeContext())
    for (k, q), before in zip(pairs, start, strict=True):
        torch.testing.assert_close(k, q + 0.9**3 * (before - q))


def test_running_statistics_of_the_keys_are_their_own() -> None:
    method = moco(norm=True, batch_norm="plain")
    method.training_step(batch(), FakeContext())
    method.after_step(FakeContext())
    (ours,) = (m for m in method.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    (theirs,) = (m for m in method.momentum_encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert ours.running_mean is not None and theirs.running_mean is not None
    assert theirs.training and theirs.num_batches_tracked == 1
    assert not torch.allclose(theirs.running_mean, ours.running_mean)
    assert theirs.running_mean.abs().sum() > 0


def on(method: MoCo, count: int, work: Callable[[MoCo, FakeContext], Any], step: int = 0) -> list[Any]:
    """``work`` on copies of a method, one a rank."""
    copies = [copy.deepcopy(method) for _ in range(count)]

    def run(rank: int, gather: Gather) -> Any:
        return work(copies[rank], FakeContext(step, rank, count, gather))

    return on_ranks(count, run)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shuffled_keys_come_back_in_order(count: int) -> None:
    """Without anything that sees several rows, the shuffle changes nothing."""
    method = moco(spec=data(batch_size=12), queue_size=12)
    method.shuffled = True
    images = batch(12)
    expected = F.normalize(method.momentum_encoder(images.views[1]), dim=1)
    parts = on(method, count, lambda m, ctx: m.keys([rows_of(images, ctx.rank, count).views[1]], ctx)[0])
    torch.testing.assert_close(torch.cat(parts), expected)


@pytest.mark.parametrize("count", [2, 3])
def test_each_image_is_encoded_once_and_on_another_place(count: int) -> None:
    """Ranks agree on the permutation, which mixes their rows and is another one in the next step and view."""
    method = moco(spec=data(batch_size=12), queue_size=12)
    method.shuffled = True
    numbered = torch.arange(12, dtype=torch.float64).view(12, 1, 1, 1).expand(12, 3, 4, 4)

    def seen(m: MoCo, ctx: FakeContext) -> list[list[int]]:
        inputs: list[list[int]] = []
        m.momentum_encoder.register_forward_pre_hook(lambda _, x: inputs.append(x[0][:, 0, 0, 0].int().tolist()))
        mine = numbered[ctx.rank * 12 // count : (ctx.rank + 1) * 12 // count]
        m.keys([mine, mine], ctx)
        return inputs

    orders = []
    for step in range(2):
        by_rank = on(method, count, seen, step)
        for view in range(2):
            order = [i for rank in by_rank for i in rank[view]]
            assert sorted(order) == list(range(12)) != order
            blocks = [{i * count // 12 for i in rank[view]} for rank in by_rank]
            assert all(len(sources) > 1 for sources in blocks)
            orders.append(tuple(order))
    assert len(set(orders)) == 4


def test_split_norm_and_shuffle_part_a_query_from_its_keys_statistics() -> None:
    """An image's key changes with another image's pixels in its group, and the groups of the keys are not the queries'.

    Six images in three groups: query 0 shares statistics with image 3 alone; its key must share them with others in
    some steps.
    """
    method, images = moco(norm=True, spec=data(batch_size=6), queue_size=6, bn_splits=3), batch(6)
    assert method.shuffled
    (x, _), ctx = images.views, FakeContext()

    def partners(embed: Callable[[Tensor], Tensor]) -> set[int]:
        before = embed(x)[0]
        found = set()
        for i in range(1, 6):
            other = x.clone()
            other[i] += 1 + torch.arange(4, dtype=torch.float64)
            if not torch.allclose(embed(other)[0], before):
                found.add(i)
        return found

    assert partners(lambda v: method.queries([v])[0].detach()) == {3}
    met = set()
    for step in range(8):
        ctx.step = step
        found = partners(lambda v: method.keys([v], ctx)[0])
        assert len(found) == 1
        met |= found
    assert len(met) > 2


def test_plain_batch_norm_is_left_as_it_is_and_nothing_is_shuffled() -> None:
    method, images = moco(norm=True, batch_norm="plain"), batch()
    assert [type(m) for m in method.backbone.modules() if "BatchNorm" in type(m).__name__] == [torch.nn.BatchNorm2d]
    expected = plain_loss(copy.deepcopy(method), *images.views)
    torch.testing.assert_close(method.training_step(images, FakeContext()).loss, expected)
    assert moco(norm=True, batch_norm="shuffle").shuffled and not moco(batch_norm="shuffle").shuffled


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_equal_one_process(count: int, symmetric: bool) -> None:
    one = moco(spec=data(batch_size=IMAGES), queue_size=24, symmetric=symmetric, momentum=0.5)
    one.shuffled = True
    assert_ranks_equal_one_process(one, count)


def test_queue_pointer_and_key_encoder_survive_a_checkpoint() -> None:
    method, fresh = moco(norm=True, bn_splits=2), moco(norm=True, bn_splits=2)
    method.training_step(batch(seed=1), FakeContext())
    method.after_step(FakeContext(1))
    fresh.load_state_dict(method.state_dict())
    a, b = (m.training_step(batch(seed=2), FakeContext(1)) for m in (method, fresh))
    assert torch.equal(a.loss, b.loss)
    for name, value in method.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    assert method.queue.pointer == 0 and method.queue.filled == 8


def test_heads() -> None:
    shapes = [[tuple(p.shape) for p in moco(head=head).projector.parameters()] for head in ("mlp", "linear")]
    assert shapes == [[(6, 6), (6,), (5, 6), (5,)], [(5, 6), (5,)]]
    assert next(tuple(p.shape) for p in moco(hidden_dim=7).projector.parameters()) == (7, 6)


@pytest.mark.parametrize(
    ("n_images", "batch_size", "symmetric", "length"),
    [
        (1_281_167, 256, False, 65_536),
        (50_000, 512, False, 4_608),
        (50_000, 512, True, 4_096),
        (6_000, 256, False, 512),
        (96, 16, True, 32),
    ],
)
def test_the_queue_suits_the_data(n_images: int, batch_size: int, symmetric: bool, length: int) -> None:
    spec = data(n_images=n_images, batch_size=batch_size)
    assert len(moco(queue_size=None, spec=spec, symmetric=symmetric).queue) == length


@pytest.mark.parametrize(
    ("batch_size", "groups"), [(1024, 8), (256, 8), (128, 4), (100, 2), (96, 3), (64, 2), (33, 1), (2, 1)]
)
def test_groups_of_batch_norm_keep_32_images_where_they_can(batch_size: int, groups: int) -> None:
    method = moco(norm=True, spec=data(batch_size=batch_size), queue_size=None)
    (found,) = {m.splits for m in method.backbone.modules() if isinstance(m, clf.nn.SplitBatchNorm)}
    assert found == groups


@pytest.mark.parametrize("count", [2, 3, 4, 6, 8])
def test_derived_groups_suit_any_number_of_ranks(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch that the ranks can divide trains: 224 images are 7 groups of 32, which two ranks cannot halve."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: count)
    for batch_size in range(2 * count, 300, count):
        method = moco(norm=True, spec=data(batch_size=batch_size), queue_size=None)
        method.backbone(torch.rand(batch_size // count, 3, 4, 4, dtype=torch.float64))


def test_settings_that_do_not_fit_are_refused_with_one_that_does() -> None:
    with pytest.raises(clf.ConfigError, match=r"queue_size = 10 .* steps of 4 keys .*set method.queue_size=8"):
        moco(queue_size=10)
    with pytest.raises(clf.ConfigError, match=r"4, symmetric\): set method.queue_size=16"):
        moco(queue_size=12, symmetric=True)
    with pytest.raises(clf.ConfigError, match=r"bn_splits = 4 .*batch_size = 4 .*set method.bn_splits=2"):
        moco(norm=True, bn_splits=4)
    with pytest.raises(clf.ConfigError, match=r"bn_splits = 8 .*batch_size = 30 .*set method.bn_splits=6"):
        moco(norm=True, bn_splits=8, spec=data(batch_size=30), queue_size=30)
    assert moco(bn_splits=4).shuffled is False  # without batch norm there is nothing to split
    for wrong in ({"temperature": 0}, {"temperature": -0.1}, {"momentum": 1.1}, {"queue_size": 0}, {"head": "conv"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            MoCoConfig.model_validate(wrong)


def test_recipes_follow_the_paper_and_the_notebook() -> None:
    large, second = moco(spec=data(image_size=224)).views()
    assert large == second
    assert (large.crop_area, large.jitter, large.hue, large.grayscale) == ((0.2, 1.0), 0.8, 0.1, 0.2)
    assert (large.brightness, large.contrast, large.saturation) == (0.4, 0.4, 0.4)
    assert (large.blur, large.blur_sigma, large.flip) == (0.5, (0.1, 2.0), 0.5)
    small = moco(spec=data(image_size=32)).views()[0]
    assert small.crop_area == (0.08, 1.0) and small.blur == 0
    grey = moco(spec=data(image_size=32, channels=1)).views()[0]
    assert grey.saturation == grey.hue == grey.grayscale == 0 < grey.brightness
