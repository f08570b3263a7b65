"""Evaluators of plugins and of files: what they are given, where their figures go, and what bad ones cost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from rich.console import Console

from clf import experiment
from clf.compare.scores import read_evaluated
from clf.config import DataSection
from clf.data import DataSource, Split
from clf.errors import PluginError
from clf.evaluate import Evaluation, evaluate_run, read_evaluations, render
from clf.evaluate.features import encode
from clf.evaluate.pixels import raw_pixels
from clf.evaluate.plugged import Evaluators
from clf.report import write_report
from clf.runs import Run

Install = Callable[..., Path]
ROWS = ["raw pixels", "random encoder", "trained encoder"]
MRR = '''
import torch.nn.functional as F
import clf

class MeanReciprocalRank(clf.Evaluator):
    """Mean reciprocal rank of the first image of the same class.

    Further words.
    """

    name = "mrr"
    needs_labels = True

    def measure(self, subject):
        bank, queries = F.normalize(subject.bank), F.normalize(subject.queries)
        nearest = (queries @ bank.T).argsort(dim=1, descending=True, stable=True)
        right = subject.bank_labels[nearest] == subject.query_labels[:, None]
        rank = right.int().argmax(dim=1) + 1
        return {"MRR": (right.any(dim=1) / rank).mean(), "first": right[:, 0].double().mean().item()}
'''
HOOK = """
@clf.hookimpl
def clf_evaluators():
    return [MeanReciprocalRank]
