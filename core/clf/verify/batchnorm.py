"""Batch norm over the rows of all ranks, so that several ranks can equal one process with it too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clf.nn import SplitBatchNorm


class _Sum(torch.autograd.Function):
    """The sum over ranks; each rank's part of the loss depends on it, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`torch.nn.functional.batch_norm` of (n, D, ...) with mean and variance over the rows of all ranks."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    if training:
        count = x.numel() // x.shape[1] * (dist.get_world_size() if dist.is_initialized() else 1)
        mean = _over_ranks(x.sum(axes)) / count  # (D,)
        variance = _over_ranks((x - mean.view(shape)).square().sum(axes)) / count  # (D,)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.detach(), momentum)
            running_var.lerp_(variance.detach() * count / max(count - 1, 1), momentum)
    else:
        assert running_mean is not None and running_var is not None
        mean, variance = running_mean, running_var
    y = (x - mean.view(shape)) * (variance.view(shape) + eps).rsqrt()
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def _over_ranks(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x) if dist.is_initialized() else x
    return total


def _no_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return x


@contextmanager
def of_all_rows() -> Iterator[None]:
    """While entered, every batch norm of this process sees the rows of all ranks, and dropout drops nothing.

    Batch norms that imitate several GPUs (:class:`clf.nn.SplitBatchNorm`) see all rows too, as one group.
    """
    whole = patch.object(SplitBatchNorm, "splits", 1)
    with patch.object(F, "batch_norm", batch_norm), patch.object(F, "dropout", _no_dropout), whole:
        yield
