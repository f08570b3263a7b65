"""A configuration small enough to train in a second, and one finished run of it for all tests that only read."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_settings import SMALL

from clf import config as configuration
from clf import training
from clf.config import Config
from clf.runs import Run

# The server that forks processes for the tests starts once, with torch imported: else each of them imports it again.
multiprocessing.set_forkserver_preload(["clf.verify.child"])

TINY = {
    "plugin": "simclr",
    **SMALL,
    "train.checkpoint_every": 1,
    "monitor.knn_every": 1,
    "monitor.log_every": 2,
    "method.projection_dim": 16,
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Config]:
    """``tiny(tmp_path, **{"train.epochs": 3})``: the tiny configuration with changes, its runs in a folder."""

    def make(folder: Path, changes: dict[str, Any] | None = None) -> Config:
        values = {**TINY, "run.dir": str(folder), **(changes or {})}
        return configuration.build([configuration.Layer("test", values)])[0]

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Config]) -> Run:
    """A finished run. Read it only; what writes into a run copies it first."""
    folder = tmp_path_factory.mktemp("runs")
    return training.train(tiny(folder, {"run.name": "tiny"}), callbacks=None)