"""


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(tiny_run.path, folder)
    return Run(folder)


def file(folder: Path, source: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(dedent(source))
    return str(path)


def one(folder: Path, body: str, head: str = 'name = "odd"') -> str:
    """A file with one evaluator whose ``measure`` has this body."""
    lines = "\n".join("        " + line for line in dedent(body).strip().splitlines())
    source = f"import torch\nimport clf\n\nclass Odd(clf.Evaluator):\n    {head}\n\n    def measure(self, subject):\n"
    return file(folder, source + lines + "\n")


def measured(run: Run, *words: str, **options: Any) -> tuple[Evaluation, list[str]]:
    evaluators = Evaluators(words)
    return evaluate_run(run, evaluators=evaluators, **options), evaluators.complaints


def extra(evaluation: Evaluation, name: str = "odd") -> dict[str, dict[str, float]]:
    return {row.name: row.extra[name] for row in evaluation.representations if name in row.extra}


def text_of(evaluation: Evaluation) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render(evaluation))
    return captured.get()


def test_an_installed_evaluator_measures_pixels_an_untrained_and_the_trained_encoder(
    run: Run, install: Install
) -> None:
    install("clf-mrr", plugins={"rank": "clf_mrr"}, modules={"clf_mrr": MRR + HOOK})
    evaluation, complaints = measured(run, "rank")
    assert complaints == []
    assert list(extra(evaluation, "mrr")) == ROWS
    trained = experiment.load(run)
    train, test = trained.data.train, trained.data.test
    assert test is not None and train.labels is not None and test.labels is not None
    untrained = experiment.build(trained.config, trained.data)
    features = [(raw_pixels(train.clean), raw_pixels(test.clean))]
    for what in (untrained, trained):
        features.append((encode(what.method.encoder(), train.clean), encode(what.method.encoder(), test.clean)))
    for figures, (bank, queries) in zip(extra(evaluation, "mrr").values(), features, strict=True):
        assert figures == pytest.approx(by_hand(bank, train.labels, queries, test.labels))
    assert evaluation.protocol["evaluator mrr"] == (
        "plugin 'rank' (clf-mrr 1.0): Mean reciprocal rank of the first image of the same class."
    )
    assert read_evaluations(run)["shapes"] == evaluation


def by_hand(bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    ranks = []
    for query, wanted in zip(queries, truth, strict=True):
        cosines = torch.cosine_similarity(query[None], bank)
        first = max(cosines[labels == wanted])
        ranks.append(1 + int((cosines > first).sum()))
    return {"MRR": sum(1 / rank for rank in ranks) / len(ranks), "first": sum(rank == 1 for rank in ranks) / len(ranks)}


def test_it_is_given_what_the_contract_says(run: Run, tmp_path: Path) -> None:
    body = """
    n, m = len(subject.bank), len(subject.queries)
    assert subject.bank.shape == (n, subject.bank.shape[1]) and subject.bank.dtype == torch.float32
    assert subject.bank_labels.shape == (n,) and subject.query_labels.shape == (m,)
    assert subject.images_bank.shape == (n, 3, 16, 16) and subject.images_queries[:2].dtype == torch.uint8
    assert len(subject.class_names) == 16 and subject.device == "cpu" and subject.seed == 0
    pixels = subject.representation == "raw pixels"
    assert (subject.encoder is None) == pixels
    if not pixels:
        assert not any(part.training for part in subject.encoder.modules())
        again = subject.encoder(subject.images_queries[:].float() / 255)
        assert torch.allclose(again, subject.queries, atol=1e-5) and again.requires_grad
    return {"n": n, "m": m}
    """
    evaluation, complaints = measured(run, one(tmp_path, body))
    assert complaints == []
    assert extra(evaluation) == {name: {"n": 96.0, "m": 48.0} for name in ROWS}


@pytest.mark.slow
def test_evaluators_disturb_neither_each_other_nor_other_figures(run: Run, tmp_path: Path) -> None:
    path = one(
        tmp_path,
        """
        subject.bank.zero_(); subject.queries.zero_(); subject.bank_labels.zero_(); subject.query_labels.zero_()
        if subject.encoder is not None:
            for each in subject.encoder.parameters():
                each.data.zero_()
        return {"draw": torch.rand(()).item()}
        """,
    )
    second = file(tmp_path, MRR, "mrr.py")
    plain = evaluate_run(run, fine_tune_epochs=1)
    alone, _ = measured(run, second)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    evaluation, complaints = measured(run, path, second, fine_tune_epochs=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert complaints == []
    assert extra(evaluation, "mrr") == extra(alone, "mrr")
    for row, other in zip(evaluation.representations, plain.representations, strict=True):
        assert (row.knn, row.linear, row.diagnostics) == (other.knn, other.linear, other.diagnostics)
        assert (row.fine_tuned and row.fine_tuned.accuracy) == (other.fine_tuned and other.fine_tuned.accuracy)
    again, _ = measured(run, path)
    assert extra(again) == extra(evaluation)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('not\\nthere.')", "on raw pixels: ValueError: not there (mine.py, line 9)"),
        ("raise SystemExit(4)", "SystemExit: 4 (mine.py, line 9)"),
        ("return 0.5", "it returned a float, not a mapping of names to numbers"),
        ("return {'x': float('nan')}", "'x' is nan, not a finite number"),
        ("return {'x': 'high'}", "'x' is a str ('high'), not a finite number"),
        ("return {'x': torch.ones(3)}", "'x' is a Tensor"),
        ("return {3: 1.0}", "3 is no name for a figure"),
    ],
)
def test_a_bad_evaluator_costs_its_own_figures_only(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str], body: str, reason: str
) -> None:
    path = one(tmp_path, f"if subject.representation == 'raw pixels':\n    {body}\nreturn {{'fine': 1}}")
    evaluation, complaints = measured(run, path, file(tmp_path, MRR, "mrr.py"))
    assert len(complaints) == 1
    assert complaints[0].startswith(f"evaluator 'odd' of plugin {path} failed on raw pixels: ")
    assert reason in complaints[0]
    assert complaints[0] in evaluation.notes
    assert extra(evaluation) == {"random encoder": {"fine": 1.0}, "trained encoder": {"fine": 1.0}}
    assert list(extra(evaluation, "mrr")) == ROWS
    assert evaluation.representations[-1].knn
    captured = capfd.readouterr()
    assert ("Traceback" in captured.err) == ("raise" in body)
    assert "measure.py" not in captured.err


def test_what_is_said_of_a_bad_evaluator_is_gone_when_it_is_mended(run: Run, tmp_path: Path) -> None:
    broken = one(tmp_path, "if subject.encoder is None:\n    1 / 0\nreturn {'fine': 1}")
    evaluation, _ = measured(run, broken, file(tmp_path, MRR, "mrr.py"))
    assert any(note.startswith("evaluator 'odd'") for note in evaluation.notes)
    mended = one(tmp_path, "return {'fine': 2}")
    after, complaints = measured(run, mended)
    assert complaints == []
    assert not any(note.startswith("evaluator") for note in after.notes)
    assert extra(after) == {name: {"fine": 2.0} for name in ROWS}
    assert extra(after, "mrr") == extra(evaluation, "mrr")


def test_ctrl_c_in_an_evaluator_loses_no_other_figure(run: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(run, one(tmp_path, "raise KeyboardInterrupt"))
    assert read_evaluations(run)["shapes"].representations[-1].knn


def test_without_labels_one_that_needs_them_is_left_out_and_others_measure(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = experiment.load_data

    def unlabelled(*given: Any, **more: Any) -> DataSource:
        found = load(*given, **more)
        strip = [None if split is None else replace(split, labels=None) for split in (found.train, found.test)]
        assert isinstance(strip[0], Split)
        return replace(found, train=strip[0], test=strip[1])

    monkeypatch.setattr(experiment, "load_data", unlabelled)
    path = one(tmp_path, "assert subject.bank_labels is None\nreturn {'norm': subject.bank.norm(dim=1).mean()}")
    evaluation, complaints = measured(run, path, file(tmp_path, MRR, "mrr.py"))
    assert complaints == []
    assert [row.name for row in evaluation.representations] == ROWS
    assert list(extra(evaluation)) == ROWS
    assert extra(evaluation, "mrr") == {}
    assert any("'mrr'" in note and "is left out: it needs labels" in note for note in evaluation.notes)
    plain = evaluate_run(run)
    assert extra(plain) == extra(evaluation)
    assert [row.name for row in plain.representations] == ROWS


@pytest.mark.slow
def test_figures_stay_until_the_checkpoint_or_the_images_change(run: Run, tmp_path: Path) -> None:
    evaluation, _ = measured(run, file(tmp_path, MRR))
    plain = evaluate_run(run)
    assert extra(plain, "mrr") == extra(evaluation, "mrr")
    assert plain.measured == evaluation.measured
    assert plain.protocol["evaluator mrr"] == evaluation.protocol["evaluator mrr"]
    other = evaluate_run(run, DataSection(name="digits", limit=200))
    assert extra(other, "mrr") == {}


def test_a_file_of_before_has_none_of_them(run: Run) -> None:
    evaluate_run(run)
    path = run.path / "evaluation.json"
    content = json.loads(path.read_text())
    for row in content["evaluations"]["shapes"]["representations"]:
        assert row.pop("extra") == {}
    path.write_text(json.dumps(content))
    assert all(row.extra == {} for row in read_evaluations(run)["shapes"].representations)


def test_the_figures_are_on_the_terminal_in_the_report_and_in_comparisons(run: Run, tmp_path: Path) -> None:
    evaluation, _ = measured(run, file(tmp_path, MRR))
    value = extra(evaluation, "mrr")["trained encoder"]["MRR"]
    text = text_of(evaluation)
    assert "evaluator mrr" in text
    assert f"{value:.4g}" in text
    page = write_report(run).read_text()
    assert "Evaluator mrr" in page
    assert f">{value:.4g}<" in page
    (found,) = read_evaluated(run)
    assert {measure.label: each for measure, each in found.scores.items()}["mrr: MRR"] == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["simclp"], "Did you mean 'simclr'"),
        (["simclr"], "provides no evaluator: it offers no evaluator"),
        (["simclr:mrr"], "provides no evaluator named 'mrr': it offers no evaluator"),
        (["./gone.py"], "gone.py does not exist"),
    ],
)
def test_a_name_that_is_none_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Evaluators(words)


def test_one_of_several_is_chosen_and_names_must_differ(tmp_path: Path) -> None:
    two = MRR + "\n\nclass Other(MeanReciprocalRank):\n    name = 'other'\n"
    path, rival = file(tmp_path, two), file(tmp_path, MRR, "rival.py")
    assert [each.name for each in Evaluators([path])._plugged] == ["mrr", "other"]
    assert [each.name for each in Evaluators([f"{path}:other,{path}:other", path + ":mrr"])._plugged] == [
        "other",
        "mrr",
    ]
    with pytest.raises(PluginError, match=r"provides no evaluator named 'otter'.*Did you mean 'other'"):
        Evaluators([f"{path}:otter"])
    with pytest.raises(PluginError, match="have one name"):
        Evaluators([path, rival])


def test_a_class_that_is_no_evaluator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="Odd has no name"):
        Evaluators([one(tmp_path, "return {}", "pass")])
    abstract = file(tmp_path, "import clf\nclass Odd(clf.Evaluator):\n    name = 'odd'\n", "abstract.py")
    with pytest.raises(PluginError, match="Odd does not define measure"):
        Evaluators([abstract])
    unmade = one(tmp_path, "return {}", "name = 'odd'\n    def __init__(self, what): pass")
    with pytest.raises(PluginError, match=r"evaluator 'odd' of .* failed as it was made: TypeError"):
        Evaluators([unmade])


@pytest.mark.parametrize("value", ["[dict]", "[Odd()]", "{}"])
def test_a_hook_that_returns_the_wrong_things(tmp_path: Path, value: str) -> None:
    source = f"""
    import clf

    class Odd(clf.Evaluator):
        name = "odd"
        def measure(self, subject):
            return {{}}

    @clf.hookimpl
    def clf_evaluators():
        return {value}
    """
    with pytest.raises(PluginError, match="stage clf_evaluators"):
        Evaluators([file(tmp_path, source)])


def test_the_command_prints_all_and_fails_where_one_did(run: Run, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    good, bad = file(tmp_path, MRR), "nowhere"
    done = run_cli("evaluate", str(run.path), "--evaluator", good, "--json")
    assert done.code == 0
    assert json.loads(done.out)["representations"][-1]["extra"]["mrr"]["MRR"] > 0
    done = run_cli("evaluate", str(run.path), "--evaluator", bad)
    assert done.code == 2
    assert "unknown plugin 'nowhere'" in done.err
    broken = one(tmp_path, "print('to be read by a person')\n1 / 0")
    done = run_cli("evaluate", str(run.path), "--evaluator", broken, "--json")
    assert done.code == 2
    assert json.loads(done.out)["representations"][-1]["knn"]
    assert "to be read by a person" in done.err
    assert "evaluator 'odd' of plugin" in done.err and "ZeroDivisionError" in done.err
    assert "All else was measured and written" in " ".join(done.err.split())
