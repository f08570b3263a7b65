"""What a report says of a run, from records made by hand."""

import math
from typing import Any

import pytest

from clf.evaluate.results import Diagnostics, Evaluation, KnnScore, Representation
from clf.report.page import comparable_baselines
from clf.report.page import verdicts as shown
from clf.report.verdicts import (
    Facts,
    Verdict,
    collapse,
    few_images,
    gain,
    jumps,
    loss,
    not_evaluated,
    risen,
    small_batch,
    still_improving,
    unfinished,
    verdicts,
)

MANIFEST = {"state": "complete", "data": {"train_images": 50_000, "test_images": 10_000, "fingerprint": "f"}}
VALUES = {"train.epochs": 10, "train.batch_size": 256, "optimizer.lr": 0.001, "monitor.knn_k": 20}


def evaluation(trained: float, *baselines: float, tests: int = 10_000, bank: int = 50_000) -> Evaluation:
    names = [*["raw pixels", "random encoder"][: len(baselines)], "trained encoder"]
    rows = tuple(
        Representation(
            name=name,
            dim=8,
            knn=tuple(KnnScore(k=k, voters=min(k, bank), accuracy=share - k / 1e4) for k in (200, 20)),
            seconds=1.0,
        )
        for name, share in zip(names, (*baselines, trained), strict=True)
    )
    return Evaluation(
        run="r", step=1, data="toy", fingerprint="f", train_images=bank, test_images=tests, classes=10,
        representations=rows, verdict=None, protocol={}, device="cpu", seconds=1.0, created="", clf_version="0",
    )  # fmt: skip


def facts(**changes: Any) -> Facts:
    return Facts(**{"records": [], "manifest": MANIFEST, "values": VALUES, "folder": "runs/r", **changes})


def losses(*values: float) -> list[dict[str, Any]]:
    return [{"kind": "train", "epoch": (i + 1) / 4, "loss": value} for i, value in enumerate(values)]


def measured(*accuracies: float, bank: int = 5000, **last: float) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"kind": "monitor", "epoch": i + 1.0, "knn": value, "bank": bank} for i, value in enumerate(accuracies)
    ]
    return [*found[:-1], {**found[-1], **last}]


def falling(n: int = 40) -> list[float]:
    """A loss that falls from 5 to 1 with a little noise, always the same."""
    return [1 + 4 * math.exp(-i / 8) + 0.02 * math.sin(7 * i) for i in range(n)]


def only(found: Any) -> Verdict:
    (verdict,) = found
    return verdict


def test_a_healthy_run_has_good_news_only() -> None:
    healthy = Diagnostics(images=500, dim=64, rank_me=40, feature_std=0.1, mean_cosine=0.2, uniformity=-3)
    known = facts(
        records=[*losses(*falling()), *measured(0.5, 0.6, 0.7, 0.71, 0.712, 0.713)],
        evaluations=(evaluation(0.7, 0.3, 0.4),), found=healthy, wanted_batch=32,
    )  # fmt: skip
    assert [verdict.kind for verdict in verdicts(known)] == ["good", "good"]


def test_nothing_is_said_of_nothing() -> None:
    assert verdicts(Facts(records=[], manifest={}, values={})) == []


def test_the_worst_comes_first() -> None:
    known = facts(evaluations=(evaluation(0.3, 0.3), evaluation(0.7, 0.3)), wanted_batch=512)
    assert [verdict.kind for verdict in verdicts(known)] == ["bad", "hint", "good"]


def test_collapse_is_told_by_the_checkpoint() -> None:
    gone = Diagnostics(images=500, dim=64, rank_me=1.0, feature_std=0.0, mean_cosine=1.0, uniformity=0)
    verdict = only(collapse(facts(found=gone)))
    assert verdict.kind == "bad"
    assert verdict.words.startswith("Collapsed: all images have nearly the same features")
    assert "optimizer.lr" in verdict.words


