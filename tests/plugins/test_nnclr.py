"""NNCLR: golden values, which row is the neighbour, where gradient flows, what the support set holds, ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes import FakeContext, backbone, batch, data
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rank_equality import IMAGES, assert_ranks_equal_one_process
from torch import Tensor, nn

import clf
from clf.method import DataSpec
from clf_nnclr import NNCLR, NNCLRConfig, nearest


def nnclr(spec: DataSpec | None = None, **changes: Any) -> NNCLR:
    """In float64, on four images a step."""
    small = {"queue_size": 8, "hidden_dim": 7, "projection_dim": 5, "predictor_dim": 9}
    return NNCLR(backbone(), NNCLRConfig(**{**small, **changes}), spec or data()).double().train()


def bare(**changes: Any) -> NNCLR:
    """Without batch norm in projector and predictor, so that rows do not see each other."""
    method = nnclr(**changes)
    method.projector = nn.Sequential(nn.Linear(6, 5)).double()
    method.predictor = nn.Sequential(nn.Linear(5, 5)).double()
    return method


def toy() -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows: two views of four images, a queue of six, in five dimensions, without random numbers."""
    i, d = torch.arange(6, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)[None, :]
    a = torch.sin(1.0 + 1.7 * i[:4] + 0.9 * d)
    b = a + 0.25 * torch.cos(0.5 + 0.8 * i[:4] + 1.3 * d)
    queue = torch.cos(0.3 + 0.7 * i + 1.1 * d)
    return F.normalize(a, dim=1), F.normalize(b, dim=1), F.normalize(queue, dim=1)


def naive(anchors: Tensor, p: Tensor, tau: float) -> float:
    """One direction, one pair at a time: the positive and the N - 1 others of the other view."""
    total = 0.0
    for i, anchor in enumerate(anchors.tolist()):
        logits = [sum(x * y for x, y in zip(anchor, row, strict=True)) / (math.hypot(*row) * tau) for row in p.tolist()]
        total += math.log(sum(map(math.exp, logits))) - logits[i]
    return total / len(p)


def test_golden_neighbours_and_losses() -> None:
    a, b, queue = toy()
    assert nearest(a, queue).tolist() == nearest(b, queue).tolist() == [0, 1, 3, 5]
    method, ctx = nnclr(), FakeContext()
    anchors = queue[nearest(a, queue)]
    assert method.contrast(anchors, b, ctx).loss.item() == pytest.approx(0.4018266393, abs=1e-9)
    assert method.contrast(anchors, a, ctx).loss.item() == pytest.approx(1.0026171462, abs=1e-9)


def test_the_loss_of_a_step_is_the_mean_of_both_directions() -> None:
    """Identity networks on rows that are the toy's views."""
    a, b, queue = toy()
    method = nnclr(queue_size=8)
    method.backbone, method.projector, method.predictor = nn.Flatten(), nn.Sequential(), nn.Sequential()  # type: ignore[assignment]
    method.queue.rows = torch.cat([queue, -a[:1], -a[:1]])
    images = clf.Batch((a, b), torch.arange(4), torch.zeros(4, 3, 4, 4, dtype=torch.uint8), lambda *_: (a, b))
    method.ids = torch.tensor([0, 7, 9, 2, 9, 9, 9, 9])
    out = method.training_step(images, FakeContext())
    assert out.loss.item() == pytest.approx(0.7022218927, abs=1e-9)
    assert out.metrics["self_neighbour_rate"] == 0.5  # images 0 and 2
    similarity = torch.cat([queue[[0, 1, 3, 5]] * a, queue[[0, 1, 3, 5]] * b]).sum(1).mean()
    torch.testing.assert_close(out.metrics["neighbour_similarity"], similarity)
    torch.testing.assert_close(method.queue.rows[:4], a)  # view 1 alone
    assert method.ids.tolist() == [0, 1, 2, 3, 9, 9, 9, 9]
    assert torch.equal(method.queue.rows[4:6], queue[4:])


def test_a_views_neighbours_meet_the_other_views_predictions() -> None:
    method, images = bare(queue_size=32), batch()
    z1, z2 = (method.projector(method.backbone(x)).detach() for x in images.views)
    p1, p2 = method.predictor(z1).detach(), method.predictor(z2).detach()
    near1, near2 = (method.queue.rows[(F.normalize(z, dim=1) @ method.queue.rows.T).argmax(1)] for z in (z1, z2))
    assert not torch.equal(near1, near2)
    expected = (naive(near1, p2, 0.1) + naive(near2, p1, 0.1)) / 2
    assert method.training_step(images, FakeContext()).loss.item() == pytest.approx(expected, abs=1e-9)


