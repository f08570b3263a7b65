"""Batch Curation for Unsupervised Contrastive Representation Learning.

Michael C. Welle, Petra Poklukar, Danica Kragic. 2021, arXiv 2108.08643.
This is our reconstruction of batch curation: the abstract gives the idea, that the batches to train on are selected
during training so that similar pairs are close and dissimilar ones far, with SimCLR as the base; how pairs are judged,
rejected and replaced here is our own. The README says what is known and what is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

import clf
from clf_batch_curation.config import BatchCurationConfig
from clf_batch_curation.curate import Curation, Embed
from clf_batch_curation.exchange import exchange
from clf_batch_curation.loss import masked_nt_xent
from clf_batch_curation.metrics import Album, measures
from clf_batch_curation.oracle import ClassRates, Oracle, load_labels, load_oracle
from clf_batch_curation.ranks import RunningMedian, RunningQuantile, conflicts
from clf_simclr import SimCLR

LEAST = 8
"""Images in a step below which a rank means nothing: its steps are 1 / 4(M - 1)."""
PICTURES_EVERY = 25
"""Curated steps."""


@dataclass(frozen=True, kw_only=True)
class Masked(clf.Batch):
    """A batch whose loss leaves out some pairs of images."""

    conflict: Tensor
    """(N, M) bool."""


class BatchCuration(SimCLR):
    name = "batch_curation"
    Config = BatchCurationConfig
    paper = (
        "Welle, Poklukar, Kragic, Batch Curation for Unsupervised Contrastive Representation Learning, 2021, "
        "arXiv 2108.08643"
    )
    config: BatchCurationConfig
    tiny = {"method.start_epoch": 0, "method.phi": 0.3}
    min_batch_size = 64  # so that a rank has steps of half a percent
    waiting: Tensor

    def __init__(self, backbone: clf.Backbone, config: BatchCurationConfig, data: clf.DataSpec) -> None:
        super().__init__(backbone, config, data)
        _check(config, data)
        usual = math.ceil(min(10, data.epochs / 10))  # the end of the warm-up
        self.start_epoch = min(usual, data.epochs - 1) if config.start_epoch is None else config.start_epoch
        if config.stop_epoch is not None and config.stop_epoch <= self.start_epoch:
            raise clf.ConfigError(
                f"method.stop_epoch = {config.stop_epoch} leaves nothing to curate: in train.epochs = {data.epochs} it "
                f"starts with epoch {self.start_epoch}; set method.start_epoch below it too"
            )
        self.budget = RunningQuantile(1 - config.phi, config.beta)  # Q
        self.alike = RunningQuantile(config.conflict_quantile, config.beta)  # tau_n
        if config.mode == "reject_batch":
            self.shares = RunningMedian(config.beta)
        if config.swaps:
            length = 4 * int(data.batch_size * config.evict_share)
            self.register_buffer("waiting", torch.full((length,), -1))  # positions in the training set
        if config.labels:
            self.rates = ClassRates(config.beta)
        self.album = Album(data.channels, data.image_size)
        self._oracle: Oracle | None = None  # constants read from files, no state of the training
        self._labels: Tensor | None = None

    def next_batch(self, stream: clf.BatchStream, ctx: clf.Context) -> clf.Batch:
        batch = stream.next()
        self._prepare(ctx)
        due = self._is_due(ctx)
        ctx.log(curated=float(due))
        if not due or self.config.single_pass:
            return batch
        if self.config.swaps and int(self.waiting[0]) < 0:  # filled once, from a batch that is not trained on
            self.waiting.copy_(ctx.gather(stream.next().index)[: len(self.waiting)])
        with torch.no_grad(), self._scoring(ctx):
            judge = self._oracle.mislabelled if self._oracle else None
            whole = self.config.score_mode == "train"
            few = self._eager(self._score)
            curation = Curation(batch, ctx, self._score, few, judge, in_whole_batches=whole)
            return self._curated(curation, ctx)

    def training_step(self, batch: clf.Batch, ctx: clf.Context) -> clf.StepOutput:
        if self.config.single_pass and self._is_due(ctx):
            embed = self._eager(self.embed)  # twice in one graph, which compiled batch norm does not bear
            curation = Curation(batch, ctx, embed, embed, forwards=0.0, forwards_each=3.0)  # with their backward
            self._curated(curation, ctx)
            a, b = curation.z
            return self.contrast(a, b, ctx)
        if not isinstance(batch, Masked):
            return super().training_step(batch, ctx)
        a, b = self.embed(batch.views)
        temperature = self.config.temperature
        loss = masked_nt_xent(a, b, temperature, batch.conflict, gather=ctx.gather, rank=ctx.rank)
        return replace(self.contrast(a, b, ctx), loss=loss)

    def pictures(self) -> Mapping[str, Tensor]:
        return self.album.shown()

    def _is_due(self, ctx: clf.Context) -> bool:
        c = self.config
        in_time = self.start_epoch <= ctx.epoch and (c.stop_epoch is None or ctx.epoch < c.stop_epoch)
        return in_time and ctx.step % c.every == 0

    def _curated(self, curation: Curation, ctx: clf.Context) -> clf.Batch:
        """Judges, replaces, records."""
        c = self.config
        quantile, alike = self.budget.update(curation.ranks), self.alike.update(curation.pairs)
        limit = torch.full_like(quantile, c.rho) if c.threshold == "fixed" else quantile.clamp(min=c.rho_min)  # rho_t
        ctx.log(rank_threshold=limit, conflict_threshold=alike)
        if c.mode == "oracle":
            limit = torch.zeros_like(limit)
        _MODES[c.mode](self, curation, limit, ctx)
        if ctx.step // c.every % PICTURES_EVERY == 0:
            rejected = curation.first_scores > limit
            changed = curation.everywhere[rejected & (curation.scores < curation.first_scores)]
            self.album.add(curation.loaded, curation.batch, changed, ctx)
        conflict = conflicts(curation.a, curation.b, alike)  # (M, M)
        if c.swaps:
            most = int(len(curation.a) * c.evict_share)
            done = exchange(curation, self.waiting.tolist(), conflict, alike=alike, limit=limit, most=most)
            self.waiting.copy_(torch.tensor(done.queue))
            ctx.log(evicted=done.evicted, swapped=done.swapped, popped=done.popped)
        ctx.log(**measures(curation, limit, conflict))
        self._record_classes(curation, limit, conflict, ctx)
        return self._finished(curation, limit, conflict)

    def _finished(self, curation: Curation, limit: Tensor, conflict: Tensor) -> clf.Batch:
        """The batch to train on."""
        batch = curation.batch
        if self.config.fallback == "drop":
            return curation.without(curation.everywhere[curation.scores > limit])
        if self.config.sides == "both" and not self.config.swaps:
            mine = conflict[curation.ctx.rank * len(batch) :][: len(batch)]
            return Masked(**{f.name: getattr(batch, f.name) for f in fields(batch)}, conflict=mine)
        return batch

    def _refresh(self, curation: Curation, limit: Tensor, ctx: clf.Context) -> None:
        c = self.config
        least = c.single_pass_images if c.single_pass else 1
        curation.refresh(limit, c.rounds, only_good=c.fallback == "original", least=least)

    def _best_of_k(self, curation: Curation, limit: Tensor, ctx: clf.Context) -> None:
        """Of so many complete sets of views, the one with the lowest mean rank."""
        self._whole_batches(curation, lambda ranks: ranks.mean(), curation.ranks.new_tensor(-1.0))

    def _reject_batch(self, curation: Curation, limit: Tensor, ctx: clf.Context) -> None:
        """Draws all views again while the share of bad pairs is above its running median."""
        share = (curation.ranks > self.config.rho).to(curation.ranks).mean()
        median = self.shares.update(share)
        self._whole_batches(curation, lambda ranks: (ranks > self.config.rho).to(ranks).mean(), median)

    def _whole_batches(self, curation: Curation, badness: Callable[[Tensor], Tensor], enough: Tensor) -> None:
        """Draws all views up to ``trials`` times and keeps the best set; stops at the first that is good enough."""
        best = badness(curation.ranks)
        for trial in range(2, self.config.trials + 1):
            if best <= enough:
                break
            attempt = curation.attempt(curation.everywhere, f"curation, trial {trial}", together=True)
            new = badness(attempt.ranks)
            if new < best:
                best = new
                curation.install(attempt, torch.ones_like(curation.everywhere, dtype=torch.bool))

    def _random_refresh(self, curation: Curation, limit: Tensor, ctx: clf.Context) -> None:
        """New views for a random share phi of the batch, whatever their ranks."""
        m = len(curation.everywhere)
        order = torch.randperm(m, generator=ctx.generator("curation, choice"))[: round(self.config.phi * m)]
        if len(order):
            attempt = curation.attempt(order.sort().values.to(ctx.device), "curation, round 1")
            curation.install(attempt, torch.ones_like(attempt.places, dtype=torch.bool))

    def _hard(self, curation: Curation, limit: Tensor, ctx: clf.Context) -> None:
        """Of two pairs of each image the less similar one."""
        attempt = curation.attempt(curation.everywhere, "curation, round 1")
        curation.install(attempt, (attempt.a * attempt.b).sum(1) < curation.pairs)

    def _score(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What is ranked: projections, or features."""
        if self.config.space == "z":
            return self.embed(views)
        h: Tensor = self.backbone(torch.cat(list(views)))  # (2N, D)
        return h.chunk(len(views))

    def _eager(self, embed: Embed) -> Embed:
        """The same without torch.compile, which would compile for every number of rows that comes along."""

        def eagerly(views: Sequence[Tensor]) -> tuple[Tensor, ...]:
            with torch.compiler.set_stance("force_eager"):
                return embed(views)

        return eagerly if self.backbone.compiled else embed

    @contextmanager
    def _scoring(self, ctx: clf.Context) -> Iterator[None]:
        """The network as it scores; modes, batch norm's averages and torch's random numbers are as before after it."""
        modes = [(module, module.training) for module in self.modules()]
        if self.config.score_mode == "eval":
            self.eval()
        moving = self.config.score_mode == "train"
        averages = [*self.backbone.buffers(), *self.projector.buffers()] if moving else []
        before = [buffer.clone() for buffer in averages]
        devices = [ctx.device] if ctx.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, old in zip(averages, before, strict=True):
                buffer.copy_(old)

    def _prepare(self, ctx: clf.Context) -> None:
        """What needs files or the run: before the first step, for a method that is only loaded must do without."""
        c = self.config
        if c.fallback == "drop" and ctx.world_size > 1:
            raise clf.ConfigError(
                f"method.fallback = drop leaves the {ctx.world_size} processes with batches of different sizes: "
                "use best or original, or train with one process"
            )
        if c.single_pass and self.backbone.compiled and self.backbone.chunk_size is not None:
            raise clf.ConfigError(
                "method.single_pass cannot be compiled, and with train.chunk_size parts of it would be: "
                "set train.compile=off"
            )
        if c.oracle and self._oracle is None:
            self._oracle = load_oracle(Path(c.oracle), self.backbone, self.data)
        if c.labels and self._labels is None:
            self._labels = load_labels(Path(c.labels), self.data).to(ctx.device)

    def _record_classes(self, curation: Curation, limit: Tensor, conflict: Tensor, ctx: clf.Context) -> None:
        """Diagnostics with labels; nothing depends on them."""
        if self._labels is None:
            return
        labels = self._labels[ctx.gather(curation.loaded.index)]  # (M,)
        ctx.log(class_rejection_spread=self.rates.update(labels, curation.first_scores > limit))
        pairs = labels[conflict.nonzero()]  # (conflicts, 2)
        pairs = pairs[(pairs >= 0).all(1)]
        if len(pairs):
            ctx.log(same_class_share_of_conflicts=(pairs[:, 0] == pairs[:, 1]).float().mean())


