"""Retrieval: the training split searched with each test image by the cosine of their features.

An image of the query's class is a right answer. Average precision over the whole ranking, and recall@k as metric
learning has it (Oh Song, Xiang, Jegelka, Savarese: Deep Metric Learning via Lifted Structured Feature Embedding. CVPR
2016, arXiv 1511.06452, section 6): whether one of the first k answers is right.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clf.evaluate.knn import directions
from clf.evaluate.results import Retrieval

AT = (1, 5, 10)
CHUNK = 256
"""Queries compared with all searched images at once."""


@torch.no_grad()
def retrieval(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor) -> Retrieval:
    """Mean average precision, recall@k and precision@k. Of equal cosines a wrong answer counts as the nearer one, so
    the figures do not depend on the order of the images, and features that are all the same earn nothing.

    Args:
        bank, queries: (n, D) and (m, D) of any norm, on one device. Memory grows with n, not with m.
        bank_labels, query_labels: (n,) and (m,) int64. A query whose class the bank lacks counts as zero everywhere.
    """
    order = bank_labels.argsort(stable=True)
    bank, bank_labels = directions(bank[order]), bank_labels[order]
    queries = directions(queries)
    precision = torch.zeros(len(queries), dtype=torch.float64)  # average precision of each query
    hits = torch.zeros(len(queries), len(AT), dtype=torch.float64)  # right answers among the first k
    for label in torch.unique(query_labels).tolist():
        first, last = (int(end) for end in torch.searchsorted(bank_labels, torch.tensor(
            [label, label + 1], device=bank_labels.device)))  # fmt: skip
        if first == last:
            continue
        for rows in (query_labels == label).nonzero()[:, 0].split(CHUNK):
            ranks = _ranks(queries[rows] @ bank.T, first, last).cpu()
            found = torch.arange(1, last - first + 1, dtype=torch.float64)  # the i-th right answer has i among ranks
            precision[rows.cpu()] = (found / ranks).mean(1)
            hits[rows.cpu()] = torch.stack([(ranks <= k).sum(1) for k in AT], dim=1).double()
    return Retrieval(
        mean_average_precision=float(precision.mean()),
        recall={str(k): float((hits[:, i] > 0).double().mean()) for i, k in enumerate(AT)},
        precision={str(k): float((hits[:, i] / min(k, len(bank))).mean()) for i, k in enumerate(AT)},
        queries=len(queries),
        searched=len(bank),
    )


def _ranks(cosine: Tensor, first: int, last: int) -> Tensor:
    """(q, n) -> (q, last - first) rising ranks, from 1, of the columns ``first`` to ``last`` among all columns."""
    right = _rising(cosine[:, first:last])
    wrong = _rising(torch.cat([cosine[:, :first], cosine[:, last:]], dim=1))
    nearer = wrong.shape[1] - torch.searchsorted(wrong, right)  # (q, R) wrong answers that are not farther
    return nearer.flip(1) + torch.arange(1, last - first + 1, device=cosine.device)


def _rising(x: Tensor) -> Tensor:
    """Each row sorted; on a CPU by NumPy, whose vectorised sort of values is several times faster than torch's."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.sort(x.numpy(), axis=1))
    return x.sort(dim=1).values
