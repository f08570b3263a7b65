"""A study in bad company: signals outside of its trainings, foreign folders and records, other data, damaged runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from small_settings import SMALL

from clf.errors import ConfigError
from clf.runs import Run
from clf.study.judge import Judge
from clf.study.records import read_records
from clf.study.runner import Outcome, Runner
from clf.study.spec import Study, read_study

TOY: dict[str, Any] = {
    "name": "toy",
    "title": "A toy",
    "reference": "plain",
    "seeds": [0, 1],
    "base": {"plugin": "simclr", **SMALL, "train.epochs": 1, "method.projection_dim": 16},
    "rows": {"plain": {}},
    "evaluate": {"knn_k": 5},
    "scales": {"cpu": {}},
}


def study_at(folder: Path, **changes: Any) -> Study:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({**TOY, **changes}, sort_keys=False))
    return read_study(path)


def run_study(study: Study, out: Path, given: dict[str, Any] | None = None) -> Outcome:
    return Runner(study, out, study.cells(given), console=Console(quiet=True)).run()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both seeds are measured. Copy it before writing into it."""
    folder = tmp_path_factory.mktemp("faults")
    assert run_study(study_at(folder), folder / "out").done == 2
    return folder / "out"


def test_callbacks_that_a_study_names_watch_its_trainings(tmp_path: Path) -> None:
    path = tmp_path / "marks.py"
    path.write_text(
        "import clf\n\nclass Marks(clf.Callback):\n    def on_end(self, trainer):\n"
        "        (trainer.run.path / 'marked').write_text(trainer.state)\n"
    )
    study = study_at(tmp_path, seeds=[0], base={**TOY["base"], "monitor.callbacks": [str(path)]})
    assert run_study(study, tmp_path / "out").done == 1
    assert [each.read_text() for each in (tmp_path / "out").rglob("marked")] == ["complete"]


@contextmanager
def killed_in(target: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGTERM comes at the end of the first call."""
    original, calls = getattr(target, name), []

    def called(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if not calls:
            calls.append(name)
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patched:
        patched.setattr(target, name, called)
        yield


@pytest.mark.parametrize("when", ["evaluation", "last step"])
def test_a_signal_outside_of_the_steps_stops_the_study_too(
    tmp_path: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """While a finished run is measured, and as the last checkpoint is written, which no training is stopped by."""
    from clf.trainer import Trainer

    study = study_at(tmp_path, seeds=[0])
    words = ["study", str(study.path), "--out", str(tmp_path / "out")]
    place = (Judge, "measure") if when == "evaluation" else (Trainer, "_write_window")
    before = signal.getsignal(signal.SIGTERM)
    with killed_in(*place, monkeypatch):
        ended = run_cli(*words)
    assert ended.code == 75 and "stopped by SIGTERM; start the same command again" in ended.err
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads(run_cli(*words, "--list", "--json").out)[0]["state"] == "trained"
    assert run_cli(*words).code == 0
    assert len(read_records(tmp_path / "out" / "toy-cpu" / "records.jsonl")) == 1


def test_a_folder_that_is_no_beginning_of_a_training_is_not_removed(tmp_path: Path) -> None:
    study = study_at(tmp_path, seeds=[0])
    folder = tmp_path / "out" / "toy-cpu" / "runs" / "plain--end--seed-0"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    outcome = run_study(study, tmp_path / "out")
    assert "holds notes.txt: remove the folder to train the cell anew" in outcome.failed["plain | end | seed 0"]
    assert (folder / "notes.txt").read_text() == "mine"


def test_records_of_another_study_are_refused(tmp_path: Path, done: Path) -> None:
    shutil.copytree(done / "toy-cpu", tmp_path / "out" / "toy-gpu")
    study = study_at(tmp_path, scales={"gpu": {}})
    with pytest.raises(ConfigError, match="holds a record of study toy at scale cpu, and this is toy at scale gpu"):
        run_study(study, tmp_path / "out")


def archive(path: Path, seed: int) -> dict[str, Any]:
    """Noise of two classes, as settings that name it."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir()
    parts = {
        f"{part}_{what}": generator.integers(0, high, shape, np.uint8).astype(kind)
        for part, n in (("train", 32), ("test", 16))
        for what, high, shape, kind in (("images", 255, (n, 16, 16, 3), np.uint8), ("labels", 2, (n,), np.int64))
    }
    np.savez(path, **parts)
    return {"data.name": "npz", "data.root": str(path)}


def test_other_data_under_the_same_name_are_not_mixed_in(tmp_path: Path) -> None:
    base = {key: value for key, value in TOY["base"].items() if not key.startswith("data.options")}
    study = study_at(tmp_path, base=base)
    one, two = (archive(tmp_path / name / "set.npz", seed) for seed, name in enumerate(("a", "b")))
    first = [cell for cell in study.cells(one) if cell.seed == 0]
    assert Runner(study, tmp_path / "out", first, console=Console(quiet=True)).run().done == 1
    why = run_study(study, tmp_path / "out", two).failed["plain | end | seed 1"]
    assert "the data are not those of the cell 'plain | end | 0', which is measured" in why
    assert not (tmp_path / "out" / "toy-cpu" / "runs" / "plain--end--seed-1").exists()
    shutil.move(tmp_path / "a", tmp_path / "c")
    moved = {**one, "data.root": str(tmp_path / "c" / "set.npz")}
    assert run_study(study, tmp_path / "out", moved).done == 2


def test_a_run_whose_records_are_lost_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_at(tmp_path, seeds=[0])
    with killed_in(Runner, "_train", monkeypatch), pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "out")
    metrics = tmp_path / "out" / "toy-cpu" / "runs" / "plain--end--seed-0" / "metrics.jsonl"
    metrics.unlink()
    why = run_study(study, tmp_path / "out").failed["plain | end | seed 0"]
    assert f"{metrics} has no record of the training: remove" in why


def test_a_damaged_run_fails_alone(tmp_path: Path, done: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    records = out / "toy-cpu" / "records.jsonl"
    records.write_text(records.read_text().splitlines(keepends=True)[1])
    run = Run(out / "toy-cpu" / "runs" / "plain--end--seed-0")
    (run.path / "config.yaml").write_text("{")
    outcome = run_study(study_at(tmp_path), out)
    assert list(outcome.failed) == ["plain | end | seed 0"] and outcome.done == 1
