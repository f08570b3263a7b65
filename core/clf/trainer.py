"""The training loop.

    method.preparation_step, where the method asks for it; then, step by step,
    batch = method.next_batch(stream)  ->  loss = method.training_step(batch)  ->  backward  ->  average over ranks
    ->  clip  ->  optimizer step  ->  method.after_step  ->  records, checkpoints

A run is a function of its configuration and its data: every random number is counter-based (:mod:`clf.random`), so a
run that was killed and resumed ends with the same bits as one that was not (on one machine with one thread count).
"""

from __future__ import annotations

import math
import operator
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from clf import checkpoint, distributed, endings, experiment, runs
from clf.backbones import Backbone
from clf.callbacks import Watcher
from clf.context import StepContext, checked
from clf.data.stream import Stream
from clf.distributed import Ranks
from clf.endings import Interrupted
from clf.errors import CheckpointError, RunError
from clf.experiment import Experiment
from clf.groups import make_groups
from clf.phases import Phases, unmeasured
from clf.random import derive_seed
from clf.runs import Run
from clf.signals import StopRequest
from clf.window import Window

__all__ = ["SAVING_SHARE", "Interrupted", "Trainer"]

SAVING_SHARE = 0.02
"""Of the time, which checkpoints at the ends of epochs may take where ``train.checkpoint_every`` does not say."""


STOPPING = "Ctrl-C: finishing the step in hand, then saving a checkpoint. Ctrl-C again ends at once, without it"


