"""A training in a process of its own, which the verification starts, watches and kills.

On Linux the processes are forks of one server that has imported everything and run nothing, so each starts in a
fraction of a second; elsewhere each is a fresh interpreter. What a training imports later than its modules do is
therefore imported here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import timm  # noqa: F401 - see above
import torch
import torch._inductor  # which torch.use_deterministic_algorithms imports

from clf import checkpoint, trainer, training
from clf.callbacks import Watcher
from clf.config import Config
from clf.errors import ClfError, PluginError, TrainingError
from clf.monitor import Monitor
from clf.runs import Run
from clf.verify.batchnorm import of_all_rows
from clf.verify.compare import tensor_digests

Place = Literal[
    "in a step",
    "with half a checkpoint written",
    "with a checkpoint not yet renamed",
    "with old checkpoints not yet removed",
    "with half a record written",
]
LONG = 3600.0
GRACE = 10.0
"""Seconds that the other ranks have to end once one has failed."""


@dataclass(frozen=True)
class Job:
    """One training, or its continuation where the run exists."""

    config: Config
    resume: bool = False
    kill_step: int | None = None
    """The process waits for its end once this step is done, at the place."""
    place: Place = "in a step"
    stop_step: int | None = None
    """The run is interrupted in good order after this step."""
    environment: Mapping[str, str] = field(default_factory=dict)
    one_batch: bool = False
    """Batch norm over all rows on all ranks and no dropout, as the comparison of ranks needs them."""
    rank_folder: Path | None = None
    """Where each rank leaves the digests of its own state."""
    every_step: bool = False
    """A checkpoint is written after each step, and all of them stay."""
    said: Path | None = None
    """The file that what it prints is added to; default: standard error."""

    @property
    def run(self) -> Run:
        return Run(Path(self.config.run.dir) / str(self.config.run.name))


def warm_up() -> None:
    """Lets the server of forks start to import what trainings need, while this process does something else."""
    if sys.platform == "linux":
        forkserver.set_forkserver_preload([__name__])
        forkserver.ensure_running()


class Child:
    """A process that does a job."""

    def __init__(self, job: Job) -> None:
        warm_up()
        context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        self.job = job
        self.pipe, theirs = context.Pipe(duplex=False)
        environment = {**os.environ, **job.environment}
        self._process: BaseProcess = context.Process(target=_work, args=(job, theirs, environment), daemon=True)
        self._process.start()
        theirs.close()

    def wait_there(self) -> bool:
        """Waits until the process is at its job's step and place; False when it had ended before."""
        told = self._hear()
        if told == "there":
            return True
        self._end(told)
        return False

    def kill_there(self, delay: float = 0.0) -> bool:
        """Kills the process so many seconds after it was at its step and place; False when it had ended before."""
        if not self.wait_there():
            return False
        time.sleep(delay)
        self.abandon()
        return True

    def join(self) -> None:
        """Waits for the end.

        Raises:
            ClfError: that of the training.
            PluginError: an exception that is a bug; its traceback is on standard error.
        """
        self._end(self._hear())

    def abandon(self) -> None:
        """Kills the process, whatever it does."""
        self._process.kill()
        self._process.join()

    def _hear(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            return None

    def _end(self, told: Any) -> None:
        self._process.join()
        if isinstance(told, ClfError):
            raise told
        if self._process.exitcode:
            raise PluginError(
                f"a training with {self.job.config.plugin!r} ended with exit code {self._process.exitcode}; what it "
                "printed says why"
            )


def run_together(jobs: Sequence[Job]) -> None:
    """Runs jobs at the same time. Raises as :meth:`Child.join` does; a rank's own error goes before its echo."""
    children = {child.pipe: child for child in map(Child, jobs)}
    errors: list[ClfError] = []
    try:
        while children and (ready := wait(list(children), GRACE if errors else None)):
            for pipe in ready:
                assert isinstance(pipe, Connection)
                try:
                    children.pop(pipe).join()
                except ClfError as error:
                    errors.append(error)
    finally:
        for child in children.values():
            child.abandon()
    if errors:
        raise next((error for error in errors if not isinstance(error, TrainingError)), errors[0])


def _work(job: Job, pipe: Connection, environment: Mapping[str, str]) -> None:
    _redirect(job.said)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()  # forks of one server would share these, fresh interpreters do not
    np.random.seed()
    torch.seed()
    try:
        with ExitStack() as changed:
            if job.one_batch:
                changed.enter_context(of_all_rows())
            if job.every_step:
                changed.enter_context(patch.object(checkpoint, "KEEP", sys.maxsize))
                changed.enter_context(patch.object(trainer.Trainer, "_save_is_due", lambda *unused: True))
            if job.rank_folder is not None:
                changed.enter_context(_leaving_digests(job.rank_folder))
            watch = _Watch(job, pipe)
            if job.resume:
                training.resume(job.run, job.config, callbacks=[Monitor(), watch])
            else:
                training.train(job.config, callbacks=[Monitor(), watch])
    except trainer.Interrupted:
        pass
    except ClfError as error:
        pipe.send(error)


def _redirect(file: Path | None) -> None:
    """Standard output belongs to the report of the process that started this one."""
    if file is not None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 2)
        os.close(descriptor)
    os.dup2(2, 1)


