"""How hard the generators may make their samples: ramps, the two-sided control, the weight of hardness."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_WEIGHT = 1e4


def ramp(progress: float, start: float, length: float) -> float:
    """0 at ``start``, rising evenly to 1 over ``length`` of what comes after it; all as shares of the training."""
    return min(1.0, max(0.0, progress - start) / (length * (1 - start)))


def control(cosine: Tensor, floor: Tensor | float, dead_band: float, *, two_sided: bool = True) -> Tensor:
    """m_j: 1 pushes a pair apart, above the floor; -1 pulls it together, below the band; 0 in between (equation 5).

    cosine (n,) -> (n,), of its dtype. One-sided, there is no -1.
    """
    above = (cosine > floor).to(cosine.dtype)
    return above - (cosine < floor - dead_band).to(cosine.dtype) if two_sided else above


@dataclass(frozen=True)
class Pull:
    """The gradient at the images that the generators descend, and how it was put together."""

    gradients: list[Tensor]
    """One for each image batch, in its shape."""
    weight: Tensor
    """lambda."""


def balance(realism: list[Tensor], hardness: list[Tensor], kappa: float, squares: Tensor) -> Pull:
    """d L_adv/dY - lambda d L_hard/dY, lambda = kappa |d L_adv/dY| / (|d L_hard/dY| + 1e-8) (equation 6).

    So realism outweighs hardness where kappa < 1, whatever the temperature and the size of the networks. lambda is at
    most 1e4, and 0 where no pair is pushed or pulled.

    Args:
        realism, hardness: gradients at the generated images, one for each generator.
        squares: (2,) the squared norms of both, over all generators and ranks.
    """
    adversarial, hard = squares.sqrt()
    weight = (kappa * adversarial / (hard + 1e-8)).clamp(0, LARGEST_WEIGHT)
    weight = torch.where(hard > 0, weight, 0.0)
    return Pull([a - weight * h for a, h in zip(realism, hardness, strict=True)], weight)


def squared_norms(realism: list[Tensor], hardness: list[Tensor]) -> Tensor:
    """(2,)"""
    return torch.stack([torch.stack([g.square().sum() for g in each]).sum() for each in (realism, hardness)])
