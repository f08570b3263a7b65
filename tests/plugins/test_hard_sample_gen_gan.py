"""The GAN of hard_sample_gen: its networks, its pre-training, taking over another run's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hard_sample_ring import SPEC, method, ring, same, state
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import clf
from clf_hard_sample_gen import HardSampleConfig, source
from clf_hard_sample_gen.gan import SIZES, Discriminator, Generator, sides
from clf_hard_sample_gen.methods import HardSample


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (16, 3), (28, 1), (32, 1), (48, 3), (64, 3)])
def test_the_gan_makes_and_judges_images_of_the_size(side: int, channels: int) -> None:
    images = Generator(4, side, channels)(torch.randn(2, 128))
    assert images.shape == (2, channels, side, side) and images.abs().max() <= 1
    assert Discriminator(4, side, channels)(images).shape == (2,)


def test_the_full_gan_has_the_parameters_of_its_layers() -> None:
    """G: 128 x 4096 + 4096; three blocks of two norms, two 3x3 and a 1x1 at 256; norm and 3x3 to 3 channels.
    D: blocks 3 to 128 and 128 to 128 with 1x1, two without; 128 to 1."""
    size = SIZES["full"]
    g = 128 * 4096 + 4096 + 3 * (2 * 512 + 2 * (256 * 2304 + 256) + 256 * 256 + 256) + 512 + 3 * 2304 + 3
    d = (27 * 128 + 128) + (3 * 128 + 128) + 6 * (128 * 1152 + 128) + (128 * 128 + 128) + (128 * 1152 + 128) + 129
    assert sum(p.numel() for p in Generator(size.generator, 32, 3).parameters()) == g
    assert sum(p.numel() for p in Discriminator(size.discriminator, 32, 3).parameters()) == d


def test_spectral_norm_bounds_each_layer_and_rests_in_eval_mode() -> None:
    torch.manual_seed(0)
    d = Discriminator(8, 16, 3)
    for _ in range(30):
        d(torch.zeros(1, 3, 16, 16))
    for part in d.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            norm = torch.linalg.matrix_norm(part.weight.flatten(1), 2)
            assert float(norm.detach()) == pytest.approx(1, abs=0.02)
    before = state(d)
    d.eval()(torch.randn(2, 3, 16, 16))
    assert same(state(d), before)


def test_a_side_is_four_to_seven_pixels_doubled() -> None:
    """Those of 32 and 64 are the paper's; 28, 48 and 96 are the sides of Fashion-MNIST, the shapes and STL-10."""
    assert sides(32) == [4, 8, 16, 32] and sides(64) == [4, 8, 16, 32, 64] and sides(8) == [4, 8]
    assert sides(28) == [7, 14, 28] and sides(48) == [6, 12, 24, 48] and sides(96) == [6, 12, 24, 48, 96]
    assert sides(224) == [7, 14, 28, 56, 112, 224] and sides(40) == [5, 10, 20, 40]


@given(side=st.integers(8, 1024))
def test_other_sides_are_refused_with_the_two_nearest_that_can_be_made(side: int) -> None:
    if sides(side)[-1] == side:
        return
    with pytest.raises(clf.ConfigError, match=rf"data\.image_size = {side} cannot be made .* set it to") as caught:
        source.Source(HardSampleConfig(gan="tiny"), replace(SPEC, image_size=side))
    below, above = (int(word) for word in str(caught.value).split("set it to ")[1].split(" or "))
    assert below < side < above and sides(below)[-1] == below and sides(above)[-1] == above
    assert not any(sides(between)[-1] == between for between in range(below + 1, above))


@pytest.mark.parametrize(("side", "last"), [(8, 4), (16, 8), (28, 7), (32, 8), (48, 6), (64, 8)])
def test_the_discriminator_halves_down_to_eight_pixels_or_less(side: int, last: int) -> None:
    assert Discriminator(2, side, 1).blocks(torch.zeros(1, 1, side, side)).shape == (1, 2, last, last)


