"""What a curated step records, and the pictures of pairs that were replaced."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import clf
from clf_batch_curation.curate import Curation
from clf_batch_curation.ranks import crop_iou

LOW = 0.1
"""Intersection over union below which two crops hardly show the same part of an image."""
SHOWN = 6


def measures(curation: Curation, limit: Tensor, conflict: Tensor) -> dict[str, float | Tensor]:
    """Scalars of one curated batch, the same on every rank; none is NaN.

    Args:
        limit: score above which a pair is rejected.
        conflict: (M, M) bool, before images are exchanged.
    """
    m = len(curation.a)
    rejected = curation.first_scores > limit  # (M,)
    u = curation.a + curation.b  # (M, E)
    cross = (u.sum(0).square().sum() - u.square().sum()) / (4 * m * (m - 1))
    logged: dict[str, float | Tensor] = {
        "rejected_share": rejected.float().mean(),
        "open_share": (curation.scores > limit).float().mean(),
        "redraws_per_image": curation.redraws / m,
        "cost_units": curation.cost,
        "rank_mean": curation.first_ranks.mean(),
        "rank_mean_curated": curation.ranks.mean(),
        "cross_similarity": cross,
        "conflicts_per_image": conflict.sum() / m,
    }
    for suffix, pairs in (("", curation.first_pairs), ("_curated", curation.pairs)):
        for percent in (5, 50, 95):
            logged[f"pair_similarity_{percent}{suffix}"] = torch.quantile(pairs, percent / 100)
    if curation.loaded.draws:
        one, other = curation.loaded.crops  # (N, 4) each
        near = curation.ctx.gather((crop_iou(one, other) < LOW).float().to(u.device))  # (M,)
        logged["low_iou_share"] = near.mean()
        if rejected.any():
            logged["low_iou_share_of_rejected"] = near[rejected].mean()
    return logged


class Album(nn.Module):
    """The last pairs that were replaced, beside what replaced them, as 8-bit pixels."""

    pictures: Tensor
    """(SHOWN, 4, C, S, S) uint8: the pair before, the pair after; the newest first."""
    filled: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.register_buffer("pictures", torch.zeros(SHOWN, 4, channels, size, size, dtype=torch.uint8))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, before: clf.Batch, after: clf.Batch, places: Tensor, ctx: clf.Context) -> None:
        """Takes in pairs at some places (n,) among the M; every rank calls it with the same places."""
        places = places[:SHOWN]
        table = torch.zeros_like(self.pictures)[None]  # (1, SHOWN, 4, C, S, S): of this rank
        first, n = ctx.rank * len(before), len(before)
        for slot, place in enumerate(places.tolist()):
            if first <= place < first + n:
                four = [view[place - first] for view in (*before.views, *after.views)]
                table[0, slot] = (torch.stack(four) * 255).round().to(torch.uint8)
        new = ctx.gather(table).sum(0).to(torch.uint8)[: len(places)]
        self.pictures.copy_(torch.cat([new, self.pictures])[:SHOWN])
        self.filled.copy_((self.filled + len(places)).clamp(max=SHOWN))

    def shown(self) -> dict[str, Tensor]:
        """A title and (rows, 4, C, S, S) in [0, 1]; nothing before the first replacement."""
        n = int(self.filled)
        title = "Rejected pairs (left) and what replaced them (right)"
        return {title: self.pictures[:n].float() / 255} if n else {}
