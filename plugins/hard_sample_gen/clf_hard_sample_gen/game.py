"""The game: generators that make samples hard for the encoder, and a discriminator that keeps them on the data.

All of it is state of the method: generators, their moving averages, discriminator, and what the control measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import clf
from clf.losses import unit
from clf.nn import momentum_update
from clf_hard_sample_gen import losses, views
from clf_hard_sample_gen.config import PAIRED, STATIC, HardSampleConfig
from clf_hard_sample_gen.gan import LATENT, SIZES, Discriminator, Generator
from clf_hard_sample_gen.hardness import balance, control, ramp, squared_norms
from clf_hard_sample_gen.source import ADAM, Source, augmented, critic_step, frozen, latents, share
from clf_hard_sample_gen.views import onto

AVERAGE = 0.999
"""Momentum of the generators' moving averages, one step for each joint step."""
REAL_PAIRS = 0.99
"""Momentum of the mean cosine of real pairs, one step for each step of the generators."""
SHOWN = 10

Encode = Callable[[Tensor], Tensor]
"""Views (n, C, S, S) -> projections (n, E) of any norm."""


@dataclass(frozen=True)
class Joint:
    """What one training step leaves for the players' steps after it. It lives no longer than that."""

    views: Sequence[Tensor]
    """Two real views (N, C, S, S) of this rank."""
    recipes: Sequence[clf.Recipe]
    fakes: Tensor
    """(n, F, C, S, S) in [-1, 1], F images of each of n latents, the same on every rank."""
    step: int
    hard: float
    """How far kappa and delta have grown, in [0, 1]."""
    autocast: AbstractContextManager[object]
    """The precision of the encoder's forward."""
    negatives: Tensor | None = None
    """Unit rows (R, E) that serve as the generators' real negatives; None: the real views of all ranks."""


