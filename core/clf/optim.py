"""Optimizers by name, with the exclusions that the field uses, and LARS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer

from clf.config import OptimizerSection
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
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, w: Parameter, g: Tensor, group: dict[str, Any]) -> None:
        if group["adapt"]:
            g = g.add(w, alpha=group["weight_decay"])
            w_norm, g_norm = w.norm(), g.norm()
            usable = (w_norm > 0) & (g_norm > 0)
            trust = torch.where(usable, group["eta"] * w_norm / g_norm.clamp_min(1e-30), torch.ones_like(w_norm))
            g = g * trust
        state = self.state[w]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(w)
        v: Tensor = state["momentum_buffer"]
        v.mul_(group["momentum"]).add_(g, alpha=group["lr"])
        w.sub_(v)


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
    if section.name == "adamw":
        return AdamW(groups, lr=section.lr, betas=section.betas)
    if section.name == "sgd":
        return SGD(groups, lr=section.lr, momentum=section.momentum)
    for group in groups:
        group["adapt"] = group["params"] is decayed
    return LARS(groups, lr=section.lr, momentum=section.momentum)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
