"""The engine's side of one step, as a method sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clf import distributed
from clf.errors import PluginError
from clf.random import generator

if TYPE_CHECKING:
    from clf.trainer import Trainer


class StepContext:
    """The engine's side of one step; see :class:`clf.method.Context`."""

    def __init__(self, trainer: Trainer, part: int) -> None:
        self._trainer = trainer
        self._part = part
        self.logged: dict[str, float | Tensor] = {}

    @property
    def step(self) -> int:
        return self._trainer.step

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
        return generator(self._trainer.config.seed, "method", name, self.step, self._part)

    def gather(self, x: Tensor) -> Tensor:
        return distributed.gather(x, self._trainer.ranks)

    def minimize(self, group: str, loss: Tensor) -> None:
        trainer = self._trainer
        if group == "main" or group not in trainer.parameters:
            others = sorted(set(trainer.parameters) - {"main"})
            raise PluginError(
                f"minimize({group!r}, ...): the groups besides 'main' are {others}; the loss of 'main' is returned "
                "from training_step"
            )
        with trainer.phases("method"):
            trainer.optimizers[group].zero_grad(set_to_none=True)
            loss.backward(inputs=trainer.parameters[group])  # type: ignore[no-untyped-call]
            trainer.descend(group)
            torch.clear_autocast_cache()  # which holds the weights of before the step until autocast ends

    def log(self, **metrics: float | Tensor) -> None:
        self.logged.update(metrics)
