"""Measurements while training: k-NN accuracy where labels exist, and whether the representation collapses.

Labels stay here; they never reach the method. The measurements draw no random numbers that the training uses and leave
batch norm alone, so that a run is the same with and without them. When they are made is a function of the
configuration and the number of images (:func:`plan`), never of the clock, so that a resumed run repeats them.

On several ranks only rank 0 measures, on its own copy of the weights, while the others wait for it at the end of the
step, where all agree on what comes next. Their patience is :data:`clf.distributed.TIMEOUT`, which a measurement of the
planned size is far from; ``monitor.max_images`` in the hundreds of thousands is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clf.augment import Augment
from clf.callbacks import Watcher
from clf.config import MonitorSection
from clf.data import DataSource, Split
from clf.diagnostics import Diagnostics, diagnose, verdict
from clf.evaluate.features import encode, evaluation_mode
from clf.evaluate.knn import knn_accuracy
from clf.random import generator

if TYPE_CHECKING:
    from clf.trainer import Trainer

TEMPERATURE = 0.1
SHARE = 1 / 200
"""Of the training's work that the measurements may take where nothing else is asked for."""
VIEW = 3
"""Work of a view that is trained on, in units of a forward pass: forward 1, backward 2 (augmentation comes on top)."""
POINTS = 20
"""Measurements that are aimed at before each is made larger."""
SMALLEST, GOOD, LARGEST = 64, 500, 5000
"""Images of the bank: never fewer; worth having rather than more measurements; never more unless asked for."""
PAIRS = 8
"""One image in so many of the bank gives two views for the alignment."""
BATCH = 256


@dataclass(frozen=True)
class Plan:
    """When to measure, and on how many images."""

    every: int
    """Epochs between measurements; 0 for never. Epoch 1 is measured too, unless only the end is."""
    images: int
    """Of the bank, and of the queries, at most."""
    epochs: int

    def due(self, epoch: int) -> bool:
        """Whether the end of an epoch, counted from 1, is measured; the last one always is, unless none is."""
        if not self.every:
            return False
        return epoch % self.every == 0 or epoch >= self.epochs or (epoch == 1 and self.every < self.epochs)

    @property
    def count(self) -> int:
        return sum(map(self.due, range(1, self.epochs + 1)))


def plan(section: MonitorSection, *, epochs: int, work: float, bank: int, queries: int) -> Plan:
    """The measurements of a run: what the configuration says, and else what takes less than 1 % of the training.

    In units of one forward pass of one image, a training of I images in V views costs 3 V I at least. A measurement on
    s images costs s for the bank, s for the queries, and 3 for each of 2 s / 8 augmented views (no more than the same
    view would cost in training): 2.75 s. Half of 1 % is given away, because what follows the forward pass (k-NN,
    singular values) and an uncompiled encoder cost something too: c measurements fit when 2.75 s c <= 3 V I / 200.
    Hence, for instance, with two views:

        6,000 images, 8 epochs                               1 measurement of 500 images, at the end
        5,000 images, 100 epochs                            10 of 500
        CIFAR-10, 50,000 images, 200 epochs                 21 of 5,000
        ImageNet, 1,281,167 images, 100 epochs             100 of 5,000

    Trainings of fewer than 2,934 images in all, which last seconds, pay more than 1 % for their one measurement of 64.

    Args:
        section: ``knn_every`` and ``max_images`` win where they are set, whatever they cost.
        epochs: of the whole training, counting one that is begun.
        work: V I, the views that the training sees in all; a smaller view counts by its area.
        bank, queries: images there are.
    """

    def cost(images: int) -> float:
        return min(images, bank) + min(images, queries) + 2 * VIEW * min(images, bank) / PAIRS

    def largest(allowance: float) -> int:
        return next((n for n in range(LARGEST, SMALLEST, -1) if cost(n) <= allowance), SMALLEST)

    budget = SHARE * VIEW * work
    images = section.max_images
    if images is None and section.knn_every is not None:
        images = LARGEST
    elif images is None:
        images = min(largest(budget), max(GOOD, largest(budget / min(POINTS, epochs))))
    if section.knn_every is not None:
        return Plan(section.knn_every, images, epochs)
    plans = (Plan(every, images, epochs) for every in range(1, epochs))
    return next((p for p in plans if p.count * cost(images) <= budget), Plan(epochs, images, epochs))


