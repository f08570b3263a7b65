"""Several ranks against one process, with real processes started by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clf import checkpoint, config, trainer
from clf.config import Config
from clf.distributed import Ranks, gather
from clf.runs import Run

WITHOUT_BATCH_NORM = {"backbone.name": "test_vit", "method.layers": 1, "train.precision": "fp64", "train.epochs": 1}
"""Batch norm is of one rank's rows, so it is left out of the comparison."""


def torchrun(processes: int, path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, "-m", "clf", "train", "--config", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_equal_one_process(tmp_path: Path, tiny: Callable[..., Config], processes: int) -> None:
    one = trainer.train(tiny(tmp_path, {**WITHOUT_BATCH_NORM, "run.name": "one"}), callbacks=[])
    path = tmp_path / "config.yaml"
    path.write_text(config.dump_yaml(tiny(tmp_path, {**WITHOUT_BATCH_NORM, "run.name": "many"})))
    torchrun(processes, path)
    many = Run(tmp_path / "many")
    assert many.manifest()["world_size"] == processes
    expected, found = (checkpoint.load_newest(run.checkpoints)[0]["method"] for run in (one, many))
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) < 1e-10, name
    losses = [[r["loss"] for r in run.metrics() if r["kind"] == "train"] for run in (one, many)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)


def test_one_process_needs_no_group() -> None:
    x = torch.ones(2, 3)
    assert gather(x, Ranks()) is x
