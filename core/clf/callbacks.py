"""What may watch a training: progress on the terminal, measurements, loggers. A callback never changes the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clf.trainer import Trainer


class Callback:
    """Override what you need; every method has the trainer, whose attributes are public.

    Only rank 0 has callbacks. To end the training call :meth:`Trainer.end`; on several ranks an exception would leave
    the others waiting.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step, also of a resumed run."""

    def on_preparation(self, trainer: Trainer) -> None:
        """A step of the method's preparation is done; ``trainer.prepared`` counts them."""

    def on_record(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """A record was written to ``metrics.jsonl``."""

    def on_step(self, trainer: Trainer) -> None:
        """An optimiser step is done. Reading a tensor here stalls a GPU; records are cheaper."""

    def on_epoch(self, trainer: Trainer) -> None:
        """An epoch is done and its checkpoint not yet written. May call :meth:`Trainer.record`."""

    def on_message(self, trainer: Trainer, sentence: str) -> None:
        """The engine has something to say to a person."""

    def on_end(self, trainer: Trainer) -> None:
        """The training has ended, in whatever way; ``trainer.run`` says which."""
