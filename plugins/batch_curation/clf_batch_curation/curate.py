"""A batch on its way from the loader to the loss: new views of some of its places, judged, taken or left.

What has M rows is the same on every rank, for it is made of gathered embeddings; so every decision is one for the
whole batch, and ranks that each redraw their own rows do what one process would do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import clf
from clf_batch_curation.ranks import pair_ranks, unit

Embed = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
"""Two views (n, C, H, W) -> two embeddings (n, E)."""
Judge = Callable[[Sequence[Tensor], Tensor], Tensor]
"""Two views (n, C, H, W) and positions in the training set (n,) -> how bad each pair is, (n,)."""


@dataclass(frozen=True)
class Attempt:
    """New pairs for n places of the batch."""

    places: Tensor
    """(n,) among the M."""
    mine: Tensor
    """(n,) bool, the places of this rank; l of them."""
    rows: Tensor
    """(l,) this rank's rows at those places."""
    views: tuple[Tensor, ...]
    """Two tensors (l, C, H, W)."""
    z: tuple[Tensor, ...]
    """Two tensors (l, E), as the network gave them."""
    a: Tensor
    """(n, E) unit rows."""
    b: Tensor
    ranks: Tensor
    """(n,) against the batch as it stood, or against each other where all M are new."""
    scores: Tensor
    """(n,) how bad each pair is: its rank, or the judge's word."""
    images: Tensor
    """(l, C, H', W') uint8, those that the views show."""
    index: Tensor
    """(l,) their positions in the training set."""


