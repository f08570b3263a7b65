"""The contract between the engine and a method. A method is an ``nn.Module`` with a loss; the rest has defaults.

Letters, used in every shape comment of the project:

    N  images of the local batch          V  views per image        M  rows on all ranks (world size x N)
    C H W  channels, height, width        D  features (backbone)    E  projection          K  queue length
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import Parameter

from clf.augment import Draws, Recipe, crop_boxes, simclr_recipe
from clf.errors import PluginError

if TYPE_CHECKING:
    from clf.backbones import Backbone


class MethodConfig(BaseModel):
    """Base of a method's configuration: frozen, and unknown keys are errors.

    Each field of a subclass has the paper's value as its default and a ``description``; ``clf plugins show NAME``
    prints them as a table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


C = TypeVar("C", bound=MethodConfig)


@dataclass(frozen=True)
class DataSpec:
    """What a method may know of the data. There are no labels here, nor in :class:`Batch`."""

    name: str
    n_images: int
    image_size: int
    """Side in pixels of the square views."""
    channels: int
    batch_size: int
    """Images in one step on all ranks together (M)."""
    steps_per_epoch: float
    """Optimiser steps; not a whole number where ``train.accumulate`` does not divide the batches of an epoch."""
    epochs: int
    fingerprint: str = ""
    """SHA-256 that identifies these very training images, a ``data.limit`` included."""

    @property
    def total_steps(self) -> int:
        return max(1, math.floor(self.steps_per_epoch * self.epochs + 1e-6))


@dataclass(frozen=True)
class Batch:
    """The images of one step on this rank, and their augmented views."""

    views: tuple[Tensor, ...]
    """V tensors (N, C, H, W), float32 in [0, 1], one per recipe of :meth:`Method.views`."""
    index: Tensor
    """(N,) int64, the position of each image in the training set."""
    images: Tensor
    """(N, C, H', W') uint8, the raw images before augmentation."""
    augment: Augmenter = field(repr=False)
    """``augment(images, generator)``: the recipes applied to any raw images, with draws from ``generator``."""
    first: int = 0
    """Place of this rank's first row among the M rows of the step."""
    draws: tuple[tuple[Recipe, Draws], ...] = field(default=(), repr=False)
    """For each view its recipe and the random numbers it was made with, of N rows."""

    def __len__(self) -> int:
        return len(self.index)

    def redraw(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """New views of the images in ``rows`` (R,): V tensors (R, C, H, W). The batch itself is unchanged.

        The new views of a row depend on the generator and on the row's place among all M rows, not on which other rows
        are asked for; so ranks that each redraw some of their rows do what one process would do.
        """
        return self.augment(self.images[rows], generator, self.first + rows)

    @property
    def crops(self) -> tuple[Tensor, ...]:
        """Where each view was cut from: V tensors (N, 4), top, left, height and width as shares of the image."""
        height, width = self.images.shape[2:]
        sides = torch.tensor([height, width, height, width], dtype=torch.float64)
        return tuple(crop_boxes(draws, height, width, recipe.crop_ratio) / sides for recipe, draws in self.draws)


class Augmenter(Protocol):
    """The recipes of a training, applied to any images."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, places: Tensor | None = None, /
    ) -> tuple[Tensor, ...]:
        """Views of raw images.

        Args:
            images: (n, C, H', W') uint8.
            generator: a CPU generator; one number is taken from it for each view.
            places: (n,) int64, the row of the table of draws that each image takes; default 0, 1, 2, ...

        Returns:
            V tensors (n, C, H, W) in [0, 1].
        """
        ...


class BatchStream(Protocol):
    """Where batches come from. Each call of :meth:`next` advances a counter that checkpoints keep."""

    def next(self) -> Batch:
        """The next batch of this rank, in the epoch's random order."""
        ...


class Context(Protocol):
    """What the engine offers to a method during one step."""

    @property
    def step(self) -> int:
        """Optimiser steps taken so far; in :meth:`Method.preparation_step` the steps of the preparation."""
        ...

    @property
    def epoch(self) -> int: ...

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1)."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator that is a function of (run seed, method, ``name``, step): the same again after a resume.

        It is the same on every rank; draw for all M rows and take this rank's. In :meth:`Method.after_step` the step
        is the next one's, so names used there must differ from those of ``training_step``.
        """
        ...

    def device_generator(self, name: str) -> torch.Generator:
        """The like of :meth:`generator` on the training device, for noise of many values. Devices draw differently."""
        ...

    def images(self, index: Tensor) -> Tensor:
        """Raw training images (n, C, H', W') uint8, on the training device, at positions (n,) in [0, n_images)."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """(N, ...) on each rank -> (M, ...) on every rank, in rank order, with gradient.

        Write the loss of the local rows against the gathered ones, as a mean over the local rows: the backward of
        gather sums over ranks and gradients are then averaged, which is the gradient of the mean over all M rows.
        A loss of all rows at once, such as that of a covariance, is computed from gathered rows and returned by every
        rank as it is.
        """
        ...

    def minimize(self, group: str, loss: Tensor) -> None:
        """Steps the optimizer of one parameter group on ``loss`` now. No other group receives a gradient.

        ``group`` is a key of :meth:`Method.parameter_groups`. For adversarial and two-player methods; may be called
        in ``training_step``, ``after_step`` and ``preparation_step``.
        """
        ...

    def log(self, **metrics: float | Tensor) -> None:
        """Records scalars of this step under their names. Tensors are read later, without stalling the device.

        ``loss`` and the fields of every record (step, epoch, lr, images, seconds, ...) are refused as names.
        """
        ...


@dataclass(frozen=True)
class StepOutput:
    """A loss (a scalar with gradient) and scalars to record."""

    loss: Tensor
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Parameters with an optimizer of their own settings; see :meth:`Method.parameter_groups`."""

    parameters: Iterable[Parameter]
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the section ``optimizer``, e.g. ``{"name": "adam", "lr": 5e-5, "betas": (0.0, 0.9)}``. Empty: the run's;
    else what is missing has the section's default, not the run's value."""
    schedule: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the section ``schedule``, e.g. ``{"name": "linear", "decay": 0.2}``. Empty: the run's; else there is no
    warm-up unless ``warmup_epochs`` is given, and never one in the preparation."""
    preparation: bool = False
    """Stepped in :meth:`Method.preparation_step`, over whose steps the schedule then runs."""


