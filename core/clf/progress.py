"""Progress of a training on the terminal: a live line with rich, or plain lines where the output is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from clf.callbacks import Watcher

if TYPE_CHECKING:
    from clf.trainer import Trainer

PLAIN_EVERY = 10.0
"""Seconds between lines where the output is not a terminal."""


class Progress(Watcher):
    """Loss, images per second, time left, and what the monitor measured: k-NN accuracy, or RankMe without labels.

    It goes quiet when its output can no longer be written, and the training goes on.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = _lenient(console or Console(stderr=True))
        self._bar: Bar | None = None
        self._loss = float("nan")
        self._measured = ""
        self._speed = Speed()
        self._last_line = 0.0

    def on_start(self, trainer: Trainer) -> None:
        data = trainer.data
        labels = "with labels, used for measuring only" if data.train.labels is not None else "unlabelled"
        before = f"{trainer.preparation_steps:,} steps of preparation, " if trainer.preparation_steps else ""
        self._print(
            f"{trainer.config.plugin} on {data.name}: {len(data.train.images):,} images of {data.image_size} px "
            f"({labels}), {trainer.config.backbone.name}, {before}{trainer.total_steps:,} steps on {trainer.device}. "
            f"Run folder: {trainer.run.path}"
        )
        if data.skipped:
            shown = "".join(f"\n  {item.path}: {item.reason}" for item in data.skipped[:10])
            rest = f"\n  and {len(data.skipped) - 10} more, listed in manifest.json" if len(data.skipped) > 10 else ""
            self._print(f"{len(data.skipped)} files skipped:{shown}{rest}")
        for note in (*data.notes, *trainer.method.notes()):
            self._print(note)
        if self.console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=trainer.total_steps, completed=trainer.step)
        self._speed.start(trainer.step)

    def on_preparation(self, trainer: Trainer) -> None:
        done, total = trainer.prepared, trainer.preparation_steps
        if self._bar is not None:
            over = done == total
            shown = (trainer.step, trainer.total_steps) if over else (done, total)
            self._bar.update(self._task, completed=shown[0], total=shown[1], description="preparation")
        elif time.monotonic() - self._last_line > PLAIN_EVERY or done == total:
            self._last_line = time.monotonic()
            self._print(f"preparation: step {done:,}/{total:,}")
        if done == total:
            self._speed.start(trainer.step)

    def on_step(self, trainer: Trainer) -> None:
        self._speed.update(trainer.step)
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.step, description=self._status(trainer))
        elif time.monotonic() - self._last_line > PLAIN_EVERY:
            self._last_line = time.monotonic()
            left = self._speed.seconds_left(trainer.total_steps - trainer.step)
            self._print(f"step {trainer.step}/{trainer.total_steps}  {self._status(trainer)}  {_clock(left)} left")

    def on_record(self, trainer: Trainer, record: dict[str, Any]) -> None:
        self._loss = record.get("loss", self._loss)
        if record["kind"] == "monitor":
            knn, rank = record.get("knn"), record.get("rank_me", float("nan"))
            self._measured = f"RankMe {rank:.1f}" if knn is None else f"k-NN {knn:.1%}"
            self._print(f"epoch {trainer.epoch:>4.0f}  loss {self._loss:.4f}  {figures(record)}")

    def on_message(self, trainer: Trainer, sentence: str) -> None:
        self._print(sentence)

    def on_end(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.stop()
        if trainer.state == "complete":
            self._print(f"done: {trainer.step:,} steps in {_clock(trainer.seconds)}, {trainer.run.path}")

    def _status(self, trainer: Trainer) -> str:
        section = trainer.config.train
        rate = self._speed.steps_per_second() * section.batch_size * section.accumulate
        loss = f"  loss {self._loss:.4f}" if self._loss == self._loss else ""
        return f"epoch {trainer.epoch:.1f}{loss}  {rate:,.0f} images/s  {self._measured}".rstrip()

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def figures(record: Mapping[str, float]) -> str:
    """A record of the monitor in words, the most telling figure first."""
    words = [("knn", "k-NN accuracy {:.1%}"), ("bank", "(bank of {:,})"), ("rank_me", "RankMe {:.1f}")]
    words += [("alignment", "alignment {:.3f}"), ("uniformity", "uniformity {:.2f}"), ("feature_std", "std {:.4f}")]
    return "  ".join(text.format(record[name]) for name, text in words if name in record)


@contextmanager
def loading(quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on the terminal while images are read; the value is called as ``progress(done, total)``."""
    console = _lenient(Console(stderr=True))
    if quiet or not console.is_terminal:
        yield None
        return
    with Bar(TextColumn("reading images"), BarColumn(), MofNCompleteColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lenient:
    """A text file that forgets what it is given once writing has failed.

    The reader of a pipe went away, a terminal was closed, a disk is full. Rich would leave the process; its live bar,
    which is drawn by another thread, would print a traceback.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._failed = False

    def write(self, text: str) -> int:
        self._attempt(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._file.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            action()
        except (OSError, ValueError):  # ValueError: the file was closed
            self._failed = True


def _lenient(console: Console) -> Console:
    """The same console, whose output may fail."""
    console.file = cast("IO[str]", _Lenient(console.file))
    return console


class Speed:
    """Steps per second over the last stretch, from the wall clock."""

    STRETCH = 20.0
    """Seconds that count."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []

    def start(self, step: int) -> None:
        self._marks = [(time.monotonic(), step)]

    def update(self, step: int) -> None:
        now = time.monotonic()
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[0][0] > self.STRETCH:
            self._marks.pop(0)

    def steps_per_second(self) -> float:
        (t0, s0), (t1, s1) = self._marks[0], self._marks[-1]
        return (s1 - s0) / (t1 - t0) if t1 > t0 else 0.0

    def seconds_left(self, steps: int) -> float:
        rate = self.steps_per_second()
        return steps / rate if rate else float("nan")


def _clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
