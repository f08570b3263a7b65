"""The training loop.

    batch = method.next_batch(stream)  ->  loss = method.training_step(batch)  ->  backward  ->  average over ranks
    ->  clip  ->  optimizer step  ->  method.after_step  ->  records, checkpoints

A run is a function of its configuration and its data: every random number is counter-based (:mod:`clf.random`), so a
run that was killed and resumed ends with the same bits as one that was not (on one machine with one thread count).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from clf import checkpoint, distributed, experiment, optim, plugins, provenance, runs
from clf import config as configuration
from clf.callbacks import Callback
from clf.config import Config
from clf.context import StepContext
from clf.data.stream import Stream
from clf.distributed import Ranks
from clf.errors import CheckpointError, PluginError, RunError, TrainingError
from clf.experiment import Experiment
from clf.method import StepOutput
from clf.monitor import Monitor
from clf.progress import Progress, loading
from clf.random import derive_seed
from clf.runs import Run
from clf.signals import StopRequest
from clf.window import Window

FREE_TO_CHANGE = ("run.", "monitor.", "data.root", "data.download", "train.checkpoint_every", "train.threads")
"""Keys that may differ when a run is resumed, because they cannot change its weights (threads: in the last bits)."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and has saved a checkpoint."""

    def __init__(self, run: Run, step: int, signal_name: str) -> None:
        super().__init__(f"stopped by {signal_name} at step {step}; continue with clf train --resume {run.path}")
        self.run = run
        self.step = step
        self.signal_name = signal_name


def train(config: Config, callbacks: Sequence[Callback] | None = None) -> Run:
    """Trains a new run to its end and returns it.

    Raises:
        ClfError: something is wrong with the configuration, the data, the plugin or the disk, or the loss is not
            finite.
        Interrupted: SIGINT or SIGTERM came; the run can be resumed.
    """
    config, _ = configuration.derive(config)
    with _ranks(config) as ranks:
        watchers = _default_callbacks(callbacks, ranks, config.plugin)
        with loading(quiet=callbacks is not None or not ranks.is_main) as progress:
            what = experiment.build(config, progress=progress)
        run = _shared_run(config, ranks)
        try:
            if ranks.is_main:
                runs.replace_text(run.path / "config.yaml", configuration.dump_yaml(what.config))
                run.write_json("manifest.json", provenance.manifest(what, ranks))
            trainer = Trainer(what, run, ranks, watchers)
            trainer.save()
        except BaseException:
            if ranks.is_main:
                shutil.rmtree(run.path, ignore_errors=True)  # nothing was trained, and the name is free again
            raise
        trainer.fit()
    return run


def resume(run: Run, config: Config | None = None, callbacks: Sequence[Callback] | None = None) -> Run:
    """Continues a run from its newest good checkpoint, exactly as if it had not stopped.

    Args:
        config: the configuration wanted now; keys that matter must equal the run's.

    Raises:
        RunError: the configuration or the data differ, or no checkpoint can be read.
    """
    wanted = old = run.config()
    if config is not None:
        wanted, _ = configuration.derive(config)
        changed = configuration.differences(old, wanted, ignore=FREE_TO_CHANGE)
        if changed:
            raise RunError(
                f"run {run.name!r} cannot be resumed with another configuration: {'; '.join(changed)}. "
                "Resume it as it was, or train a new run"
            )
    _check_plugin(run, wanted.plugin)
    with _ranks(wanted) as ranks:
        state, complaints = checkpoint.load_newest(run.checkpoints, set_aside=ranks.is_main)
        with loading(quiet=callbacks is not None or not ranks.is_main) as progress:
            what = experiment.build(wanted, fetch=False, progress=progress)
        experiment.check_data(run, what.data)
        trainer = Trainer(what, run, ranks, _default_callbacks(callbacks, ranks, wanted.plugin))
        trainer.restore(state)
        if trainer.step >= trainer.total_steps:
            trainer.say(f"run {run.name!r} is complete: all {trainer.total_steps:,} steps are done")
            return run
        if ranks.is_main:
            run.truncate_metrics(trainer.step)
            runs.replace_text(run.path / "config.yaml", configuration.dump_yaml(wanted))
            run.update_manifest(state="running", notes=[*run.manifest().get("notes", []), *complaints])
        for complaint in complaints:
            trainer.say(complaint)
        trainer.fit()
    return run


def _check_plugin(run: Run, plugin: str) -> None:
    """Refuses a single-file plugin that was edited since the run began."""
    before = run.manifest().get("plugin_source", {}).get("sha256")
    if before is not None and before != provenance.plugin_source(plugin).get("sha256"):
        raise RunError(
            f"{plugin} has changed since run {run.name!r} was trained with it: restore the file, or train a new run"
        )


