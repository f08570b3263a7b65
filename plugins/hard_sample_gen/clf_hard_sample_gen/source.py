"""The GAN before the game: its pre-training on the images that the encoder will see, or its taking over from a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import clf
from clf_hard_sample_gen import losses
from clf_hard_sample_gen.config import HardSampleConfig
from clf_hard_sample_gen.diff_augment import COLUMNS, diff_augment
from clf_hard_sample_gen.gan import LATENT, SIZES, Discriminator, Generator, sides
from clf_hard_sample_gen.views import onto

ADAM = {"name": "adam", "betas": (0.0, 0.9), "weight_decay": 0.0}
LEARNING_RATE = 2e-4
"""Of the pre-training, falling to 0 over its steps."""


class Source(nn.Module):
    """G0 and D0. They stay as they were pre-trained; the players of the game start as copies of them.

    Raises:
        clf.ConfigError: the GAN cannot make images of this size.
    """

    ready: Tensor
    """bool: whether the pre-training is complete."""

    def __init__(self, config: HardSampleConfig, data: clf.DataSpec) -> None:
        super().__init__()
        first, *_, near = sides(data.image_size)
        if near != data.image_size:
            raise clf.ConfigError(
                f"data.image_size = {data.image_size} cannot be made by the GAN, which doubles a side of 4, 5, 6 or 7 "
                f"pixels again and again: set it to {near} or {near + near // first}"
            )
        size = SIZES[config.gan]
        self.config, self.data = config, data
        self.steps = config.gan_steps or size.steps
        self.d_steps = config.gan_d_steps or (size.d_steps if data.image_size <= 32 else 2)
        self.real = RealImages(data)
        self.generator = Generator(size.generator, data.image_size, data.channels)
        self.discriminator = Discriminator(size.discriminator, data.image_size, data.channels)
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def groups(self) -> dict[str, clf.Group]:
        optimizer, schedule = {**ADAM, "lr": LEARNING_RATE}, {"name": "linear", "warmup_epochs": 0}
        return {
            "gan_generator": clf.Group(self.generator.parameters(), optimizer, schedule, preparation=True),
            "gan_discriminator": clf.Group(self.discriminator.parameters(), optimizer, schedule, preparation=True),
        }

    @property
    def preparation_steps(self) -> int:
        return self.steps if self.config.gan_run is None else 1

    def notes(self) -> list[str]:
        """What a user should know before hours of pre-training; nothing once they are over."""
        if bool(self.ready) or self.config.gan_run is not None:
            return []
        return [
            f"A GAN is trained first, for {self.steps:,} steps, which may take far longer than all the rest. "
            "method.gan=lite (or tiny) and method.gan_steps make that shorter; method.gan_run=RUN_FOLDER takes the GAN "
            "of another run."
        ]

    def prepare(self, ctx: clf.Context) -> bool:
        """One step of the pre-training, or the one that reads another run's GAN. Returns whether it was the last."""
        if self.config.gan_run is None:
            self._train(ctx)
        else:
            self._take_over(clf.saved_method(self.config.gan_run))
        last = ctx.step == self.preparation_steps - 1
        self.ready.fill_(last)
        return last

    def _train(self, ctx: clf.Context) -> None:
        n, policy = self.config.gan_batch, self.config.diff_augment
        for i in range(self.d_steps):
            with torch.no_grad():
                fakes = self.generator(latents(n, ctx, f"latents {i}", self.generator))
            real = self.real(n, ctx, f"real {i}", fakes.dtype)
            metrics = critic_step(self.discriminator, real, [fakes], policy, ctx, "gan_discriminator", f"critic {i}")
        fakes = self.generator(latents(n, ctx, "latents", self.generator))
        with frozen(self.discriminator):
            score = self.discriminator(augmented(fakes, policy, ctx, "generator"))
            ctx.minimize("gan_generator", -score.mean())
        ctx.log(**{f"gan_{name}": value for name, value in metrics.items()})

    def _take_over(self, saved: clf.SavedMethod) -> None:
        """Takes the weights of another run's pre-trained GAN.

        Raises:
            clf.ConfigError: it is of another method, not ready, or was made for other images.
        """
        where = f"method.gan_run = {self.config.gan_run}"
        if saved.plugin != "hard_sample_gen":
            raise clf.ConfigError(f"{where} is a run of {saved.plugin!r}: give the folder of a run of hard_sample_gen")
        theirs, mine = saved.data, self.data
        differing = (
            ("image size", "data.image_size", theirs.image_size, mine.image_size),
            ("number of channels", "another GAN", theirs.channels, mine.channels),
            ("width", "method.gan", saved.config.get("gan", "full"), self.config.gan),
        )
        for what, key, its, own in differing:
            if its != own:
                remedy = f"set {key}={its}" if "." in key else f"take {key}"
                raise clf.ConfigError(
                    f"{where} holds a GAN of {what} {its}, and {own} is needed: {remedy}, or train one"
                )
        if theirs.fingerprint != mine.fingerprint:
            raise clf.ConfigError(
                f"{where} holds a GAN that was trained on other images ({theirs.name}, {theirs.n_images:,} of them) "
                f"than this run's ({mine.name}, {mine.n_images:,}): train one on these by leaving gan_run out"
            )
        prefix = "game.source."
        state = {name.removeprefix(prefix): x for name, x in saved.state.items() if name.startswith(prefix)}
        if not bool(state["ready"]):
            raise clf.ConfigError(f"{where} has not finished the pre-training of its GAN: resume that run first")
        self.load_state_dict(state)


