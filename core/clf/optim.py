"""Optimizers by name, with the exclusions that the field uses, LARS, and the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer

from clf.config import OptimizerSection, ScheduleSection
from clf.errors import ConfigError


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling: SGD whose step is a fixed share of each tensor's norm.

    You et al., arXiv 1708.03888, in the form of SimCLR's released code (google-research/simclr, lars_optimizer.py):
    g' = g + wd w;  trust = eta |w| / |g'|  (1 if either norm is 0);  v = momentum v + lr trust g';  w = w - v.
    Groups with ``adapt: False`` (biases, norms) get neither weight decay nor the trust ratio.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            pairs: list[tuple[Tensor, Tensor]] = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if pairs:
                self._update([w for w, _ in pairs], [g for _, g in pairs], group)
        return loss

    def _update(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """All tensors of a group at once: a few kernels instead of a few for each."""
        if group["adapt"]:
            gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
            w_norms, g_norms = torch._foreach_norm(weights), torch._foreach_norm(gradients)
            trust = [_trust(w, g, group["eta"]) for w, g in zip(w_norms, g_norms, strict=True)]
            torch._foreach_mul_(gradients, trust)
        for w in weights:
            if "momentum_buffer" not in self.state[w]:
                self.state[w]["momentum_buffer"] = torch.zeros_like(w)
        velocities = [self.state[w]["momentum_buffer"] for w in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients, alpha=group["lr"])
        torch._foreach_sub_(weights, velocities)


def _trust(w_norm: Tensor, g_norm: Tensor, eta: float) -> Tensor:
    usable = (w_norm > 0) & (g_norm > 0)
    return torch.where(usable, eta * w_norm / g_norm.clamp_min(1e-30), torch.ones_like(w_norm))


def make_optimizer(section: OptimizerSection, parameters: Iterable[Parameter]) -> Optimizer:
    """The configured optimizer over one parameter group of a method.

    Biases and norms (tensors of fewer than two dimensions) are left out of weight decay, and of LARS' trust ratio,
    unless ``decay_norm_and_bias`` is set.

    Raises:
        ConfigError: there is nothing to train, or the learning rate has not been derived.
    """
    trainable = [p for p in parameters if p.requires_grad]
    if not trainable:
        raise ConfigError("the method has a parameter group without trainable parameters")
    if section.lr is None or section.weight_decay is None:
        raise ConfigError("optimizer.lr and optimizer.weight_decay are not set: call clf.config.derive first")
    whole = section.decay_norm_and_bias
    decayed = [p for p in trainable if whole or p.ndim >= 2]
    plain = [p for p in trainable if not whole and p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": section.weight_decay}] if decayed else []
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    fused = all(p.device.type in ("cpu", "cuda") for p in trainable)  # one kernel over all tensors
    if section.name == "adamw":
        return AdamW(groups, lr=section.lr, betas=section.betas, fused=fused)
    if section.name == "adam":
        return Adam(groups, lr=section.lr, betas=section.betas, fused=fused)
    if section.name == "sgd":
        return SGD(groups, lr=section.lr, momentum=section.momentum, fused=fused)
    for group in groups:
        group["adapt"] = group["params"] is decayed
    return LARS(groups, lr=section.lr, momentum=section.momentum)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def schedule_factor(
    step: int, total: int, warmup: int, schedule: ScheduleSection, steps_per_epoch: float = 1.0
) -> float:
    """The share of the peak learning rate at a step: linear warm-up, then constant, cosine or linear.

    The first step after the warm-up has the peak; the step after the last would have ``final_lr``. With ``per: epoch``
    all steps of an epoch have the rate of its first.
    SimCLR, section 2.3; applied per step. MoCo's released code (main_moco.py) applies the cosine per epoch.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    if schedule.per == "epoch":
        step = math.ceil(math.floor(step / steps_per_epoch + 1e-9) * steps_per_epoch - 1e-9)
    start = max(warmup, total - round(schedule.decay * total))
    progress = max(0, step - start) / max(1, total - start)
    fallen = 1 - progress if schedule.name == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return schedule.final_lr + (1 - schedule.final_lr) * fallen
