"""Groups over seeds, differences with golden numbers, and what is refused or flagged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from written_runs import evaluation, records, write_run

from clf.compare import Comparison
from clf.compare import compare as compare_runs
from clf.compare.comparison import Column, difference, group_spread, values, verdict, welch
from clf.compare.groups import name_groups
from clf.errors import RunError
from clf.runs import Run
from clf.spread import Spread

OURS, THEIRS = (0.62, 0.64, 0.66), (0.60, 0.61, 0.62)


def compare(*paths: Path, **options: Any) -> Comparison:
    return compare_runs([Run(path) for path in paths], **options)


def column(found: Comparison, key: str) -> Column:
    return next(each for each in found.columns if each.key == key)


def kinds(found: Comparison) -> set[str]:
    return {note.kind for note in found.notes}


def text_of(found: Comparison, kind: str) -> str:
    return next(note.text for note in found.notes if note.kind == kind)


def seeds(folder: Path, plugin: str, linear: tuple[float, ...], first: int = 0, **more: Any) -> list[Path]:
    return [
        write_run(folder, f"{plugin}-{seed}", plugin=plugin, seed=seed, evaluations=[evaluation(0.5, value)], **more)
        for seed, value in enumerate(linear, start=first)
    ]


def test_seeds_are_one_group_with_mean_and_standard_deviation(tmp_path: Path) -> None:
    found = compare(*seeds(tmp_path, "simclr", THEIRS), *seeds(tmp_path, "dcl", OURS))
    assert [group.name for group in found.groups] == ["simclr", "dcl"]
    assert [group.seeds for group in found.groups] == [[0, 1, 2], [0, 1, 2]]
    spread = group_spread(found.groups[1], column(found, "toys/linear"))
    assert spread is not None
    assert (spread.mean, spread.std, spread.n) == (pytest.approx(0.64), pytest.approx(0.02), 3)
    assert found.reference is found.groups[0]


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    found = compare(*seeds(tmp_path, "simclr", THEIRS), *reversed(seeds(tmp_path, "dcl", OURS)))
    linear = column(found, "toys/linear")
    each = difference(found.groups[1], found.reference, linear)
    assert each is not None
    # by hand: +0.02, +0.03, +0.04, so 0.03 with a standard deviation of 0.01; t(2) = 4.303
    half = 4.303 * 0.01 / math.sqrt(3)
    assert (each.kind, each.n, each.mean) == ("paired", 3, pytest.approx(0.03))
    assert each.interval == (pytest.approx(0.03 - half), pytest.approx(0.03 + half))
    assert each.sign == 1
    assert verdict(each, linear.measure) == "better"
    reverse = compare(*seeds(tmp_path / "r", "dcl", OURS), *seeds(tmp_path / "r", "simclr", THEIRS))
    other = difference(reverse.groups[1], reverse.reference, column(reverse, "toys/linear"))
    assert other is not None
    assert verdict(other, linear.measure) == "worse"


def test_without_common_seeds_the_interval_is_welchs(tmp_path: Path) -> None:
    found = compare(*seeds(tmp_path, "simclr", THEIRS), *seeds(tmp_path, "dcl", OURS, first=10))
    each = difference(found.groups[1], found.reference, column(found, "toys/linear"))
    assert each is not None
    # variances of the means 0.0004 / 3 and 0.0001 / 3; degrees of freedom 2.94, so 2
    half = 4.303 * math.sqrt(0.0005 / 3)
    assert (each.kind, each.n) == ("unpaired", 6)
    assert each.interval == (pytest.approx(0.03 - half), pytest.approx(0.03 + half))
    assert each.sign == 0


def test_welch_has_the_freedom_of_both_for_equal_variances() -> None:
    low, high = welch(Spread(1.0, 1.0, 5), Spread(0.0, 1.0, 5))
    assert (low + high) / 2 == pytest.approx(1.0)
    assert high - low == pytest.approx(2 * 2.306 * math.sqrt(2 / 5))


@pytest.mark.parametrize(("linear", "words"), [((0.7,), "one seed"), ((0.65, 0.66, 0.67), "same in every pair")])
def test_what_has_no_spread_cannot_be_told(tmp_path: Path, linear: tuple[float, ...], words: str) -> None:
    found = compare(*seeds(tmp_path, "simclr", THEIRS[: len(linear)]), *seeds(tmp_path, "dcl", linear))
    each = difference(found.groups[1], found.reference, column(found, "toys/linear"))
    assert each is not None
    assert each.interval is None
    assert words in verdict(each, column(found, "toys/linear").measure)


def test_what_cannot_change_results_does_not_part_a_group(tmp_path: Path) -> None:
    changes = [
        {"monitor.log_every": 5, "train.threads": 2},
        {"train.checkpoint_every": 3, "run.dir": "elsewhere", "data.root": "/a"},
        {"train.device": "cpu", "data.workers": 2, "method.gan_run": "runs/gan--seed-2"},
    ]
    base = {"method.gan_run": "runs/gan--seed-{}"}
    paths = [
        write_run(tmp_path, f"r{i}", seed=i, settings={"method.gan_run": base["method.gan_run"].format(i), **change})
        for i, change in enumerate(changes)
    ]
    found = compare(*paths)
    assert len(found.groups) == 1
    assert found.settings == {}
    assert found.groups[0].name == "simclr"


def test_groups_are_named_by_what_they_differ_in(tmp_path: Path) -> None:
    settings = [{"train.batch_size": 32}, {"train.batch_size": 64, "method.temperature": 0.2}]
    paths = [write_run(tmp_path, str(i), settings=each) for i, each in enumerate(settings)]
    found = compare(*paths, write_run(tmp_path, "dcl", plugin="dcl", settings={"train.batch_size": 32}))
    assert [g.name for g in found.groups] == [
        "simclr, batch_size 32, temperature (none)",
        "simclr, batch_size 64, temperature 0.2",
        "dcl, batch_size 32",
    ]
    assert found.settings["train.batch_size"] == [32, 64, 32]
    assert "train.epochs" not in found.settings


def test_settings_that_follow_from_others_are_not_in_names(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, str(n), settings={"train.epochs": n, "schedule.warmup_epochs": n / 10}) for n in (2, 4)
    ]
    found = compare(*paths)
    assert [group.name for group in found.groups] == ["simclr, epochs 2", "simclr, epochs 4"]
    assert "schedule.warmup_epochs" in found.settings
    assert "epochs" in kinds(found)


def test_names_take_as_many_settings_as_tell_groups_apart() -> None:
    keys = [f"method.{letter}" for letter in "abcde"]
    base = {"plugin": "simclr", **dict.fromkeys(keys, 0)}
    changed = [{**base, key: 1} for key in keys]
    names = name_groups([base, *changed])
    assert len(set(names)) == 6
    assert all(name.startswith("simclr, a ") for name in names)
    assert name_groups([base, {**base, **dict.fromkeys(keys, 1)}])[1] == "simclr, a 1, b 1, c 1, and 2 more"


def test_equal_settings_and_seed_are_told_as_duplicates(tmp_path: Path) -> None:
    first = write_run(tmp_path, "first", evaluations=[evaluation(linear=0.5)], manifest={"state": "interrupted"})
    second = write_run(tmp_path, "second", evaluations=[evaluation(linear=0.7)])
    found = compare(first, second, first)
    (group,) = found.groups
    assert group.duplicates == {"first": "second"}
    assert values(group, column(found, "toys/linear")) == {0: 0.7}
    assert "first repeats second" in text_of(found, "duplicate")


def test_runs_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    found = compare(write_run(tmp_path / "a", "run"), write_run(tmp_path / "b", "run", seed=1))
    assert [member.name for member in found.members] == ["a/run", "b/run"]


OTHER_DATA = [
    ({"fingerprint": "b" * 64, "name": "birds"}, "other images, toys and birds"),
    ({"fingerprint": "b" * 64}, "fingerprints aaaaaaaaaaaa and bbbbbbbbbbbb"),
    ({"split": "20% held out, stratified"}, "other splits of toys"),
    ({"test_images": 100}, "other splits of toys"),
    ({"train_images": 200}, "other parts of toys, 400 and 200 training images"),
    ({"image_size": 32}, "images of other sizes, 16 and 32 px"),
    ({"channels": 1}, "images of 3 and of 1 channels"),
]


@pytest.mark.parametrize(("data", "words"), OTHER_DATA)
def test_runs_on_other_images_are_refused(tmp_path: Path, data: dict[str, Any], words: str) -> None:
    ours = write_run(tmp_path, "ours", evaluations=())
    others = [write_run(tmp_path, f"theirs-{seed}", seed=seed, data=data, evaluations=()) for seed in (0, 1)]
    with pytest.raises(RunError) as refused:
        compare(ours, *others)
    for part in (words, "'ours'", "'theirs-0' (and 1 more)", "--on DATA", "--anyway"):
        assert part in str(refused.value)
    found = compare(ours, *others, anyway=True)
    assert not found.comparable
    assert found.notes[0].kind == "not_comparable"
    assert found.notes[0].serious
    assert len(found.groups) == 2


def test_anyway_sets_the_evaluations_on_own_data_side_by_side(tmp_path: Path) -> None:
    half = evaluation(linear=0.5, train_images=200)
    ours, theirs = (
        write_run(tmp_path, "all"),
        write_run(tmp_path, "half", data={"train_images": 200}, evaluations=[half]),
    )
    found = compare(ours, theirs, anyway=True)
    each = difference(found.groups[1], found.reference, column(found, "own data/linear"))
    assert each is not None
    assert each.mean == pytest.approx(-0.1)


def test_one_set_that_all_were_evaluated_on_makes_them_comparable(tmp_path: Path) -> None:
    common = {"data": "birds", "fingerprint": "c" * 64}
    ours = write_run(tmp_path, "ours", evaluations=[evaluation(), evaluation(linear=0.3, **common)])
    data = {"fingerprint": "b" * 64, "name": "cars"}
    theirs = write_run(tmp_path, "theirs", data=data, evaluations=[evaluation(linear=0.2, **common)])
    found = compare(ours, theirs)
    assert found.comparable
    assert found.sets == ["birds"]
    assert all(each.data == "birds" for each in found.columns)
    assert "other_training_data" in kinds(found)
    assert "trained_on_test" not in kinds(found)


def test_test_images_that_another_run_may_have_trained_on_are_flagged(tmp_path: Path) -> None:
    ours = write_run(tmp_path, "ours")
    theirs = write_run(tmp_path, "theirs", data={"test_images": 100, "train_images": 500})
    found = compare(ours, theirs)
    assert next(n for n in found.notes if n.kind == "trained_on_test").runs == ("theirs",)


FLAGS = [
    ({"settings": {"backbone.name": "resnet50"}}, "backbone", "resnet18 (1 run), resnet50 (1 run)"),
    ({"settings": {"backbone.pretrained": True}}, "pretrained", "pretrained (1 run)"),
    ({"settings": {"train.epochs": 4}}, "epochs", "2 (1 run), 4 (1 run)"),
    ({"settings": {"train.batch_size": 32}}, "batch_size", "256 (1 run), 32 (1 run)"),
    ({"manifest": {"state": "interrupted", "step": 40}}, "unfinished", "theirs is interrupted at step 40"),
    ({"manifest": {"commit": "other"}}, "code", "commit other"),
    ({"manifest": {"device": "cuda"}}, "device", "cuda, 1 threads (1 run)"),
    ({"evaluations": ()}, "not_evaluated", "theirs. Make it with: clf evaluate"),
    ({"evaluations": [evaluation(step=40)]}, "stale_evaluation", "toys at step 40 of 80"),
    ({"evaluations": [evaluation(protocol={"k-NN": "T = 0.2"})]}, "protocol", "'T = 0.1' for ours, 'T = 0.2'"),
    ({"settings": {"monitor.knn_k": 5}, "seed": 1}, "protocol", "k = 5, bank of 400"),
    ({"metrics": records(bank=64), "seed": 1}, "protocol", "bank of 64"),
    ({"plugin": "dcl"}, "loss", "Losses of different methods"),
    ({"plugin": "dcl"}, "one_seed", "One seed only: simclr; dcl"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), FLAGS)
def test_what_a_reader_must_know_is_flagged(tmp_path: Path, changes: dict[str, Any], kind: str, words: str) -> None:
    ours = write_run(tmp_path, "ours")
    assert not kinds(compare(ours))
    found = compare(ours, write_run(tmp_path, "theirs", **{"seed": 1, **changes}))
    assert words in text_of(found, kind)


def test_runs_without_labels_are_compared_by_what_needs_none(tmp_path: Path) -> None:
    lines = [{k: v for k, v in line.items() if k not in ("knn", "bank")} for line in records()]
    bare = {"metrics": lines, "data": {"labelled": False}, "evaluations": [evaluation(None, None)]}
    found = compare(write_run(tmp_path, "a", **bare), write_run(tmp_path, "b", plugin="dcl", **bare))
    assert {each.measure.key for each in found.columns} == {
        *("rank_me", "alignment", "uniformity"),
        *("loss", "wall_seconds"),
    }
    assert {"unlabelled", "loss"} <= kinds(found)


def test_all_measurements_of_an_evaluation_have_columns(tmp_path: Path) -> None:
    more = {
        "few_labels": [{"share": 0.01, "images": 4, "accuracy": 0.31, "std": None, "repeats": 1}],
        "few_shot": [{"ways": 5, "shots": 1, "accuracy": 0.32, "interval": 0.01, "episodes": 10}],
        "retrieval": {
            "mean_average_precision": 0.33,
            "recall": {"1": 0.34, "10": 0.35},
            "precision": {"1": 0.36},
            "queries": 200,
            "searched": 400,
        },
        "fine_tuned": {"accuracy": 0.37, "epochs": 3, "seconds": 9.0},
    }
    found = compare(write_run(tmp_path, "run", evaluations=[evaluation(**more)]))
    values_of = {each.measure.key: each.value(found.members[0]) for each in found.of_set("toys")}
    assert values_of == {
        "knn_20": 0.5,
        "linear": 0.6,
        "few_labels_0.01": 0.31,
        "few_shot_5_1": 0.32,
        "retrieval_map": 0.33,
        "retrieval_recall_1": 0.34,
        "retrieval_recall_10": 0.35,
        "retrieval_precision_1": 0.36,
        "fine_tuned": 0.37,
        "rank_me": 30.0,
        "alignment": 0.5,
        "uniformity": -2.0,
    }
    assert column(found, "toys/linear").protocol == "L-BFGS"


def test_the_reference_is_a_group_or_a_run_of_it(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, "a"), write_run(tmp_path, "b", plugin="dcl")]
    for name in ("dcl", "b", str(paths[1])):
        assert compare(*paths, reference=name).reference.name == "dcl"
    with pytest.raises(RunError, match=r"'dlc' is neither a group nor a run .* Did you mean 'dcl'\?"):
        compare(*paths, reference="dlc")


def test_wall_time_goes_on_after_a_resumption_and_measurements_have_it(tmp_path: Path) -> None:
    found = compare(write_run(tmp_path, "run", metrics=records((0.1, 0.2, 0.3), seconds=7.0)))
    curves = found.members[0].curves
    assert [(point[1], point[2], point[3]) for point in curves.knn] == [(1, 7, 0.1), (2, 14, 0.2), (3, 21, 0.3)]
    assert column(found, "training/wall_seconds").value(found.members[0]) == 20.0  # the manifest's


def test_a_run_that_was_killed_is_timed_by_its_records(tmp_path: Path) -> None:
    killed = {"state": "running", "wall_seconds": 0.0, "step": None}
    found = compare(write_run(tmp_path, "run", manifest=killed, metrics=records((0.1,), seconds=7.0)))
    assert found.members[0].wall_seconds == 7.0
    assert found.members[0].step == 40


def test_a_damaged_evaluation_is_a_run_error(tmp_path: Path) -> None:
    path = write_run(tmp_path, "run")
    (path / "evaluation.json").write_text('{"evaluations": {"toys": {"run": 1}}}')
    with pytest.raises(RunError, match=r"evaluation.json is damaged"):
        compare(path)


def test_no_run_is_a_run_error() -> None:
    with pytest.raises(RunError, match="no run is given"):
        compare_runs([])
