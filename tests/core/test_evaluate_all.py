"""``clf evaluate --all``: every measurement in one result, what is kept of earlier ones, and what could not be done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from clf import experiment
from clf.config import DataSection
from clf.data import DataSource
from clf.errors import TrainingError
from clf.evaluate import Evaluation, evaluate_run, measure, read_evaluations, render
from clf.evaluate.features import encode
from clf.evaluate.few_labels import few_labels
from clf.evaluate.few_shot import few_shot
from clf.evaluate.knn import knn_predict
from clf.evaluate.linear import linear_probe, rotated
from clf.evaluate.material import other_data, prepare
from clf.evaluate.results import BESIDES, NO_GAIN, OF_ALL, with_earlier
from clf.evaluate.retrieval import retrieval
from clf.report import write_report
from clf.runs import Run

DIGITS = DataSection(name="digits", limit=500)


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evaluated") / "tiny"
    shutil.copytree(tiny_run.path, folder)
    return Run(folder)


@pytest.fixture(scope="module")
def evaluation(run: Run) -> Evaluation:
    """All but fine-tuning."""
    return evaluate_run(run, DIGITS, everything=True)


@pytest.fixture
def fresh(run: Run, evaluation: Evaluation, tmp_path: Path) -> Run:
    """A copy of the evaluated run that a test may evaluate again."""
    return Run(shutil.copytree(run.path, tmp_path / "tiny"))


def text_of(evaluation: Evaluation) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render(evaluation, classes=True))
    return captured.get()


@pytest.mark.slow
def test_each_figure_is_that_of_the_parts(run: Run, evaluation: Evaluation) -> None:
    trained = experiment.load(run)
    material = prepare(other_data(DIGITS, trained), trained)
    bank_y, y = material.bank_labels, material.query_labels
    assert bank_y is not None and y is not None
    bank, queries = encode(trained.method.encoder(), material.bank), encode(trained.method.encoder(), material.queries)
    row = evaluation.representations[-1]
    assert row.retrieval == retrieval(bank, bank_y, queries, y)
    assert row.few_shot == tuple(few_shot(bank, bank_y, queries, y, shots, 0) for shots in (1, 5))
    assert row.few_labels == (few_labels(rotated(bank, queries), bank_y, y, 0.1, 0),)
    linear, knn = linear_probe(bank, bank_y, queries, y).predicted, knn_predict(bank, bank_y, queries, 20)
    for label, found in enumerate(row.per_class):
        rows = y == label
        assert found.images == int(rows.sum())
        assert found.linear == pytest.approx(float((linear[rows] == label).double().mean()))
        assert found.knn == pytest.approx(float((knn[rows] == label).double().mean()))
    mean = sum(found.linear * found.images for found in row.per_class) / len(y)
    assert row.linear is not None and row.linear.accuracy == pytest.approx(mean)


def test_every_representation_has_all_of_them(evaluation: Evaluation) -> None:
    assert [row.name for row in evaluation.representations] == ["raw pixels", "random encoder", "trained encoder"]
    for row in evaluation.representations:
        assert [found.images for found in row.few_labels] == [evaluation.representations[0].few_labels[0].images]
        assert [(found.ways, found.shots) for found in row.few_shot] == [(5, 1), (5, 5)]
        assert row.retrieval is not None
        assert row.fine_tuned is None
        assert [found.name for found in row.per_class] == list("0123456789")
    assert set(evaluation.measured) == set(OF_ALL)


def test_what_is_too_small_is_left_out_with_its_reason(evaluation: Evaluation) -> None:
    assert any(note.startswith("1% of the labels is left out: the smallest class has") for note in evaluation.notes)


def test_tables_and_protocol_fit_80_columns(evaluation: Evaluation) -> None:
    text = text_of(evaluation)
    for words in ("10%,", "5-way 1-shot", "mAP", "R@10", "trained, k-NN", "last checkpoint (step 12, epoch 2 of 2)"):
        assert words in text
    assert "…" not in text
    for name in ("few labels", "few-shot", "retrieval", "per class"):
        assert evaluation.protocol[name]
    assert "offline" in evaluation.protocol["k-NN"]
    assert "offline" in evaluation.protocol["linear probe"]


@pytest.mark.slow
def test_the_test_labels_choose_nothing(run: Run, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    original = experiment.load_data

    def shuffled(section: DataSection, seed: int) -> DataSource:
        data = original(section, seed)
        assert data.test is not None and data.test.labels is not None
        return replace(data, test=replace(data.test, labels=data.test.labels.flip(0)))

    monkeypatch.setattr(experiment, "load_data", lambda section, seed, progress=None: shuffled(section, seed))
    monkeypatch.setattr(measure, "add_evaluation", lambda run, key, found: found)
    other = evaluate_run(run, DIGITS)
    for ours, theirs in zip(evaluation.representations, other.representations, strict=True):
        assert ours.linear is not None and theirs.linear is not None
        assert ours.linear.strength == theirs.linear.strength
        assert ours.linear.held_out_accuracy == theirs.linear.held_out_accuracy
        assert ours.linear.accuracy != theirs.linear.accuracy


def test_a_plain_evaluation_keeps_what_only_the_earlier_one_measured(fresh: Run, evaluation: Evaluation) -> None:
    content = json.loads((fresh.path / "evaluation.json").read_text())
    content["evaluations"]["digits"]["measured"] = dict.fromkeys(OF_ALL, "2020-02-02T00:00:00+00:00")
    fresh.write_json("evaluation.json", content)
    again = evaluate_run(fresh, DIGITS)
    assert read_evaluations(fresh)["digits"] == again
    for old, new in zip(evaluation.representations, again.representations, strict=True):
        assert all(getattr(old, name) == getattr(new, name) for name in BESIDES)
        assert old.linear == new.linear
    assert again.protocol["retrieval"] == evaluation.protocol["retrieval"]
    text = " ".join(text_of(again).split())
    assert "Of an earlier evaluation of this checkpoint, 2020-02-02T00:00:00+00:00: few labels, few-shot" in text


def test_figures_of_another_checkpoint_are_not_kept(fresh: Run) -> None:
    content = json.loads((fresh.path / "evaluation.json").read_text())
    content["evaluations"]["digits"]["step"] = 6
    fresh.write_json("evaluation.json", content)
    again = evaluate_run(fresh, DIGITS)
    assert again.measured == {}
    assert all(row.retrieval is None and row.few_labels == () for row in again.representations)


def test_a_file_of_before_is_read(fresh: Run, evaluation: Evaluation) -> None:
    content = json.loads((fresh.path / "evaluation.json").read_text())
    entry = content["evaluations"]["digits"]
    del entry["measured"]
    for row in entry["representations"]:
        for name in ("per_class", *BESIDES):
            del row[name]
    fresh.write_json("evaluation.json", content)
    old = read_evaluations(fresh)["digits"]
    assert old.representations[-1].knn == evaluation.representations[-1].knn
    assert old.representations[-1].retrieval is None
    assert "few labels" not in text_of(old.model_copy(update={"protocol": {}, "notes": ()}))


@pytest.mark.slow
def test_fine_tuning_is_added_and_kept(fresh: Run, evaluation: Evaluation) -> None:
    said: list[str] = []
    tuned = evaluate_run(fresh, DIGITS, fine_tune_epochs=1, say=said.append)
    assert [row.fine_tuned and row.fine_tuned.epochs for row in tuned.representations] == [None, 1, 1]
    assert tuned.representations[-1].retrieval == evaluation.representations[-1].retrieval
    assert (
        "1 epochs" in tuned.protocol["fine-tuning"] and "last epoch and not the best" in tuned.protocol["fine-tuning"]
    )
    assert "fine-tuning the trained encoder: 1 of 1 epochs" in said
    assert "fine-tuning on all labels" in text_of(tuned)
    assert evaluate_run(fresh, DIGITS).representations[-1].fine_tuned == tuned.representations[-1].fine_tuned


def test_when_fine_tuning_fails_the_rest_is_written(fresh: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TrainingError("fine-tuning diverged")

    (fresh.path / "evaluation.json").unlink()
    monkeypatch.setattr(measure, "fine_tune", fail)
    with pytest.raises(TrainingError):
        evaluate_run(fresh, DIGITS, fine_tune_epochs=1)
    assert read_evaluations(fresh)["digits"].representations[-1].linear is not None


def test_without_labels_it_says_what_could_not_be_measured(fresh: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = experiment.load_data

    def strip(section: DataSection, seed: int, progress: object = None) -> DataSource:
        data = original(section, seed)
        return replace(data, train=replace(data.train, labels=None), test=None)

    monkeypatch.setattr(experiment, "load_data", strip)
    found = evaluate_run(fresh, everything=True, fine_tune_epochs=1)
    missing = "Not measured for that reason: k-NN, linear probe, few labels, few-shot, retrieval, fine-tuning."
    assert missing in found.notes
    assert found.measured == {}
    assert found.representations[-1].per_class == ()


@pytest.mark.slow
def test_the_command_prints_tables_or_json(fresh: Run, run_cli: Callable[..., Any]) -> None:
    words = ("evaluate", str(fresh.path), "--on", "digits", "data.limit=300", "--all")
    printed = run_cli(*words)
    assert printed.code == 0
    assert "5-way 5-shot" in printed.out and "R@5" in printed.out
    printed = run_cli(*words, "--json")
    assert Evaluation.model_validate_json(printed.out) == read_evaluations(fresh)["digits"]
    refused = run_cli("evaluate", str(fresh.path), "--fine-tune-epochs", "0")
    assert refused.code == 2
    assert "Invalid value" in refused.err


def test_results_are_read_and_shown_without_torch() -> None:
    program = (
        "import sys, clf.evaluate\nclf.evaluate.read_evaluations, clf.evaluate.render\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert evaluate_run is measure.evaluate_run
    with pytest.raises(AttributeError, match="nothing"):
        sys.modules["clf.evaluate"].nothing  # noqa: B018


@pytest.mark.slow
def test_a_diverged_encoder_is_measured_and_named(fresh: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = experiment.load

    def diverged(run: Run, **options: Any) -> experiment.Experiment:
        what = original(run, **options)
        for name, buffer in what.method.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(float("nan"))
        return what

    monkeypatch.setattr(experiment, "load", diverged)
    found = evaluate_run(fresh, DIGITS, everything=True)
    assert any(note.startswith("Features of the trained encoder are not finite") for note in found.notes)
    assert "diverged" in str(found.verdict)
    trained = found.representations[-1].retrieval
    assert trained is not None and trained.recall["10"] == 0.0
    read_evaluations(fresh)
    write_report(fresh)


def test_the_sentence_on_gain_is_that_of_the_last_evaluation(evaluation: Evaluation) -> None:
    old = evaluation.model_copy(update={"notes": (f"{NO_GAIN}: k-NN 1.0 % against 2.0 %", "kept")})
    new = evaluation.model_copy(update={"notes": (f"{NO_GAIN}: k-NN 1.1 % against 2.0 %",), "measured": {}})
    assert with_earlier(new, old).notes == (*new.notes, "kept")
