"""DCL on SimCLR, MoCo and NNCLR: golden values, the loss of the base when the positive is put back, ranks, settings.

The loss functions themselves are tested in tests/core/test_dcl_loss.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from rank_threads import on_ranks
from torch import Tensor, nn

import clf
from clf import config as configuration
from clf import settings
from clf.backbones import Backbone
from clf.config import Layer
from clf.describe import describe
from clf.losses import attraction_weights, decouple, decouple_views
from clf_dcl import DCL, DCLNNCLR, DCLConfig, DCLMoCo
from clf_moco import MoCo
from clf_nnclr import NNCLR
from clf_simclr import SimCLR

BASES = {"simclr": SimCLR, "moco": MoCo, "nnclr": NNCLR}


@dataclass
class OneStep:
    """What a loss needs of a context."""

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Tensor], Tensor] = lambda x: x

    def generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(len(name))

    def as_context(self) -> clf.Context:
        return cast(clf.Context, self)


CTX = OneStep().as_context()


def build(batch_size: int = 4, **given: Any) -> Any:
    """A method of 8-pixel images on one linear layer, with the smallest heads and queues."""
    small = {"nnclr": {"hidden_dim": 8, "predictor_dim": 8, "projection_dim": 5}, "moco": {"projection_dim": 5}}
    base = given.get("base", "simclr")
    nested = {**small.get(base, {"projection_dim": 5}), **given.pop(base, {})}
    config = DCLConfig.model_validate({**given, base: nested})
    backbone = Backbone(nn.Sequential(nn.Flatten(), nn.Linear(192, 6)), "linear", channels=3, image_size=8)
    data = clf.DataSpec("squares", 64, 8, 3, batch_size, steps_per_epoch=16, epochs=1)
    return DCL.build(backbone, config, data)


def toy(spread: float = 0.25) -> tuple[Tensor, Tensor, Tensor]:
    """Four images in five dimensions and six rows of a queue, without random numbers, of unit length.

    a = sin(1 + 1.7 i + 0.9 d), b = a + spread cos(0.5 + 0.8 i + 1.3 d), queue = cos(0.3 + 0.7 i + 1.1 d).
    """
    i = torch.arange(6, dtype=torch.float64)[:, None]
    d = torch.arange(5, dtype=torch.float64)[None, :]
    a = torch.sin(1.0 + 1.7 * i + 0.9 * d)[:4]
    b = a + spread * torch.cos(0.5 + 0.8 * i + 1.3 * d)[:4]
    queue = torch.cos(0.3 + 0.7 * i + 1.1 * d)
    a, b, queue = (F.normalize(x, dim=1) for x in (a, b, queue))
    return a, b, queue


def contrast(method: Any, a: Tensor, b: Tensor, ctx: clf.Context = CTX, queue: Tensor | None = None) -> clf.StepOutput:
    """The loss of the pairs (a, b) with any base; with nnclr a are the neighbours, with moco the queue is the toy's."""
    if isinstance(method, MoCo):
        return method.contrast(a, b, toy()[2] if queue is None else queue, ctx)
    output: clf.StepOutput = method.contrast(a, b, ctx)
    return output


def decoupled(base: str, a: Tensor, b: Tensor, tau: float) -> Any:
    """The anchors of a base, as the loss functions see them."""
    if base == "simclr":
        return decouple_views(a, b, tau)
    return decouple(a, b, toy()[2], tau) if base == "moco" else decouple(a, b, b, tau, torch.arange(len(a))[:, None])


@pytest.mark.parametrize(
    ("base", "kind"), [("simclr", DCL), ("moco", DCLMoCo), ("nnclr", DCLNNCLR)], ids=["simclr", "moco", "nnclr"]
)
def test_the_base_chooses_the_method(base: str, kind: type) -> None:
    method = build(base=base, temperature=0.3)
    assert type(method) is kind and isinstance(method, BASES[base])
    assert method.name == "dcl" and method.Config is DCLConfig
    assert method.config.temperature == 0.3 and method.settings.base == base
    assert method.min_batch_size < 32  # the paper's smallest batch, which is its point


