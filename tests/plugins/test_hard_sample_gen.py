"""hard_sample_gen: variants, MoCo as base, bad settings, state, pictures, and runs of the engine."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes import FakeContext
from hard_sample_ring import IMAGES, SIDE, SPEC, batch, gradients, method, played, ring, same
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_settings import SMALL
from torch import Tensor

import clf
from clf import experiment, settings, training
from clf.config import Config, Layer
from clf.runs import Run
from clf_hard_sample_gen import (
    HardSampleConfig,
    HardSampleMoCo,
    game,
    losses,
    source,
)
from clf_hard_sample_gen.methods import HardSample
from clf_moco import MoCoConfig


def parts(made: HardSample) -> tuple[int, int]:
    """How many generators are trained, and how many views a latent gets."""
    trained = sum(p.requires_grad for p in made.game.generators.parameters())
    each = len(list(made.game.generators[0].parameters()))
    return trained // each, len(made.game.enter(batch(), ring(made)))


def test_each_variant_has_its_generators_and_its_views() -> None:
    assert parts(method(variant="static")) == (0, 2)
    assert parts(method(variant="static_twin")) == (0, 4)
    assert parts(method(variant="hs")) == (1, 2)
    assert parts(method(variant="hp")) == parts(method(variant="full")) == (2, 4)
    assert parts(method(pair_mode="ema")) == parts(method(pair_mode="latent")) == (1, 4)


def test_neighbouring_latents_part_along_the_ramp_and_are_not_pushed() -> None:
    made = method(pair_mode="latent", warmup_frac=0.4, ramp=1.0)
    gaps = []
    for progress in (0.4, 0.6, 0.8):
        ctx = ring(made)
        ctx.progress = progress
        logged = played(made, ctx)
        gaps.append(logged["twin_gap"])
        assert logged["hardness_weight"] == 0
    assert gaps[0] == 0 and 0 < gaps[1] < gaps[2]


def test_a_static_generator_stands_still() -> None:
    made = method(variant="static_twin")
    before = [p.clone() for p in made.game.generators.parameters()]
    ctx = ring(made, lr=1.0)
    played(made, ctx)
    assert "generators" not in ctx.groups and "discriminator" not in ctx.groups
    assert all(map(torch.equal, before, made.game.generators.parameters()))
    one, two = made.game.make(4, ctx, "any", 1.0)
    assert torch.equal(one, two)


def test_fakes_are_used_again_with_new_views() -> None:
    made = method(fake_pool=3)
    fakes, seen = [], []
    for step in range(7):
        seen.append(made.game.enter(batch(), ring(made, step=step))[0])
        assert made.game.joint is not None
        fakes.append(made.game.joint.fakes.clone())
    equal = [torch.equal(a, b) for a, b in pairwise(fakes)]
    assert equal == [True, True, False, True, True, False]
    assert not torch.equal(seen[0], seen[1])


def test_averages_follow_the_generators() -> None:
    made = method()
    start = [p.clone() for p in made.game.averages[0].parameters()]
    played(made, ring(made, lr=0.01))
    for before, average, live in zip(
        start, made.game.averages[0].parameters(), made.game.generators[0].parameters(), strict=True
    ):
        torch.testing.assert_close(average, 0.999 * before + 0.001 * live)


def test_the_queue_holds_keys_of_real_images_only() -> None:
    made = method("moco")
    assert isinstance(made, HardSampleMoCo)
    out = made.training_step(batch(), ring(made))
    assert isinstance(out, clf.StepOutput)
    real = F.normalize(made.momentum_encoder(batch().views[1]), dim=1)
    torch.testing.assert_close(made.queue.rows[:IMAGES], real)
    assert int(made.queue.filled) == IMAGES
    out.loss.backward()  # type: ignore[no-untyped-call]
    assert gradients([made.momentum_encoder]) == 0


def test_a_synthetic_query_has_its_own_key_and_its_twins() -> None:
    made = method("moco")
    assert isinstance(made, HardSampleMoCo)
    ctx, queue = ring(made), made.queue.rows
    out = made.training_step(batch(), ctx)
    assert isinstance(out, clf.StepOutput)
    synthetic = made.game.enter(batch(), ring(made))  # the same draws
    keys = [F.normalize(made.momentum_encoder(x), dim=1) for x in (batch().views[1], synthetic[1], synthetic[3])]
    q = [F.normalize(made.encode(x), dim=1) for x in (batch().views[0], synthetic[0], synthetic[2])]
    terms = [*losses.keys(q[0], [keys[0]], queue, 0.2)]
    for query in q[1:]:
        terms += [*((losses.keys(query, [keys[1]], queue, 0.2) + losses.keys(query, [keys[2]], queue, 0.2)) / 2)]
    assert len(terms) == IMAGES + 2 * 4
    torch.testing.assert_close(out.loss, torch.stack(terms).mean())


def test_synthetic_keys_enter_the_queue_where_they_are_wanted() -> None:
    made = method("moco", enqueue_synth=True)
    assert isinstance(made, HardSampleMoCo)
    for step in range(5):  # 16 rows each, wherever the pointer is
        made.training_step(batch(), ring(made, step=step))
        assert int(made.queue.filled) == min(32, 16 * (step + 1))


def test_the_generators_of_moco_face_current_keys_and_the_queue() -> None:
    made = method("moco")
    assert isinstance(made, HardSampleMoCo)
    before = made.queue.rows
    made.training_step(batch(), ring(made))
    assert made.game.joint is not None and made.game.joint.negatives is not None
    negatives = made.game.joint.negatives
    assert negatives.shape == (3 * IMAGES, 5)
    torch.testing.assert_close(negatives[:IMAGES], F.normalize(made.momentum_encoder(batch().views[1]), dim=1))
    assert all((before == row).all(1).any() for row in negatives[IMAGES:])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"variant": "hs", "pair_mode": "ema"}, "pair_mode=ema makes a second image of each latent and variant=hs has"),
        ({"variant": "static", "pair_mode": "latent"}, "set variant to full or hp"),
        ({"gan_run": "runs/a", "gan_steps": 5}, "leave gan_steps and gan_d_steps out, or gan_run"),
        ({"base": "moco", "positives": "supcon"}, "with base=moco the negatives are those of the queue"),
        ({"base": "moco", "denominator": "separate"}, "leave both out, or set base=simclr"),
        ({"enqueue_synth": True}, "needs a queue: set base=moco"),
        (
            {"moco": {"queue_size": 64}},
            r"method\.moco\.queue_size is set, but method\.base is simclr: remove it or set",
        ),
        (
            {"base": "moco", "simclr": {"temperature": 0.1}},
            r"method\.simclr\.temperature is set, .* method\.base=simclr",
        ),
        ({"kappa_max": -1}, "greater than or equal to 0"),
        ({"synth_ratio": 0}, "greater than 0"),
        ({"gan_batch": 7}, "multiple of 2"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence) as caught:
        HardSampleConfig(**changes)
    assert caught.value.error_count() == 1


def test_latents_must_be_whole_and_shared_by_all_ranks() -> None:
    for ratio in (0.3, 0.125):
        with pytest.raises(clf.ConfigError, match=r"of train\.batch_size = 8 are .* set method\.synth_ratio=0\.25, or"):
            method(synth_ratio=ratio)
    with pytest.raises(clf.ConfigError, match="4 generated images cannot be divided among 3 processes"):
        source.share(4, FakeContext(world_size=3))


def test_mistakes_in_the_bases_settings_are_told_with_their_whole_names() -> None:
    with pytest.raises(clf.ConfigError, match=r"^method\.moco\.queue_size = 30 .* set method\.moco\.queue_size=32$"):
        method("moco", moco=MoCoConfig(queue_size=30))


@pytest.mark.parametrize("base", ["simclr", "moco"])
def test_the_engine_trains_it_as_it_would_the_base(base: str) -> None:
    """Optimizer and schedule; the command line still wins."""
    of_base, _ = settings.resolve([Layer("command line", {"plugin": base})])
    given = {"plugin": "hard_sample_gen", "method.base": base}
    ours, _ = settings.resolve([Layer("command line", given)])
    assert ours.optimizer == of_base.optimizer and ours.schedule == of_base.schedule
    mine, _ = settings.resolve([Layer("command line", {**given, "optimizer.name": "adamw"})])
    assert mine.optimizer.name == "adamw"


@given(size=st.integers(2, 1000), ratio=st.floats(0.01, 1))
@example(size=161, ratio=0.01)  # 161 x (2 / 161) is a little below 2
def test_the_share_of_latents_that_is_advised_is_accepted(size: int, ratio: float) -> None:
    spec = replace(SPEC, batch_size=size)
    try:
        found = game.latents_of(HardSampleConfig(synth_ratio=ratio), spec)
        assert found == pytest.approx(ratio * size, abs=1e-6)
    except clf.ConfigError as refused:
        (advice,) = re.findall(r"set method\.synth_ratio=(\S+), or", str(refused))
        assert game.latents_of(HardSampleConfig(synth_ratio=float(advice)), spec) == max(2, round(ratio * size))


def test_split_batch_norm_must_divide_the_joint_batch() -> None:
    moco = MoCoConfig(queue_size=32, bn_splits=4)
    with pytest.raises(clf.ConfigError, match=r"8 real images and 6 synthetic ones cannot be divided .* 4 groups"):
        method("moco", norm=True, moco=moco, synth_ratio=0.375)


@pytest.mark.parametrize("changes", [{}, {"variant": "static"}, {"base": "moco", "fake_pool": 2}], ids=str)
def test_its_state_is_all_of_it(changes: dict[str, Any]) -> None:
    """A method with the state of another goes on as that one, to the bit."""
    one = method(**changes)
    played(one, ring(one, lr=0.01))
    two = method(**changes)
    with torch.no_grad():
        for p in two.parameters():
            p.add_(1)
    two.load_state_dict(one.state_dict())
    for each in (one, two):
        played(each, ring(each, step=1, lr=0.01))
    assert same(one.state_dict(), two.state_dict())


@pytest.mark.parametrize(
    ("changes", "rows"), [({}, 2), ({"variant": "static"}, 1), ({"variant": "hs"}, 2), ({"pair_mode": "latent"}, 2)]
)
def test_pictures_are_grids_of_images(changes: dict[str, Any], rows: int) -> None:
    made = method(**changes).eval()
    (grid,) = made.pictures().values()
    assert grid.shape == (rows, game.SHOWN, 3, SIDE, SIDE)
    assert float(grid.min()) >= 0 and float(grid.max()) <= 1
    torch.testing.assert_close(grid, next(iter(made.pictures().values())))


def configured(folder: Path, name: str, plugin: str, **changes: Any) -> Config:
    small = {
        **SMALL,
        "run.dir": str(folder),
        "run.name": name,
        "plugin": plugin,
        "train.max_steps": 5,
        "monitor.knn_every": 0,
        "monitor.log_every": 1,
    }
    tiny = {"method.gan": "tiny", "method.gan_batch": 8} if plugin == "hard_sample_gen" else {}
    return settings.resolve([Layer("test", {**small, **tiny}), Layer("command line", changes)])[0]


def end(run: Run) -> dict[str, Tensor]:
    return experiment.load(run).method.state_dict()


@pytest.mark.parametrize("base", ["simclr", "moco"])
def test_the_warm_up_is_the_base_method_bit_by_bit(base: str, tmp_path: Path) -> None:
    """Although a GAN was trained before. Weights, batch norms, queue, and every record that both have."""
    same_engine = {"optimizer.name": "sgd", "optimizer.lr": 0.05, "schedule.warmup_epochs": 0}
    own = {"queue_size": 32} if base == "moco" else {"temperature": 0.3}
    alone = {f"method.{key}": value for key, value in own.items()}
    inside = {f"method.{base}.{key}": value for key, value in own.items()}
    ours = {"method.base": base, "method.warmup_frac": 0.9, "method.gan_steps": 2}
    first = training.train(configured(tmp_path, "base", base, **same_engine, **alone), callbacks=[])
    config = configured(tmp_path, "ours", "hard_sample_gen", **same_engine, **inside, **ours)
    config = config.model_copy(update={"optimizer": first.config().optimizer, "schedule": first.config().schedule})
    second = training.train(config, callbacks=[])
    expected, found = end(first), end(second)
    assert expected.keys() == {name for name in found if not name.startswith("game.")}
    assert all(torch.equal(x, found[name]) for name, x in expected.items())
    records = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in run.metrics() if r["kind"] == "train"]
        for run in (first, second)
    ]
    assert records[0] == records[1] and len(records[0]) == 5


def test_a_run_with_another_runs_gan_begins_with_its_twins(tmp_path: Path) -> None:
    giver = training.train(configured(tmp_path, "giver", "hard_sample_gen", **{"method.gan_steps": 3}), callbacks=[])
    reuse = {"method.gan_run": str(giver.path), "method.warmup_frac": 0.9, "train.max_steps": 1}
    taker = training.train(configured(tmp_path, "taker", "hard_sample_gen", **reuse), callbacks=[])
    theirs, mine = end(giver), end(taker)
    for name, x in theirs.items():
        if name.startswith("game.source."):
            assert torch.equal(mine[name], x)
            for player in ("generators.0", "generators.1", "averages.0"):
                copied = name.replace("source.generator", player)
                assert "source.generator" not in name or torch.equal(mine[copied], x)
    giver.path.rename(tmp_path / "elsewhere")
    assert experiment.load(taker).method.pictures()  # the other run is needed once only
    fewer = {**reuse, "method.gan_run": str(tmp_path / "elsewhere"), "data.options.train_images": 48}
    with pytest.raises(clf.ConfigError, match=r"trained on other images .* 96 of them\) than this run's \(.*, 48\)"):
        training.train(configured(tmp_path, "fewer", "hard_sample_gen", **fewer), callbacks=[])
