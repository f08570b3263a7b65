"""What another run has learnt, for a method that builds on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clf import checkpoint
from clf.errors import RunError
from clf.experiment import describe_run
from clf.method import DataSpec
from clf.runs import Run


@dataclass(frozen=True)
class SavedMethod:
    """The newest checkpoint of a run, and what it was trained with."""

    path: Path
    plugin: str
    config: Mapping[str, Any]
    """Settings of the method."""
    data: DataSpec
    state: Mapping[str, Tensor]
    """The method's ``state_dict``, on the CPU."""
    step: int
    """Training steps taken."""
    prepared: int
    """Steps of preparation taken."""


def saved_method(path: str | Path) -> SavedMethod:
    """Reads a run folder's newest good checkpoint; nothing in it is executed.

    Raises:
        RunError: there is no run at the path.
        CheckpointError: it has no checkpoint that can be read.
    """
    run = Run(Path(path).expanduser())
    if not run.path.is_dir():
        raise RunError(f"{path} is not a run folder: no such folder")
    config = run.config()
    state, _ = checkpoint.load_newest(run.checkpoints)
    return SavedMethod(
        path=run.path,
        plugin=config.plugin,
        config=config.method,
        data=describe_run(run, config),
        state=state["method"],
        step=int(state["step"]),
        prepared=int(state.get("prepared", 0)),
    )
