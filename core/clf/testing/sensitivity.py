"""Checks of what a training depends on: on which views belong together, and not on labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clf.checks import Failed, Skipped
from clf.data import DataSource, Split
from clf.method import Batch, Context
from clf.random import generator
from clf.testing.probing import TrainingStep, around, prepared, take_step, telling
from clf.testing.subject import Subject
from clf.verify.compare import tensor_digests

SAME = 1e-9
"""Relative difference of losses in float64 that rounding may make."""

Views = tuple[Tensor, ...]


def views_matter(subject: Subject) -> str:
    """The first steps with the views as they are, and with all views but the first in another order of images."""
    with telling(subject, "the method cannot be built"):
        count = len(subject.experiment(subject.config()).recipes)
    if count < 2:
        raise Skipped(f"views() asks for {count} view of each image, so there are none to confuse")
    plain = _losses(subject, lambda views: views)
    mixed = _losses(subject, _mixed)
    for step, (a, b) in enumerate(zip(plain, mixed, strict=True), start=1):
        if abs(a - b) > SAME * max(1.0, abs(a)):
            return f"loss {a:.6g} at step {step}, and {b:.6g} with views of other images in the place of the second"
    inverted = _losses(subject, lambda views: tuple(1 - x for x in views))
    if inverted == plain:
        raise Skipped("the loss does not depend on batch.views or batch.redraw, so the method makes views of its own")
    raise Failed(
        f"the loss is the same number, {plain[0]:.10g} at the first of {len(plain)} steps, when the second view of "
        "each image is exchanged for that of another"
    )


def _losses(subject: Subject, change: Callable[[Views], Views]) -> list[float]:
    doing, exact = "with the rows of the second view in another order", {"train.precision": "fp64"}
    wrap = partial(_changed, change)
    with telling(subject, doing), prepared(subject, exact, 3) as trainer, around(trainer, wrap):
        return [take_step(trainer)["loss"] for _ in range(trainer.total_steps)]


def _changed(change: Callable[[Views], Views], training_step: TrainingStep, batch: Batch, ctx: Context) -> Any:
    def augment(images: Tensor, source: torch.Generator, places: Tensor | None = None, /) -> Views:
        return change(batch.augment(images, source, places))

    return training_step(replace(batch, views=change(batch.views), augment=augment), ctx)


def _mixed(views: Views) -> Views:
    """No view of an image, but the first, stays in its row, and no two of them go to the same."""
    return (views[0], *(view.roll(1 + i % max(1, len(view) - 1), 0) for i, view in enumerate(views[1:])))


def no_labels(subject: Subject) -> str:
    """The same steps with the labels of the data set, with these in another order, and without any."""
    data = subject.data(subject.config())
    given = _ending(subject, data, "with labels")
    for how, other in (("permuted", _relabelled(data, _permuted)), ("absent", _relabelled(data, lambda labels: None))):
        found = _ending(subject, other, f"with labels {how}")
        if difference := _difference(given, found):
            if _difference(given, _ending(subject, data, "with labels")):
                raise Skipped("two like trainings in one process differ already, so that nothing can be compared")
            raise Failed(f"with labels {how} {difference}: the method reads labels")
    return f"the same bits after {STEPS} steps with labels as they are, permuted and absent"


STEPS = 6
_Ending = tuple[list[dict[str, float]], dict[str, str]]
"""The metrics of each step, and digests of the state after the last."""


def _ending(subject: Subject, data: DataSource, doing: str) -> _Ending:
    with telling(subject, doing), prepared(subject, {}, STEPS, data) as trainer:
        metrics = [take_step(trainer) for _ in range(trainer.total_steps)]
        return metrics, tensor_digests(trainer.method.state_dict())


def _difference(one: _Ending, other: _Ending) -> str | None:
    """The first metric that differs, or else the first weight or buffer."""
    for step, (a, b) in enumerate(zip(one[0], other[0], strict=True), start=1):
        for name in ["loss", *sorted({**a, **b})]:
            if a.get(name) != b.get(name):
                return f"{name} at step {step} is {b.get(name)!r} instead of {a.get(name)!r}"
    changed = [name for name in {**one[1], **other[1]} if one[1].get(name) != other[1].get(name)]
    return f"the weight or buffer {changed[0]!r} has other bits after {STEPS} steps" if changed else None


def _permuted(labels: Tensor) -> Tensor:
    return labels[torch.randperm(len(labels), generator=generator(0, "other labels"))]


def _relabelled(data: DataSource, change: Callable[[Tensor], Tensor | None]) -> DataSource:
    def of(split: Split) -> Split:
        return split if split.labels is None else replace(split, labels=change(split.labels))

    return replace(data, train=of(data.train), test=None if data.test is None else of(data.test))