_MODES = {
    "refresh": BatchCuration._refresh,
    "oracle": BatchCuration._refresh,
    "best_of_k": BatchCuration._best_of_k,
    "reject_batch": BatchCuration._reject_batch,
    "random_refresh": BatchCuration._random_refresh,
    "hard": BatchCuration._hard,
}


def _check(config: BatchCurationConfig, data: clf.DataSpec) -> None:
    """Raises ConfigError where settings do not fit the size of a batch."""
    m = data.batch_size
    if m < LEAST:
        raise clf.ConfigError(
            f"train.batch_size = {m} is too small to rank pairs by: use {LEAST} or more, better 64 or more"
        )
    if config.start_epoch is not None and config.start_epoch >= data.epochs:
        raise clf.ConfigError(
            f"method.start_epoch = {config.start_epoch} leaves nothing to curate in train.epochs = {data.epochs}: "
            "lower it, or train with simclr"
        )
    if config.swaps and int(m * config.evict_share) < 1:
        raise clf.ConfigError(
            f"method.evict_share = {config.evict_share:g} of a batch of {m} is less than one image: raise "
            "method.evict_share or train.batch_size"
        )
    if config.single_pass and config.threshold == "budget" and config.phi * m < config.single_pass_images:
        raise clf.ConfigError(
            f"method.single_pass refreshes {config.single_pass_images} images or more at a time, and method.phi = "
            f"{config.phi:g} rejects about {config.phi * m:.0f} of a batch of {m}: raise train.batch_size, or lower "
            "method.single_pass_images"
        )


@clf.hookimpl
def clf_methods() -> list[type[BatchCuration]]:
    return [BatchCuration]
