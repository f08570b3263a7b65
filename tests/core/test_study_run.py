"""A study that is really run: undisturbed, killed, shared between processes, edited, with cells that fail."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from PIL import Image
from plugins_to_verify import plugin_file
from rich.console import Console
from small_settings import SMALL

from clf import checkpoint, settings
from clf import config as configuration
from clf.errors import ConfigError
from clf.evaluate.results import read_evaluations
from clf.runs import Run
from clf.study.judge import Judge
from clf.study.records import Record, read_records
from clf.study.runner import Outcome, Runner
from clf.study.spec import Study, read_study
from clf.trainer import Trainer

STEPS = 12
"""Of one cell: two epochs of 96 images in batches of 16."""
TOY: dict[str, Any] = {
    "name": "toy",
    "title": "A toy",
    "reference": "plain",
    "seeds": [0, 1],
    "base": {"plugin": "simclr", **SMALL, "train.checkpoint_every": 1, "method.projection_dim": 16},
    "rows": {"plain": {}, "warm": {"method.temperature": 0.5}},
    "evaluate": {"knn_k": 5, "after_epochs": [1]},
    "scales": {"cpu": {}},
}
STARTS_FROM_A_RUN = """
class Settings(clf.MethodConfig):
    start: str | None = None

class Mine(Base):
    'Takes the weights of another run before its first step.'
    Config = Settings

    @property
    def preparation_steps(self):
        return 2

    def preparation_step(self, ctx):
        if self.config.start is not None:
            state = clf.saved_method(self.config.start).state
            own = {key.removeprefix("backbone."): value for key, value in state.items() if "backbone." in key}
            self.backbone.load_state_dict(own)

    def training_step(self, batch, ctx):
        a, b = self.embed(batch)
        return losses.nt_xent(a, b, 0.5, gather=ctx.gather, rank=ctx.rank)
"""


def study_at(folder: Path, **changes: Any) -> Study:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({**TOY, **changes}, sort_keys=False))
    return read_study(path)


def run_study(study: Study, out: Path, **options: Any) -> Outcome:
    return Runner(study, out, study.cells(), console=Console(quiet=True), **options).run()


def records_of(study: Study, out: Path) -> list[Record]:
    return read_records(out / str(study) / "records.jsonl")


def results(records: list[Record]) -> dict[Any, Any]:
    """What must not depend on how often a study was stopped: all figures but times."""
    after = {r.key: {e: (s["knn"], s["linear"]) for e, s in r.after.items()} for r in records}
    return {r.key: (r.scores, after[r.key], r.last, r.steps, r.settings) for r in records}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study that ran undisturbed. Read it only; what writes into it copies it first."""
    folder = tmp_path_factory.mktemp("study")
    study = study_at(folder)
    outcome = run_study(study, folder / "out")
    assert (outcome.done, outcome.asked, outcome.failed, outcome.elsewhere) == (4, 4, {}, [])
    return study, folder / "out"


@pytest.mark.slow
def test_records_say_what_was_done(done: tuple[Study, Path]) -> None:
    study, out = done
    records = records_of(study, out)
    assert [record.key for record in records] == [cell.key for cell in study.cells()]
    last = records[-1]
    assert (last.plugin, last.epochs, last.batch_size, last.steps, last.threads) == ("simclr", 2, 16, STEPS, 1)
    assert last.settings == {
        **SMALL,
        "train.checkpoint_every": 1,
        "method.projection_dim": 16,
        "method.temperature": 0.5,
    }
    assert last.data.train_images == 96 and last.data.test_images == 48
    assert set(last.scores) == {"knn", "linear"} and all(0 <= score <= 1 for score in last.scores.values())
    assert set(last.after) == {"1"} and 0 < last.after["1"]["wall_seconds"] < last.wall_seconds
    assert last.last["loss"] > 0 and "lr" not in last.last
    assert last.images_per_second == pytest.approx(STEPS * 16 / last.wall_seconds, rel=0.05)
    assert last.preparation_seconds is None
    assert last.scores != records[0].scores or last.last != records[0].last