class Monitor(Watcher):
    """Measures the encoder as :func:`plan` says, and speaks up when something is wrong.

    ``monitor.stop_on_collapse`` ends the training when two measurements in a row find it collapsed: an untrained
    network, or one in its first epochs, may look so for once.
    """

    def on_start(self, trainer: Trainer) -> None:
        config, data, recipes = trainer.config, trainer.data, trainer.experiment.recipes
        self._bank, self._queries = _rows(data)
        seen = trainer.total_steps * config.train.batch_size * config.train.accumulate
        self.plan = plan(
            config.monitor,
            epochs=math.ceil(trainer.total_steps / trainer.steps_per_epoch - 1e-6),
            work=seen * sum((recipe.size / data.image_size) ** 2 for recipe in recipes),
            bank=len(self._bank),
            queries=len(self._queries),
        )
        self._bank, self._queries = _some(self._bank, self.plan.images), _some(self._queries, self.plan.images)
        before = [record for record in trainer.run.metrics() if record["kind"] == "monitor"]
        self._collapsed = bool(before and before[-1].get("collapsed"))
        warning = small_batch(trainer)
        if warning and trainer.step == 0:
            trainer.say(warning)

    def on_epoch(self, trainer: Trainer) -> None:
        last = trainer.step >= trainer.total_steps  # perhaps in the middle of an epoch
        if self.plan.due(self.plan.epochs if last else trainer.epochs_done(trainer.step)):
            self._measure(trainer)

    def _measure(self, trainer: Trainer) -> None:
        with _as_trained(trainer):
            found, features = self._diagnose(trainer)
            values = found.model_dump(include={"rank_me", "feature_std", "mean_cosine", "uniformity", "alignment"})
            if len(self._queries):
                values |= {"knn": self._knn(trainer, features), "bank": len(self._bank)}
        sentence = verdict(found)
        trainer.record("monitor", **{k: v for k, v in values.items() if v == v}, collapsed=float(sentence is not None))
        if sentence:
            trainer.say(f"epoch {trainer.epoch:.0f}: {sentence}")
            last = trainer.step >= trainer.total_steps
            if self._collapsed and trainer.config.monitor.stop_on_collapse and not last:
                trainer.end(f"the representation has collapsed in two measurements in a row. {sentence}")
        self._collapsed = sentence is not None

    def _diagnose(self, trainer: Trainer) -> tuple[Diagnostics, Tensor]:
        """The label-free figures, and the features of the bank (n, D) on the device."""
        bank = _encode(trainer, trainer.data.train, self._bank)
        pairs = _some(self._bank, max(2, len(self._bank) // PAIRS))
        parts = [_view_features(trainer, rows) for rows in torch.split(pairs, BATCH)]
        a, b = (torch.cat(views) for views in zip(*parts, strict=True))  # (m, D)
        return diagnose(bank, (a, b)), bank

    def _knn(self, trainer: Trainer, bank: Tensor) -> float:
        train, test = trainer.data.train, trainer.data.test
        assert train.labels is not None and test is not None and test.labels is not None
        found = _encode(trainer, test, self._queries)  # (m, D)
        labels, answers = train.labels[self._bank].to(bank.device), test.labels[self._queries].to(bank.device)
        return knn_accuracy(bank, labels, found, answers, trainer.config.monitor.knn_k, TEMPERATURE)


def small_batch(trainer: Trainer) -> str | None:
    """One sentence when a step has fewer images than the method says its loss needs, else None."""
    size, wanted = trainer.config.train.batch_size, trainer.method.min_batch_size
    if size >= wanted:
        return None
    return (
        f"train.batch_size = {size} is small for {trainer.config.plugin!r}: its loss has few other images to tell each "
        f"one from, and wants {wanted} or more in a step, else expect weak features. Raise train.batch_size; "
        "train.chunk_size keeps the memory it needs small."
    )


@contextmanager
def _as_trained(trainer: Trainer) -> Iterator[None]:
    """In the training's precision; not compiled, because that would compile it anew for evaluation mode."""
    with ExitStack() as stack:
        stack.enter_context(trainer.autocast())
        stack.enter_context(evaluation_mode(trainer.method.encoder()))
        if trainer.config.train.compile == "on":
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _rows(data: DataSource) -> tuple[Tensor, Tensor]:
    """Positions of the labelled training and test images; without such, of all training images and no queries."""
    bank, queries = (
        torch.arange(0) if split is None or split.labels is None else (split.labels >= 0).nonzero()[:, 0]
        for split in (data.train, data.test)
    )
    return (bank, queries) if len(bank) and len(queries) else (torch.arange(len(data.train)), queries[:0])


def _some(rows: Tensor, limit: int) -> Tensor:
    """The same rows in every measurement of every run, rising."""
    if len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=generator(0, "monitor"))[:limit]].sort().values


def _encode(trainer: Trainer, split: Split, rows: Tensor) -> Tensor:
    """(n, D) features of clean images, on the device."""
    encoder = trainer.method.encoder()
    parts = [encode(encoder, split.clean[part], BATCH, trainer.device) for part in torch.split(rows, BATCH)]
    return torch.cat(parts).to("cpu" if trainer.device.type == "mps" else trainer.device)  # mps has no float64


@torch.no_grad()
def _view_features(trainer: Trainer, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, D) of two views of each training image, with draws of their own that are always the same."""
    recipes, encoder = trainer.experiment.recipes, trainer.method.encoder()
    images = trainer.data.train.images[rows].to(trainer.device)
    dtype = torch.float64 if trainer.config.train.precision == "fp64" else torch.float32
    found = []
    for view, recipe in enumerate((recipes[0], recipes[min(1, len(recipes) - 1)])):
        draws = recipe.draw(len(rows), generator(0, "monitor", "view", view, int(rows[0])))
        features = encoder(Augment(recipe)(images, draws, dtype))
        found.append(features.to("cpu" if trainer.device.type == "mps" else trainer.device).float())
    return found[0], found[1]