class Curation:
    """One batch under curation.

    Args:
        batch: the loader's, of this rank. Its tensors are never written to.
        embed: the network that scores, for all rows of the batch.
        embed_few: the same for any number of rows.
        judge: scores pairs instead of their ranks.
        in_whole_batches: embed new views of some rows among all rows of the batch, for a network whose rows see each
            other (batch norm in train mode).
        forwards: what embedding the whole batch costs beyond the training's own forward, in units of that forward.
        forwards_each: what embedding a new pair costs, in units of its share of that forward.
    """

    def __init__(
        self,
        batch: clf.Batch,
        ctx: clf.Context,
        embed: Embed,
        embed_few: Embed,
        judge: Judge | None = None,
        *,
        in_whole_batches: bool = False,
        forwards: float = 1.0,
        forwards_each: float = 1.0,
    ) -> None:
        self.loaded = self.batch = batch
        self.ctx = ctx
        self._embed, self._embed_few = embed, embed_few
        self._judge = judge
        self._in_whole_batches = in_whole_batches
        self._forwards_each = forwards_each
        self.redraws = 0
        self.cost = forwards
        """Forwards so far, in units of one training forward."""
        self.z = embed(batch.views)
        self.a, self.b = (ctx.gather(unit(z.detach())) for z in self.z)  # (M, E)
        self.everywhere = torch.arange(len(self.a), device=self.a.device)
        self.ranks = pair_ranks(self.a, self.b, self.everywhere, self.a, self.b)
        self.scores = self.ranks if judge is None else ctx.gather(judge(batch.views, batch.index))
        self.first_pairs, self.first_ranks, self.first_scores = self.pairs, self.ranks, self.scores

    @property
    def pairs(self) -> Tensor:
        """p (M,): the cosine of each pair as it stands."""
        return (self.a * self.b).sum(1)

    def attempt(
        self,
        places: Tensor,
        name: str,
        others: Tensor | None = None,
        *,
        among: Tensor | None = None,
        together: bool = False,
    ) -> Attempt:
        """New views for some places, embedded and ranked; the batch itself stays as it is.

        Args:
            places: (n,) among the M, the same on every rank.
            name: of the generator they are drawn with.
            others: (n,) positions of other images for the places; default the images that are there.
            among: (M,) bool, the places to rank against; default all.
            together: rank the new pairs against each other; for all M places, in order.
        """
        n, first = len(self.batch), self.ctx.rank * len(self.batch)
        mine = (places >= first) & (places < first + n)
        rows = places[mine] - first
        images, index = self.batch.images[rows], self.batch.index[rows]
        if others is not None:
            index = others[mine]
            images = self.ctx.images(index) if len(rows) else images
        views = tuple(view[:0] for view in self.batch.views)
        if len(rows):
            views = self.batch.augment(images, self.ctx.generator(name), places[mine])
        z = self._embedded(rows, views)
        a, b = (self._gathered(x, rows)[places] for x in z)
        ranks = pair_ranks(a, b, places, *((a, b) if together else (self.a, self.b)), among)
        scores = ranks
        if self._judge is not None:
            scores = self._gathered(self._judge(views, index), rows)[places]
        self.redraws += len(places)
        self.cost += 1.0 if self._in_whole_batches else self._forwards_each * len(places) / len(self.a)
        return Attempt(places, mine, rows, views, z, a, b, ranks, scores, images, index)

    def install(self, attempt: Attempt, chosen: Tensor) -> None:
        """Takes those pairs of an attempt that are chosen, (n,) bool, into the batch."""
        here = chosen[attempt.mine]
        rows, places = attempt.rows[here], attempt.places[chosen]
        views = tuple(
            old.index_copy(0, rows, new[here]) for old, new in zip(self.batch.views, attempt.views, strict=True)
        )
        self.batch = replace(
            self.batch,
            views=views,
            images=self.batch.images.index_copy(0, rows, attempt.images[here]),
            index=self.batch.index.index_copy(0, rows, attempt.index[here]),
            draws=(),  # the crops are no longer the loader's
        )
        self.z = tuple(old.index_copy(0, rows, new[here]) for old, new in zip(self.z, attempt.z, strict=True))
        self.a = self.a.index_copy(0, places, attempt.a[chosen])
        self.b = self.b.index_copy(0, places, attempt.b[chosen])
        self.ranks = self.ranks.index_copy(0, places, attempt.ranks[chosen])
        self.scores = self.scores.index_copy(0, places, attempt.scores[chosen])

    def refresh(self, limit: Tensor, rounds: int, *, only_good: bool = False, least: int = 1) -> None:
        """Gives every pair that scores above ``limit`` a new one, up to so many times.

        A new pair is taken when it is better than the best so far, and its image leaves the game as soon as it is
        below the limit: the first acceptable pair is kept, not the most similar one. Ranks of the other pairs stay as
        they are, so the order of the images does not matter within a round.

        Args:
            only_good: leave the loader's pair where no new one is below the limit.
            least: open images, on all ranks together, below which no further round is made.
        """
        for attempted in range(1, rounds + 1):
            places = self.everywhere[self.scores > limit]
            if len(places) < max(1, least):
                break
            attempt = self.attempt(places, f"curation, round {attempted}")
            good = attempt.scores <= limit
            self.install(attempt, good if only_good else attempt.scores < self.scores[places])

    def without(self, places: Tensor) -> clf.Batch:
        """The batch less some places, for one rank; where fewer than two would stay, the two best scores do."""
        keep = torch.ones(len(self.a), dtype=torch.bool, device=self.a.device)
        keep[places] = False
        keep[self.scores.argsort(stable=True)[:2]] = True
        batch = self.batch
        views = tuple(view[keep] for view in batch.views)
        return replace(batch, views=views, images=batch.images[keep], index=batch.index[keep], draws=())

    def _embedded(self, rows: Tensor, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Two tensors (l, E)."""
        if self._in_whole_batches:
            whole = [old.index_copy(0, rows, new) for old, new in zip(self.batch.views, views, strict=True)]
            return tuple(z[rows] for z in self._embed(whole))
        return self._embed_few(views) if len(rows) else tuple(z[:0] for z in self.z)

    @torch.no_grad()
    def _gathered(self, x: Tensor, rows: Tensor) -> Tensor:
        """What ranks know of their rows, (l,) or (l, E) -> (M,) or unit rows (M, E); zeros where no one knows."""
        x = unit(x) if x.ndim == 2 else x
        table = x.new_zeros(len(self.batch), *x.shape[1:])
        return self.ctx.gather(table.index_copy(0, rows, x))