class Trainer:
    """The state of one training and the loop over it."""

    def __init__(
        self,
        what: Experiment,
        run: Run,
        ranks: Ranks,
        callbacks: Sequence[Watcher] = (),
        phases: Phases = unmeasured,
    ) -> None:
        self.config = what.config
        self.phases = phases
        self.experiment = what
        self.data = what.data
        self.run = run
        self.ranks = ranks
        self.callbacks = list(callbacks)
        self.device = ranks.device
        self.step = 0
        self.prepared = 0
        """Steps of the method's preparation that are done."""
        self.seconds = 0.0
        self.state: runs.State = "running"
        section = what.config.train
        mend = what.calls.remedy
        self.calls = what.calls.during(lambda: endings.after_failure(self, mend()), lambda: endings.moment(self))
        self.method = what.method.to(self.device)
        for part in self.method.modules():
            if isinstance(part, Backbone):
                part.accelerate(
                    channels_last=bool(section.channels_last),
                    chunk_size=section.chunk_size,
                    compiled=section.compile == "on",
                )
        distributed.broadcast(self.method, ranks)
        self.method.train()
        with what.calls("preparation_steps"):
            self.preparation_steps = operator.index(self.method.preparation_steps)
        with what.calls("parameter_groups"):
            self.groups = make_groups(self.method, what.config)
        self.parameters = {name: group.parameters for name, group in self.groups.items()}
        self.optimizers = {name: group.optimizer for name, group in self.groups.items()}
        self.stream = Stream(
            what.data.train.images,
            what.recipes,
            section.batch_size,
            what.config.seed,
            self.device,
            ranks.rank,
            ranks.world_size,
            torch.float64 if section.precision == "fp64" else torch.float32,
            compiled=section.compile == "on",
            phases=phases,
        )
        self.steps_per_epoch = what.spec.steps_per_epoch
        """Not a whole number where ``train.accumulate`` does not divide the batches of an epoch."""
        self.total_steps = min(what.spec.total_steps, section.max_steps or what.spec.total_steps)
        self.window = Window()
        self.stop = StopRequest(STOPPING if ranks.is_main else "")
        self.ending: str | None = None
        self.saved_at = time.monotonic()
        self.save_seconds = 0.0
        self._started = time.monotonic()

    @property
    def epoch(self) -> float:
        """Epochs done, with their fraction."""
        return self.step / self.steps_per_epoch

    @property
    def done(self) -> int:
        """Steps of preparation and training so far."""
        return self.prepared + self.step

    def epochs_done(self, step: int) -> int:
        """Whole epochs after so many steps."""
        return step * self.config.train.accumulate // self.stream.steps_per_epoch

    def fit(self) -> None:
        """Trains from the present step to the last.

        Raises:
            TrainingError: the loss or a weight is not finite, or a callback asked for the end; the last checkpoint is
                good.
            PluginError: the method, or what it needs, raised something; the last checkpoint is good.
            Interrupted: a signal came; the checkpoint of this step is written. A second Ctrl-C does not wait for that.
        """
        self._started = time.monotonic() - self.seconds
        self.state = "failed"
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with self.stop, torch.random.fork_rng(devices), self.calls.anywhere():
                self._tell("on_start")
                while self.prepared < self.preparation_steps:
                    self.prepare()
                    self.seconds = time.monotonic() - self._started
                    self._after_preparation()
                first = self.step
                while self.step < self.total_steps:
                    self.one_step()
                    if self.step == first + 1:
                        for note in self.stream.views.notes:
                            self.say(note)
                    self.seconds = time.monotonic() - self._started
                    self._after_step()
                self.state = "complete"
        except KeyboardInterrupt as stop:
            self.state = "interrupted"
            if isinstance(stop, Interrupted):
                raise
            raise endings.at_once(self, stop) from stop
        finally:
            self.stream.close()
            try:
                self._close()
            finally:
                self._tell("on_end")

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """What a callback does inside is not counted in ``seconds``, the time of the training."""
        stopped = time.monotonic()
        try:
            yield
        finally:
            self._started += time.monotonic() - stopped

    def _close(self) -> None:
        """Writes how the run ended; an error that is under way is worth more than one about the manifest."""
        if not self.ranks.is_main:
            return
        try:
            done = {"step": self.step, "prepared": self.prepared} if self.preparation_steps else {"step": self.step}
            self.run.update_manifest(state=self.state, **done, wall_seconds=round(self.seconds, 2))
        except RunError:
            if self.state == "complete":
                raise

    def prepare(self) -> None:
        """One step of the method's preparation."""
        for group in self.groups.values():
            if group.preparation:
                group.set_lr(self.prepared, self.preparation_steps, self.steps_per_epoch)
        ctx = StepContext(self, 0, preparing=True)
        torch.manual_seed(derive_seed(self.config.seed, "torch in preparation", self.prepared, self.ranks.rank))
        with self.calls("preparation_step"):
            self.method.preparation_step(ctx)
        self.window.add(ctx.logged)
        self.prepared += 1

    def _after_preparation(self) -> None:
        """Records and checkpoints that are due after a step of the preparation."""
        distributed.average_statistics(self.method, self.ranks)
        last = self.prepared == self.preparation_steps
        if self.prepared % self.config.monitor.log_every == 0 or last:
            means = self.window.flush(self.ranks)  # the same on all ranks
            if not all(map(math.isfinite, means.values())):
                raise endings.not_finite(self)
            self.record("preparation", prepared=self.prepared, **means)
        self._tell("on_preparation")
        asked = [self.stop.number, self.ending is not None, self.ranks.is_main and self._save_is_due(False)]
        stop, ending, due = distributed.largest(asked, self.ranks)
        if last or stop or ending or due:
            self.save()
        if ending:
            raise endings.ended(self)
        if stop:
            raise Interrupted(self.run, self.step, signal.Signals(int(stop)).name, self.prepared)

    def one_step(self) -> None:
        """One optimiser step over ``train.accumulate`` batches."""
        section = self.config.train
        optimizer, parameters = self.optimizers["main"], self.parameters["main"]
        for group in self.groups.values():
            if not group.preparation:
                group.set_lr(self.step, self.total_steps, self.steps_per_epoch)
        optimizer.zero_grad(set_to_none=True)
        for part in range(section.accumulate):
            ctx = StepContext(self, part)
            torch.manual_seed(derive_seed(self.config.seed, "torch", self.step, part, self.ranks.rank))  # dropout
            with self.calls("next_batch"), self.phases("method"), self.autocast():
                batch = self.method.next_batch(self.stream, ctx)
            with self.calls("training_step"), self.phases("forward"), self.autocast():
                output = self.method.training_step(batch, ctx)
            output = checked(output, self.config.plugin)
            with self.phases("backward"):
                (output.loss / section.accumulate).backward(inputs=parameters)  # type: ignore[no-untyped-call]
            self.window.add({**output.metrics, **ctx.logged, "loss": output.loss})
        with self.phases("optimizer"):
            self.descend("main")
        self.step += 1
        ctx = StepContext(self, 0)
        with self.calls("after_step"), self.phases("method"):
            self.method.after_step(ctx)
        self.window.add(ctx.logged)

    def descend(self, group: str) -> None:
        """Averages gradients over ranks, clips them and steps one optimizer."""
        parameters, limit = self.parameters[group], self.config.train.clip_grad_norm
        distributed.average_gradients(parameters, self.ranks)
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(parameters, limit)
        self.optimizers[group].step()

    def _after_step(self) -> None:
        """Records, measurements and checkpoints that are due after a step; all ranks decide alike."""
        distributed.average_statistics(self.method, self.ranks)
        self._tell("on_step")
        epoch_done = self.epochs_done(self.step) > self.epochs_done(self.step - 1)
        last = self.step == self.total_steps
        if self.step % self.config.monitor.log_every == 0 or epoch_done or last or self.device.type == "cpu":
            self.check_finite()
        if self.step % self.config.monitor.log_every == 0 or epoch_done or last:
            self._write_window()
        if epoch_done or last:
            self._tell("on_epoch")
        asked = [self.stop.number, self.ending is not None, self.ranks.is_main and self._save_is_due(epoch_done)]
        stop, ending, due = distributed.largest(asked, self.ranks)
        if last or stop or ending or due:
            self.save()
        if ending and not last:
            raise endings.ended(self)
        if stop and not last:
            raise Interrupted(self.run, self.step, signal.Signals(int(stop)).name)

    def _save_is_due(self, epoch_done: bool) -> bool:
        """By the configuration or by the clock, which changes what a kill loses and nothing else."""
        section = self.config.train
        since = time.monotonic() - self.saved_at
        if since > 60 * section.checkpoint_minutes:
            return True
        if section.checkpoint_every is None:
            return epoch_done and self.save_seconds <= SAVING_SHARE * since
        return epoch_done and self.epochs_done(self.step) % section.checkpoint_every == 0

    def end(self, reason: str) -> None:
        """Asks for the end of the training after this step: a checkpoint, then a TrainingError with the reason.

        For callbacks, which only rank 0 has; the other ranks end too.
        """
        self.ending = reason

    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.groups["main"].lr(self.step, self.total_steps, self.steps_per_epoch)

    def autocast(self) -> Any:
        """The precision context of a training step."""
        if self.config.train.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def save(self) -> None:
        """Writes a checkpoint of this step. A state that is not finite is refused, so the last one stays good."""
        self.check_finite(weights=True)
        state = {
            "format": 1,
            "step": self.step,
            "prepared": self.prepared,
            "stream_position": self.stream.position,
            "seconds": self.seconds,
            "method": self.method.state_dict(),
            "optimizers": {name: each.state_dict() for name, each in self.optimizers.items()},
            "parameters": {name: self._names(each) for name, each in self.optimizers.items()},
            "window": self.window.state(self.ranks),
        }
        started = time.monotonic()
        distributed.on_main(lambda: self._write(state), self.ranks)
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - started

    def _write(self, state: dict[str, Any]) -> None:
        self.run.sync_metrics()  # a checkpoint on the disk implies the records before it
        checkpoint.save(self.run.checkpoints, self.done, state)

    def _names(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Of the optimizer's parameters, in the order in which its state numbers them."""
        names = {parameter: name for name, parameter in self.method.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of a checkpoint.

        Raises:
            CheckpointError: it is of another method or another version of one.
        """
        experiment.load_weights(self.method, state, self.run)
        try:
            for name, each in self.optimizers.items():
                if state["parameters"][name] != self._names(each):
                    raise ValueError("parameters of other names, or in another order")
                each.load_state_dict(state["optimizers"][name])
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"the optimizers of run {self.run.name!r} do not fit this version of {self.config.plugin!r}: "
                "resume with the version it was trained with, or train a new run"
            ) from error
        self.step = state["step"]
        self.prepared = state.get("prepared", 0)
        self.stream.position = state["stream_position"]
        self.seconds = state["seconds"]
        self.window.restore(state["window"], self.ranks)

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

    def check_finite(self, weights: bool = False) -> None:
        bad = not self.window.finite()
        if weights and not bad:
            bad = not all(bool(torch.isfinite(p).all()) for group in self.parameters.values() for p in group)
        if distributed.any_rank(bad, self.ranks):
            raise endings.not_finite(self)

    def _tell(self, event: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *details)
