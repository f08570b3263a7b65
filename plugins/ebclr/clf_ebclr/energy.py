"""The energy of a view under the joint model of pairs, and the generative term made of it.

The model of a pair is q(v, v') = exp(-||z - z'||^2 / tau) / Z with z the projection of unit length (equation 6); the
energy of a single view follows by summing over partners from the data (equation 20). Low energy is high density.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def squared_distance(u: Tensor, w: Tensor) -> Tensor:
    """||z_i - z_j||^2 of the directions z of u (N, E) and w (M, E): (N, M) in [0, 4], in float32 at least."""
    cosine = _unit(u) @ _unit(w).T  # (N, M)
    return (2 - 2 * cosine).clamp(min=0)


def log_density(u: Tensor, partners: Tensor, temperature: float) -> Tensor:
    """log of the sum over partners of exp(-||z - z'||^2 / tau): minus the energy of equation 20.

    Args:
        u: raw projections of the views, (N, E).
        partners: raw projections of the second views, (M, E).
        temperature: tau.

    Returns:
        (N,), in [log M - 4 / tau, log M]. It is the log-density up to a constant, which depends on the partners.
    """
    with torch.autocast(u.device.type, enabled=False):
        return torch.logsumexp(-squared_distance(u, partners) / temperature, dim=1)


def squared_norms(u: Tensor) -> Tensor:
    """(N, E) -> (N,): squared lengths of raw projections, in float32 at least."""
    return precise(u).square().sum(1)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(precise(x), dim=1)


def precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()