class Game(nn.Module):
    """Two generators, one, or none that is trained, by ``variant`` and ``pair_mode``."""

    real_cosine: Tensor
    """Moving average of the mean cosine of real positive pairs, c_bar."""
    measured: Tensor
    """bool: whether it has been measured yet."""
    pool: Tensor
    """(n, F, C, S, S): the fakes of the last steps, where ``fake_pool`` is above 1."""
    pool_age: Tensor
    """int64: for how many steps they have been used."""

    def __init__(self, config: HardSampleConfig, data: clf.DataSpec) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.source = Source(config, data)
        self.images = 2 if config.variant in PAIRED or config.variant == "static_twin" else 1  # F
        self.latents = latents_of(config, data)
        self.generated = max(self.latents, config.gan_batch // self.images)  # batch norm wants a batch as in training
        shape = (self.generated, self.images, data.channels, data.image_size, data.image_size)
        self.register_buffer("pool", torch.zeros(shape if config.fake_pool > 1 else 0))
        self.register_buffer("pool_age", torch.zeros((), dtype=torch.int64))
        self.register_buffer("real_cosine", torch.zeros(()))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))
        self.joint: Joint | None = None
        size, side, channels = SIZES[config.gan], data.image_size, data.channels
        count = 2 if config.variant in PAIRED and config.pair_mode == "twin" else 1
        self.generators = nn.ModuleList(Generator(size.generator, side, channels) for _ in range(count))
        if self.is_static:
            self.generators.requires_grad_(False)
        else:
            self.averages = nn.ModuleList(Generator(size.generator, side, channels) for _ in range(count))
            self.averages.requires_grad_(False)
            self.discriminator = Discriminator(size.discriminator, side, channels)
        self.begin()

    @property
    def is_static(self) -> bool:
        return self.config.variant in STATIC

    def groups(self) -> dict[str, clf.Group]:
        """Optimizers of the pre-training, and fresh ones of the game."""
        if self.is_static:
            return self.source.groups()
        schedule = {"name": "linear", "decay": 0.2, "warmup_epochs": 0}
        return self.source.groups() | {
            "generators": clf.Group(self.generators.parameters(), {**ADAM, "lr": self.config.lr_g}, schedule),
            "discriminator": clf.Group(self.discriminator.parameters(), {**ADAM, "lr": self.config.lr_d}, schedule),
        }

    def prepare(self, ctx: clf.Context) -> None:
        """One step of the pre-training; after the last one the players are copies of its GAN.

        Raises:
            clf.ConfigError: what the game will make cannot be divided among the ranks; told before hours of training.
        """
        for n in (self.latents, self.generated, self.config.gan_batch, self.config.gan_batch // self.images):
            share(n, ctx)
        if self.source.prepare(ctx):
            self.begin()

    def begin(self) -> None:
        """Makes generators, averages and discriminator copies of the pre-trained ones."""
        for generator in self.generators:
            generator.load_state_dict(self.source.generator.state_dict())
        if self.is_static:
            return
        for average in self.averages:
            average.load_state_dict(self.source.generator.state_dict())
        self.discriminator.load_state_dict(self.source.discriminator.state_dict())

    def enter(self, batch: clf.Batch, ctx: clf.Context) -> tuple[Tensor, ...]:
        """The synthetic views of this step, 2F tensors (this rank's latents, C, S, S): two of each image.

        What the players need of the step is kept for :meth:`play`.
        """
        c, device = self.config, ctx.device.type
        hard = ramp(ctx.progress, c.warmup_frac, c.ramp)
        precision = torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        recipes = [recipe for recipe, _ in batch.draws]
        with torch.no_grad(), torch.autocast(device, enabled=False):
            fakes = self._fakes(ctx, hard)  # (n, F, C, S, S)
            self.joint = Joint(batch.views, recipes, fakes, ctx.step, hard, precision)
            mine = fakes[: self.latents][share(self.latents, ctx)]
            return tuple(self._views(mine.unbind(1), recipes, ctx, self.latents, "synthetic"))

    def moves(self, step: int) -> bool:
        """Whether the generators take a step after this one of the training."""
        return not self.is_static and step % self.config.g_every == 0

    def contend(self, negatives: Tensor) -> None:
        """Gives the generators' step unit rows (R, E) to take for real negatives."""
        if self.joint is not None:
            self.joint = replace(self.joint, negatives=negatives)

    def play(self, ctx: clf.Context, students: Sequence[nn.Module], encode: Encode, temperature: float) -> None:
        """The steps of discriminator and generators that belong to the training step before.

        Args:
            students: the modules that ``encode`` uses; they are frozen and in eval mode where the generators move.
        """
        joint, self.joint = self.joint, None
        if joint is None or self.is_static:
            return
        fakes = joint.fakes[: self.config.gan_batch // self.images]
        fakes = fakes[share(len(fakes), ctx)]
        for i in range(self.config.d_per_step):
            real = self.source.real(self.config.gan_batch, ctx, f"game real {i}", fakes.dtype)
            policy, name = self.config.diff_augment, f"game critic {i}"
            metrics = critic_step(self.discriminator, real, fakes.unbind(1), policy, ctx, "discriminator", name)
        ctx.log(**metrics)
        if self.moves(joint.step):
            with frozen(self.discriminator, *students):
                self._generators_step(joint, ctx, encode, temperature)
        self._average()

    def _generators_step(self, joint: Joint, ctx: clf.Context, encode: Encode, temperature: float) -> None:
        """L_G = L_adv - lambda L_hard; the gradient is joined at the images, so D and f are passed once each."""
        n, c = self.config.gan_batch, self.config
        real = self._real_pairs(joint, ctx, encode)
        images = self.make(n, ctx, "game latents", joint.hard)  # F of (n local, C, S, S), with their graph
        trained = images[: len(images) if c.pair_mode != "ema" else 1]
        leaves = [y.detach().requires_grad_(i < len(trained)) for i, y in enumerate(images)]
        realism = -torch.stack([self._score(y, ctx, k).mean() for k, y in enumerate(leaves[: len(trained)])]).sum()
        with joint.autocast:
            z = encode(torch.cat(self._views(leaves, joint.recipes, ctx, n, "game")))
        seen = unit(z).chunk(2 * self.images)  # 2F of (n local, E)
        difficulty = losses.hardness(seen, real, temperature, negatives=c.variant != "hp")
        cosine = losses.pair_cosine(seen).detach()
        floor = self.real_cosine - c.delta_max * joint.hard
        push = control(cosine, floor, c.dead_band, two_sided=c.two_sided)  # m_j
        pushed = ctx.gather(push.abs()).sum().clamp(min=1)
        hardness = ctx.world_size * (push * difficulty).sum() / pushed
        adversarial, difficult = (
            list(torch.autograd.grad(loss, leaves[: len(trained)])) for loss in (realism, hardness)
        )
        squares = ctx.gather(squared_norms(adversarial, difficult)[None]).sum(0) / ctx.world_size**2
        kappa = 0.0 if c.pair_mode == "latent" else c.kappa_max * joint.hard
        pull = balance(adversarial, difficult, kappa, squares)
        loss = torch.stack([(g * y).sum() for g, y in zip(pull.gradients, trained, strict=True)]).sum()
        ctx.minimize("generators", loss)
        ctx.log(hardness=difficulty.detach().mean(), hardness_weight=pull.weight)
        ctx.log(real_cosine=self.real_cosine, floor=floor)
        self._log(images, seen, cosine, push, ctx)

    def _real_pairs(self, joint: Joint, ctx: clf.Context, encode: Encode) -> Tensor:
        """Real negatives (R, E) of unit length; the moving average of the cosine of real pairs moves on."""
        with torch.no_grad():
            with joint.autocast:
                z = encode(torch.cat(list(joint.views)))
            a, b = unit(z).chunk(2)  # (N, E)
            cosine = ctx.gather((a * b).sum(1)).mean()
            self.real_cosine.copy_(torch.where(self.measured, torch.lerp(cosine, self.real_cosine, REAL_PAIRS), cosine))
            self.measured.fill_(True)
            return torch.cat([ctx.gather(a), ctx.gather(b)]) if joint.negatives is None else joint.negatives

    def _score(self, y: Tensor, ctx: clf.Context, k: int) -> Tensor:
        score: Tensor = self.discriminator(augmented(y, self.config.diff_augment, ctx, f"game generator {k}"))
        return score

    def _log(
        self, images: Sequence[Tensor], seen: Sequence[Tensor], cosine: Tensor, push: Tensor, ctx: clf.Context
    ) -> None:
        c = ctx.gather(cosine)
        first = ctx.gather(seen[0].detach())  # one view of each latent
        n = len(first)
        ctx.log(
            pair_cosine=c.mean(),
            pair_cosine_low=c.quantile(0.05),
            pair_cosine_high=c.quantile(0.95),
            pushed_apart=(push > 0).to(c.dtype).mean(),
            left_alone=(push == 0).to(c.dtype).mean(),
            pulled_together=(push < 0).to(c.dtype).mean(),
            fake_similarity=(first.sum(0).square().sum() - n) / (n * (n - 1)),
        )
        if len(images) == 2:
            ctx.log(twin_gap=(images[0] - images[1]).detach().abs().mean() / 2)

    def make(self, n: int, ctx: clf.Context, name: str, hard: float) -> list[Tensor]:
        """F images (n local, C, S, S) in [-1, 1] of each of n latents, this rank's part of them."""
        u = latents(n, ctx, name, self.generators)
        first = self.generators[0](u)
        if self.is_static or self.images == 1:
            return [first] * self.images
        if self.config.pair_mode == "twin":
            return [first, self.generators[1](u)]
        if self.config.pair_mode == "ema":
            with torch.no_grad():
                return [first, self.averages[0](u)]
        step = latents(n, ctx, f"{name} neighbours", self.generators)
        return [first, self.generators[0](u + self.config.sigma_max * hard * step)]

    def _fakes(self, ctx: clf.Context, hard: float) -> Tensor:
        """(n, F, C, S, S) on every rank, from the pool where that is young enough."""
        reuse = self.config.fake_pool
        if reuse > 1 and 0 < int(self.pool_age) < reuse:
            self.pool_age += 1
            return self.pool
        fakes = ctx.gather(torch.stack(self.make(self.generated, ctx, "latents", hard), 1))
        if reuse > 1:
            self.pool = fakes
            self.pool_age.fill_(1)
        return fakes

    def _views(
        self, images: Sequence[Tensor], recipes: Sequence[clf.Recipe], ctx: clf.Context, n: int, name: str
    ) -> list[Tensor]:
        """Two views of each of F images in [-1, 1], those of an image side by side, differentiable."""
        mine = share(n, ctx)
        return [
            views.augment((y + 1) / 2, recipe, ctx.generator(f"{name} view {k} {i}"), mine, n)
            for k, y in enumerate(images)
            for i, recipe in enumerate(recipes)
        ]

    @torch.no_grad()
    def _average(self) -> None:
        for average, generator in zip(self.averages, self.generators, strict=True):
            momentum_update(average, generator, AVERAGE)
            for mine, its in zip(average.buffers(), generator.buffers(), strict=True):
                mine.copy_(its)

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """Images of the generators' moving averages, a column for each latent and a row for each image of it."""
        u, step = torch.randn(2, SHOWN, LATENT, generator=torch.Generator().manual_seed(0))
        like = next(self.generators.parameters())
        u, step = onto(u, like), onto(step, like)
        if self.is_static:
            return {"Images of the frozen generator": _shown([self.generators[0](u)])}
        if self.config.pair_mode == "latent":
            rows = [self.averages[0](u), self.averages[0](u + self.config.sigma_max * step)]
            return {"Images of the generator, and of neighbouring latents below": _shown(rows)}
        rows = [average(u) for average in self.averages]
        if len(rows) == 1:
            rows.append(self.generators[0](u))
            return {"Images of the generator's moving average, and of the generator itself below": _shown(rows)}
        return {"Twins: each column is one latent, each row one generator (moving averages)": _shown(rows)}


def _shown(rows: list[Tensor]) -> Tensor:
    """(rows, columns, C, S, S) in [0, 1]"""
    return (torch.stack(rows) + 1) / 2


def latents_of(config: HardSampleConfig, data: clf.DataSpec) -> int:
    """Latents in a step on all ranks together.

    Raises:
        clf.ConfigError: the batch has no such share, or it is a single one.
    """
    exact = config.synth_ratio * data.batch_size
    if round(exact) < 2 or abs(exact - round(exact)) > 1e-6:
        raise clf.ConfigError(
            f"method.synth_ratio = {config.synth_ratio:g} of train.batch_size = {data.batch_size} are {exact:g} "
            "latents in a step, and a whole number, 2 or more, is needed: set method.synth_ratio="
            f"{max(2, round(exact)) / data.batch_size}, or another train.batch_size"
        )
    return round(exact)
