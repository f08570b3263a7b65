"""Small modules every paper shares."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from clf.errors import ConfigError

__all__ = ["Queue", "SplitBatchNorm", "mlp", "momentum_update", "split_batch_norm"]


def mlp(*widths: int, batch_norm: bool = True, last_batch_norm: bool = False) -> nn.Sequential:
    """A projector: linear layers with ReLU between them, ``mlp(512, 512, 128)`` has two.

    Args:
        widths: input, hidden and output width.
        batch_norm: batch norm after each hidden linear layer, which then has no bias.
        last_batch_norm: batch norm without shift after the last one, as in SimCLR's released code (model_util.py).

    Raises:
        ValueError: fewer than two widths.
    """
    if len(widths) < 2:
        raise ValueError(f"mlp needs an input and an output width, got {widths}")
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        normed = last_batch_norm if i == last else batch_norm
        layers.append(nn.Linear(fan_in, fan_out, bias=not normed))
        if normed:
            layers.append(_norm(fan_out, shift=i != last))
        if i != last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _norm(width: int, shift: bool) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(width)
    if not shift:
        norm.bias.requires_grad_(False)
    return norm


class Queue(nn.Module):
    """The last ``length`` rows that were pushed, first in, first out: the dictionary of MoCo, NNCLR's support set.

    It starts as random unit vectors. Its state is buffers, so checkpoints hold it; under several ranks push gathered
    rows, so that every rank has the same queue. MoCo (He et al., 2019, arXiv 1911.05722), section 3.2.

    Raises:
        ValueError: a length or a width below 1.
    """

    rows: Tensor
    """(K, E) float. Never changed in place: a loss of before a push keeps the rows it saw."""
    pointer: Tensor
    """int64, the place of the oldest row, which the next push overwrites."""
    filled: Tensor
    """int64, how many rows were pushed and not drawn at random: at most K."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        if length < 1 or dim < 1:
            raise ValueError(f"a queue needs a length and a width of 1 or more, got {length} and {dim}")
        self.register_buffer("rows", F.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fill(self) -> Tensor:
        """The share of rows that were pushed, in [0, 1]."""
        return self.filled / len(self)

    @torch.no_grad()
    def push(self, rows: Tensor) -> Tensor:
        """Overwrites the oldest rows.

        Args:
            rows: (n, E), as they are to be stored; n must divide the length.

        Returns:
            (n,) int64, the places they were written to, for what is stored beside them.

        Raises:
            ValueError: n does not divide the length, or E is another.
        """
        if len(rows) == 0 or len(self) % len(rows) or rows.shape[1:] != self.rows.shape[1:]:
            raise ValueError(
                f"a queue of shape {tuple(self.rows.shape)} cannot take rows of {tuple(rows.shape)}: their number must "
                "divide its length, and their width must be its own"
            )
        places = self.pointer + torch.arange(len(rows), device=self.rows.device)  # (n,), never past the end
        self.rows = self.rows.index_copy(0, places, rows.to(self.rows.dtype))
        self.pointer = (self.pointer + len(rows)) % len(self)
        self.filled = (self.filled + len(rows)).clamp(max=len(self))
        return places


@torch.no_grad()
def momentum_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """theta_target = m theta_target + (1 - m) theta_online, over parameters: MoCo (arXiv 1911.05722), equation 2.

    Buffers stay: the target's batch norms have running statistics of their own, as in MoCo's released code.

    Args:
        momentum: m in [0, 1]; 0 copies, 1 leaves the target as it is.

    Raises:
        ValueError: the momentum is out of range, or the two have different parameters.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    mine, its = dict(target.named_parameters()), dict(online.named_parameters())
    if mine.keys() != its.keys():
        raise ValueError(f"the two networks differ in {', '.join(sorted(mine.keys() ^ its.keys()))}")
    torch._foreach_lerp_(list(mine.values()), [its[name].detach() for name in mine], 1 - momentum)


class SplitBatchNorm(_BatchNorm):
    """Batch norm with statistics of every ``splits``-th row, as if so many GPUs had a part of the batch each.

    In training, the rows i with the same i modulo ``splits`` are normalised together; scale and shift are shared, the
    running statistics move towards the mean over groups. In evaluation it is the batch norm it was made of. MoCo's
    released CIFAR-10 notebook (facebookresearch/moco, branch colab-notebook), SplitBatchNorm.

    Args:
        norm: a batch norm of torch, or timm's with dropout and activation. Parameters, statistics and names in the
            state dict are its own.
        over_ranks: groups of the rows of all ranks together.
    """

    def __init__(self, norm: _BatchNorm, over_ranks: int) -> None:
        super().__init__(norm.num_features)
        self.__dict__.update(norm.__dict__)
        self.over_ranks = over_ranks

    @property
    def splits(self) -> int:
        """Groups of this rank's rows; a rank's rows are never fewer than one group."""
        return max(1, self.over_ranks // _world_size())

    def forward(self, x: Tensor) -> Tensor:
        y = self._in_groups(x, self.splits) if self.training and self.splits > 1 else super().forward(x)
        for name in ("drop", "act"):  # of timm's BatchNormAct2d
            if name in self._modules:
                y = getattr(self, name)(y)
        return y

    def _in_groups(self, x: Tensor, s: int) -> Tensor:
        n, c = x.shape[:2]
        if self.over_ranks % _world_size():  # each rank has fewer than its share; let them suit its rows
            s = next(groups for groups in range(s, 0, -1) if n % groups == 0)
        if n % s:
            raise ConfigError(
                f"batch norm in {s} groups cannot divide {n} rows: set fewer groups, or a train.batch_size that is a "
                f"multiple of {s} on each rank, or a train.chunk_size that is one and divides the batch; null takes "
                "all rows at once"
            )
        groups = x.reshape(n // s, s * c, *x.shape[2:])  # row j of group g is row j s + g of x
        mean, var, weight, bias = (
            None if value is None else value.repeat(s)
            for value in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        y = F.batch_norm(groups, mean, var, weight, bias, True, self._factor(), self.eps)
        if self.running_mean is not None and self.running_var is not None and mean is not None and var is not None:
            self.running_mean.copy_(mean.view(s, c).mean(0))
            self.running_var.copy_(var.view(s, c).mean(0))
        ordered = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return y.view(x.shape).contiguous(memory_format=torch.channels_last if ordered else torch.contiguous_format)

    def _factor(self) -> float:
        """How far the running statistics move; a momentum of None means their plain mean over batches."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1 / float(self.num_batches_tracked)
        return self.momentum or 0.0

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        if input.ndim < 2:
            raise ValueError(f"batch norm needs rows of features, got shape {tuple(input.shape)}")


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def split_batch_norm(module: nn.Module, splits: int) -> nn.Module:
    """Replaces each batch norm inside ``module`` by a :class:`SplitBatchNorm` of the same parameters.

    Args:
        splits: groups of the rows of all ranks together; with W ranks each has ``splits`` // W of them, at least one.
            Where W does not divide ``splits``, the next fewer that divide the rank's rows.

    Returns:
        The module, or what replaces it if it is a batch norm itself.

    Raises:
        ValueError: ``splits`` is below 1.
        ConfigError: a batch norm of a kind whose statistics cannot be split.
    """
    if splits < 1:
        raise ValueError(f"splits must be 1 or more, got {splits}")
    if isinstance(module, _BatchNorm):
        known = type(module).forward in (_BatchNorm.forward, SplitBatchNorm.forward)
        if not known and not (hasattr(module, "drop") and hasattr(module, "act")):
            raise ConfigError(
                f"batch norm of the kind {type(module).__name__} cannot be split: choose another backbone"
            )
        return SplitBatchNorm(module, splits)
    for name, child in list(module._modules.items()):
        if child is not None:
            module._modules[name] = split_batch_norm(child, splits)
    return module
