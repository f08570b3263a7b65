"""hard_sample_gen's game: who moves whom and which way, what stands still, and how far it goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hard_sample_ring import batch, gradients, method, played, ring, same, state
from torch import Tensor, nn

import clf
from clf_hard_sample_gen import (
    game,
    hardness,
    source,
    views,
)
from clf_hard_sample_gen.methods import HardSample


def test_who_steps_when() -> None:
    made = method(warmup_frac=0.4, g_every=2, d_per_step=2)
    steps = []
    for step in range(10):
        ctx = ring(made, step=step)
        ctx.progress = step / 10
        made.training_step(batch(), ctx)
        ctx.step += 1
        made.after_step(ctx)
        steps.append(ctx.stepped)
    d = ["discriminator"] * 2
    assert steps == [[]] * 4 + [[*d, "generators"], d] * 3
    still = method(variant="static")
    ctx = ring(still)
    played(still, ctx)
    assert ctx.stepped == [] and still.game.joint is None


def test_nobody_gets_a_gradient_of_anothers_loss() -> None:
    made = method(norm=True)
    student = [made.backbone, made.projector]
    ctx = ring(made)
    out = made.training_step(batch(), ctx)
    assert isinstance(out, clf.StepOutput)
    out.loss.backward()  # type: ignore[no-untyped-call]
    assert gradients(made.game.children()) == 0
    assert gradients(student) == len(list(made.backbone.parameters())) + len(list(made.projector.parameters()))
    made.zero_grad()
    before = state(made.backbone)
    norms = state(made.game.generators)
    power: list[dict[str, Tensor]] = []

    def minimize(group: str, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        assert gradients(student) == 0
        own = made.game.discriminator if group == "discriminator" else made.game.generators
        assert gradients(made.game.children()) == gradients([own]) == len(list(own.parameters()))
        power.append(state(made.game.discriminator))
        made.zero_grad()

    ctx.minimize = minimize  # type: ignore[method-assign]
    made.after_step(ctx)
    assert same(state(made.backbone), before)  # the running statistics of its batch norm too
    assert same(*power)  # of the discriminator, whose power iteration rests in the generators' step
    assert not same(state(made.game.generators), norms)  # G's batch norm is in training mode
    assert all(part.training for part in made.modules())
    assert all(p.requires_grad for p in [*made.backbone.parameters(), *made.game.discriminator.parameters()])


def test_what_was_frozen_thaws_after_an_error() -> None:
    linear, norm = nn.Linear(2, 2), nn.BatchNorm1d(2).eval()
    part = nn.Sequential(linear, norm)
    linear.bias.requires_grad_(False)
    with pytest.raises(KeyError), source.frozen(part):
        assert not part.training and not any(p.requires_grad for p in part.parameters())
        raise KeyError
    assert part.training and linear.training and not norm.training
    assert [p.requires_grad for p in part.parameters()] == [True, False, True, True]


def steps_of_the_generators(push: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Any, Any]:
    """Hardness and cosine before and after one small step, of the same latents and draws; L_adv counts for nothing."""
    made = method(kappa_max=1e4, ramp=1e-3, **changes)
    monkeypatch.setattr(game, "control", lambda cosine, *_, **__: torch.full_like(cosine, push))
    monkeypatch.setattr(hardness, "LARGEST_WEIGHT", 1e12)
    made.training_step(batch(), ctx := ring(made))
    joint = made.game.joint
    found = []
    for lr in (2e-7, 0.0):
        made.game.joint, ctx.lr = joint, lr
        with monkeypatch.context() as patched:
            patched.setattr(game, "critic_step", lambda *_: {})  # the discriminator stands still
            made.after_step(ctx)
        found.append((float(ctx.logged["hardness"]), float(ctx.logged["pair_cosine"])))
    return found[0], found[1]


@pytest.mark.parametrize(
    "changes", [{}, {"variant": "hp"}, {"variant": "hs"}, {"pair_mode": "ema"}, {"base": "moco"}], ids=str
)
@pytest.mark.parametrize("push", [1, -1])
def test_a_step_of_the_generators_raises_what_the_encoder_lowers(
    push: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the reverse for a pair that has gone too far. The cosine of a pair that is pushed apart falls."""
    before, after = steps_of_the_generators(push, monkeypatch, **changes)
    assert push * (after[0] - before[0]) > 0
    assert push * (after[1] - before[1]) < 0