class Method(nn.Module, ABC, Generic[C]):
    """A way to train an encoder without labels; one paper is one subclass.

    Parameters and buffers registered on it are moved, saved and restored; nothing else is. The training loop calls
    ``preparation_step`` as often as ``preparation_steps`` says and then, step by step, ``next_batch``,
    ``training_step``, the optimizer, ``after_step``.
    """

    name: ClassVar[str]
    """The plugin name, as in ``clf train --plugin NAME`` and the entry point."""
    Config: ClassVar[type[MethodConfig]]
    """The subclass of :class:`MethodConfig` that ``method.*`` keys are read into."""
    paper: ClassVar[str] = ""
    """Authors, title, venue, arXiv number or DOI, in one line; ``clf plugins show NAME`` prints it with its address."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Recommended values of engine keys, e.g. ``{"optimizer.name": "sgd"}``; files and the command line win."""
    tiny: ClassVar[Mapping[str, Any]] = {}
    """Values of engine and ``method.*`` keys with which a run takes seconds and yet does all that the method does; for
    ``clf verify`` and for tests. Needed where the defaults are large, or let something begin late."""
    min_batch_size: ClassVar[int] = 32
    """Images in a step on all ranks together below which the training says that the loss has too few; it goes on.

    With M images InfoNCE cannot exceed log(2M - 1), nor the information it gains: 4 nats at 32. Below that batch norm's
    statistics get noisy too (Wu, He, Group Normalization, ECCV 2018, figure 1: errors rise from 16 rows downwards).
    Declare less where negatives come from a queue or there are none, more where the paper says so.
    """

    def __init__(self, backbone: Backbone, config: C, data: DataSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.data = data

    @abstractmethod
    def training_step(self, batch: Batch, ctx: Context) -> Tensor | StepOutput:
        """The loss of one batch. It is minimised over the parameter group ``main``."""

    @classmethod
    def build(cls, backbone: Backbone, config: C, data: DataSpec) -> Method[Any]:
        """The method for a configuration. Override where the configuration chooses among subclasses."""
        return cls(backbone, config, data)

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Recommended values of engine keys; override where they depend on the method's settings.

        Args:
            given: the settings that files and the command line give, by dotted key without ``method.``, not yet
                checked.
        """
        return cls.defaults

    def views(self) -> Sequence[Recipe]:
        """The augmentation recipe of each view; by default the two identical ones of SimCLR."""
        recipe = simclr_recipe(self.data.image_size, self.data.channels)
        return [recipe, recipe]

    def parameter_groups(self) -> dict[str, Iterable[Parameter] | Group]:
        """Parameters by group; each group has its own optimizer. ``main`` is stepped by the training loop.

        Other groups are stepped by :meth:`Context.minimize`; as a :class:`Group` they have settings of their own.
        """
        return {"main": [p for p in self.parameters() if p.requires_grad]}

    @property
    def preparation_steps(self) -> int:
        """How often :meth:`preparation_step` is called before the first training step. Asked once, before training.

        ``clf doctor`` takes steps of the training without them, so ``training_step`` must run on an unprepared method.
        """
        return 0

    def preparation_step(self, ctx: Context) -> None:
        """One step of what has to be trained before, such as a generator. Checkpointed and resumed like the training.

        It takes its images from ``ctx.images``; the batches and draws of the training are the same with and without.

        Raises:
            PluginError: the method asks for such steps and does not say what they are.
        """
        raise PluginError(
            f"method {self.name!r} asks for {self.preparation_steps} preparation_steps and has no preparation_step: "
            "write one, or leave preparation_steps out"
        )

    def next_batch(self, stream: BatchStream, ctx: Context) -> Batch:
        """The batch to train on; override to choose batches by their content. Called under the training's autocast."""
        return stream.next()

    def after_step(self, ctx: Context) -> None:
        """Called after the optimizer's step and outside autocast, e.g. to update a momentum encoder."""
        return

    def notes(self) -> Sequence[str]:
        """Sentences for the person at the terminal as the training starts: what takes long, and which key shortens it.

        Asked after a resumed run has its state back, so that what is over need not be told again.
        """
        return ()

    def pictures(self) -> Mapping[str, Tensor]:
        """What the report shows of the method's own: a title and (rows, columns, C, H, W) in [0, 1] for each picture.

        Called on a loaded method in eval mode on the CPU.
        """
        return {}

    def encoder(self) -> nn.Module:
        """What is evaluated and exported: (N, C, H, W) in [0, 1] -> (N, D)."""
        return self.backbone
