"""What the checks that train have in common: trainings that may be compared, and errors by line of the plugin."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from clf.calls import about_the_graph
from clf.checks import Failed, Skipped
from clf.data import DataSource
from clf.errors import ClfError, ConfigError
from clf.method import Batch, Context, StepOutput
from clf.testing.isolation import explained
from clf.testing.subject import Subject, prepare
from clf.trainer import Trainer

TrainingStep = Callable[[Batch, Context], Any]


class Refused(Failed):
    """The method does not want such a configuration and says so by a ConfigError."""


@contextmanager
def telling(subject: Subject, doing: str) -> Iterator[None]:
    """What is raised inside becomes :class:`Failed`: what was done, the error, and the line of the plugin it is from.

    Raises:
        Refused: a ConfigError.
        Failed: anything else.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        chain = list(_chain(error))
        for each in chain:
            if isinstance(each, (Failed, Skipped)):
                raise each from None
        kind = Refused if any(isinstance(each, ConfigError) for each in chain) else Failed
        raise kind(f"{doing}: {describe(subject, error)}") from error


def describe(subject: Subject, error: BaseException) -> str:
    """An error in one line, with the place in the plugin's own files that it is from."""
    root = next((each for each in _chain(error) if not isinstance(each, ClfError)), error)
    if root is error and isinstance(error, ClfError):
        return str(error)
    return f"{explained(root, subject.source_files)} {about_the_graph(root)}".rstrip()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextmanager
def fixed_numbers() -> Iterator[None]:
    """The global random numbers of Python and NumPy start at one place inside, and are as before after it.

    So a method that draws from them is told of by the check of repeated runs, and by no comparison of two trainings.
    """
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def prepared(
    subject: Subject, changes: Mapping[str, Any], steps: int, data: DataSource | None = None
) -> Iterator[Trainer]:
    """A trainer of so many steps, after the method's preparation."""
    config = subject.config({"train.max_steps": steps, **changes})
    with fixed_numbers(), subject.trainer(config, data) as trainer:
        prepare(trainer)
        yield trainer


@contextmanager
def around(trainer: Trainer, wrap: Callable[[TrainingStep, Batch, Context], Any]) -> Iterator[None]:
    """While entered, ``wrap(training_step, batch, ctx)`` is called in place of the method's training_step."""
    own = trainer.method.training_step
    with patch.object(trainer.method, "training_step", lambda batch, ctx: wrap(own, batch, ctx)):
        yield


def take_step(trainer: Trainer) -> dict[str, float]:
    """One optimizer step; its loss and what it logged.

    Raises:
        Failed: one of them is not finite.
    """
    at = trainer.step + 1
    trainer.one_step()
    values = trainer.window.flush(trainer.ranks)
    for name in ["loss", *sorted(values)]:
        if not math.isfinite(values[name]):
            what = "the loss" if name == "loss" else f"the metric {name!r}"
            raise Failed(f"{what} is {values[name]} at step {at}")
    return values


def losses(
    subject: Subject, changes: Mapping[str, Any], steps: int, doing: str, data: DataSource | None = None
) -> list[float]:
    """The losses of a training's first steps.

    Raises:
        Refused, Failed: as :func:`telling` and :func:`take_step` do.
    """
    with telling(subject, doing), prepared(subject, changes, steps, data) as trainer:
        try:
            return [take_step(trainer)["loss"] for _ in range(trainer.total_steps)]
        except Failed as failure:
            raise Failed(f"{doing}: {failure}") from None


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among the values of a state, which may hold what get_extra_state() returned too."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def loss_of(output: Any) -> Any:
    """What a training_step calls its loss."""
    return output.loss if isinstance(output, StepOutput) else output


@dataclass(frozen=True)
class Traces:
    """What two trainings can be compared by."""

    losses: list[float]
    gradients: list[dict[str, Tensor]]
    """By optimizer step, of all groups in the order in which they were stepped: name -> gradient."""


@contextmanager
def traced(trainer: Trainer) -> Iterator[list[dict[str, Tensor]]]:
    """While entered, the gradients of each optimizer step are kept, by the parameters' names."""
    names = {p: name for name, p in trainer.method.named_parameters()}
    kept: list[dict[str, Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *unused: object) -> None:
        every = [p for group in optimizer.param_groups for p in group["params"]]
        kept.append({names[p]: p.grad.clone() for p in every if p.grad is not None})

    handles = [each.register_step_pre_hook(keep) for each in trainer.optimizers.values()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def apart(one: Traces, other: Traces, tolerance: float) -> str | None:
    """The first step whose loss or gradient differs by more than a share of the loss, or of the largest gradient."""
    for i, (a, b) in enumerate(zip(one.losses, other.losses, strict=True), start=1):
        if not abs(a - b) <= tolerance * max(1.0, abs(a)):
            return f"the loss of step {i} is {a:.12g} and {b:.12g}"
    if len(one.gradients) != len(other.gradients):
        return f"the optimizers take {len(one.gradients)} steps and {len(other.gradients)}"
    for i, (mine, its) in enumerate(zip(one.gradients, other.gradients, strict=True), start=1):
        largest = max((float(g.abs().max()) for g in mine.values() if g.numel()), default=0.0)
        for name in {**mine, **its}:
            if name not in mine or name not in its:
                return f"{name!r} has a gradient in one of them only, in optimizer step {i}"
            distance = float((mine[name] - its[name]).abs().max())
            if not distance <= tolerance * largest:
                return (
                    f"the gradient of {name!r} differs by {distance:.2g} in optimizer step {i}, where the largest "
                    f"gradient is {largest:.2g}"
                )
    return None


def same_or_skip(run: Callable[[], Traces], first: Traces) -> None:
    """Raises Skipped when a training differs from its own repetition, so that no comparison means anything."""
    if apart(first, run(), 0.0):
        raise Skipped(
            "two like trainings in one process differ already, by something kept in the module or drawn anew: "
            "nothing can be compared"
        )