def test_a_step_of_the_encoder_lowers_the_loss_of_the_same_batch() -> None:
    made = method()
    ctx = ring(made, lr=1e-2)
    losses_ = []
    for _ in range(2):
        out = made.training_step(batch(), ctx)
        assert isinstance(out, clf.StepOutput)
        losses_.append(float(out.loss.detach()))
        ctx.minimize("main", out.loss)
    assert losses_[1] < losses_[0]


def test_hardness_reaches_both_images_and_not_through_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    made = method(ramp=1e-3)
    seen: list[list[Tensor]] = []

    def balance(realism: list[Tensor], hard: list[Tensor], kappa: float, squares: Tensor) -> hardness.Pull:
        seen.append(hard)
        return hardness.balance(realism, hard, kappa, squares)

    monkeypatch.setattr(game, "balance", balance)
    played(made, ring(made))
    assert [bool(h.flatten(1).any(1).all()) for h in seen[0]] == [True, True]
    exact = views.augment
    monkeypatch.setattr(views, "augment", lambda x, *rest: exact((255 * x).round() / 255, *rest))
    played(made, ctx := ring(made))
    assert [bool(h.any()) for h in seen[1]] == [False, False]
    assert ctx.logged["hardness_weight"] == 0


def test_hardness_weighs_nothing_at_the_start_of_the_game() -> None:
    made = method(warmup_frac=0.5)  # and half of the training is done: the ramp begins
    logged = played(made, ring(made))
    assert logged["hardness_weight"] == 0
    assert logged["floor"] == logged["real_cosine"]
    assert logged["twin_gap"] == 0


@torch.no_grad()
def cosine_of_real_pairs(made: HardSample) -> float:
    a, b = (F.normalize(made.encode(view), dim=1) for view in batch().views)
    return float((a * b).sum(1).mean())


def test_cosine_of_real_pairs_is_averaged_over_time() -> None:
    made = method()
    first = played(made, ring(made))["real_cosine"]
    assert first == pytest.approx(cosine_of_real_pairs(made))
    with torch.no_grad():
        for p in made.projector.parameters():
            p.add_(0.3)
    expected = 0.99 * first + 0.01 * cosine_of_real_pairs(made)
    assert played(made, ring(made))["real_cosine"] == pytest.approx(expected, abs=1e-12)


def cosines(kappa: float) -> tuple[list[float], float]:
    """Mean cosine of the pairs over 40 steps of Adam, and the floor; the encoder stands still."""
    made = method(kappa_max=kappa, ramp=1e-3, gan_batch=16, delta_max=0.3)
    ctx = ring(made)
    adam = {name: torch.optim.Adam(ctx.groups[name], 2e-3, (0.0, 0.9)) for name in ("generators", "discriminator")}

    def minimize(group: str, loss: Tensor) -> None:
        adam[group].zero_grad()
        loss.backward(inputs=ctx.groups[group])  # type: ignore[no-untyped-call]
        adam[group].step()

    ctx.minimize = minimize  # type: ignore[method-assign]
    found = []
    for ctx.step in range(40):
        logged = played(made, ctx)
        found.append(logged["pair_cosine"])
    return found, logged["floor"]


@pytest.mark.slow
def test_control_keeps_the_cosine_near_its_band() -> None:
    """With a large kappa pairs come down to the band [floor - 0.1, floor], within 0.1; without hardness they do not."""
    found, floor = cosines(3.0)
    assert found[0] > floor + 0.2
    assert floor - 0.2 < sum(found[-10:]) / 10 < floor + 0.1
    found, floor = cosines(0.0)
    assert min(found) > floor + 0.2