def test_without_a_checkpoint_collapse_is_told_by_the_last_measurement() -> None:
    records = measured(0.1, 0.1, collapsed=1.0, mean_cosine=0.99991)
    verdict = only(collapse(facts(records=records)))
    assert "at epoch 2" in verdict.words
    assert "0.9999" in verdict.words
    recovered = [*records, *measured(0.2, collapsed=0.0)]
    assert list(collapse(facts(records=recovered))) == []


@pytest.mark.parametrize(("ours", "kind"), [(0.412, "bad"), (0.415, "good"), (0.39, "bad")])
def test_gain_is_against_the_best_baseline_beyond_the_sampling_error(ours: float, kind: str) -> None:
    """Of 10,000 images at 40 %: 1.96 * sqrt(2 * 0.4 * 0.6 / 10,000) is 1.4 points."""
    verdict = only(gain(facts(evaluations=(evaluation(ours, 0.4, 0.2),))))
    assert verdict.kind == kind
    assert f"{100 * ours - 0.2:.1f} % against 39.8 % for the raw pixels" in verdict.words
    assert "± 1.4 points" in verdict.words
    assert ("Train longer" in verdict.words) == (kind == "bad")


@pytest.mark.parametrize(("tests", "kind"), [(1, "bad"), (2, "bad"), (30, "good")])
def test_a_few_images_that_are_all_right_are_no_proof(tests: int, kind: str) -> None:
    verdict = only(gain(facts(evaluations=(evaluation(1.002, 0.002, tests=tests),))))
    assert verdict.kind == kind
    assert "± 0.0 points" not in verdict.words


def test_gain_needs_something_to_compare_with() -> None:
    without = evaluation(0.5).model_copy(update={"representations": ()})
    assert list(gain(facts(evaluations=(evaluation(0.5), without)))) == []


def test_an_accuracy_that_rises_to_the_end_asks_for_more_epochs() -> None:
    verdict = only(still_improving(facts(records=measured(0.3, 0.35, 0.4, 0.45, 0.5, 0.55))))
    assert verdict.kind == "hint"
    assert "from 45.0 % to 55.0 %" in verdict.words
    assert "train.epochs=20" in verdict.words


@pytest.mark.parametrize(
    "records",
    [
        measured(0.3, 0.5, 0.54, 0.55, 0.55, 0.551),  # level
        measured(0.3, 0.4, 0.45, 0.5, 0.6, 0.55),  # past its best
        measured(0.3, 0.35, 0.55),  # too few to tell
        measured(0.3, 0.35, 0.4, 0.45, 0.46, 0.5, bank=100),  # within chance: ± 10 points
        [],
    ],
)
def test_an_accuracy_that_does_not_is_left_alone(records: list[dict[str, Any]]) -> None:
    assert list(still_improving(facts(records=records))) == []


def test_a_run_that_was_cut_is_not_called_short() -> None:
    records = measured(0.3, 0.35, 0.4, 0.45, 0.5, 0.55)
    cut = facts(records=records, manifest={**MANIFEST, "state": "interrupted"})
    assert list(still_improving(cut)) == []
    verdict = only(unfinished(cut))
    assert "was stopped after 6 of 10 epochs" in verdict.words
    assert "clf train --resume runs/r" in verdict.words


def test_the_reason_of_a_failure_is_told() -> None:
    manifest = {**MANIFEST, "state": "failed", "reason": "the representation has collapsed. Try a lower optimizer.lr."}
    words = only(unfinished(facts(manifest=manifest))).words
    assert "This run failed. The reason given: the representation has collapsed. Try a lower optimizer.lr. To" in words
    assert list(unfinished(facts())) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_diverged(value: float) -> None:
    verdict = only(loss(facts(records=losses(3.0, 2.0, value, 1.0))))
    assert verdict.kind == "bad"
    assert "at epoch 0.75" in verdict.words
    assert "Lower optimizer.lr (it was 0.001)" in verdict.words


