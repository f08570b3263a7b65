"""Weighted k-nearest-neighbour classification on frozen features.

Wu, Xiong, Yu, Lin: Unsupervised Feature Learning via Non-Parametric Instance Discrimination. CVPR 2018,
arXiv 1805.01978, section 3.4: each of the k nearest bank images votes for its class with weight exp(cos / T).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 256
"""Queries compared with the whole bank at once."""


@torch.no_grad()
def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k bank rows of highest cosine to each query, best first; of equal ones those that come first in the bank.

    Args:
        bank: (n, D) of any norm.
        queries: (m, D) of any norm, on the same device.
        k: clamped to n.

    Returns:
        Cosines (m, k) and bank rows (m, k).

    Raises:
        ValueError: an empty side, different widths, or k < 1.
    """
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1] or not len(bank) or not len(queries):
        raise ValueError(f"bank (n, D) and queries (m, D) are needed, got {tuple(bank.shape)}, {tuple(queries.shape)}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    k = min(k, len(bank))
    bank, queries = directions(bank), directions(queries)
    parts = [_top(part @ bank.T, k) for part in torch.split(queries, CHUNK)]
    return torch.cat([scores for scores, _ in parts]), torch.cat([rows for _, rows in parts])


def directions(x: Tensor) -> Tensor:
    """Rows (n, D) at unit length. One that is zero or not finite has no direction: zeros, whose cosines are 0."""
    return F.normalize(x, dim=1).nan_to_num(nan=0.0)


def _top(cosine: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(q, n) -> the k largest of each row and their columns, ties to the lower column (topk leaves them open)."""
    threshold = cosine.topk(k, dim=1).values[:, -1:]  # (q, 1)
    take = cosine >= threshold  # (q, n), more than k where the k-th place is shared
    if int(take.sum()) > k * len(cosine):
        above = cosine > threshold
        places = k - above.sum(1, keepdim=True)
        shared = take & ~above
        take = above | (shared & (shared.cumsum(1) <= places))
    rows = take.nonzero()[:, 1].view(len(cosine), k)  # rising
    scores, order = cosine.gather(1, rows).sort(dim=1, descending=True, stable=True)
    return scores, rows.gather(1, order)


@torch.no_grad()
def knn_predict(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float = 0.1) -> Tensor:
    """The class of each query, (m,) int64; of classes with equal votes the lowest.

    Args:
        bank: (n, D) clean training features, of any norm.
        bank_labels: (n,) int64, not negative.
        queries: (m, D).
        k: neighbours that vote; the whole bank when it is smaller.
        temperature: T > 0. Votes are taken relative to the nearest neighbour's, so a small T cannot overflow.

    Raises:
        ValueError: shapes that do not fit, k < 1 or temperature <= 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if bank_labels.shape != (len(bank),):
        raise ValueError(f"one label for each bank row is needed, got {tuple(bank_labels.shape)} for {len(bank)} rows")
    scores, rows = nearest(bank, queries, k)  # (m, k)
    return vote(scores, bank_labels[rows], temperature)


def vote(scores: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The class with the largest sum of exp(cos / T) among a query's neighbours, (m,) int64; of equal ones the lowest.

    Args:
        scores: cosines (m, k), best first.
        labels: of the neighbours, (m, k) int64, not negative.
    """
    weights = ((scores - scores[:, :1]).double() / temperature).exp()  # (m, k), the nearest has 1
    votes = torch.zeros(len(scores), int(labels.max()) + 1, dtype=torch.float64, device=scores.device)
    votes.scatter_add_(1, labels, weights)
    return votes.argmax(1)


@torch.no_grad()
def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, k: int, temperature: float = 0.1
) -> float:
    """Share of queries that :func:`knn_predict` puts in the right class, in [0, 1].

    Raises:
        ValueError: as :func:`knn_predict`, or not one label for each query.
    """
    if query_labels.shape != (len(queries),):
        raise ValueError(f"one label for each query is needed, got {tuple(query_labels.shape)} for {len(queries)}")
    right = knn_predict(bank, bank_labels, queries, k, temperature) == query_labels
    return float(right.double().mean())
