"""What may watch a training: progress on the terminal, measurements, loggers. A callback never changes the run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from clf.config import Config
    from clf.data import DataSource
    from clf.trainer import Trainer

__all__ = ["Callback", "RunFolder", "Training"]


class RunFolder(Protocol):
    """The folder of a run, as a callback may use it."""

    @property
    def path(self) -> Path:
        """It holds ``config.yaml``, ``metrics.jsonl``, ``manifest.json``, and what a callback writes."""
        ...

    @property
    def name(self) -> str:
        """The folder's own name."""
        ...

    def metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl`` so far, in order; of a resumed run those of before too."""
        ...


class Training(Protocol):
    """What a callback may use of the training that it watches. Whatever else is there may change in any release."""

    @property
    def config(self) -> Config:
        """All settings, e.g. ``config.train.batch_size``; ``config.model_dump(mode="json")`` for a logger."""
        ...

    @property
    def data(self) -> DataSource:
        """The data set, with labels where it has some; they must not reach the method."""
        ...

    @property
    def run(self) -> RunFolder: ...

    @property
    def method(self) -> nn.Module:
        """The :class:`clf.Method`, to be read. A forward pass in training mode would move batch norm's averages."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        ...

    @property
    def total_steps(self) -> int: ...

    @property
    def prepared(self) -> int:
        """Steps of the method's preparation that are done."""
        ...

    @property
    def preparation_steps(self) -> int: ...

    @property
    def steps_per_epoch(self) -> float:
        """Not a whole number where ``train.accumulate`` does not divide the batches of an epoch."""
        ...

    @property
    def epoch(self) -> float:
        """Epochs done, with their fraction."""
        ...

    @property
    def seconds(self) -> float:
        """Time of the training so far, of a resumed run that of before included."""
        ...

    @property
    def state(self) -> str:
        """In ``on_end``: ``complete``, ``interrupted`` or ``failed``."""
        ...

    def lr(self) -> float:
        """The learning rate of the next step, of the group ``main``."""
        ...

    def record(self, kind: str, **values: float) -> None:
        """Writes a line to ``metrics.jsonl``, of a kind of your own: clf has ``train``, ``monitor``, ``preparation``.

        It is taken back when a resumed run repeats the step.
        """
        ...

    def say(self, sentence: str) -> None:
        """A sentence for the person at the terminal."""
        ...

    def end(self, reason: str) -> None:
        """Ends the training after this step, with a checkpoint; the run can be resumed."""
        ...

    def clock_stopped(self) -> AbstractContextManager[None]:
        """What is done inside is not counted in ``seconds``, the time of the training."""
        ...


class Callback:
    """Override what you need. A callback of a plugin is made without arguments, before the first step.

    Only rank 0 has callbacks. One that raises is told of once and left out from then on, but for ``on_end``; the
    training goes on. To end it call :meth:`Training.end`. torch's random numbers may be drawn: each step begins with a
    seed of its own.
    """

    def on_start(self, trainer: Training) -> None:
        """Before the first step, also of a resumed run."""

    def on_preparation(self, trainer: Training) -> None:
        """A step of the method's preparation is done; ``trainer.prepared`` counts them."""

    def on_record(self, trainer: Training, record: dict[str, Any]) -> None:
        """A record was written to ``metrics.jsonl``: ``kind``, ``step``, ``epoch`` and the figures of its kind."""

    def on_step(self, trainer: Training) -> None:
        """An optimiser step is done. Reading a tensor here stalls a GPU; records are cheaper."""

    def on_epoch(self, trainer: Training) -> None:
        """An epoch is done and its checkpoint not yet written. May call :meth:`Training.record`."""

    def on_message(self, trainer: Training, sentence: str) -> None:
        """The engine has something to say to a person."""

    def on_end(self, trainer: Training) -> None:
        """The training has ended, in whatever way; ``trainer.state`` says which."""


class Watcher(Protocol):
    """What the training tells: a :class:`Callback`, or one of the engine's own, which may use all of the trainer."""

    def on_start(self, trainer: Trainer) -> None:
        return

    def on_preparation(self, trainer: Trainer) -> None:
        return

    def on_record(self, trainer: Trainer, record: dict[str, Any]) -> None:
        return

    def on_step(self, trainer: Trainer) -> None:
        return

    def on_epoch(self, trainer: Trainer) -> None:
        return

    def on_message(self, trainer: Trainer, sentence: str) -> None:
        return

    def on_end(self, trainer: Trainer) -> None:
        return