def test_a_loss_that_rose_again() -> None:
    back = [*falling(30), *(1.2 + 0.2 * i for i in range(10))]
    verdict = only(loss(facts(records=losses(*back))))
    assert verdict.kind == "bad"
    assert verdict.words.startswith("The loss rose again: 1.")


@pytest.mark.parametrize(
    "values",
    [
        falling(),
        [1.0 + 0.1 * i for i in range(40)],  # a task that gets harder, such as a queue that fills
        [2 + math.sin(40 * i) for i in range(40)],  # noise around a level
        [5.0, 3.0, 4.0],  # too few to tell
        [-y for y in range(40)],  # an energy may be negative
    ],
)
def test_other_losses_are_left_alone(values: list[float]) -> None:
    assert list(loss(facts(records=losses(*values)))) == []


def test_jumps_are_counted_and_few_of_them_are_forgiven() -> None:
    values = falling()
    for i in (12, 20, 33):
        values[i] += 2
    rows = [(float(i), y) for i, y in enumerate(values)]
    assert jumps(rows) == [12, 20, 33]
    assert risen(rows) is None
    assert "jumped 3 times, first at epoch 3.25" in only(loss(facts(records=losses(*values)))).words
    values[33] -= 2
    assert list(loss(facts(records=losses(*values)))) == []


def test_missing_and_old_evaluations_are_told() -> None:
    labelled = {"labelled": True, "test_images": 10}
    missing = only(not_evaluated(facts(manifest={"data": labelled})))
    assert "clf evaluate runs/r" in missing.words
    assert list(not_evaluated(facts(manifest={"data": {**labelled, "labelled": False}}))) == []
    old = only(not_evaluated(facts(manifest={"data": labelled, "step": 2000}, evaluations=(evaluation(0.5, 0.4),))))
    assert "step 1 of 2,000" in old.words
    assert list(not_evaluated(facts(manifest={"step": 1}, evaluations=(evaluation(0.5, 0.4),)))) == []


def test_small_batch() -> None:
    assert "had 256 images in a step" in only(small_batch(facts(wanted_batch=512))).words
    assert list(small_batch(facts(wanted_batch=256))) == []
    assert list(small_batch(facts())) == []


def test_few_images_to_train_and_to_test_on() -> None:
    manifest = {**MANIFEST, "data": {"train_images": 999, "test_images": 100}}
    train, test = few_images(facts(manifest=manifest, evaluations=(evaluation(0.5, 0.4, tests=100),)))
    assert "999 to train on" in train.words
    assert "± 10 points" in test.words
    assert list(few_images(facts(evaluations=(evaluation(0.5, 0.4),)))) == []


def test_words_from_outside_are_escaped() -> None:
    assert shown([Verdict("bad", "<b>x</b>")]).count("&lt;b&gt;x") == 1
    assert shown([]) == ""


def test_baselines_stand_beside_the_curve_only_if_the_measurement_is_the_same() -> None:
    same = evaluation(0.7, 0.3, 0.4, tests=2000, bank=5000)
    records = measured(0.5, 0.6, bank=5000)
    assert comparable_baselines([same], records, MANIFEST, VALUES) == [
        ("raw pixels", pytest.approx(0.298)),
        ("random encoder", pytest.approx(0.398)),
    ]
    others = [
        ([evaluation(0.7, 0.3, tests=2000)], records, MANIFEST, VALUES),  # a larger bank
        ([evaluation(0.7, 0.3, tests=9000, bank=5000)], records, MANIFEST, VALUES),  # perhaps a part of the queries
        ([same.model_copy(update={"fingerprint": "g"})], records, MANIFEST, VALUES),  # another data set
        ([same], records, MANIFEST, {**VALUES, "monitor.knn_k": 5}),
        ([same], [], MANIFEST, VALUES),
        ([], records, MANIFEST, VALUES),
    ]
    for case in others:
        assert comparable_baselines(*case) == []
