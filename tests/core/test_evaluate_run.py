"""``evaluate_run``: baselines, protocol, other data sets, data without labels."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from clf import experiment, training
from clf.config import Config, DataSection
from clf.data import DataSource, Split
from clf.errors import RunError
from clf.evaluate import Evaluation, evaluate_run, read_evaluations, render
from clf.evaluate.features import encode
from clf.evaluate.knn import knn_accuracy
from clf.evaluate.measure import first_views
from clf.evaluate.pixels import adapt, raw_pixels
from clf.runs import Run


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evaluated") / "tiny"
    shutil.copytree(tiny_run.path, folder)
    return Run(folder)


@pytest.fixture(scope="module")
def evaluation(run: Run) -> Evaluation:
    return evaluate_run(run)


def text_of(evaluation: Evaluation) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render(evaluation))
    return captured.get()


def test_it_measures_pixels_an_untrained_and_the_trained_encoder(evaluation: Evaluation) -> None:
    assert [row.name for row in evaluation.representations] == ["raw pixels", "random encoder", "trained encoder"]
    assert [row.dim for row in evaluation.representations] == [16 * 16 * 3, 96, 96]
    assert (evaluation.train_images, evaluation.test_images, evaluation.classes) == (96, 48, 16)


def test_each_figure_is_that_of_the_parts(run: Run, evaluation: Evaluation) -> None:
    trained = experiment.load(run)
    train, test = trained.data.train, trained.data.test
    assert test is not None and train.labels is not None and test.labels is not None
    untrained = experiment.build(trained.config, trained.data)
    pixels, random, ours = evaluation.representations
    for row, what in ((random, untrained), (ours, trained)):
        encoder = what.method.encoder()
        bank, queries = encode(encoder, train.clean), encode(encoder, test.clean)
        for score in row.knn:
            assert score.accuracy == knn_accuracy(bank, train.labels, queries, test.labels, score.k, 0.1)
    expected = knn_accuracy(raw_pixels(train.clean), train.labels, raw_pixels(test.clean), test.labels, 20, 0.1)
    assert pixels.knn[1].accuracy == expected


def test_a_k_larger_than_the_bank_is_clamped_and_said(evaluation: Evaluation) -> None:
    assert [(score.k, score.voters) for score in evaluation.representations[0].knn] == [(200, 96), (20, 20)]
    assert any("k = 200 is more than the bank's 96 images" in note for note in evaluation.notes)


def test_the_protocol_is_in_words(evaluation: Evaluation) -> None:
    words = " ".join(evaluation.protocol.values())
    for phrase in ("step 12", "not the best", "projector is not part", "96 training images", "48 test", "T = 0.1"):
        assert phrase in words


def test_it_is_written_and_read_back(run: Run, evaluation: Evaluation) -> None:
    assert read_evaluations(run)["shapes"] == evaluation
    assert json.loads((run.path / "evaluation.json").read_text())["format"] == 1


def test_the_table_fits_a_terminal_of_80_columns(evaluation: Evaluation) -> None:
    text = text_of(evaluation)
    assert "trained encoder" in text
    assert "uniformity" in text
    assert "…" not in text


def test_another_data_set_adds_an_entry_and_is_brought_to_the_runs_format(run: Run, evaluation: Evaluation) -> None:
    other = evaluate_run(run, DataSection(name="digits", limit=200))
    assert other.data == "digits"
    assert (other.train_images, other.classes) == (200, 10)
    assert other.representations[0].dim == 16 * 16 * 3  # grey digits became RGB of 16 pixels
    assert set(read_evaluations(run)) == {"shapes", "digits"}


def source_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[DataSource], DataSource]) -> None:
    original = experiment.load_data
    monkeypatch.setattr(experiment, "load_data", lambda section, seed, progress=None: change(original(section, seed)))


def test_without_labels_the_label_free_figures_are_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def strip(data: DataSource) -> DataSource:
        return replace(data, train=replace(data.train, labels=None), test=None)

    source_with(monkeypatch, strip)
    evaluation = evaluate_run(run)
    trained = evaluation.representations[-1]
    assert evaluation.classes is None
    assert trained.knn == ()
    assert trained.linear is None
    assert trained.diagnostics is not None
    assert trained.diagnostics.alignment is not None
    assert "accuracy needs labels" in evaluation.notes[0]
    assert "RankMe" in text_of(evaluation)
    assert "k-NN" not in evaluation.protocol


def test_with_one_class_an_accuracy_would_mean_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def flatten(split: Split) -> Split:
        return replace(split, labels=torch.zeros(len(split), dtype=torch.int64))

    source_with(monkeypatch, lambda d: replace(d, train=flatten(d.train), test=flatten(d.test) if d.test else None))
    evaluation = evaluate_run(run)
    assert evaluation.representations[-1].knn == ()
    assert "same label" in evaluation.notes[0]


def test_labels_without_a_test_split_are_said_to_be_useless(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    source_with(monkeypatch, lambda data: replace(data, test=None))
    assert "data.test_fraction" in evaluate_run(run).notes[0]


def test_unlabelled_images_are_left_out_of_the_bank(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(data: DataSource) -> DataSource:
        assert data.train.labels is not None
        labels = data.train.labels.clone()
        labels[::2] = -1
        return replace(data, train=replace(data.train, labels=labels))

    source_with(monkeypatch, forget)
    evaluation = evaluate_run(run)
    assert evaluation.train_images == 48
    assert evaluation.representations[-1].knn


def test_a_damaged_file_is_a_run_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"evaluations": {"shapes": {"run": 1}}}')
    with pytest.raises(RunError, match="damaged"):
        read_evaluations(Run(tmp_path))
    assert read_evaluations(Run(tmp_path / "nothing")) == {}


def test_no_gain_is_said_plainly(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    barely = training.train(tiny(tmp_path, {"train.max_steps": 1, "monitor.knn_every": 0}), callbacks=[])
    assert any("has not shown a gain" in note for note in evaluate_run(barely).notes)


def test_the_views_are_those_of_the_first_steps(run: Run) -> None:
    what = experiment.load(run)
    index, views = first_views(what, 20)
    assert len(index) == 20 == len(index.unique())
    assert [tuple(view.shape) for view in views] == [(20, 3, 16, 16)] * 2
    again = first_views(what, 5)
    assert torch.equal(again[0], index[:5])
    assert torch.equal(again[1][0], views[0][:5])


def test_adapt_defines_colour_and_size() -> None:
    colour = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert adapt(colour, 8, 1).unique().tolist() == [76]  # 0.299 * 255
    grey = torch.full((1, 1, 8, 8), 40, dtype=torch.uint8)
    assert adapt(grey, 16, 3).shape == (1, 3, 16, 16)
    assert adapt(grey, 16, 3).unique().tolist() == [40]
    assert torch.equal(adapt(colour, 8, 3), colour)


def test_raw_pixels_of_large_images_are_averaged_down() -> None:
    small = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    assert torch.equal(raw_pixels(small), small.flatten(1) / 255)
    assert raw_pixels(torch.full((2, 3, 128, 128), 51, dtype=torch.uint8)).unique().tolist() == pytest.approx([0.2])
    assert raw_pixels(torch.zeros(2, 3, 128, 128, dtype=torch.uint8)).shape == (2, 3 * 32 * 32)
