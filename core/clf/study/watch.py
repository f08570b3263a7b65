"""What watches the training of a cell. It changes neither the training nor the time that is told of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from clf.callbacks import Watcher
from clf.study.judge import Judge
from clf.trainer import Interrupted, Trainer

MEASURED = "evaluation"
"""Kind of the records that hold scores after an epoch."""
PREPARED = "prepared"
"""Kind of the record that holds the time at the end of the preparation."""


class Probe(Watcher):
    """Measures the encoder after some epochs.

    The scores are records of the run: they are on the disk before the checkpoint of their step is, so a run that is
    killed and resumed has each of them.
    """

    def __init__(self, epochs: Sequence[int], judge: Callable[[], Judge]) -> None:
        self._epochs = epochs
        self._judge = judge

    def on_epoch(self, trainer: Trainer) -> None:
        epoch = trainer.epochs_done(trainer.step)
        if epoch == trainer.epochs_done(trainer.step - 1) or epoch not in self._epochs:
            return
        with trainer.clock_stopped(), ExitStack() as eager:
            if trainer.config.train.compile == "on":  # else it would be compiled anew for evaluation mode
                eager.enter_context(torch.compiler.set_stance("force_eager"))
            found = self._judge().measure(trainer.method.encoder(), trainer.config.seed, trainer.device)
        trainer.record(MEASURED, after=epoch, **found.scores, seconds=round(trainer.seconds, 3))


class PreparationClock(Watcher):
    """Notes how long the method's preparation took."""

    def on_preparation(self, trainer: Trainer) -> None:
        if trainer.prepared == trainer.preparation_steps:
            trainer.record(PREPARED, prepared=trainer.prepared, seconds=round(trainer.seconds, 3))


class LateStop(Watcher):
    """Keeps a signal that came in the last step, which ends the training as if there had been none."""

    def __init__(self) -> None:
        self._by: Interrupted | None = None

    def on_end(self, trainer: Trainer) -> None:
        if trainer.state == "complete" and trainer.stop.requested:
            self._by = Interrupted(trainer.run, trainer.step, signal.Signals(trainer.stop.number).name)

    def check(self) -> None:
        """
        Raises:
            Interrupted: there was one.
        """
        if self._by is not None:
            raise self._by


class Terminated(KeyboardInterrupt):
    """SIGTERM came between two trainings."""

    signal_name = "SIGTERM"


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM is an exception as Ctrl-C is; a training takes both over for its time."""
    if threading.current_thread() is not threading.main_thread():  # where there are no signals
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Line(Watcher):
    """A bar on the terminal while a cell is trained; elsewhere nothing."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._console = console
        self._bar: Bar | None = None

    def on_start(self, trainer: Trainer) -> None:
        if not self._console.is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=self._console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=trainer.total_steps, completed=trainer.step)

    def on_preparation(self, trainer: Trainer) -> None:
        if self._bar is None:
            return
        over = trainer.prepared == trainer.preparation_steps
        done, total = (trainer.step, trainer.total_steps) if over else (trainer.prepared, trainer.preparation_steps)
        title = self._title if over else f"{self._title}, preparation"
        self._bar.update(self._task, completed=done, total=total, description=title)

    def on_step(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.step)

    def on_message(self, trainer: Trainer, sentence: str) -> None:
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def on_end(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.stop()


def figures(record: dict[str, Any]) -> dict[str, float]:
    """The method's own figures in a record of the training."""
    engine = {"kind", "step", "epoch", "images", "seconds", "lr"}
    return {key: float(value) for key, value in record.items() if key not in engine}
