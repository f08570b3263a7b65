"""A configuration under examination: the real trainer, taking real steps, without a run folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clf import experiment
from clf.config import Config
from clf.data import DataSource
from clf.distributed import Ranks
from clf.doctor.advice import Setting
from clf.phases import Stopwatch, unmeasured
from clf.runs import Run
from clf.trainer import Trainer

WARM_UP = 2
"""Steps that are not counted: the first ones fill caches, compile and let kernels be chosen. On a CPU one that takes
longer than SLOW will do."""
SLOW = 1.0


class _Switch:
    """Phases that can be measured for a while."""

    def __init__(self) -> None:
        self.stopwatch: Stopwatch | None = None

    def __call__(self, name: str) -> AbstractContextManager[None]:
        return self.stopwatch(name) if self.stopwatch is not None else unmeasured(name)


class Subject:
    """A trainer that takes steps on demand. Nothing is written, and its weights are its own."""

    def __init__(self, config: Config, data: DataSource, ranks: Ranks) -> None:
        self._phases = _Switch()
        self._device = ranks.device
        self._switches = config.train.threads or torch.get_num_threads(), config.train.deterministic
        what = experiment.build(config, data)
        nowhere = Run(Path("(none: clf doctor writes no run)"))
        self.trainer = Trainer(what, nowhere, ranks, callbacks=[], phases=self._phases)
        self.images = config.train.batch_size * config.train.accumulate
        try:
            self.first_seconds = self.seconds = self.step()
            if self._device.type != "cpu" or self.first_seconds < SLOW:
                for _ in range(WARM_UP - 1):
                    self.seconds = self.step()
        except BaseException:
            self.close()
            raise

    def step(self) -> float:
        """Seconds of one step, to its last operation on the device."""
        with self._switched():
            self._wait()
            started = time.perf_counter()
            self._step()
            self._wait()
            return time.perf_counter() - started

    def rate(self, steps: int) -> float:
        """Images per second over some steps that follow one another as in a training, without a stopwatch."""
        with self._switched():
            self._wait()
            started = time.perf_counter()
            for _ in range(steps):
                self._step()
            self._wait()
            return steps * self.images / (time.perf_counter() - started)

    def phases(self, steps: int) -> dict[str, float]:
        """Seconds per step of each phase; their sum is the step."""
        with self._switched():
            self._phases.stopwatch = stopwatch = Stopwatch(self._device)
            for _ in range(steps):
                self._step()
            self._phases.stopwatch = None
            with stopwatch("other"):  # a border, up to which the time is charged
                return {name: seconds / steps for name, seconds in stopwatch.seconds.items()}

    @property
    def data(self) -> DataSource:
        """The data, with the training images where this trainer keeps them: another on the device needs no copy."""
        data, resident = self.trainer.data, self.trainer.stream._resident
        return data if resident is None else replace(data, train=replace(data.train, images=resident))

    def close(self) -> None:
        """Ends the threads that read images ahead."""
        self.trainer.stream.close()

    def _step(self) -> None:
        trainer = self.trainer
        if trainer.step >= trainer.total_steps:
            trainer.step = 0
        trainer.one_step()
        if self._device.type == "cpu":
            trainer.check_finite()  # as often as a training does

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @contextmanager
    def _switched(self) -> Iterator[None]:
        """The process-wide switches of torch that the configuration asks for."""
        before = torch.get_num_threads(), torch.backends.cudnn.benchmark
        strict, warn = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        threads, deterministic = self._switches
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.backends.cudnn.benchmark = not deterministic
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before[1]
            torch.use_deterministic_algorithms(strict, warn_only=warn)
            torch.set_num_threads(before[0])


def changed(config: Config, setting: Setting) -> Config:
    """The configuration with one key replaced."""
    section, _, name = setting.key.partition(".")
    changes: dict[str, Any] = {name: setting.value}
    return config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})
