"""EBCLR: Energy-Based Contrastive Learning of Visual Representations.

Beomsu Kim, Jong Chul Ye. NeurIPS 2022, arXiv 2202.04933.
As in the official code and unlike the paper's equations, the discriminative term is the mean of both directions and
raw projections are penalised. Unlike both, no slot of the replay buffer is drawn twice in a step.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import clf
from clf import losses
from clf_ebclr.buffer import ReplayBuffer
from clf_ebclr.config import EBCLRConfig
from clf_ebclr.energy import log_density, precise, squared_norms
from clf_ebclr.proposal import Proposal
from clf_ebclr.sampler import frozen, noise_scale, normal, run_chains

BUFFER_SIZE = 50_000
_RESTARTS = {"mnist": 0.4, "fashion_mnist": 0.6}
_RESTART = 0.2  # CIFAR-10 and CIFAR-100


class EBCLR(clf.Method[EBCLRConfig]):
    name = "ebclr"
    Config = EBCLRConfig
    paper = "Kim, Ye, Energy-Based Contrastive Learning of Visual Representations, NeurIPS 2022, arXiv 2202.04933"
    tiny: ClassVar[Mapping[str, Any]] = {"method.buffer_size": 48, "method.sgld_steps": 2}
    defaults: ClassVar[Mapping[str, Any]] = {
        "backbone.norm": "none",
        "backbone.activation": "leaky_relu",
        "backbone.normalize": "half",
        "optimizer.name": "adam",
        "optimizer.lr": 2e-4,
        "optimizer.weight_decay": 0.0,
        "schedule.name": "constant",
        "schedule.warmup_epochs": 0,
        "train.batch_size": 128,
    }
    min_batch_size = 16  # figure 1: 16 and 128 are practically the same

    def __init__(self, backbone: clf.Backbone, config: EBCLRConfig, data: clf.DataSpec) -> None:
        super().__init__(backbone, config, data)
        hidden = config.hidden_dim or backbone.dim
        self.projector = nn.Sequential(
            nn.Linear(backbone.dim, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, config.projection_dim)
        )
        self.restart = _RESTARTS.get(data.name, _RESTART) if config.restart is None else config.restart
        if config.generative_weight:
            _require_rows_apart(backbone)
            self.buffer = ReplayBuffer(self._buffer_size(), (data.channels, data.image_size, data.image_size))

    def _buffer_size(self) -> int:
        length = self.config.buffer_size or min(BUFFER_SIZE, self.data.n_images)
        if length < self.data.batch_size:
            raise clf.ConfigError(
                f"method.buffer_size = {length} holds fewer chains than a step runs, which is train.batch_size = "
                f"{self.data.batch_size}: raise method.buffer_size or lower train.batch_size"
            )
        return length

    def views(self) -> Sequence[clf.Recipe]:
        """Strong jitter and a blur of all images with three channels; crops alone with one. Noise is added later."""
        size, shared = self.data.image_size, self.data.batch_size if self.config.augmentation == "chunked" else 1
        grey = clf.Recipe(size, flip=0, jitter=0, grayscale=0, shared_by=shared)
        recipe = grey if self.data.channels == 1 else clf.Recipe(size, blur=1, shared_by=shared)
        return [recipe, recipe]

    def project(self, x: Tensor) -> Tensor:
        """Views (n, C, S, S) in [-1, 1] -> raw projections (n, E)."""
        u: Tensor = self.projector(self.backbone((x + 1) / 2))
        return u

    def training_step(self, batch: clf.Batch, ctx: clf.Context) -> clf.StepOutput:
        x = torch.cat([2 * view - 1 for view in self._noisy(batch.views, ctx)])  # (2N, C, S, S)
        u, v = self.project(x).chunk(2)  # (N, E) each
        if not self.config.generative_weight:
            disc = self.discriminative(u, v, ctx)
            return clf.StepOutput(disc, {"discriminative": disc.detach()})
        samples = self.sample(batch, ctx.gather(v.detach()), ctx)  # (N, C, S, S)
        return self.objective(u, v, self.project(samples), ctx)

    def discriminative(self, u: Tensor, v: Tensor, ctx: clf.Context) -> Tensor:
        """-log q(v' | v) of equation 18 and of the other direction, up to the constant log(2M - 1): a scalar.

        ||z - z'||^2 = 2 - 2 cos: the 2 drops out, and the temperature of the cosines is half of tau.
        """
        return losses.nt_xent(u, v, self.config.temperature / 2, gather=ctx.gather, rank=ctx.rank)

    def objective(self, u: Tensor, v: Tensor, w: Tensor, ctx: clf.Context) -> clf.StepOutput:
        """The discriminative term + lambda (E(data) - E(samples) + norm penalty): minus equation 11.

        Args:
            u, v, w: raw projections of first views, second views and samples, (N, E) each. A gradient flows into all
                three: second views are the partners in both energies.
        """
        settings = self.config
        disc = self.discriminative(u, v, ctx)
        partners = ctx.gather(precise(v))  # (M, E); ranks add up gradients in this type
        data_energy = -log_density(u, partners, settings.temperature).mean()
        sample_energy = -log_density(w, partners, settings.temperature).mean()
        generative = data_energy - sample_energy
        norms = squared_norms(u).mean() + squared_norms(w).mean()
        penalty = settings.norm_penalty * len(partners) * norms  # lambda_1 times the sum over the rows of all ranks
        log_m = math.log(len(partners))  # with it, energies against other numbers of partners compare
        metrics = {
            "discriminative": disc,
            "generative": generative,
            "norm_penalty": penalty,
            "energy_data": data_energy + log_m,
            "energy_samples": sample_energy + log_m,
            "squared_norm": norms / 2,
        }
        loss = disc + settings.generative_weight * (generative + penalty)
        return clf.StepOutput(loss, {name: value.detach() for name, value in metrics.items()})

    def sample(self, batch: clf.Batch, partners: Tensor, ctx: clf.Context) -> Tensor:
        """Runs this rank's chains of the step and keeps in the buffer where all ranks' ended.

        Args:
            partners: raw projections of all second views, (M, E), without gradient.

        Returns:
            (N, C, S, S), in [-1, 1] roughly, without gradient.
        """
        mine, m = _rows(ctx, len(batch)), ctx.world_size * len(batch)
        proposal = Proposal(self.config, self.data.n_images, batch, ctx)
        if not self.buffer.filled:
            proposal.fill(self.buffer)
        slots = self.buffer.draw(m, ctx.generator("slots")).to(ctx.device)  # (M,)
        fresh = self._restarts(m, ctx.generator("restarts"))  # (M,) bool
        visits = self.buffer.visits[slots].masked_fill(fresh.to(ctx.device), 0)  # kappa, (M,)
        stored = self.buffer.images[slots[mine]].to(batch.views[0].dtype)  # (N, C, S, S)
        x, clamped = self._climb(proposal.restart(stored, fresh, mine), visits[mine], partners, ctx)
        ends = ctx.gather(x)  # (M, C, S, S)
        self.buffer.write(slots, ends, visits + 1)
        ctx.log(
            clamp_rate=clamped,
            restarted=fresh.double().mean().item(),
            pixels_outside=(ends.abs() > 1).to(x.dtype).mean(),
            largest_pixel=ends.abs().max(),
        )
        return x

    def _climb(self, start: Tensor, visits: Tensor, partners: Tensor, ctx: clf.Context) -> tuple[Tensor, Tensor]:
        """SGLD of this rank's chains, in full precision because gradients of pixels are small at first."""
        settings, n = self.config, len(start)
        mine, generator = _rows(ctx, n), ctx.device_generator("langevin")

        def density(x: Tensor) -> Tensor:
            return log_density(self.project(x), partners, settings.temperature)

        with torch.autocast(ctx.device.type, enabled=False), frozen(self.backbone, self.projector):
            return run_chains(
                density,
                start,
                noise_scale(visits, settings.noise_min, settings.noise_max, settings.noise_stages),
                lambda: normal(n * ctx.world_size, start, generator)[mine],
                steps=settings.sgld_steps,
                step_size=settings.step_size,
                clamp=settings.gradient_clamp,
                pieces=math.ceil(n / (self.backbone.chunk_size or n)),
            )

    def _restarts(self, m: int, generator: torch.Generator) -> Tensor:
        """Which of M chains start anew, (M,) bool."""
        if self.config.restart_rule == "bernoulli":
            return torch.rand(m, generator=generator) < self.restart
        chosen = torch.randint(m, (int(self.restart * m),), generator=generator)
        return torch.zeros(m, dtype=torch.bool).index_fill_(0, chosen, True)

    def _noisy(self, views: Sequence[Tensor], ctx: clf.Context) -> list[Tensor]:
        """Views with the noise that the paper's code adds; values may leave [0, 1]."""
        generator, n = ctx.device_generator("view noise"), len(views[0])
        m, mine = n * ctx.world_size, _rows(ctx, n)
        return [view + self.config.view_noise * normal(m, view, generator)[mine] for view in views]

    def pictures(self) -> Mapping[str, Tensor]:
        if not self.config.generative_weight or not self.buffer.filled:
            return {}
        youngest, oldest = self.buffer.visits.aminmax()
        title = f"Samples in the replay buffer, from the youngest ({youngest} visits) to the oldest ({oldest})"
        return {title: self.buffer.by_age(8, 8)}


def _require_rows_apart(backbone: clf.Backbone) -> None:
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in backbone.modules()):
        raise clf.ConfigError(
            f"ebclr samples images by gradients of {backbone.name!r}, in which batch norm would mix the images of a "
            "batch: set backbone.norm=none as in the paper, backbone.norm=group, or method.generative_weight=0"
        )


def _rows(ctx: clf.Context, n: int) -> slice:
    """This rank's N rows among the M."""
    return slice(ctx.rank * n, (ctx.rank + 1) * n)


@clf.hookimpl
def clf_methods() -> list[type[EBCLR]]:
    return [EBCLR]