class Trainer:
    """The state of one training and the loop over it."""

    def __init__(self, what: Experiment, run: Run, ranks: Ranks, callbacks: Sequence[Callback] = ()) -> None:
        self.config = what.config
        self.experiment = what
        self.data = what.data
        self.run = run
        self.ranks = ranks
        self.callbacks = list(callbacks)
        self.device = ranks.device
        self.step = 0
        self.seconds = 0.0
        self.state: runs.State = "running"
        section = what.config.train
        self.method = what.method.to(self.device)
        if section.channels_last or (section.channels_last is None and self.device.type == "cuda"):
            self.method = self.method.to(memory_format=torch.channels_last)
        distributed.broadcast(self.method, ranks)
        self.method.train()
        groups = self.method.parameter_groups().items()
        self.parameters = {name: [p for p in parameters if p.requires_grad] for name, parameters in groups}
        if "main" not in self.parameters:
            raise PluginError(f"method {what.config.plugin!r} has no parameter group 'main'")
        self.optimizers = {
            name: optim.make_optimizer(what.config.optimizer, params) for name, params in self.parameters.items()
        }
        self.stream = Stream(
            what.data.train.images,
            what.recipes,
            section.batch_size,
            what.config.seed,
            self.device,
            ranks.rank,
            ranks.world_size,
            torch.float64 if section.precision == "fp64" else torch.float32,
        )
        self.steps_per_epoch = what.spec.steps_per_epoch
        self.total_steps = min(what.spec.total_steps, section.max_steps or what.spec.total_steps)
        self.window = Window()
        self.stop = StopRequest()

    @property
    def epoch(self) -> float:
        """Epochs done, with their fraction."""
        return self.step / self.steps_per_epoch

    def fit(self) -> None:
        """Trains from the present step to the last.

        Raises:
            TrainingError: the loss or a weight is not finite; the last checkpoint is good.
            Interrupted: a signal came; the checkpoint of this step is written.
        """
        started = time.monotonic() - self.seconds
        self.state = "failed"
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with self.stop, torch.random.fork_rng(devices):
                self._tell("on_start")
                while self.step < self.total_steps:
                    self._one_step()
                    self.seconds = time.monotonic() - started
                    self._after_step()
                self.state = "complete"
        except KeyboardInterrupt:
            self.state = "interrupted"
            raise
        finally:
            self._tell("on_end")
            self._close()

    def _close(self) -> None:
        """Writes how the run ended; an error that is under way is worth more than one about the manifest."""
        if not self.ranks.is_main:
            return
        try:
            self.run.update_manifest(state=self.state, step=self.step, wall_seconds=round(self.seconds, 2))
        except RunError:
            if self.state == "complete":
                raise

    def _one_step(self) -> None:
        """One optimiser step over ``train.accumulate`` batches."""
        section = self.config.train
        optimizer, parameters = self.optimizers["main"], self.parameters["main"]
        for each in self.optimizers.values():
            optim.set_lr(each, self.lr())
        optimizer.zero_grad(set_to_none=True)
        for part in range(section.accumulate):
            ctx = StepContext(self, part)
            batch = self.method.next_batch(self.stream, ctx)
            torch.manual_seed(derive_seed(self.config.seed, "torch", self.step, part, self.ranks.rank))  # dropout
            with self.autocast():
                output = self.method.training_step(batch, ctx)
            if not isinstance(output, StepOutput):
                output = StepOutput(output)
            (output.loss / section.accumulate).backward(inputs=parameters)  # type: ignore[no-untyped-call]
            self.window.add({**output.metrics, **ctx.logged, "loss": output.loss})
        self.descend("main")
        self.step += 1
        self.method.after_step(StepContext(self, 0))

    def descend(self, group: str) -> None:
        """Averages gradients over ranks, clips them and steps one optimizer."""
        parameters, limit = self.parameters[group], self.config.train.clip_grad_norm
        distributed.average_gradients(parameters, self.ranks)
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(parameters, limit)
        self.optimizers[group].step()

    def _after_step(self) -> None:
        """Records, measurements and checkpoints that are due after a step."""
        self._tell("on_step")
        epoch_done = self.step % self.steps_per_epoch == 0
        last = self.step == self.total_steps
        if self.step % self.config.monitor.log_every == 0 or epoch_done or last or self.device.type == "cpu":
            self._check_finite()
        if self.step % self.config.monitor.log_every == 0 or epoch_done or last:
            self._write_window()
        if epoch_done or last:
            self._tell("on_epoch")
        stopping = distributed.any_rank(self.stop.requested, self.ranks)
        if last or stopping or (epoch_done and round(self.epoch) % self.config.train.checkpoint_every == 0):
            self.save()
        if stopping and not last:
            raise Interrupted(self.run, self.step, self.stop.name or "a signal to another rank")

    def lr(self) -> float:
        """The learning rate of the next step."""
        schedule = self.config.schedule
        warmup = round((schedule.warmup_epochs or 0) * self.steps_per_epoch)
        factor = configuration.schedule_factor(self.step, self.total_steps, warmup, schedule)
        return factor * (self.config.optimizer.lr or 0.0)

    def autocast(self) -> Any:
        """The precision context of a training step."""
        if self.config.train.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def save(self) -> None:
        """Writes a checkpoint of this step. A state that is not finite is refused, so the last one stays good."""
        self._check_finite(weights=True)
        state = {
            "format": 1,
            "step": self.step,
            "stream_position": self.stream.position,
            "seconds": self.seconds,
            "method": self.method.state_dict(),
            "optimizers": {name: each.state_dict() for name, each in self.optimizers.items()},
            "window": self.window.state(self.ranks),
        }
        failure: CheckpointError | None = None
        if self.ranks.is_main:
            try:
                checkpoint.save(self.run.checkpoints, self.step, state)
            except CheckpointError as error:
                failure = error
        if distributed.any_rank(failure is not None, self.ranks):  # so that no rank waits for one that has left
            raise failure or CheckpointError("rank 0 could not write its checkpoint; its message says why")

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of a checkpoint.

        Raises:
            CheckpointError: it is of another method or another version of one.
        """
        experiment.load_weights(self.method, state, self.run)
        try:
            for name, each in self.optimizers.items():
                each.load_state_dict(state["optimizers"][name])
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"the optimizers of run {self.run.name!r} do not fit this version of {self.config.plugin!r}: "
                "resume with the version it was trained with, or train a new run"
            ) from error
        self.step = state["step"]
        self.stream.position = state["stream_position"]
        self.seconds = state["seconds"]
        self.window.restore(state["window"], self.device)

    def record(self, kind: str, **values: float) -> None:
        """Writes one line of ``metrics.jsonl`` on rank 0."""
        if not self.ranks.is_main:
            return
        line = {"kind": kind, "step": self.step, "epoch": round(self.epoch, 4), **values}
        self.run.append_metrics(line)
        for callback in self.callbacks:
            callback.on_record(self, line)

    def say(self, sentence: str) -> None:
        """A sentence for the person at the terminal."""
        self._tell("on_message", sentence)

    def _write_window(self) -> None:
        means = self.window.flush(self.ranks)
        images = self.step * self.config.train.batch_size * self.config.train.accumulate
        self.record("train", **means, lr=self.lr(), images=images, seconds=round(self.seconds, 3))

    def _check_finite(self, weights: bool = False) -> None:
        bad = not self.window.finite()
        if weights and not bad:
            bad = not all(bool(torch.isfinite(p).all()) for group in self.parameters.values() for p in group)
        if not distributed.any_rank(bad, self.ranks):
            return
        last = checkpoint.newest(self.run.checkpoints)
        where = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise TrainingError(
            f"the loss or a weight is not finite at step {self.step} (epoch {self.epoch:.2f}) of run "
            f"{self.run.name!r}; {where}. Lower optimizer.lr, set train.clip_grad_norm=1, or use train.precision=fp32"
        )

    def _tell(self, event: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *details)


@contextmanager
def _ranks(config: Config) -> Iterator[Ranks]:
    """Joins the other ranks and sets the process-wide switches of torch, for as long as the training lasts."""
    threads = torch.get_num_threads()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    deterministic = torch.are_deterministic_algorithms_enabled()
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield distributed.start(config.train.device)
    finally:
        distributed.stop()
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)


def _shared_run(config: Config, ranks: Ranks) -> Run:
    """The run folder that rank 0 made."""
    if ranks.world_size == 1:
        return runs.create_run(config)
    shared = [str(runs.create_run(config).path) if ranks.is_main else ""]
    torch.distributed.broadcast_object_list(shared, src=0)
    return Run(Path(shared[0]))


def _default_callbacks(callbacks: Sequence[Callback] | None, ranks: Ranks, plugin: str) -> list[Callback]:
    if not ranks.is_main:
        return []
    if callbacks is not None:
        return list(callbacks)
    offered = plugins.load_plugin(plugin).callbacks
    return [Monitor(), Progress(), *(make() for make in offered)]
