"""The loss of ``dissimilar_action=mask``: NT-Xent without the columns of conflicting images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clf_batch_curation.ranks import unit


def masked_nt_xent(
    a: Tensor,
    b: Tensor,
    temperature: float,
    conflict: Tensor,
    *,
    gather: Callable[[Tensor], Tensor],
    rank: int = 0,
) -> Tensor:
    """NT-Xent whose denominators leave out both views of the images that an anchor's image is in conflict with.

    With C(i) the images in conflict with i:
    L = mean over anchors of -s+ / tau + log(sum of exp(s_k / tau) over k != anchor whose image is not in C(i)).

    Args:
        a, b: projections of the two views, (N, E), of any norm.
        conflict: (N, M) bool, the rows of this rank; False where an image meets itself.
        gather, rank: as in :func:`clf.losses.nt_xent`, which this equals where ``conflict`` is False everywhere.

    Returns:
        A scalar.
    """
    with torch.autocast(a.device.type, enabled=False):
        za, zb = unit(a), unit(b)  # (N, E)
        logits = torch.cat([za, zb]) @ torch.cat([gather(za), gather(zb)]).T / temperature  # (2N, 2M)
        n, m = conflict.shape
        row = torch.arange(n, device=a.device) + rank * n
        itself, partner = torch.cat([row, row + m]), torch.cat([row + m, row])
        logits = logits.scatter(1, itself[:, None], float("-inf"))
        return F.cross_entropy(logits.masked_fill(conflict.repeat(2, 2), float("-inf")), partner)