@pytest.mark.parametrize(
    ("spread", "tau", "plain", "weighted"),
    [(0.25, 0.5, -0.4732439898, -0.4728289618), (1.5, 0.1, -2.4862902244, -1.9055193768)],
)
def test_golden_values_on_simclr(spread: float, tau: float, plain: float, weighted: float) -> None:
    a, b, _ = toy(spread)
    assert contrast(build(temperature=tau), a, b).loss.item() == pytest.approx(plain, abs=1e-9)
    assert contrast(build(temperature=tau, weighted=True), a, b).loss.item() == pytest.approx(weighted, abs=1e-9)


@pytest.mark.parametrize(("tau", "golden"), [(0.07, -2.5861904414), (0.2, -0.5896198218)])
def test_golden_values_on_moco(tau: float, golden: float) -> None:
    a, b, _ = toy()
    assert contrast(build(base="moco", temperature=tau), a, b).loss.item() == pytest.approx(golden, abs=1e-9)


def test_golden_values_on_nnclr() -> None:
    a, b, queue = toy()
    neighbours = queue[[0, 1, 3, 5]]  # of both views
    method = build(base="nnclr", temperature=0.1)
    found = [contrast(method, neighbours, p) for p in (b, a)]
    assert found[0].loss.item() == pytest.approx(-5.6180708279, abs=1e-9)
    assert found[1].loss.item() == pytest.approx(-5.0148326359, abs=1e-9)
    assert float(found[0].metrics["nt_xent"]) == pytest.approx(0.4018266393, abs=1e-9)
    assert float(found[1].metrics["nt_xent"]) == pytest.approx(1.0026171462, abs=1e-9)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_the_positive_put_back_gives_the_loss_of_the_base(base: str, tau: float) -> None:
    """Value and gradient, against the base's own code; neighbours are constants."""
    a, b, _ = toy(1.5)
    method = build(base=base, temperature=tau)
    x, y = a.requires_grad_(base != "nnclr"), b.requires_grad_()
    trained = [each for each in (x, y) if each.requires_grad]
    kind: Any = BASES[base]
    queue = [toy()[2]] if base == "moco" else []
    plain = kind.contrast(method, x, y, *queue, CTX)
    each = decoupled(base, x, y, tau)
    assert float(contrast(method, x, y).metrics["nt_xent"]) == pytest.approx(plain.loss.item(), abs=1e-12)
    torch.testing.assert_close(each.nt_xent.mean(), plain.loss)
    multiplied = (each.npc_multiplier.detach() * each.dcl).mean()
    for loss in (each.nt_xent.mean(), multiplied):
        mine = torch.autograd.grad(loss, trained, retain_graph=True)
        its = torch.autograd.grad(plain.loss, trained, retain_graph=True)
        for one, other in zip(mine, its, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_weights_are_those_of_the_pairs_that_attract(base: str, sigma: float) -> None:
    """Against the definition, pair by pair: w = 2 - exp(s / sigma) / mean of exp(s / sigma)."""
    a, b, _ = toy(1.5)
    output = contrast(build(base=base, temperature=0.5, weighted=True, sigma=sigma), a, b)
    s = [float(x @ y) for x, y in zip(a, b, strict=True)]
    mean = sum(math.exp(each / sigma) for each in s) / 4
    w = [2 - math.exp(each / sigma) / mean for each in s]
    plain = contrast(build(base=base, temperature=0.5), a, b)
    correction = sum((1 - w_i) * s_i / 0.5 for w_i, s_i in zip(w, s, strict=True)) / 4
    assert output.loss.item() == pytest.approx(plain.loss.item() + correction, abs=1e-9)
    assert float(output.metrics["weight_min"]) == pytest.approx(min(w), abs=1e-9)
    assert float(output.metrics["weight_max"]) == pytest.approx(max(w), abs=1e-9)
    assert "weight_min" not in plain.metrics


def test_weights_carry_a_gradient_only_when_asked() -> None:
    _, b, _ = toy()
    norms = []
    for detach in (True, False):
        i = torch.arange(4, dtype=torch.float64)[:, None]
        x = torch.sin(1.0 + 1.7 * i + 0.9 * torch.arange(5, dtype=torch.float64)).requires_grad_()
        method = build(temperature=0.5, weighted=True, detach_weight=detach)
        (gradient,) = torch.autograd.grad(contrast(method, x, b).loss, x)
        norms.append(gradient.norm().item())
    assert norms == pytest.approx([0.2635758393, 0.2649252675], abs=1e-9)


@pytest.mark.parametrize("base", BASES)
def test_metrics(base: str) -> None:
    a, b, _ = toy(1.5)
    metrics = {name: float(value) for name, value in contrast(build(base=base, temperature=0.5), a, b).metrics.items()}
    each = decoupled(base, a, b, 0.5)
    q = torch.sigmoid(each.dcl)
    assert metrics["npc_multiplier"] == pytest.approx(float(q.mean()), abs=1e-12)
    assert metrics["npc_multiplier_std"] == pytest.approx(float((q - q.mean()).square().mean().sqrt()), abs=1e-12)
    assert metrics["positive_similarity"] == pytest.approx(float((a * b).sum(1).mean()), abs=1e-12)
    rivals = {"simclr": torch.cat([a, b]), "moco": toy()[2], "nnclr": b}[base]
    anchors = torch.cat([a, b]) if base == "simclr" else a
    partners = torch.cat([b, a]) if base == "simclr" else b
    cosines, wins = [], []
    for i, (x, y) in enumerate(zip(anchors, partners, strict=True)):
        others = [float(x @ r) for j, r in enumerate(rivals) if base == "moco" or i % 4 != j % 4]
        cosines.append(sum(others) / len(others))
        wins.append(float(x @ y) > max(others))
    assert metrics["negative_similarity"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-12)
    assert metrics["contrast_accuracy"] == pytest.approx(sum(wins) / len(wins), abs=1e-12)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("given", [{}, {"weighted": True}, {"weighted": True, "detach_weight": False}])
def test_several_ranks_equal_one_process(ranks: int, base: str, given: dict[str, Any]) -> None:
    """Loss, gradient and metrics, with two images on each rank."""
    g = torch.Generator().manual_seed(ranks)
    rows = torch.randn(2, 2 * ranks, 5, generator=g, dtype=torch.float64)
    a, b = (F.normalize(x, dim=1).requires_grad_() for x in rows)
    method = build(2 * ranks, base=base, temperature=0.3, **given)

    def local(rank: int, gather: Callable[[Tensor], Tensor]) -> clf.StepOutput:
        mine = slice(2 * rank, 2 * rank + 2)
        return contrast(method, a[mine], b[mine], OneStep(rank, ranks, gather).as_context())

    parts, whole = on_ranks(ranks, local), contrast(method, a, b)
    loss = torch.stack([part.loss for part in parts]).mean()
    torch.testing.assert_close(loss, whole.loss, atol=1e-12, rtol=0)
    for mine, its in zip(torch.autograd.grad(loss, (a, b)), torch.autograd.grad(whole.loss, (a, b)), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-12, rtol=0)
    for name, value in whole.metrics.items():
        mean = sum(float(part.metrics[name]) for part in parts) / ranks
        assert mean == pytest.approx(float(value), abs=1e-12), name


@pytest.mark.parametrize("base", BASES)
def test_autocast_changes_nothing(base: str) -> None:
    a, b, queue = (x.float() for x in toy(1.5))
    method = build(base=base, temperature=0.05, weighted=True)
    plain = contrast(method, a, b, queue=queue)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = contrast(method, a, b, queue=queue)
        rounded = contrast(method, a, b.bfloat16(), queue=queue)
    assert mixed.loss.dtype == rounded.loss.dtype == torch.float32
    assert mixed.loss.item() == plain.loss.item()
    assert rounded.loss.item() == pytest.approx(contrast(method, a, b.bfloat16().float(), queue=queue).loss.item())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_a_step_trains_encoder_and_projector(base: str, weighted: bool) -> None:
    method = build(base=base, weighted=weighted)
    g = torch.Generator().manual_seed(0)
    views = tuple(torch.rand(2, 4, 3, 8, 8, generator=g))
    images = (255 * views[0]).byte()
    batch = clf.Batch(views, torch.arange(4), images, augment=lambda *_: views)
    output = method.training_step(batch, CTX)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert {"nt_xent", "npc_multiplier", "contrast_accuracy"} <= set(output.metrics)
    assert ("weight_min" in output.metrics) is weighted
    assert all(p.grad is not None and bool(p.grad.any()) for p in method.backbone.parameters())
    assert all(p.grad is not None for p in method.projector.parameters() if p.requires_grad)


def test_the_symmetric_loss_of_moco_is_decoupled_in_both_directions() -> None:
    a, b, queue = toy()
    method = build(base="moco", moco={"symmetric": True, "queue_size": 8}, temperature=0.2)
    method.queries = lambda views: (a, b)
    method.keys = lambda views, ctx: (b, a)
    method.queue.rows = torch.cat([queue, queue[:2]])
    rows = method.queue.rows
    output = method.training_step(clf.Batch((a, b), torch.arange(4), a, augment=lambda *_: (a, b)), CTX)
    expected = [decouple(q, k, rows, 0.2).dcl.mean() for q, k in ((a, b), (b, a))]
    torch.testing.assert_close(output.loss, expected[0] + expected[1])


def refusal(**values: Any) -> str:
    """What a user is told who sets these keys of the method."""
    layer = Layer("command line", {"plugin": "dcl", **{f"method.{key}": value for key, value in values.items()}})
    with pytest.raises(clf.ConfigError) as refused:
        configuration.build([layer], DCLConfig)
    return str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": -0.1}, "method.temperature"),
        ({"weighted": True, "sigma": 0}, "method.sigma"),
        ({"base": "byol"}, "method.base"),
        ({"simclr.temperature": 0.2}, "set method.temperature instead"),
        ({"base": "moco", "moco.temperature": 0.07}, "set method.temperature instead"),
        ({"moco.queue_size": 4096}, "set method.base=moco"),
        ({"base": "nnclr", "simclr.layers": 3}, "set method.base=simclr"),
        ({"sigma": 0.1}, "set method.weighted=true"),
        ({"detach_weight": False}, "set method.weighted=true"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], said: str) -> None:
    message = refusal(**values)
    assert said in message and "\n" not in message and "dict" not in message


