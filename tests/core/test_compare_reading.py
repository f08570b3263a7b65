"""Run folders that are damaged, still growing or oddly named, and what ``clf compare`` makes of them."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from written_runs import PROTOCOL, evaluation, records, write_run

from clf.compare import Comparison, to_plain, write_page
from clf.compare import compare as compare_runs
from clf.compare.comparison import difference, group_spread, verdict
from clf.compare.tables import run_table
from clf.errors import RunError
from clf.runs import Run

Cli = Callable[..., Any]
POINT = {"kind": "train", "step": 80, "epoch": 2.0, "loss": 1.0, "seconds": 9.0}


def compare(*paths: Path, **options: Any) -> Comparison:
    return compare_runs([Run(path) for path in paths], **options)


def kinds(found: Comparison) -> set[str]:
    return {note.kind for note in found.notes}


def text_of(found: Comparison, kind: str) -> str:
    return next(note.text for note in found.notes if note.kind == kind)


@pytest.mark.parametrize("line", [b"[1]", b"3", b'{"kind": "train", "loss": 2.0}', b"\xff\xfe"])
def test_a_damaged_record_is_a_run_error(tmp_path: Path, line: bytes) -> None:
    path = write_run(tmp_path, "run")
    (path / "metrics.jsonl").write_bytes(line + b"\n")
    with pytest.raises(RunError, match=r"run/metrics.jsonl is damaged: .* Remove that line, or leave this run out"):
        compare(path)


@pytest.mark.parametrize(
    "change",
    [
        *({"seconds": value} for value in (None, "9", float("nan"), float("inf"))),
        *({"epoch": float("nan")}, {"step": None}, {"loss": 10**400}),
        *({"kind": "monitor", "bank": value} for value in (None, float("nan"))),
    ],
)
def test_values_of_records_that_are_no_numbers_are_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    lines = [*records(), {**POINT, **change}]
    path = write_run(tmp_path, "run", metrics=lines, manifest={"wall_seconds": 0.0})
    found = compare(path)
    assert found.members[0].wall_seconds == 20.0
    assert found.members[0].curves.bank == 400
    json.dumps(to_plain(found), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"data": [1]}, "data"),
        ({"data": {"train_images": "many"}}, "data.train_images"),
        ({"wall_seconds": "x"}, "wall_seconds"),
        ({"step": "x"}, "step"),
        ({"plugin_source": "x"}, "plugin_source"),
        ({"commit": ["x"]}, "commit"),
        ({"world_size": "x"}, "world_size"),
    ],
)
def test_a_damaged_manifest_is_a_run_error(tmp_path: Path, change: dict[str, Any], where: str) -> None:
    path = write_run(tmp_path, "run", manifest=change)
    with pytest.raises(RunError, match=rf"manifest.json is damaged: {where} has a value of another kind"):
        compare(path, write_run(tmp_path, "other", seed=1))


def test_what_a_manifest_has_no_value_for_is_unknown(tmp_path: Path) -> None:
    found = compare(write_run(tmp_path, "run", manifest={"state": None}, data={"image_size": None}))
    assert found.members[0].state == "unknown"
    assert found.members[0].data.image_size == 0


def test_runs_that_do_not_tell_their_images_are_not_taken_for_equal(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, f"r{i}", seed=i, manifest={"data": {}}, evaluations=()) for i in (0, 1)]
    with pytest.raises(RunError, match=r"manifest of run 'r0' \(and 1 more\) does not tell what images"):
        compare(*paths)
    assert compare(paths[0]).comparable
    assert not compare(*paths, anyway=True).comparable


def test_records_that_end_before_the_training_did_are_told(tmp_path: Path) -> None:
    path = write_run(tmp_path, "run")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    (path / "metrics.jsonl").write_text("\n".join([*lines[:2], lines[2][:9], lines[3]]) + "\n")
    assert "The records end before the training did: run (step 40 of 80)" in text_of(compare(path), "records")
    killed = write_run(tmp_path, "killed", metrics=records((0.1,)), manifest={"state": "interrupted"})
    assert "records" not in kinds(compare(killed))


def test_a_run_that_was_resumed_and_still_runs_is_read_by_its_records(tmp_path: Path) -> None:
    """Its manifest has the step and the time of its earlier end."""
    manifest = {"state": "running", "step": 40, "wall_seconds": 10.0}
    (member,) = compare(write_run(tmp_path, "run", manifest=manifest, metrics=records((0.1, 0.2, 0.3)))).members
    assert (member.step, member.wall_seconds) == (120, 30.0)


def test_protocols_of_all_measurements_are_found(tmp_path: Path) -> None:
    more = {
        "few_labels": [{"share": 0.01, "images": 4, "accuracy": 0.31, "std": None, "repeats": 1}],
        "few_shot": [{"ways": 5, "shots": 1, "accuracy": 0.32, "interval": 0.01, "episodes": 10}],
        "retrieval": {
            "mean_average_precision": 0.3,
            "recall": {},
            "precision": {},
            "queries": 200,
            "searched": 400,
        },
        "fine_tuned": {"accuracy": 0.37, "epochs": 3, "seconds": 9.0},
    }
    words = {"few labels": "A", "few-shot": "B", "retrieval": "C", "fine-tuning": "D"}
    found = compare(write_run(tmp_path, "run", evaluations=[evaluation(protocol={**PROTOCOL, **words}, **more)]))
    told = {each.measure.key: each.protocol for each in found.of_set("toys")}
    keys = ("few_labels_0.01", "few_shot_5_1", "retrieval_map", "fine_tuned")
    assert [told[key] for key in keys] == ["A", "B", "C", "D"]


def with_share(folder: Path, images: int, split: str) -> Path:
    """A run of a study: trained on a part of the images, evaluated on the first of the test images."""
    protocol = {**PROTOCOL, "split": split}
    judged = evaluation(train_images=400, test_images=100, protocol=protocol)
    return write_run(folder, f"run-{images}", data={"train_images": images}, evaluations=[judged])


def test_a_part_of_the_own_test_split_was_not_trained_on(tmp_path: Path) -> None:
    found = compare(*(with_share(tmp_path, images, "official test split; 100 images") for images in (400, 200)))
    assert found.sets == ["toys"]
    assert "trained_on_test" not in kinds(found)
    other = "20% held out"
    found = compare(*(with_share(tmp_path / "b", images, other) for images in (400, 300, 200, 100)))
    assert "training images of run-400, run-300, run-200 and 1 more" in text_of(found, "trained_on_test")


def test_evaluations_of_other_images_are_told(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, "all", evaluations=[evaluation()]),
        write_run(tmp_path, "some", seed=1, evaluations=[evaluation(test_images=100)]),
    ]
    text = text_of(compare(*paths), "evaluated_apart")
    assert "than all (toys (400 / 200 images)): some (toys (400 / 100 images))" in text
    both = write_run(tmp_path, "both", seed=1, evaluations=[evaluation(), evaluation(test_images=100)])
    assert "evaluated_apart" not in kinds(compare(paths[0], both))


def test_another_version_of_clf_is_told_without_commits(tmp_path: Path) -> None:
    released = [{"commit": None, "clf_version": version} for version in ("0.1.0", "0.2.0")]
    paths = [
        write_run(tmp_path, name, plugin=name, manifest=each)
        for name, each in zip(("simclr", "dcl"), released, strict=True)
    ]
    assert "clf 0.2.0" in text_of(compare(*paths), "code")


def test_runs_of_one_and_of_several_processes_are_two_groups(tmp_path: Path) -> None:
    """Batch norm in training takes its statistics within a process, so they learn other things."""
    found = compare(*(write_run(tmp_path, f"r{n}", seed=n, manifest={"world_size": n}) for n in (1, 4)))
    assert [group.name for group in found.groups] == ["simclr, processes 1", "simclr, processes 4"]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ((0.12345671, 0.12345672), ["simclr, x 0.12345671", "simclr, x 0.12345672"]),
        ((None, "null"), ["simclr, x null", "simclr, x null (2)"]),
    ],
)
def test_no_two_groups_have_one_name(tmp_path: Path, values: tuple[Any, Any], names: list[str]) -> None:
    found = compare(*(write_run(tmp_path, str(i), settings={"method.x": each}) for i, each in enumerate(values)))
    assert [group.name for group in found.groups] == names
    assert set(to_plain(found)["settings"]["method.x"]) == set(names)


def test_the_reference_is_found_by_group_before_run_and_by_any_way_to_write_its_folder(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, "dcl"), write_run(tmp_path, "other", plugin="dcl"), write_run(tmp_path, "copy")]
    assert compare(*paths, reference="dcl").reference.name == "dcl"
    assert compare(*paths, reference=f"{paths[1]}/").reference.name == "dcl"
    assert compare(*paths[1:], paths[0], reference="copy").reference.name == "simclr"
    assert compare(*paths, reference="copy").reference.name == "simclr"  # it repeats another


def test_unpaired_groups_without_a_spread_are_not_called_pairs(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, f"{plugin}-{seed}", plugin=plugin, seed=seed)
        for plugin, seeds in (("simclr", (0, 1)), ("dcl", (2, 3)))
        for seed in seeds
    ]
    found = compare(*paths)
    (linear,) = (each for each in found.columns if each.key == "toys/linear")
    each = difference(found.groups[1], found.reference, linear)
    assert each is not None
    assert group_spread(found.groups[1], linear) is not None
    assert verdict(each, linear.measure) == "no seed differs in either group: cannot be told"


def test_names_that_do_not_print_are_shown_by_escapes(tmp_path: Path, run_cli: Cli) -> None:
    names = ["a\nb", os.fsdecode(b"c\xff"), "d\x1b[31m"]
    paths = [
        write_run(tmp_path, name, seed=i, data={"name": "x\ud800"}, manifest={"state": "failed"})
        for i, name in enumerate(names)
    ]
    found = compare(*paths)
    assert [member.name for member in found.members] == ["a\\nb", "c\\udcff", "d\\x1b[31m"]
    assert "a\\nb is failed" in write_page(found, tmp_path / "page.html").read_text()
    for words in ([], ["--json"]):
        done = run_cli("compare", *map(str, paths), *words)
        assert done.code == 0
        done.out.encode()


def test_commands_that_are_told_can_be_pasted(tmp_path: Path) -> None:
    path = write_run(tmp_path, "a 'b' $c", evaluations=())
    found = compare(path, write_run(tmp_path, "other", seed=1))
    command = text_of(found, "not_evaluated").partition("Make it with: ")[2]
    assert shlex.split(command) == ["clf", "evaluate", str(path)]
    cell = run_table(found).rows[0][5]
    assert shlex.split(cell.removeprefix("no: ")) == ["clf", "evaluate", str(path)]