def test_the_command_of_a_record_gives_its_configuration(done: tuple[Study, Path]) -> None:
    study, out = done
    record = records_of(study, out)[3]
    words = shlex.split(record.command)
    assert words[:4] == ["clf", "train", "--plugin", "simclr"]
    config = settings.resolve([settings.command_line(words[4:], "simclr")])[0]
    trained = Run(out / str(study) / "runs" / "warm--end--seed-1").config()
    ignored = ("run.", "monitor.", "train.precision", "train.compile", "train.channels_last")
    assert configuration.differences(trained, config, ignore=ignored) == []


def test_no_place_of_this_machine_is_in_a_record(tmp_path: Path, done: tuple[Study, Path]) -> None:
    study, out = done
    for record in records_of(study, out):
        assert str(out.parent) not in record.model_dump_json()
    assert os.sep + "tmp" not in (out / str(study) / "records.jsonl").read_text()


def test_a_recorded_run_keeps_what_is_compared_and_no_checkpoints(done: tuple[Study, Path]) -> None:
    study, out = done
    run = Run(out / str(study) / "runs" / "plain--end--seed-0")
    kept = {"config.yaml", "manifest.json", "metrics.jsonl", "evaluation.json"}
    assert {path.name for path in run.path.iterdir()} == kept
    (evaluation,) = read_evaluations(run).values()
    (row,) = evaluation.representations
    scores = records_of(study, out)[0].scores
    assert row.name == "trained encoder" and row.linear is not None
    assert (row.knn[0].accuracy, row.linear.accuracy) == (scores["knn"], scores["linear"])
    assert "| plain |" in (out / str(study) / "table.md").read_text()


def _work(study: Study, out: Path, place: str, count: int, pipe: Connection | None) -> None:
    """A process that is killed, or waits, after the so manieth call of the function at ``place``."""
    calls = [0]
    owner, _, name = place.rpartition(".")
    target: Any = {"Trainer": Trainer, "Runner": Runner}[owner]
    original = getattr(target, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        calls[0] += 1
        if calls[0] == count and pipe is None:
            os.kill(os.getpid(), signal.SIGKILL)
        elif calls[0] == count and pipe is not None:
            pipe.send("there")
            pipe.recv()
        return result

    with patch.object(target, name, counted):
        run_study(study, out)


def process(study: Study, out: Path, place: str, count: int, pipe: Connection | None = None) -> Any:
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=_work, args=(study, out, place, count, pipe), daemon=True)
    child.start()
    return child


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_ends_as_one_left_alone(
    tmp_path: Path, done: tuple[Study, Path]
) -> None:
    """In the second epoch of the second cell; when that is trained; when it is recorded."""
    study, out = done[0], tmp_path / "out"
    second = out / str(study) / "runs" / study.cells()[1].slug
    for place, count, recorded in (
        ("Trainer.one_step", STEPS + 9, 1),
        ("Runner._train", 1, 1),
        ("Runner._do", 1, 2),
    ):
        child = process(study, out, place, count)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert len(records_of(study, out)) == recorded
        assert Run(second).state() == ("running" if place == "Trainer.one_step" else "complete")
        if place == "Trainer.one_step":
            newest = checkpoint.newest(second / "checkpoints")
            assert newest is not None and newest.name == "step-000000006.pt"
    (out / str(study) / "runs" / study.cells()[2].slug / "checkpoints").mkdir(parents=True)  # killed as it began
    (out / str(study) / "runs" / study.cells()[2].slug / "checkpoints" / "step-000000000.tmp").touch()
    assert run_study(study, out).done == 4
    assert results(records_of(study, out)) == results(records_of(*done))
    assert not list((out / str(study)).rglob("*.pt"))


@pytest.mark.slow
def test_two_processes_share_the_cells(tmp_path: Path, done: tuple[Study, Path]) -> None:
    """The first stands still in its first cell while the second does all others; then it goes on, and finds them."""
    study, out = done[0], tmp_path / "out"
    ours, theirs = multiprocessing.get_context("forkserver").Pipe()
    first = process(study, out, "Trainer.one_step", 3, theirs)
    assert ours.recv() == "there"
    outcome = run_study(study, out)
    assert outcome.elsewhere == ["plain | end | seed 0"] and outcome.done == 3 and not outcome.failed
    ours.send("go on")
    first.join()
    assert first.exitcode == 0
    assert len(records_of(study, out)) == 4
    assert results(records_of(study, out)) == results(records_of(*done))
    assert "4 of 4 cells are done" in (out / str(study) / "table.md").read_text()


EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "a setting": ({"rows": {"plain": {"train.epochs": 3}, "warm": {}}}, r"train\.epochs: 2 -> 3"),
    "a setting less": ({"rows": {"plain": {}, "warm": {}}}, r"'warm .*method\.temperature: 0\.5 -> \(none\)"),
    "neighbours": ({"evaluate": {**TOY["evaluate"], "knn_k": 9}}, r"evaluate\.knn_k: 5 -> 9"),
    "an epoch": ({"evaluate": {"knn_k": 5, "after_epochs": [2]}}, r"after_epochs: 2 was not measured"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_study_is_refused(tmp_path: Path, done: tuple[Study, Path], name: str) -> None:
    changes, message = EDITS[name]
    before = records_of(*done)
    with pytest.raises(ConfigError, match=message) as refused:
        run_study(study_at(tmp_path, **changes), done[1])
    assert "was measured with other settings: " in str(refused.value)
    assert "Give another --out, or remove its line of records.jsonl and the folder runs/" in str(refused.value)
    assert records_of(*done) == before


def test_a_run_that_was_begun_otherwise_is_refused_and_one_without_checkpoints_told(
    tmp_path: Path, done: tuple[Study, Path]
) -> None:
    study, out = done[0], tmp_path / "out"
    shutil.copytree(done[1], out)
    (out / str(study) / "records.jsonl").unlink()
    edited = study_at(tmp_path, base={**TOY["base"], "method.projection_dim": 8})
    with pytest.raises(ConfigError, match=r"was begun with other settings: method\.projection_dim: 16 -> 8") as refused:
        run_study(edited, out)
    assert "or remove the folder runs/plain--end--seed-0 in" in str(refused.value)
    outcome = run_study(replace(study, seeds=(0,)), out, only="plain")
    assert "is complete, but has neither checkpoints nor a record" in outcome.failed["plain | end | seed 0"]


def test_a_cell_that_fails_leaves_the_others_alone(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    """One diverges, one names no plugin, one needs the run of the first."""
    rows = {"diverges": {"optimizer.lr": 1e30}, "typo": {"plugin": "simcrl"}, "needs": {}, "plain": {}}
    study = study_at(tmp_path, rows=rows, seeds=[0], runs_of={"needs": {"method.start": "diverges"}})
    words = ["study", str(study.path), "--out", str(tmp_path / "out")]
    ended = run_cli(*words, "monitor.log_every=1")
    assert ended.code == 2
    assert "3 of 4 cells have failed" in ended.err
    assert "diverges | end | seed 0: the loss or a weight is not finite" in ended.err
    assert "typo | end | seed 0: " in ended.err and "simclr" in ended.err
    assert "needs | end | seed 0: it needs the run of 'diverges | end | seed 0', which failed" in ended.err
    assert [record.row for record in records_of(study, tmp_path / "out")] == ["plain"]
    listed = json.loads(run_cli(*words, "--list", "--json").out)
    assert [row["state"] for row in listed if row["row"] in ("plain", "typo")] == ["missing", "done"]
    assert run_cli(*words, "--only", "plain").code == 0
    nothing = run_cli(*words, "--only", "plane")
    assert nothing.code == 2 and "no row or column has 'plane' in its name" in nothing.err


def test_a_cell_can_start_from_the_run_of_another(tmp_path: Path) -> None:
    """The run it needs keeps its checkpoints until nothing needs them; the time of preparations is told apart."""
    mine = plugin_file(tmp_path, STARTS_FROM_A_RUN)
    rows = {"student": {"plugin": mine}, "plain": {"plugin": mine}}
    base = {key: value for key, value in TOY["base"].items() if not key.startswith("method.")}
    study = study_at(tmp_path, base=base, rows=rows, seeds=[0], runs_of={"student": {"method.start": "plain"}})
    out = tmp_path / "out"
    runs = out / str(study) / "runs"
    assert run_study(study, out, only="plain").done == 1
    assert checkpoint.newest(runs / "plain--end--seed-0" / "checkpoints") is not None
    outcome = run_study(study, out, only="student")
    assert (outcome.done, outcome.asked) == (2, 2)
    assert not list(runs.rglob("*.pt"))
    plain, student = records_of(study, out)
    assert (student.row, student.builds_on) == ("student", {"method.start": "plain--end--seed-0"})
    assert student.command.endswith("method.start=plain--end--seed-0 seed=0") and student.plugin == "mine.py"
    assert str(tmp_path) not in student.model_dump_json()
    assert student.preparation_seconds is not None and plain.preparation_seconds is not None
    assert student.last != plain.last
    lines = (out / str(study) / "records.jsonl").read_text().splitlines(keepends=True)
    (out / str(study) / "records.jsonl").write_text(lines[0])
    shutil.rmtree(runs / "student--end--seed-0")
    again = run_study(study, out)
    assert "needs the checkpoints of runs/plain--end--seed-0, which have been removed" in str(again.failed)


def test_evaluations_take_none_of_the_time_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the trainer's that goes a second with each look and a thousand with each evaluation."""
    now = [0.0]

    def clock() -> float:
        now[0] += 1
        return now[0]

    measure = Judge.measure

    def slow(*args: Any) -> Any:
        now[0] += 1000
        return measure(*args)

    monkeypatch.setattr("clf.trainer.time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(Judge, "measure", slow)
    study = study_at(tmp_path, rows={"plain": {}}, seeds=[0])
    run_study(study, tmp_path / "out", keep=True)
    (record,) = records_of(study, tmp_path / "out")
    assert 0 < record.wall_seconds < 1000
    assert list((tmp_path / "out").rglob("*.pt"))


def test_the_command_stops_for_a_signal_and_goes_on(
    tmp_path: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, done: tuple[Study, Path]
) -> None:
    out = tmp_path / "out"
    words = ["study", str(done[0].path), "--out", str(out), "--only", "plain", "--seeds", "1"]
    one_step = Trainer.one_step

    def stopped(trainer: Trainer) -> None:
        one_step(trainer)
        if trainer.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "one_step", stopped)
        ended = run_cli(*words)
    assert ended.code == 75 and "stopped by SIGTERM; start the same command again" in ended.err
    assert json.loads(run_cli(*words, "--list", "--json").out)[0]["state"] == "begun"
    ended = run_cli(*words)
    assert ended.code == 0 and "cell 1 of 1, plain | end | seed 1: k-NN" in ended.err
    assert "Linear probe" in ended.out and "plain" in ended.out
    (record,) = records_of(done[0], out)
    assert json.loads(run_cli(*words, "--table", "--json").out) == [record.model_dump(mode="json")]
    assert results([record]) == {record.key: results(records_of(*done))[record.key]}


def test_a_group_of_ranks_is_refused(done: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start it several times to share the cells"):
        run_study(*done)


def test_data_without_labels_cannot_be_scored(tmp_path: Path, done: tuple[Study, Path]) -> None:
    (tmp_path / "images").mkdir()
    for i in range(20):
        Image.new("RGB", (16, 16), (i, 2 * i, 3 * i)).save(tmp_path / "images" / f"{i}.png")
    base = {**TOY["base"], "data.name": "folder", "data.root": str(tmp_path / "images")}
    own = {key: value for key, value in base.items() if not key.startswith("data.options")}
    outcome = run_study(study_at(tmp_path, base=own, rows={"plain": {}}, seeds=[0]), tmp_path / "out")
    assert "has no labels, and a study's scores need them" in outcome.failed["plain | end | seed 0"]
    assert not list((tmp_path / "out" / "toy-cpu" / "runs").iterdir())  # told before the training


def test_other_data_than_those_of_the_training_are_not_measured_on(tmp_path: Path, done: tuple[Study, Path]) -> None:
    study = study_at(tmp_path, rows={"plain": {}}, seeds=[0])
    child = process(study, tmp_path / "out", "Runner._train", 1)
    child.join()
    run = Run(tmp_path / "out" / str(study) / "runs" / "plain--end--seed-0")
    run.update_manifest(data={**run.manifest()["data"], "fingerprint": "0" * 64})
    outcome = run_study(study, tmp_path / "out")
    assert "have changed since it was trained" in outcome.failed["plain | end | seed 0"]
