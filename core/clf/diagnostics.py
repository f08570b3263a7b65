"""How good a representation is without labels, and whether it has collapsed.

RankMe: Garrido, Balestriero, Najman, LeCun. RankMe: Assessing the Downstream Performance of Pretrained
Self-Supervised Representations by Their Rank. ICML 2023, arXiv 2210.02885.
Alignment and uniformity: Wang, Isola. Understanding Contrastive Representation Learning through Alignment and
Uniformity on the Hypersphere. ICML 2020, arXiv 2005.10242.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clf.evaluate.results import Diagnostics as Diagnostics

CHUNK = 1024


@torch.no_grad()
def rank_me(features: Tensor, eps: float = 1e-7) -> float:
    """exp of the entropy of the normalised singular values (arXiv 2210.02885, equation 1).

    Args:
        features: (n, D). D for orthogonal columns of equal norm, 1 for features that are all the same, and not a
            number for features that are not finite.
    """
    x = features.double()
    if not bool(torch.isfinite(x).all()):
        return math.nan
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    sigma = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()  # singular values; exact to 1e-8 of the largest, below eps
    p = sigma / sigma.sum().clamp_min(torch.finfo(torch.float64).tiny) + eps
    return float((-(p * p.log()).sum()).exp())


@torch.no_grad()
def alignment(a: Tensor, b: Tensor, alpha: float = 2) -> float:
    """Mean distance^alpha between the unit-length features of two views, row by row (arXiv 2005.10242, equation 1).

    Args:
        a, b: (n, D), of any norm. 0 for equal directions, 4 for opposite ones with alpha = 2.
    """
    return float((_unit(a) - _unit(b)).norm(dim=1).pow(alpha).mean())


@torch.no_grad()
def uniformity(features: Tensor, t: float = 2) -> float:
    """log of the mean of exp(-t * squared distance) over all pairs of different rows (arXiv 2005.10242, equation 2).

    Args:
        features: (n, D) with n >= 2, of any norm; 0 when all have one direction, or all are zero.
    """
    z = _unit(features)
    n = len(z)
    if n < 2:
        raise ValueError(f"uniformity needs two rows at least, got {n}")
    own = z.square().sum(1)  # (n,) one, but for features that are zero
    parts = []
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        square = own[rows, None] + own - 2 * z[rows] @ z.T  # (c, n) squared distances
        logits = -t * square.clamp_min(0)
        logits.diagonal(start).fill_(float("-inf"))  # a row and itself are no pair
        parts.append(logits.flatten().logsumexp(0))
    return float(torch.stack(parts).logsumexp(0)) - math.log(n * (n - 1))


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Mean over dimensions of the standard deviation of unit-length features.

    Chen, He: Exploring Simple Siamese Representation Learning, CVPR 2021, section 4.1: 1 / sqrt(D) for directions
    spread evenly over the sphere, 0 for a collapsed representation.
    """
    return float(_unit(features).std(dim=0, correction=0).mean())


@torch.no_grad()
def mean_cosine(features: Tensor) -> float:
    """Mean cosine over all pairs of different rows of (n, D), n >= 2; that of a row of zeros with any other is 0."""
    z = _unit(features)
    n = len(z)
    return float((z.sum(0).square().sum() - z.square().sum()) / (n * (n - 1)))


def diagnose(features: Tensor, views: tuple[Tensor, Tensor] | None = None) -> Diagnostics:
    """All figures of features (n, D), n >= 2, and of the features of two views of some images (m, D)."""
    return Diagnostics(
        images=len(features),
        dim=features.shape[1],
        rank_me=rank_me(features),
        feature_std=feature_std(features),
        mean_cosine=mean_cosine(features),
        uniformity=uniformity(features),
        alignment=alignment(*views) if views is not None else None,
    )


ONE_DIRECTION = 0.9995
FEW_DIMENSIONS = (1.5, 0.005)


def verdict(found: Diagnostics) -> str | None:
    """One plain sentence when the representation has collapsed, else None.

    Complete collapse: a mean cosine above 0.9995, that is, features on average within 1.3 degrees of their mean
    direction. Untrained networks, whose features share a large mean, had 0.89 to 0.98 (seven of timm's, 300 drawn
    images). Or features of zeros, which have no direction: a standard deviation below 0.00025 / D, which no features
    of unit length with a lower mean cosine have (their D variances, none above its own root, add up to 1 less the mean
    cosine, times (n - 1) / n).

    Dimensional collapse (Jing et al., arXiv 2110.09348): a RankMe below 1.5, or below 0.5 % of the dimensions that
    the images could fill. RankMe counts the common mean as one dimension, so that 1.5 is a mean with next to nothing
    around it. The same untrained networks filled 2.6 % to 16 % of what they could, and training has to add to that:
    K classes that can be told apart need about K dimensions.
    """
    if not all(map(math.isfinite, (found.rank_me, found.feature_std, found.mean_cosine))):
        return "The features are not finite numbers: training has diverged; try a lower optimizer.lr."
    if found.mean_cosine > ONE_DIRECTION or found.feature_std < (1 - ONE_DIRECTION) / 2 / found.dim:
        return (
            f"Collapsed: all images have nearly the same features (mean cosine {found.mean_cosine:.4f}, standard "
            f"deviation {found.feature_std:.1g}), so they say nothing about an image; try a lower optimizer.lr, a "
            "larger train.batch_size or another temperature."
        )
    reachable = min(found.dim, found.images)
    least, share = FEW_DIMENSIONS
    if found.rank_me < max(least, share * reachable):
        return (
            f"Partly collapsed: the features vary in about {found.rank_me:.1f} of {found.dim} dimensions; "
            "try stronger augmentation, a larger train.batch_size or another temperature."
        )
    return None


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.double(), dim=1)