def test_what_ranks_cannot_share_is_told_before_the_pre_training() -> None:
    """Not after it: five latents for two ranks stop the first step of all."""
    made = method(synth_ratio=0.625)
    ctx = ring(made, world_size=2)
    with pytest.raises(clf.ConfigError, match="5 generated images cannot be divided among 2 processes"):
        made.preparation_step(ctx)
    assert ctx.stepped == []


def test_pre_training_steps_both_networks_and_makes_twins_of_the_result() -> None:
    made = method(gan_d_steps=3)
    ctx = ring(made, lr=1e-3)
    start = state(made.game.source)
    for ctx.step in range(made.preparation_steps):
        made.preparation_step(ctx)
    assert ctx.stepped == (["gan_discriminator"] * 3 + ["gan_generator"]) * 2
    assert {"gan_d_real", "gan_d_fake", "gan_d_accuracy"} == ctx.logged.keys()
    after = state(made.game.source)
    moved = {name.split(".")[0] for name in start if not torch.equal(start[name], after[name])}
    assert moved == {"generator", "discriminator", "ready"}
    for copied in (*made.game.generators, *made.game.averages):
        assert same(state(copied), state(made.game.source.generator))
    assert same(state(made.game.discriminator), state(made.game.source.discriminator))
    one, two = made.game.make(6, ctx, "any", 0.0)
    assert torch.equal(one, two)  # bit by bit


def test_the_gan_sees_the_training_images_and_no_others() -> None:
    ctx = ring(method())
    for ctx.step in range(40):
        source.RealImages(SPEC)(8, ctx, "real", torch.float64)
    seen = torch.cat(ctx.asked)
    assert len(seen) == 40 * 8
    assert sorted(set(seen.tolist())) == list(range(20))


def test_the_pre_training_is_announced_with_the_keys_that_shorten_it_until_it_is_over() -> None:
    made = method(gan_steps=2000)
    (note,) = made.notes()
    assert "2,000 steps" in note
    assert all(f"method.{key}" in note for key in ("gan=lite", "gan_steps", "gan_run"))
    made.game.source.ready.fill_(True)  # as after a resume
    assert not made.notes()
    assert not method(gan_run="runs/a", gan_steps=None).notes()


def saved(made: HardSample, **changes: Any) -> clf.SavedMethod:
    config = made.settings.model_dump()
    values = {"plugin": "hard_sample_gen", "config": config, "data": SPEC, "state": made.state_dict(), "path": Path()}
    return clf.SavedMethod(**{**values, "step": 0, "prepared": 2, **changes})


def test_a_gan_is_taken_from_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    giver, taker = method(), method(gan_run="runs/a", gan_steps=None)
    giver.game.source.ready.fill_(True)
    monkeypatch.setattr(clf, "saved_method", lambda path: saved(giver))
    assert taker.preparation_steps == 1
    with torch.no_grad():
        taker.game.source.generator.last.weight.zero_()
    ctx = ring(taker)
    taker.preparation_step(ctx)
    assert ctx.stepped == []
    assert same(state(taker.game.source), state(giver.game.source))
    assert same(state(taker.game.generators[1]), state(giver.game.source.generator))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"plugin": "moco"}, "is a run of 'moco'"),
        ({"data": replace(SPEC, image_size=32)}, r"a GAN of image size 32, and 8 is needed: set data\.image_size=32"),
        ({"data": replace(SPEC, channels=1)}, "a GAN of number of channels 1, and 3 is needed"),
        ({"config": {"gan": "full"}}, r"a GAN of width full, and tiny is needed: set method\.gan=full"),
        ({"data": replace(SPEC, fingerprint="half", n_images=10)}, r"trained on other images \(made, 10 of them\)"),
        ({}, "has not finished the pre-training"),
    ],
)
def test_another_runs_gan_must_fit(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], sentence: str) -> None:
    taker = method(gan_run="runs/a", gan_steps=None)
    monkeypatch.setattr(clf, "saved_method", lambda path: saved(method(), **changes))
    with pytest.raises(clf.ConfigError, match=sentence):
        taker.preparation_step(ring(taker))
