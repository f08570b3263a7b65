"""Ranks under ``torchrun``: several processes that together do exactly what one process would do.

There is no wrapper round the method. Weights are broadcast once; a method computes the mean loss of its local rows
against gathered ones; the backward of :func:`gather` sums over ranks and :func:`average_gradients` then averages, which
gives the gradient of the mean over all rows (the scheme of google-research/simclr, objective.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clf.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def start(device: str) -> Ranks:
    """Joins the process group that ``torchrun`` describes in the environment, or stands alone without it."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _choose(device, local_rank)
    if world_size == 1:
        return Ranks(device=chosen)
    if not dist.is_initialized():
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), chosen)


def stop() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _choose(device: str, local_rank: int) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", local_rank)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"train.device = {device} cannot be used here ({reason}): set cpu, cuda or auto") from error
    return chosen


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, world_size: int) -> Tensor:
        ctx.rows = slice(rank * len(x), (rank + 1) * len(x))
        parts = [torch.empty_like(x) for _ in range(world_size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.rows], None, None


def gather(x: Tensor, ranks: Ranks) -> Tensor:
    """(N, ...) on each rank -> (M, ...) on all ranks in rank order; its backward sums the gradients of all ranks."""
    if ranks.world_size == 1:
        return x
    gathered: Tensor = _Gather.apply(x, ranks.rank, ranks.world_size)
    return gathered


def average_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Replaces each gradient by its mean over ranks, in one message per dtype."""
    if ranks.world_size == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= ranks.world_size
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def broadcast(module: nn.Module, ranks: Ranks) -> None:
    """Gives every rank the parameters and buffers of rank 0."""
    if ranks.world_size == 1:
        return
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, src=0)


def mean_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """The mean of a tensor of scalars over ranks; used for metrics."""
    if ranks.world_size == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / ranks.world_size


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether the flag is set on at least one rank, so that all ranks decide alike."""
    if ranks.world_size == 1:
        return flag
    value = torch.tensor([float(flag)], device=ranks.device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())
