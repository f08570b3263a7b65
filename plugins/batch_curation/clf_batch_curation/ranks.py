"""What a batch says about its own pairs: ranks, conflicts, evictions, crops, running quantiles.

Functions of embeddings and boxes alone: no draws, no network. M and E are as everywhere, the rows on all ranks and the
length of a projection; n candidate pairs have their places among the M.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIES = 16
"""Units in the last place of 1 within which two cosines are equal, so that rounding cannot break a tie."""

PAST = 512
"""Batches that a running median looks back on; with a decay of 0.99 those before have 0.6 % of the weight."""


def unit(z: Tensor) -> Tensor:
    """Rows of unit length (n, E), in float32 at least: in 16 bits cosines near 1 would tie."""
    return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)


def pair_ranks(a: Tensor, b: Tensor, at: Tensor, za: Tensor, zb: Tensor, among: Tensor | None = None) -> Tensor:
    """The share of the dissimilar values of each pair that are at least as similar as the pair itself.

    r_i = #{s(a_i,zb_j), s(b_i,za_j), s(a_i,za_j), s(b_i,zb_j) over j != i, that are >= s(a_i,b_i)} / 4(M - 1).
    One minus its mean is the AUC of "similar against dissimilar" for each anchor. It is the same for any similarity
    that rises with the cosine, such as exp(s / tau) or minus the distance.

    Args:
        a, b: (n, E) unit rows, the pairs to judge.
        at: (n,) the place of each pair among the M, which is left out of its dissimilar values.
        za, zb: (M, E) unit rows, the batch to judge them against.
        among: (M,) bool, the places that count; default all.

    Returns:
        (n,) in [0, 1], 0 is best. Ties count as violations.
    """
    with torch.autocast(a.device.type, enabled=False):
        own = (a * b).sum(1, keepdim=True) - TIES * torch.finfo(a.dtype).eps  # (n, 1)
        other = torch.ones(len(a), len(za), dtype=torch.bool, device=a.device)  # (n, M)
        other[torch.arange(len(a), device=a.device), at] = False
        if among is not None:
            other &= among
        violations = torch.zeros(len(a), dtype=torch.long, device=a.device)
        for u, z in ((a, zb), (b, za), (a, za), (b, zb)):
            violations += ((u @ z.T >= own) & other).sum(1)
        return violations.to(a.dtype) / (4 * other.sum(1)).clamp(min=1)


def cross_similarity(a: Tensor, b: Tensor, za: Tensor, zb: Tensor) -> Tensor:
    """S (n, M): the mean of the four cosines between the views of one image and those of another."""
    with torch.autocast(a.device.type, enabled=False):
        return (a + b) @ (za + zb).T / 4


def conflicts(za: Tensor, zb: Tensor, limit: Tensor) -> Tensor:
    """(M, M) bool, symmetric: two different images that look more alike than ``limit``."""
    s = cross_similarity(za, zb, za, zb)
    return (torch.maximum(s, s.T) > limit).fill_diagonal_(False)  # rounding may differ across the diagonal


def evictions(conflict: Tensor, most: int) -> list[int]:
    """The places to free: again and again the image with most conflicts (of equal ones the last), at most ``most``."""
    conflict = conflict.cpu().clone()
    chosen: list[int] = []
    while len(chosen) < most:
        count = conflict.sum(1)  # (M,)
        worst = int(count.max())
        if worst == 0:
            break
        place = int((count == worst).nonzero()[-1])
        conflict[place] = False
        conflict[:, place] = False
        chosen.append(place)
    return chosen


def crop_iou(one: Tensor, other: Tensor) -> Tensor:
    """(N,) intersection over union of boxes (N, 4): top, left, height, width."""
    top, left = torch.maximum(one[:, :2], other[:, :2]).unbind(1)
    bottom, right = torch.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:]).unbind(1)
    shared = (bottom - top).clamp(min=0) * (right - left).clamp(min=0)
    return shared / (one[:, 2:].prod(1) + other[:, 2:].prod(1) - shared)


class RunningQuantile(nn.Module):
    """An exponential mean, over batches, of a quantile of each batch; the first batch gives the first value."""

    value: Tensor
    batches: Tensor

    def __init__(self, share: float, decay: float) -> None:
        super().__init__()
        self.share = share
        self.decay = decay
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, values: Tensor) -> Tensor:
        """Takes in one batch, (M,); returns the new value, a scalar."""
        q = torch.quantile(values, self.share).to(self.value)
        self.value.copy_(torch.where(self.batches == 0, q, self.decay * self.value + (1 - self.decay) * q))
        self.batches += 1
        return self.value.clone()


class RunningMedian(nn.Module):
    """The median of past numbers, of which one that came k batches ago weighs decay^k."""

    past: Tensor
    batches: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("past", torch.zeros(PAST))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, x: Tensor) -> Tensor:
        """Takes in one number; returns the weighted lower median, a scalar."""
        self.past.copy_(torch.cat([x.to(self.past).view(1), self.past[:-1]]))  # the newest first
        self.batches += 1
        age = torch.arange(PAST, device=self.past.device)
        weight = torch.where(age < self.batches, self.decay ** age.to(self.past), 0.0)
        values, order = self.past.sort(stable=True)
        reached = weight[order].cumsum(0) >= weight.sum() / 2
        return values[reached.to(torch.uint8).argmax()]