class _Watch(Watcher):
    """Tells the verification when the step is reached, and waits to be killed at the place."""

    def __init__(self, job: Job, pipe: Connection) -> None:
        self._job = job
        self._pipe = pipe
        self._told = False

    def on_end(self, trainer: trainer.Trainer) -> None:
        if self._told:
            time.sleep(LONG)

    def on_preparation(self, trainer: trainer.Trainer) -> None:
        self._look(trainer)

    def on_step(self, trainer: trainer.Trainer) -> None:
        if self._job.stop_step == trainer.step:
            trainer.stop.ask()
        self._look(trainer)

    def _look(self, trainer: trainer.Trainer) -> None:
        job = self._job
        self.on_end(trainer)
        if job.kill_step is None or trainer.done < job.kill_step:
            return
        self._job = Job(job.config)
        if job.place == "in a step":
            self._pipe.send("there")  # and on, for one step more, until the kill comes
            self._told = True
        else:
            self._arm(job.place)

    def _wait(self, *unused: object) -> None:
        self._pipe.send("there")
        time.sleep(LONG)

    def _arm(self, place: Place) -> None:
        """Replaces one function of this process, which is about to die, by one that stops half-way."""
        if place == "with half a checkpoint written":
            patch.object(checkpoint, "_write", self._half_a_file).start()
        elif place == "with a checkpoint not yet renamed":
            patch.object(checkpoint, "_rename", self._wait).start()
        elif place == "with old checkpoints not yet removed":
            patch.object(checkpoint, "_sync_folder", self._wait).start()
        else:
            patch.object(Run, "append_metrics", lambda run, record: self._half_a_line(run, record)).start()

    def _half_a_file(self, path: Path, content: memoryview) -> None:
        path.write_bytes(content[: len(content) // 2])
        self._wait()

    def _half_a_line(self, run: Run, record: Mapping[str, Any]) -> None:
        line = json.dumps(record)
        with run.metrics_file.open("a", encoding="utf-8") as file:
            file.write(line[: len(line) // 2])
        self._wait()


@contextmanager
def _leaving_digests(folder: Path) -> Iterator[None]:
    """Each rank writes digests of its method's state whenever a checkpoint is written."""
    save = trainer.Trainer.save

    def save_and_tell(self: trainer.Trainer) -> None:
        save(self)
        digests = tensor_digests(self.method.state_dict())
        (folder / f"{self.run.name}-{self.ranks.rank}.json").write_text(json.dumps(digests))

    with patch.object(trainer.Trainer, "save", save_and_tell):
        yield
