"""Contrastive losses that more than one paper needs: pure functions, written for several ranks and for autocast."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


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
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"two views of shape (N, E) are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    with torch.autocast(a.device.type, enabled=False):  # exp(cos / tau) leaves the range of 16-bit floats
        za, zb = _unit(a), _unit(b)  # (N, E)
        all_a, all_b = (gather(za), gather(zb)) if gather else (za, zb)  # (M, E)
        anchors = torch.cat([za, zb])  # (2N, E)
        logits = anchors @ torch.cat([all_a, all_b]).T / temperature  # (2N, 2M)
        n, m = len(za), len(all_a)
        row = torch.arange(n, device=a.device) + rank * n  # this rank's rows among the M
        itself = torch.cat([row, row + m])
        partner = torch.cat([row + m, row])
        logits = logits.scatter(1, itself[:, None], float("-inf"))
        return F.cross_entropy(logits, partner)


def _unit(x: Tensor) -> Tensor:
    """Rows of unit length, in float32 at least."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)
