"""Batch curation in real trainings: the same bits as SimCLR where nothing is curated, ranks, resume, the oracle."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from clf import checkpoint, settings, training, verify
from clf.callbacks import Callback
from clf.config import Config, Layer
from clf.runs import Run
from clf.trainer import Interrupted, Trainer

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "data.name": "shapes",
    "data.image_size": 16,
    "data.options.train_images": 96,
    "data.options.test_images": 16,
    "backbone.name": "test_resnet",
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.threads": 1,
    "train.device": "cpu",
    "monitor.log_every": 1,
    "method.projection_dim": 16,
}
BOTH = {"method.start_epoch": 0, "method.sides": "both", "method.evict_share": 0.125, "method.conflict_quantile": 0.1}


def configured(folder: Path, changes: dict[str, Any], plugin: str = "batch_curation") -> Config:
    return settings.resolve([Layer("test", {**TINY, "plugin": plugin, "run.dir": str(folder), **changes})])[0]


def trained(folder: Path, changes: dict[str, Any], plugin: str = "batch_curation") -> tuple[dict[str, Any], Run]:
    """The state at the end, and the run."""
    run = training.train(configured(folder, changes, plugin), callbacks=[])
    return checkpoint.load_newest(run.checkpoints)[0], run


def losses(run: Run) -> list[float]:
    return [record["loss"] for record in run.metrics() if record["kind"] == "train"]


@pytest.fixture(scope="module")
def simclr(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Run]:
    return trained(tmp_path_factory.mktemp("simclr"), {"train.max_steps": 5}, "simclr")


@pytest.mark.parametrize(
    "changes",
    [
        {"method.start_epoch": 1},
        {"method.start_epoch": 0, "method.rounds": 0},
        {"method.start_epoch": 0, "method.rounds": 0, "method.score_mode": "train"},
        {"method.start_epoch": 0, "method.phi": 0, "method.rho_min": 1},
    ],
    ids=["before the start", "no rounds", "no rounds, scored in train mode", "no budget"],
)
def test_where_nothing_is_curated_it_is_simclr_bit_for_bit(
    tmp_path: Path, simclr: tuple[dict[str, Any], Run], changes: dict[str, Any]
) -> None:
    """Weights, batch norm's averages, the optimizer and the losses of five steps."""
    state, run = trained(tmp_path, {"train.max_steps": 5, **changes})
    base, base_run = simclr
    assert all(torch.equal(state["method"][name], value) for name, value in base["method"].items())
    assert losses(run) == losses(base_run)
    mine, its = (s["optimizers"]["main"]["state"] for s in (state, base))
    assert all(torch.equal(mine[key]["exp_avg"], its[key]["exp_avg"]) for key in its)
    assert state["stream_position"] == 5


class StopAt(Callback):
    """Asks for a stop after a step, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            trainer.stop.number = 15


def test_a_training_that_was_stopped_in_an_epoch_ends_with_the_same_bits(tmp_path: Path) -> None:
    """With everything that is kept: budget, similarity of conflicts, the queue of those that wait, pictures."""
    whole, run = trained(tmp_path / "whole", BOTH)
    config = configured(tmp_path / "parts", BOTH)
    with pytest.raises(Interrupted) as stopped:
        training.train(config, callbacks=[StopAt(4)])
    resumed = training.resume(stopped.value.run, config, callbacks=[])
    state, _ = checkpoint.load_newest(resumed.checkpoints)
    assert state["step"] == whole["step"] == 12
    assert state["method"].keys() == whole["method"].keys()
    assert all(torch.equal(state["method"][name], value) for name, value in whole["method"].items())
    assert not (whole["method"]["waiting"] < 0).any() and whole["method"]["budget.batches"] == 12
    assert losses(resumed) == losses(run)
    assert sum(record["swapped"] for record in run.metrics() if record["kind"] == "train") > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        BOTH,
        {**BOTH, "method.dissimilar_action": "mask"},
        {"method.start_epoch": 0, "method.mode": "best_of_k"},
        {"method.start_epoch": 0, "method.score_mode": "train"},
        {
            "method.start_epoch": 0,
            "method.single_pass": True,
            "method.single_pass_images": 1,
            "method.layers": 1,
            "backbone.name": "test_vit",
        },
    ],
    ids=["both sides", "mask", "best_of_k", "scored in train mode", "single_pass"],
)
def test_two_ranks_equal_one_process(changes: dict[str, Any]) -> None:
    report = verify.ranks("batch_curation", changes, counts=[2])
    assert report.holds, str(report)


def test_the_oracle_is_trained_by_its_script_and_asked_in_a_training(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("curation_oracle", ROOT / "tests/benchmarks/curation_oracle.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out, labels = tmp_path / "oracle.pt", tmp_path / "labels.npy"
    words = [f"{key}={value}" for key, value in TINY.items()]
    script.main([str(out), "--epochs", "2", "--labels", str(labels), *words])
    changes = {
        "train.max_steps": 3,
        "method.start_epoch": 0,
        "method.mode": "oracle",
        "method.oracle": str(out),
        "method.labels": str(labels),
    }
    state, run = trained(tmp_path, changes)
    last = [record for record in run.metrics() if record["kind"] == "train"][-1]
    assert last["rejected_share"] > 0 and last["open_share"] <= last["rejected_share"]
    assert 0 <= last["class_rejection_spread"] <= 1
    assert not any("oracle" in name or "labels" in name for name in state["method"])