@given(n=st.integers(1, 5), e=st.integers(2, 5), tau=st.floats(0.05, 5), seed=st.integers(0, 1000))
def test_one_direction_equals_the_double_loop(n: int, e: int, tau: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    anchors, p = torch.randn(2, n, e, generator=g, dtype=torch.float64).unbind()
    anchors = F.normalize(anchors, dim=1)
    found = contrast_at(tau, anchors, p).loss.item()
    assert found == pytest.approx(naive(anchors, p, tau), rel=1e-9, abs=1e-9)


def contrast_at(tau: float, anchors: Tensor, p: Tensor) -> clf.StepOutput:
    METHOD.config = NNCLRConfig(temperature=tau)
    return METHOD.contrast(anchors, p, FakeContext())


METHOD = nnclr()


def test_equal_embeddings_give_the_log_of_the_batch_size() -> None:
    row = F.normalize(torch.ones(6, 5, dtype=torch.float64), dim=1)
    out = contrast_at(0.1, row, row)
    assert out.loss.item() == pytest.approx(math.log(6))
    assert out.metrics["positive_similarity"] == pytest.approx(1.0)


def test_with_its_own_projections_in_the_queue_it_is_info_nce_between_the_views() -> None:
    a, b, _ = toy()
    assert nearest(a, a).tolist() == [0, 1, 2, 3]
    expected = F.cross_entropy(a @ b.T / 0.1, torch.arange(4))
    torch.testing.assert_close(contrast_at(0.1, a[nearest(a, a)], b).loss, expected)


@given(length=st.integers(1, 40), chunk=st.integers(1, 50), seed=st.integers(0, 1000))
def test_a_look_up_in_pieces_finds_the_first_of_the_nearest(length: int, chunk: int, seed: int) -> None:
    """Rows along the axes, so that there are many ties and the sums are exact in any order."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.cat([torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)])
    queue = axes[torch.randint(6, (length,), generator=g)]
    z = torch.randint(-2, 3, (5, 3), generator=g).double()
    similarity = [[float(row @ key) for key in queue] for row in z]
    assert nearest(z, queue, chunk).tolist() == [row.index(max(row)) for row in similarity]


def test_no_gradient_reaches_the_anchors_branch() -> None:
    """View 1 is the anchor of the first direction and view 2 its target; the support set is constant."""
    method, (x, y) = bare(), batch().views
    z1, z2 = (method.projector(method.backbone(v)) for v in (x, y))
    z1.retain_grad()
    z2.retain_grad()
    anchors = method.queue.rows[nearest(F.normalize(z1, dim=1), method.queue.rows)]
    assert not anchors.requires_grad
    method.contrast(anchors, method.predictor(z2), FakeContext()).loss.backward()  # type: ignore[no-untyped-call]
    assert z1.grad is None
    assert z2.grad is not None and z2.grad.abs().sum() > 0
    assert method.predictor[0].weight.grad is not None


def test_all_parts_are_trained_by_a_step() -> None:
    method = nnclr()
    method.training_step(batch(), FakeContext()).loss.backward()  # type: ignore[no-untyped-call]
    trained = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    silent = {name for name, gradient in trained.items() if gradient is None or gradient.abs().max() < 1e-12}
    assert silent == {"backbone.model.0.bias"}  # a batch norm follows it
    assert not method.queue.rows.requires_grad


def test_the_look_up_comes_before_the_rows_of_the_step_are_stored() -> None:
    """The same images twice: a stranger is nearest in the first step, each image itself in the second."""
    method, images = bare(queue_size=4), batch()
    with torch.no_grad():
        rates = [method.training_step(images, FakeContext()).metrics["self_neighbour_rate"] for _ in range(2)]
    assert rates[0] == 0.0
    assert rates[1] >= 0.5  # view 1 finds its own row
    z = F.normalize(method.projector(method.backbone(images.views[0])), dim=1)
    torch.testing.assert_close(method.queue.rows, z)
    assert torch.equal(method.ids, images.index)


def test_the_support_set_is_first_in_first_out() -> None:
    method = bare(queue_size=8)
    with torch.no_grad():
        fill = [method.training_step(batch(seed=t), FakeContext(t)).metrics["queue_fill"] for t in range(3)]
    assert fill == [0.0, 0.5, 1.0]  # when the step began
    assert method.ids.tolist() == [8, 9, 10, 11, 4, 5, 6, 7]


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_equal_one_process(count: int) -> None:
    assert_ranks_equal_one_process(bare(spec=data(batch_size=IMAGES), queue_size=24), count)


def test_the_support_set_survives_a_checkpoint() -> None:
    method, fresh = nnclr(), nnclr(projection_dim=5)
    method.training_step(batch(seed=1), FakeContext())
    fresh.load_state_dict(method.state_dict())
    a, b = (m.training_step(batch(seed=2), FakeContext(1)) for m in (method, fresh))
    assert torch.equal(a.loss, b.loss)
    assert torch.equal(fresh.queue.rows, method.queue.rows) and torch.equal(fresh.ids, method.ids)


def test_layers_are_those_of_the_paper() -> None:
    method = NNCLR(backbone(), NNCLRConfig(), data(n_images=200_000, batch_size=4096))
    linear = [
        [tuple(m.weight.shape) for m in part if isinstance(m, nn.Linear)]
        for part in (method.projector, method.predictor)
    ]
    assert linear == [[(2048, 6), (2048, 2048), (256, 2048)], [(4096, 256), (256, 4096)]]
    kinds = [[type(m).__name__ for m in part] for part in (method.projector, method.predictor)]
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds == [[*block, *block, "Linear", "BatchNorm1d"], [*block, "Linear"]]
    shift = method.projector.get_parameter("7.bias")  # which the predictor's batch norm would take out again
    assert not shift.requires_grad and not shift.any()
    assert len(method.queue) == 98_304 == 24 * 4096


def test_the_queue_suits_the_data_or_says_why_not() -> None:
    assert len(nnclr(data(n_images=6000, batch_size=256), queue_size=None).queue) == 5888
    with pytest.raises(clf.ConfigError, match=r"queue_size = 10 .*batch_size = 4 .*set method.queue_size=8"):
        nnclr(queue_size=10)
    for wrong in ({"temperature": 0}, {"queue_size": 0}, {"projection_dim": 0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            NNCLRConfig.model_validate(wrong)


def test_half_precision_is_computed_in_float32() -> None:
    a, b, queue = (x.float() for x in toy())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest(a, queue).tolist() == [0, 1, 3, 5]
        loss = contrast_at(0.1, queue[[0, 1, 3, 5]], b).loss
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(0.4018266393, abs=1e-6)
