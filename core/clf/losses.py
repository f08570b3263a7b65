"""Contrastive losses that more than one paper needs: pure functions, written for several ranks and for autocast."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Decoupled",
    "attraction_weights",
    "dcl",
    "decouple",
    "decouple_views",
    "info_nce",
    "info_nce_logits",
    "nt_xent",
    "unit",
]


def nt_xent(
    a: Tensor,
    b: Tensor,
    temperature: float,
    *,
    gather: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
) -> Tensor:
    """Normalised temperature-scaled cross entropy: each view must find its partner among all other 2M - 1 views.

    SimCLR (Chen et al., 2020, arXiv 2002.05709), equation 1 and algorithm 1, as the mean over the 2N local anchors.

    Args:
        a, b: projections of the two views, (N, E), of any norm; row i of both comes from the same image.
        temperature: tau > 0.
        gather: maps (N, E) on this rank to (M, E) in rank order, with gradient (:meth:`clf.Context.gather`).
        rank: position of this rank's N rows among the M gathered ones.

    Returns:
        A scalar. log(2M - 1) when all projections are equal.

    Raises:
        ValueError: the temperature is not positive or the shapes differ.
    """
    _check_pairs(a, b, temperature)
    with torch.autocast(a.device.type, enabled=False):  # exp(cos / tau) leaves the range of 16-bit floats
        za, zb = unit(a), unit(b)  # (N, E)
        all_a, all_b = (gather(za), gather(zb)) if gather else (za, zb)  # (M, E)
        anchors = torch.cat([za, zb])  # (2N, E)
        logits = anchors @ torch.cat([all_a, all_b]).T / temperature  # (2N, 2M)
        n, m = len(za), len(all_a)
        row = torch.arange(n, device=a.device) + rank * n  # this rank's rows among the M
        itself = torch.cat([row, row + m])
        partner = torch.cat([row + m, row])
        logits = logits.scatter(1, itself[:, None], float("-inf"))
        return F.cross_entropy(logits, partner)


@dataclass(frozen=True)
class Decoupled:
    """The decoupled contrastive loss of A anchors, as the terms it is made of: one entry per anchor, shape (A,)."""

    positive: Tensor
    """Cosine of the anchor and its positive, in [-1, 1], with gradient."""
    attraction: Tensor
    """The same over the temperature."""
    repulsion: Tensor
    """Log of the sum over the negatives of exp(cosine / temperature)."""
    negative: Tensor
    """Mean cosine of the anchor and its negatives, without gradient."""
    hardest: Tensor
    """Greatest cosine of the anchor and a negative, without gradient."""

    @property
    def dcl(self) -> Tensor:
        """DCL of each anchor. It may be negative, and late in training usually is."""
        return self.repulsion - self.attraction

    @property
    def nt_xent(self) -> Tensor:
        """Softplus of DCL: the loss with the positive back in the denominator, InfoNCE or NT-Xent."""
        return -F.logsigmoid(-self.dcl)

    @property
    def npc_multiplier(self) -> Tensor:
        """q_B, the factor in [0, 1] by which the gradient of InfoNCE is smaller than that of DCL."""
        return torch.sigmoid(self.dcl)

    def loss(self, weight: Tensor | None = None) -> Tensor:
        """The mean of DCL over the anchors, or of DCLW with the ``weight`` (A,) of each attraction. A scalar."""
        if weight is None:
            return self.dcl.mean()
        return (self.repulsion - weight * self.attraction).mean()


def decouple(
    anchors: Tensor, positives: Tensor, candidates: Tensor, temperature: float, excluded: Tensor | None = None
) -> Decoupled:
    """Compares each anchor with its positive and, apart from that, with its negatives.

    Args:
        anchors, positives: (A, E), of any norm; row i of both is a positive pair.
        candidates: (C, E), of any norm, all of which are negatives unless excluded.
        temperature: tau > 0.
        excluded: (A, X) int64, for each anchor the rows of ``candidates`` that are not among its negatives. They are
            left out of the sum, not made small.

    Raises:
        ValueError: the temperature is not positive, the shapes differ, or there are no negatives.
    """
    _check_pairs(anchors, positives, temperature)
    count = len(candidates) - (0 if excluded is None else excluded.shape[1])
    if count < 1:
        raise ValueError(
            "DCL has only negatives in its denominator and there are none: it needs at least two images in the batch "
            "of all ranks together"
        )
    with torch.autocast(anchors.device.type, enabled=False):  # exp(cos / tau) leaves the range of 16-bit floats
        x, y, z = unit(anchors), unit(positives), unit(candidates)  # (A, E), (A, E), (C, E)
        positive = (x * y).sum(1)  # (A,)
        cosine = x @ z.T  # (A, C)
        total, left = x.detach() @ z.detach().sum(0), cosine  # (A,), (A, C)
        if excluded is not None:
            total = total - cosine.detach().gather(1, excluded).sum(1)
            left = cosine.scatter(1, excluded, float("-inf"))
        repulsion = (left / temperature).logsumexp(1)  # (A,)
        return Decoupled(positive, positive / temperature, repulsion, total / count, left.detach().amax(1))


def decouple_views(
    a: Tensor, b: Tensor, temperature: float, *, gather: Callable[[Tensor], Tensor] | None = None, rank: int = 0
) -> Decoupled:
    """Each of the 2N local anchors, first those of ``a``, against the 2(M - 1) views of all other images.

    Arguments as in :func:`nt_xent`. The mean of ``.nt_xent`` is what that function returns.

    Raises:
        ValueError: as :func:`decouple`; M = 1 leaves no negatives.
    """
    _check_pairs(a, b, temperature)
    with torch.autocast(a.device.type, enabled=False):
        za, zb = unit(a), unit(b)  # (N, E)
        all_a, all_b = (gather(za), gather(zb)) if gather else (za, zb)  # (M, E)
    n, m = len(za), len(all_a)
    row = torch.arange(n, device=a.device) + rank * n  # this rank's rows among the M
    same_image = torch.stack([row, row + m], dim=1).repeat(2, 1)  # (2N, 2): the anchor itself and its positive
    return decouple(torch.cat([za, zb]), torch.cat([zb, za]), torch.cat([all_a, all_b]), temperature, same_image)


def attraction_weights(
    positive: Tensor,
    sigma: float,
    *,
    gather: Callable[[Tensor], Tensor] | None = None,
    detach: bool = True,
) -> Tensor:
    """DCLW's weight of each attraction: above 1 for pairs that are far apart, below 1 for close ones, 1 on average.

    w_i = 2 - exp(s_i / sigma) / mean over all pairs of exp(s_j / sigma), the negative von Mises-Fisher weighting of
    Yeh et al., 2022. It lies in (2 - M, 2); negative weights are meant.

    Args:
        positive: (A,), the cosines s_i of this rank's positive pairs. Pairs that are listed twice count twice, so both
            orders of each pair give the weights of one.
        sigma: > 0; the greater, the closer to 1 the weights.
        gather: as in :func:`nt_xent`; the mean is over the pairs of all ranks.
        detach: whether the weights are constants to the gradient, which the paper does not say.

    Returns:
        (A,).

    Raises:
        ValueError: sigma is not positive.
    """
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    s = (positive.detach() if detach else positive) / sigma  # (A,)
    all_s = gather(s) if gather else s  # (A x world size,)
    return 2 - torch.exp(s - all_s.logsumexp(0) + math.log(len(all_s)))


def dcl(
    a: Tensor,
    b: Tensor,
    temperature: float,
    *,
    gather: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
    sigma: float | None = None,
    detach_weight: bool = True,
) -> Tensor:
    """Decoupled contrastive loss: NT-Xent without the positive in the denominator, so that it loses its multiplier q_B.

    Yeh, Hong, Hsu, Liu, Chen, LeCun, Decoupled Contrastive Learning, ECCV 2022, arXiv 2110.06848, as the mean
    over the 2N local anchors (the paper writes the sum).

    Args:
        a, b, temperature, gather, rank: as in :func:`nt_xent`.
        sigma: not None gives DCLW, with :func:`attraction_weights` of this sigma.
        detach_weight: whether those weights are constants to the gradient.

    Returns:
        A scalar, of any sign. log(2M - 2) when all projections are equal.

    Raises:
        ValueError: the temperature or sigma is not positive, the shapes differ, or M = 1.
    """
    each = decouple_views(a, b, temperature, gather=gather, rank=rank)
    if sigma is None:
        return each.loss()
    return each.loss(attraction_weights(each.positive, sigma, gather=gather, detach=detach_weight))


def _check_pairs(a: Tensor, b: Tensor, temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"two views of shape (N, E) are needed, got {tuple(a.shape)} and {tuple(b.shape)}")


def info_nce_logits(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The similarities that :func:`info_nce` compares, over the temperature, in float32 at least.

    Args:
        q, k: queries and their keys, (N, E), of any norm.
        queue: the negatives, (K, E), rows of unit length.
        temperature: tau > 0.

    Returns:
        (N, 1 + K); the first column is of each query with its own key.

    Raises:
        ValueError: the temperature is not positive or the shapes do not fit.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if q.shape != k.shape or q.ndim != 2 or queue.shape[1:] != q.shape[1:]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, queue))
        raise ValueError(f"queries (N, E), keys (N, E) and a queue (K, E) are needed, got {shapes}")
    with torch.autocast(q.device.type, enabled=False):  # exp(cos / tau) leaves the range of 16-bit floats
        zq, zk = unit(q), unit(k)  # (N, E)
        positive = (zq * zk).sum(1, keepdim=True)  # (N, 1)
        return torch.cat([positive, zq @ queue.to(zq.dtype).T], dim=1) / temperature  # (N, 1 + K)


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Each query must find its key among the K rows of a queue: MoCo (He et al., arXiv 1911.05722), equation 1.

    -q k / tau + log(exp(q k / tau) + sum over the queue of exp(q k_j / tau)), as the mean over the N queries. Other
    images of the batch are no negatives. Arguments and errors are those of :func:`info_nce_logits`.

    Returns:
        A scalar. log(K + 1) when all rows are equal.
    """
    logits = info_nce_logits(q, k, queue, temperature)  # (N, 1 + K)
    return (logits.logsumexp(1) - logits[:, 0]).mean()


def unit(x: Tensor) -> Tensor:
    """Rows (N, E) scaled to unit length, in float32 at least."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)
