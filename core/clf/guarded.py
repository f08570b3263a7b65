"""Callbacks of plugins at work: one that raises is told of once and left out, and the training goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from clf import offered
from clf.callbacks import Callback, Training, Watcher
from clf.errors import ClfError, PluginError
from clf.offered import Offered
from clf.plugins import Plugin

if TYPE_CHECKING:
    from clf.trainer import Trainer


class Guarded(Watcher):
    """A callback of a plugin as the trainer calls it.

    Only what is overridden is called, and not for what the callback itself records or says meanwhile. Behind each call
    the training mode of every module and whether gradients are recorded are what they were before it: to forget
    ``train()`` after ``eval()`` would change the run unseen.
    """

    def __init__(self, callback: Callback, what: Offered) -> None:
        self.callback = callback
        self.what = what
        self._failed = False
        self._inside: set[str] = set()

    def on_start(self, trainer: Trainer) -> None:
        self._call(trainer, "on_start")

    def on_preparation(self, trainer: Trainer) -> None:
        self._call(trainer, "on_preparation")

    def on_record(self, trainer: Trainer, record: dict[str, Any]) -> None:
        self._call(trainer, "on_record", dict(record))

    def on_step(self, trainer: Trainer) -> None:
        self._call(trainer, "on_step")

    def on_epoch(self, trainer: Trainer) -> None:
        self._call(trainer, "on_epoch")

    def on_message(self, trainer: Trainer, sentence: str) -> None:
        self._call(trainer, "on_message", sentence)

    def on_end(self, trainer: Trainer) -> None:
        self._call(trainer, "on_end")

    def _call(self, trainer: Trainer, event: str, *details: Any) -> None:
        unused = getattr(type(self.callback), event) is getattr(Callback, event)
        if unused or event in self._inside or (self._failed and event != "on_end"):
            return
        self._inside.add(event)
        seen: Training = trainer
        try:
            with _modes_kept(trainer):
                getattr(self.callback, event)(seen, *details)
        except (Exception, SystemExit) as error:
            told, self._failed = self._failed, True
            if told:
                return
            self.what.tell_traceback(error)
            rest = "The training is over" if event == "on_end" else "It is left out from here on; the training goes on"
            trainer.say(f"{self.what.failed(error, f'in {event} at step {trainer.step}')}. {rest}.")
        finally:
            self._inside.discard(event)


def make(words: Sequence[str], method: Plugin) -> list[Watcher]:
    """The callbacks of a method's plugin and those that ``monitor.callbacks`` names.

    Raises:
        PluginError: a plugin cannot be used or offers no callback, or a callback cannot be made.
    """
    return [Guarded(_made(callback, what), what) for callback, what in offered.callbacks(words, method)]


def origins(watchers: Sequence[Watcher]) -> list[dict[str, str]]:
    """Of the callbacks of plugins, for the run's manifest."""
    return [each.what.origin() for each in watchers if isinstance(each, Guarded)]


def _made(callback: type[Callback], what: Offered) -> Callback:
    try:
        return callback()
    except ClfError:
        raise
    except (Exception, SystemExit) as error:
        what.tell_traceback(error)
        remedy = "Nothing was trained. Mend what it says, or take it out of monitor.callbacks"
        raise PluginError(f"{what.failed(error, 'as it was made')}. {remedy}") from error


@contextmanager
def _modes_kept(trainer: Trainer) -> Iterator[None]:
    modes = [(part, part.training) for part in trainer.method.modules()]
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        for part, training in modes:
            part.training = training