class RealImages:
    """Training images for the discriminator: resized and flipped, nothing else."""

    def __init__(self, data: clf.DataSpec) -> None:
        self.n_images = data.n_images
        self.recipe = clf.Recipe(size=data.image_size, crop_area=(1, 1), crop_ratio=(1, 1), jitter=0, grayscale=0)
        self.augment = clf.Augment(self.recipe)

    def __call__(self, n: int, ctx: clf.Context, name: str, dtype: torch.dtype) -> Tensor:
        """This rank's part (n local, C, S, S) in [-1, 1] of n random images of the training set."""
        mine = share(n, ctx)
        index = torch.randint(self.n_images, (n,), generator=ctx.generator(f"{name} index"))
        draws = self.recipe.draw(n, ctx.generator(f"{name} flip")).rows(mine)
        return self.augment(ctx.images(index[mine]), draws, dtype) * 2 - 1


def critic_step(
    discriminator: nn.Module,
    real: Tensor,
    fakes: Sequence[Tensor],
    policy: str,
    ctx: clf.Context,
    group: str,
    name: str,
) -> dict[str, Tensor]:
    """One step of a discriminator on this rank's real images and fakes; its mean scores, and its accuracy."""
    parts = [augmented(x, policy, ctx, f"{name} {i}") for i, x in enumerate([real, *fakes])]
    on_real, *on_fakes = discriminator(torch.cat(parts)).split([len(x) for x in parts])  # one forward: one power step
    ctx.minimize(group, losses.discriminator(on_real, on_fakes))
    right = [(x > 0).to(on_real.dtype).mean() for x in (on_real, -torch.cat(on_fakes))]
    scores = {"d_real": on_real.detach().mean(), "d_accuracy": torch.stack(right).mean()}
    named = {"d_fake": on_fakes[0]} if len(on_fakes) == 1 else {"d_fake_1": on_fakes[0], "d_fake_2": on_fakes[1]}
    return scores | {key: score.detach().mean() for key, score in named.items()}


def augmented(x: Tensor, policy: str, ctx: clf.Context, name: str) -> Tensor:
    """DiffAugment of this rank's rows; draws are made for those of all ranks."""
    n = len(x) * ctx.world_size
    u = torch.rand(n, COLUMNS, generator=ctx.generator(f"{name} augmentation"), dtype=torch.float64)
    return diff_augment(x, u[share(n, ctx)], policy)


def latents(n: int, ctx: clf.Context, name: str, generator: nn.Module) -> Tensor:
    """This rank's part (n local, 128) of n latents for a generator, u ~ N(0, I)."""
    u = torch.randn(n, LATENT, generator=ctx.generator(name))
    return onto(u[share(n, ctx)], next(generator.parameters()))


def share(n: int, ctx: clf.Context) -> slice:
    """This rank's rows of n.

    Raises:
        clf.ConfigError: they cannot be divided.
    """
    if n % ctx.world_size:
        raise clf.ConfigError(
            f"{n} generated images cannot be divided among {ctx.world_size} processes: choose method.synth_ratio and "
            f"method.gan_batch so that train.batch_size times the one, and half of the other, are multiples of "
            f"{ctx.world_size}"
        )
    local = n // ctx.world_size
    return slice(ctx.rank * local, (ctx.rank + 1) * local)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Modules in eval mode and without gradients for their parameters; all is as it was afterwards, errors included."""
    parts = [(part, part.training) for module in modules for part in module.modules()]
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    try:
        for part, _ in parts:
            part.training = False
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for part, training in parts:
            part.training = training
        for p in parameters:
            p.requires_grad_(True)
