"""The losses: pure functions. The equations and their numbers are those of the README; they are our reconstruction.

Letters: P views of an image or of a latent, n of these instances on this rank, s the cosine, tau the temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clf.losses import unit


def many_views(
    kinds: Sequence[Tensor],
    temperature: float,
    *,
    positives: str = "pairwise",
    denominator: str = "joint",
    gather: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
) -> list[Tensor]:
    """NT-Xent with P - 1 positives for each anchor a (equation 1), one by one.

    l(a) = mean over positives p of softplus(log sum over b in Neg(a) of exp(s(a, b) / tau) - s(a, p) / tau)

    Neg(a) are the views of every other instance, of all kinds and ranks. One kind of two views gives NT-Xent.

    Args:
        kinds: for each kind of instance (P, n, E) projections of any norm: P views of n local instances.
        positives: ``pairwise``, or ``supcon``: all other views in the denominator, the mean outside of the logarithm.
        denominator: ``joint``, or ``separate``: only views of the anchor's own kind in the denominator.
        gather: maps (n, ...) on this rank to all ranks' rows in rank order, with gradient.
        rank: place of the local instances among those of all ranks.

    Returns:
        For each kind the l of its local anchors, (P, n).
    """
    with torch.autocast(kinds[0].device.type, enabled=False):  # exp(cos / tau) leaves the range of 16-bit floats
        local = [unit(kind.flatten(0, 1)).view_as(kind) for kind in kinds]  # (P, n, E)
        every = [gather(z.transpose(0, 1)).transpose(0, 1) if gather else z for z in local]  # (P, world n, E)
        losses, before = [], 0
        for number, z in enumerate(local):
            candidates = every if denominator == "joint" else [every[number]]
            logits = z.flatten(0, 1) @ torch.cat([c.flatten(0, 1) for c in candidates]).T / temperature  # (P n, R)
            own = _own(z, every[number], rank, before if denominator == "joint" else 0)  # (P n, P), first itself
            negatives = own if positives == "pairwise" else own[:, :1]
            lse = logits.scatter(1, negatives, float("-inf")).logsumexp(1, keepdim=True)  # (P n, 1)
            terms = lse - logits.gather(1, own[:, 1:])  # (P n, P - 1)
            losses.append((F.softplus(terms) if positives == "pairwise" else terms).mean(1).view(z.shape[:2]))
            before += every[number].shape[0] * every[number].shape[1]
    return losses


def _own(local: Tensor, every: Tensor, rank: int, before: int) -> Tensor:
    """(P n, P): the columns of the views of each anchor's own instance, itself first; the kind starts at ``before``."""
    p, n = local.shape[:2]
    instance = before + rank * n + torch.arange(n, device=local.device)
    view = torch.arange(p, device=local.device)
    turned = (view[:, None] + view) % p  # row v: v, v + 1, ...
    return (instance[:, None] + turned[:, None] * every.shape[1]).flatten(0, 1)


class Mean(NamedTuple):
    """A weighted mean over anchors, and the means over real and over synthetic ones alone, without gradient."""

    loss: Tensor
    real: Tensor
    synthetic: Tensor


def weighted(real: Tensor, synthetic: Tensor, omega: float) -> Mean:
    """The mean over all anchors, where synthetic ones have the weight omega and real ones 1; any shapes.

    Each rank has as many of both as the others, so the mean of this over ranks is the mean over all anchors.
    """
    total = real.numel() + omega * synthetic.numel()
    loss = (real.sum() + omega * synthetic.sum()) / total
    return Mean(loss, real.detach().mean(), synthetic.detach().mean())


def keys(query: Tensor, positives: Sequence[Tensor], queue: Tensor, temperature: float) -> Tensor:
    """l of each query against its one or two keys k and the queue's rows n (equation 2).

    l(q) = mean over k of softplus(log sum over n of exp(q . n / tau) - q . k / tau); with one key that is InfoNCE.

    Args:
        query: (n, E) of any norm.
        positives: unit rows (n, E) each, without gradient.
        queue: (K, E) unit rows.

    Returns:
        (n,)
    """
    with torch.autocast(query.device.type, enabled=False):
        q = unit(query)
        negative = (q @ queue.to(q).T / temperature).logsumexp(1)  # (n,)
        return torch.stack([F.softplus(negative - (q * k.to(q)).sum(1) / temperature) for k in positives]).mean(0)


def discriminator(real: Tensor, fakes: Sequence[Tensor]) -> Tensor:
    """E relu(1 - D(x)) + mean over generators of E relu(1 + D(G_k(u))), of scores (n,): hinge loss (equation 3)."""
    return F.relu(1 - real).mean() + torch.stack([F.relu(1 + fake).mean() for fake in fakes]).mean()


def hardness(views: Sequence[Tensor], real: Tensor, temperature: float, *, negatives: bool = True) -> Tensor:
    """h_j, which the generators raise: how hard an instance is for the encoder (equation 4).

    Of two images with two views each: mean over the eight ordered pairs y, y' of views of different images of
    softplus(log sum over real views r of exp(s(y, r) / tau) - s(y, y') / tau). Of one image: of its two views.

    Negatives are real views only. With synthetic ones the loss could be raised by making all samples alike.

    Args:
        views: unit rows (n, E) each: two of one image, or four, the first image's two first.
        real: (R, E) unit rows without gradient.
        negatives: False for -mean s(y, y') / tau alone, the harder positive of the variant ``hp``.

    Returns:
        (n,)
    """
    positive = {(i, k): (views[i] * views[k]).sum(1) / temperature for i, k in across(len(views))}
    if not negatives:
        return -torch.stack(list(positive.values())).mean(0)
    lse = [(y @ real.T / temperature).logsumexp(1) for y in views]  # (n,) each
    terms = [F.softplus(lse[anchor] - s) for pair, s in positive.items() for anchor in pair]
    return torch.stack(terms).mean(0)


def pair_cosine(views: Sequence[Tensor]) -> Tensor:
    """c_j (n,): mean cosine of the views of different images of an instance; of one image, of its two views."""
    return torch.stack([(views[i] * views[k]).sum(1) for i, k in across(len(views))]).mean(0)


def across(count: int) -> list[tuple[int, int]]:
    """Which views are compared: of two, these; of four, the first two with the last two."""
    return [(i, k) for i in range(count // 2) for k in range(count // 2, count)]