@pytest.mark.parametrize("base", BASES)
def test_the_engine_trains_it_as_it_would_the_base(base: str) -> None:
    """Optimizer and schedule; the command line still wins."""
    of_base, _ = settings.resolve([Layer("command line", {"plugin": base})])
    given = {"plugin": "dcl", "method.base": base}
    of_dcl, _ = settings.resolve([Layer("command line", given)])
    assert of_dcl.optimizer == of_base.optimizer and of_dcl.schedule == of_base.schedule
    mine, _ = settings.resolve([Layer("command line", {**given, "optimizer.name": "adamw"})])
    assert mine.optimizer.name == "adamw"


def test_settings_of_the_base_reach_it() -> None:
    assert build(base="moco", moco={"queue_size": 12}).queue.rows.shape == (12, 5)
    assert build(simclr={"projection_dim": 7}).projector[-1].out_features == 7
    saved = DCLConfig.model_validate({"base": "moco", "moco": {"queue_size": 12}}).model_dump(mode="json")
    assert DCLConfig.model_validate(saved).moco.queue_size == 12  # what a run's file says can be read again


def test_settings_of_the_bases_are_listed_one_by_one() -> None:
    (method,) = describe("dcl").methods
    listed = {setting.key: setting for setting in method.settings}
    assert listed["method.moco.momentum"].default == 0.999 and "m of" in listed["method.moco.momentum"].description
    assert "method.moco" not in listed and len(listed) == len(method.settings)


def test_a_base_that_refuses_a_setting_names_it_as_dcl_knows_it() -> None:
    with pytest.raises(clf.ConfigError, match=r"method\.moco\.queue_size = 5.*set method\.moco\.queue_size="):
        build(base="moco", moco={"queue_size": 5})


@pytest.mark.parametrize("base", ["simclr", "nnclr"])
def test_a_batch_of_one_is_refused(base: str) -> None:
    with pytest.raises(clf.ConfigError, match=r"train\.batch_size = 1 leaves dcl without negatives"):
        build(1, base=base)
    a, b, _ = toy()
    with pytest.raises(ValueError, match="at least two images"):
        contrast(build(base=base), a[:1], b[:1])


def test_one_image_is_enough_beside_a_queue() -> None:
    a, b, _ = toy()
    assert torch.isfinite(contrast(build(1, base="moco"), a[:1], b[:1]).loss)


def test_weights_of_both_orders_of_the_pairs_are_those_of_the_pairs() -> None:
    a, b, _ = toy(1.5)
    positive = decouple_views(a, b, 0.5).positive
    torch.testing.assert_close(attraction_weights(positive, 0.5)[:4], attraction_weights(positive[:4], 0.5))
