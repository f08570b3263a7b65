"""Linear probe on a share of the training labels.

The shares are those of SimCLR (Chen et al., arXiv 2002.05709, section 4.2), which fine-tunes the whole network on
them; here the encoder stays as it is. Each subset has the same share of every class; several are drawn, because the
choice of so few images matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clf.evaluate.linear import Rotated, probe
from clf.evaluate.results import FewLabels
from clf.random import generator
from clf.spread import spread

SHARES = (0.01, 0.1)
REPEATS = 5
"""Subsets of each share."""
LEAST = 3
"""Images of each class: with fewer none could be held out to choose the strength by."""


def few_labels(
    features: Rotated, bank_labels: Tensor, query_labels: Tensor, share: float, seed: int, repeats: int = REPEATS
) -> FewLabels:
    """Top-1 of linear probes on subsets of the labels, each with its strength chosen on a part of its subset.

    Args:
        features: of all images; standardising them takes no labels.
        bank_labels, query_labels: (n,) and (m,) int64.
        share: in (0, 1], of each class.
        seed: of the subsets, which depend on nothing else but the labels and the share.

    Raises:
        ValueError: a class is too small for the share; see :func:`too_few_labels`.
    """
    reason = too_few_labels(bank_labels, share)
    if reason:
        raise ValueError(reason)
    subsets = [draw(bank_labels.cpu(), share, seed, repeat).to(bank_labels.device) for repeat in range(repeats)]
    found = spread([probe(features, bank_labels, query_labels, seed, rows).accuracy for rows in subsets])
    return FewLabels(share=share, images=len(subsets[0]), accuracy=found.mean, std=found.std, repeats=repeats)


def too_few_labels(bank_labels: Tensor, share: float) -> str | None:
    """Why a share of the labels cannot be measured; None where it can."""
    least = int(torch.unique(bank_labels, return_counts=True)[1].min())
    if _count(least, share) >= LEAST:
        return None
    return (
        f"{share:.0%} of the labels is left out: the smallest class has {least} training images, and {share:.0%} of "
        f"them, {_count(least, share)}, is less than the {LEAST} that fitting and choosing the strength take."
    )


def draw(labels: Tensor, share: float, seed: int, repeat: int) -> Tensor:
    """Row numbers, rising: of each class its share, rounded, at random."""
    chosen = []
    for label in torch.unique(labels).tolist():
        rows = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=generator(seed, "few labels", str(share), repeat, label))
        chosen.append(rows[order[: _count(len(rows), share)]])
    return torch.cat(chosen).sort().values


def _count(images: int, share: float) -> int:
    return round(images * share)
