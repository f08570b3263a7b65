"""The engine's side of one step, as a method sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clf import distributed
from clf.errors import PluginError
from clf.method import StepOutput
from clf.random import derive_seed

if TYPE_CHECKING:
    from clf.trainer import Trainer


class StepContext:
    """The engine's side of one step; see :class:`clf.method.Context`."""

    def __init__(self, trainer: Trainer, part: int, *, preparing: bool = False) -> None:
        self._trainer = trainer
        self._part = part
        self._preparing = preparing
        self.logged: dict[str, float | Tensor] = {}

    @property
    def step(self) -> int:
        return self._trainer.prepared if self._preparing else self._trainer.step

    @property
    def epoch(self) -> int:
        return self._trainer.epochs_done(self._trainer.step)

    @property
    def progress(self) -> float:
        return self._trainer.step / self._trainer.total_steps

    @property
    def device(self) -> torch.device:
        return self._trainer.device

    @property
    def rank(self) -> int:
        return self._trainer.ranks.rank

    @property
    def world_size(self) -> int:
        return self._trainer.ranks.world_size

    def generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(name))

    def device_generator(self, name: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self._seed(name))

    def _seed(self, name: str) -> int:
        purpose = "preparation" if self._preparing else "method"
        return derive_seed(self._trainer.config.seed, purpose, name, self.step, self._part)

    def images(self, index: Tensor) -> Tensor:
        return self._trainer.stream.images(index)

    def gather(self, x: Tensor) -> Tensor:
        return distributed.gather(x, self._trainer.ranks)

    def minimize(self, group: str, loss: Tensor) -> None:
        trainer = self._trainer
        mine = {name for name, each in trainer.groups.items() if each.preparation is self._preparing} - {"main"}
        if group not in mine:
            when = "in the preparation" if self._preparing else "besides 'main'"
            raise PluginError(
                f"minimize({group!r}, ...): the groups {when} are {sorted(mine)}; the loss of 'main' is returned from "
                "training_step"
            )
        with trainer.phases("method"):
            trainer.optimizers[group].zero_grad(set_to_none=True)
            loss.backward(inputs=trainer.parameters[group])  # type: ignore[no-untyped-call]
            trainer.descend(group)
            torch.clear_autocast_cache()  # which holds the weights of before the step until autocast ends

    def log(self, **metrics: float | Tensor) -> None:
        if "loss" in metrics:
            raise PluginError("'loss' is the name of what training_step returns: log another loss under another name")
        self.logged.update(metrics)


def checked(output: object, plugin: str) -> StepOutput:
    """What ``training_step`` gave, as a loss that can be differentiated and scalars to record.

    Raises:
        PluginError: it is none.
    """
    made = output if isinstance(output, StepOutput) else StepOutput(output)  # type: ignore[arg-type]
    loss: object = made.loss
    metrics: object = made.metrics
    if not isinstance(metrics, Mapping):
        raise PluginError(
            f"method {plugin!r}: training_step returned a clf.StepOutput whose metrics are a {type(metrics).__name__}, "
            'not a dictionary such as {"accuracy": 0.5}'
        )
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return made
    found = "nothing" if loss is None else f"a {type(loss).__name__}"
    if isinstance(loss, Tensor):
        found = "a loss without a gradient" if loss.numel() == 1 else f"a tensor of the shape {tuple(loss.shape)}"
    raise PluginError(
        f"method {plugin!r}: training_step returned {found}; a tensor with one value that depends on the method's "
        "trainable parameters is needed, or a clf.StepOutput with one"
    )
