"""Optimizers: the LARS step worked out by hand, the exclusions, the learning-rate schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from clf.config import OptimizerSection, ScheduleSection
from clf.errors import ConfigError
from clf.optim import LARS, make_optimizer, schedule_factor

SECTION = OptimizerSection(name="lars", lr=1.0, weight_decay=0.1)


def test_lars_takes_the_hand_worked_step() -> None:
    """w = (3, 4), g = (0.8, -0.6), wd 0.1, eta 0.001, lr 1: g' = (1.1, -0.2), trust = 0.001 * 5 / |g'|."""
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    w.grad = torch.tensor([0.8, -0.6], dtype=torch.float64)
    LARS([w], lr=1.0, momentum=0.9, weight_decay=0.1).step()
    step = torch.tensor([3.0, 4.0], dtype=torch.float64) - w.detach()
    torch.testing.assert_close(
        step, torch.tensor([0.0049193496, -0.0008944272], dtype=torch.float64), atol=1e-10, rtol=0
    )


def test_lars_keeps_the_learning_rate_inside_the_momentum_buffer() -> None:
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = LARS([w], lr=1.0, momentum=0.9, weight_decay=0.0)
    w.grad = torch.tensor([1.0, 0.0], dtype=torch.float64)
    optimizer.step()
    before = w.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    torch.testing.assert_close(
        before - w.detach(), torch.tensor([0.9 * 0.005, 0.0], dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_lars_without_a_norm_uses_a_trust_of_one() -> None:
    w = nn.Parameter(torch.zeros(2))
    w.grad = torch.tensor([0.5, 0.0])
    LARS([w], lr=1.0, momentum=0.0).step()
    assert w.tolist() == [-0.5, 0.0]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_biases_and_norms_are_left_out_of_weight_decay(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Conv2d(1, 2, 3))
    section = OptimizerSection.model_validate({"name": name, "lr": 0.1, "weight_decay": 0.01})
    groups = make_optimizer(section, model.parameters()).param_groups
    assert [len(group["params"]) for group in groups] == [2, 4]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    if name == "lars":
        assert [group["adapt"] for group in groups] == [True, False]
    whole = section.model_copy(update={"decay_norm_and_bias": True})
    assert [len(group["params"]) for group in make_optimizer(whole, model.parameters()).param_groups] == [6]


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="without trainable parameters"):
        make_optimizer(SECTION, [])
    with pytest.raises(ConfigError, match="not set"):
        make_optimizer(OptimizerSection(name="sgd"), nn.Linear(1, 1).parameters())


def test_the_schedule_warms_up_peaks_and_falls_to_its_end() -> None:
    cosine = ScheduleSection(final_lr=0.1)
    factors = [schedule_factor(step, 100, 10, cosine) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.55)  # half way down between 1 and 0.1
    assert factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert schedule_factor(99, 100, 0, ScheduleSection(name="constant")) == 1.0
