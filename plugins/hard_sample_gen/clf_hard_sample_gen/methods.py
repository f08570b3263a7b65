"""The method on top of SimCLR and on top of MoCo: their training step, with synthetic views in the batch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

import clf
from clf.nn import SplitBatchNorm
from clf_hard_sample_gen import losses
from clf_hard_sample_gen.config import HardSampleConfig
from clf_hard_sample_gen.game import Game
from clf_moco import MoCo
from clf_simclr import SimCLR


class HardSample(clf.Method[Any]):
    """What both have in common; it goes before the base method in the order of classes.

    The base's modules are made first and see nothing of the game, so in the warm-up it is the base method bit by bit.
    """

    paper: ClassVar[str] = (
        "Wu, Wang, Zeng, Shi, Hu, Synthetic Data Can Also Teach: Synthesizing Effective Data for Unsupervised Visual "
        "Representation Learning, AAAI 2023, arXiv 2202.06464"
    )
    tiny: ClassVar[Mapping[str, Any]] = {
        "method.gan": "tiny",
        "method.gan_steps": 4,
        "method.gan_batch": 16,
        "method.synth_ratio": 0.25,
        "method.warmup_frac": 0.2,
        "method.g_every": 2,
    }
    projector: nn.Sequential

    def __init__(self, backbone: clf.Backbone, config: HardSampleConfig, data: clf.DataSpec) -> None:
        try:
            super().__init__(backbone, getattr(config, config.base), data)  # self.config: the settings of the base
        except clf.ConfigError as error:  # the base names its settings as if it stood alone
            raise clf.ConfigError(str(error).replace("method.", f"method.{config.base}.")) from error
        self.settings = config
        self.game = Game(config, data)

    @classmethod
    def build(cls, backbone: clf.Backbone, config: HardSampleConfig, data: clf.DataSpec) -> clf.Method[Any]:
        chosen: type[HardSample] = HardSampleMoCo if config.base == "moco" else HardSampleSimCLR
        return chosen(backbone, config, data)

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the base recommends, so that its warm-up is the base method and both are trained alike."""
        base: type[clf.Method[Any]] = MoCo if given.get("base") == "moco" else SimCLR
        return base.recommended({})

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Views (n, C, S, S) -> projections (n, E)."""

    def is_warming_up(self, ctx: clf.Context) -> bool:
        return ctx.progress < self.settings.warmup_frac

    def parameter_groups(self) -> dict[str, Iterable[Parameter] | clf.Group]:
        mine = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("game.")]
        return {"main": mine, **self.game.groups()}

    @property
    def preparation_steps(self) -> int:
        return self.game.source.preparation_steps

    def preparation_step(self, ctx: clf.Context) -> None:
        self.game.prepare(ctx)

    def after_step(self, ctx: clf.Context) -> None:
        super().after_step(ctx)
        self.game.play(ctx, [self.backbone, self.projector], self.encode, self.config.temperature)

    def notes(self) -> Sequence[str]:
        return self.game.source.notes()

    def pictures(self) -> Mapping[str, Tensor]:
        return self.game.pictures()


class HardSampleSimCLR(HardSample, SimCLR):
    name = "hard_sample_gen"
    Config = HardSampleConfig  # type: ignore[assignment]  # the base's settings lie inside of these

    def encode(self, x: Tensor) -> Tensor:
        return self.embed([x])[0]

    def training_step(self, batch: clf.Batch, ctx: clf.Context) -> clf.StepOutput:
        if self.is_warming_up(ctx):
            return super().training_step(batch, ctx)
        c = self.settings
        synthetic = self.game.enter(batch, ctx)  # 2F of (n, C, S, S)
        z = self.encode(torch.cat([*batch.views, *synthetic]))  # one forward: batch norm cannot tell them apart
        a, b, *s = torch.split(z, [len(x) for x in (*batch.views, *synthetic)])
        real, fake = losses.many_views(
            [torch.stack([a, b]), torch.stack(s)],  # (2, N, E), (2F, n, E)
            self.config.temperature,
            positives=c.positives,
            denominator=c.denominator,
            gather=ctx.gather,
            rank=ctx.rank,
        )
        return _output(losses.weighted(real, fake, c.omega_s), F.cosine_similarity(a.detach(), b.detach()).mean())


class HardSampleMoCo(HardSample, MoCo):
    """Queries are of first views, keys of second ones; the queue holds keys of real images unless it is told else.

    Raises:
        clf.ConfigError: split batch norm cannot divide the rows of a joint step.
    """

    name = "hard_sample_gen"
    Config = HardSampleConfig  # type: ignore[assignment]  # the base's settings lie inside of these

    def __init__(self, backbone: clf.Backbone, config: HardSampleConfig, data: clf.DataSpec) -> None:
        super().__init__(backbone, config, data)
        groups = max((m.over_ranks for m in backbone.modules() if isinstance(m, SplitBatchNorm)), default=1)
        synthetic = self.game.images * self.game.latents
        if (data.batch_size + synthetic) % groups:
            raise clf.ConfigError(
                f"train.batch_size = {data.batch_size} real images and {synthetic} synthetic ones cannot be divided "
                f"among batch norm's {groups} groups: choose method.synth_ratio so that they can, or set "
                "method.moco.bn_splits"
            )

    def encode(self, x: Tensor) -> Tensor:
        return self.queries([x])[0]

    def training_step(self, batch: clf.Batch, ctx: clf.Context) -> clf.StepOutput:
        if self.is_warming_up(ctx):
            return super().training_step(batch, ctx)
        synthetic = self.game.enter(batch, ctx)
        first, second = torch.cat([batch.views[0], *synthetic[::2]]), torch.cat([batch.views[1], *synthetic[1::2]])
        both = self.config.symmetric
        queries = self.queries([first, second] if both else [first])  # (N + F n, E) each
        keys = self.keys([second, first] if both else [second], ctx)
        sizes = [len(batch), *(len(x) for x in synthetic[::2])]
        means, similarity = [], []
        for q, k in zip(queries, keys, strict=True):
            real, fake = self._losses(torch.split(q, sizes), torch.split(k, sizes))
            means.append(losses.weighted(real, fake, self.settings.omega_s))
            similarity.append((q[: len(batch)].detach() * k[: len(batch)]).sum(1).mean())
        if self.game.moves(ctx.step):
            self.game.contend(self._real_negatives(keys[0][: len(batch)], ctx))
        for k in keys:
            self._remember(k[: sizes[0]], k[sizes[0] :], ctx)
        loss = torch.stack([mean.loss for mean in means]).sum()  # of both directions, as MoCo's symmetric loss is
        real, fake = (torch.stack(part).mean() for part in zip(*((m.real, m.synthetic) for m in means), strict=True))
        output = _output(losses.Mean(loss, real, fake), torch.stack(similarity).mean())
        return clf.StepOutput(output.loss, {**output.metrics, "queue_fill": self.queue.fill})

    def _losses(self, q: tuple[Tensor, ...], k: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """l of real queries (N,) with their key, and of synthetic ones (F n,) with their own and their twin's."""
        queue, tau = self.queue.rows, self.config.temperature
        fake = [losses.keys(query, k[1:], queue, tau) for query in q[1:]]
        return losses.keys(q[0], k[:1], queue, tau), torch.cat(fake)

    def _real_negatives(self, k: Tensor, ctx: clf.Context) -> Tensor:
        """The keys of this step and twice as many out of the queue, which does not hold them yet: (R, E)."""
        keys = ctx.gather(k)
        rows = torch.randperm(len(self.queue), generator=ctx.generator("real negatives"))[: 2 * len(keys)]
        return torch.cat([keys, self.queue.rows[rows.to(keys.device)].to(keys)])

    def _remember(self, real: Tensor, fake: Tensor, ctx: clf.Context) -> None:
        """Enqueues keys of real images, and of synthetic ones if they are wanted."""
        if not self.settings.enqueue_synth:
            self.enqueue(real, ctx)
            return
        keys = torch.cat([ctx.gather(real), ctx.gather(fake)])
        step = math.gcd(ctx.world_size * len(real), len(keys))  # divides the queue, wherever its pointer is
        for part in keys.tensor_split(len(keys) // step):
            self.queue.push(part)


def _output(mean: losses.Mean, similarity: Tensor) -> clf.StepOutput:
    metrics = {"loss_real": mean.real, "loss_synthetic": mean.synthetic, "positive_similarity": similarity}
    return clf.StepOutput(mean.loss, metrics)
