"""How a training ends before its end, in the words that a person gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clf import checkpoint
from clf.errors import TrainingError
from clf.runs import Run

if TYPE_CHECKING:
    from clf.trainer import Trainer


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and has saved a checkpoint, or was stopped in the midst of a step."""

    def __init__(self, run: Run, step: int, signal_name: str, prepared: int = 0, how: str = "") -> None:
        where = f"at step {step}" if step or not prepared else f"after {prepared} steps of preparation"
        said = how or f"stopped by {signal_name} {where}"
        super().__init__(f"{said}; continue with clf train --resume {run.path}")
        self.run = run
        self.step = step
        self.signal_name = signal_name


def at_once(trainer: Trainer, stop: KeyboardInterrupt) -> Interrupted:
    """A step was not finished: what was learnt since the last checkpoint is lost."""
    last = checkpoint.newest(trainer.run.checkpoints)
    kept = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
    how = f"{str(stop) or 'stopped by Ctrl-C'} {where(trainer)}, which is not finished and not saved: {kept}"
    return Interrupted(trainer.run, trainer.step, "SIGINT", trainer.prepared, how)


def ended(trainer: Trainer) -> TrainingError:
    """A callback asked for the end."""
    if trainer.ranks.is_main:
        trainer.run.update_manifest(reason=trainer.ending)
    return TrainingError(
        f"run {trainer.run.name!r} was ended {where(trainer)}, and its checkpoint saved: "
        f"{trainer.ending or 'the message of rank 0 says why'}"
    )


def not_finite(trainer: Trainer) -> TrainingError:
    """The loss or a weight is infinite or not a number."""
    last = checkpoint.newest(trainer.run.checkpoints)
    kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    preparing = trainer.prepared and not trainer.step
    lower = f"the learning rates of its preparation ({trainer.config.plugin})" if preparing else "optimizer.lr"
    return TrainingError(
        f"the loss or a weight is not finite {where(trainer)} of run {trainer.run.name!r}; {kept}. Lower {lower}, set "
        "train.clip_grad_norm=1, or use train.precision=fp32"
    )


def where(trainer: Trainer) -> str:
    """How far the training is."""
    if trainer.prepared and not trainer.step:
        return f"after {trainer.prepared} steps of preparation"
    return f"at step {trainer.step} (epoch {trainer.epoch:.2f})"


def moment(trainer: Trainer) -> str:
    """When a method failed: the step as the method itself sees it."""
    if trainer.prepared < trainer.preparation_steps:
        return f" at step {trainer.prepared} of its preparation"
    return f" at step {trainer.step}"


def after_failure(trainer: Trainer, mend: str) -> str:
    """What is left once a method has failed, and how to go on.

    Args:
        mend: what to do where nothing was trained yet.
    """
    last = checkpoint.newest(trainer.run.checkpoints)
    if last is None or trainer.done == 0:
        return mend
    plugin = trainer.experiment.plugin
    if plugin is not None and plugin.source is not None:
        return (
            f"The last checkpoint is {last}. Mend the file and train a new run: this one goes on only with the source "
            "it was trained with"
        )
    return f"The last checkpoint is {last}; once the plugin is mended, go on with clf train --resume {trainer.run.path}"
