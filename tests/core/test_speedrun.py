"""The least wall time to a mark: worked out by hand for records made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from board_records import STUDY, lay_out, record

from clf.study.board import read_board
from clf.study.speedrun import speedrun

SPEEDRUN = {**STUDY, "rows": {"plain": None, "new": None, "slow": None}}


def racing(row: str, seed: int, early: float, late: float, **changes: Any) -> dict[str, Any]:
    """10 s to ``early`` after epoch 1, and 100 s to ``late`` at the end, as linear accuracy."""
    after = {"1": {"knn": 0.1, "linear": early, "wall_seconds": 10.0 + seed}}
    return record(row, seed, 0.1, late, after=after, wall_seconds=100.0 + seed, **changes)


def lines(folder: Path, records: list[dict[str, Any]], name: str = "toy") -> list[str]:
    for each in records:
        each["study"] = name
    results, studies = lay_out(folder, records, {**SPEEDRUN, "name": name})
    (results / "published.yaml").write_text("")
    (results / "toy-cpu.jsonl").rename(results / f"{name}-cpu.jsonl")
    return speedrun(read_board(results, studies).evidence)


def cells(found: list[str]) -> list[list[str]]:
    """The rows of the tables, without their heads."""
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in found if line.startswith("| ")]
    return [row for row in rows if row[1] != "study"]


def test_the_first_evaluation_that_reaches_a_mark_counts_and_the_fastest_is_first(tmp_path: Path) -> None:
    """Marks are 40, 45 and 50 %: plain reaches 40 early and 45 late, new all of them late, slow none."""
    records = [racing("plain", seed, 0.40, 0.46) for seed in range(3)]
    records += [racing("new", seed, 0.39, 0.51) for seed in range(3)]
    records += [racing("slow", seed, 0.20, 0.30 + 0.01 * seed) for seed in range(3)]
    assert cells(lines(tmp_path, records, "speedrun")) == [
        ["new", "speedrun-cpu", "3", "4", "101 s", "101 s", "101 s", "51.0"],
        ["plain", "speedrun-cpu", "3", "4", "11 s", "101 s", "not reached", "46.0"],
        ["slow", "speedrun-cpu", "3", "4", "not reached", "not reached", "not reached", "31.0"],
    ]


def test_a_mark_that_some_seeds_reach_has_no_time_but_their_number(tmp_path: Path) -> None:
    records = [racing("plain", seed, 0.40, late) for seed, late in enumerate([0.44, 0.46, 0.46])]
    assert cells(lines(tmp_path, records, "speedrun"))[0][4:7] == ["11 s", "2 of 3 seeds", "not reached"]


def test_preparation_counts_and_a_row_that_builds_on_another_does_not_compete(tmp_path: Path) -> None:
    records = [racing("plain", 0, 0.40, 0.41, preparation_seconds=50.0)]
    records += [racing("new", 0, 0.40, 0.41, builds_on={"method.gan_run": "plain--end--seed-0"})]
    (row,) = cells(lines(tmp_path, records, "speedrun"))
    assert row[0] == "plain" and row[4] == "60 s"


def test_machines_and_networks_have_tables_of_their_own(tmp_path: Path) -> None:
    records = [racing("plain", 0, 0.40, 0.41), racing("plain", 1, 0.40, 0.41, device="Some GPU")]
    records += [racing("plain", 2, 0.40, 0.41, backbone="large")]
    found = lines(tmp_path, records, "speedrun")
    heads = [line for line in found if line.endswith(":")]
    assert heads == [
        "tiny on Some GPU:",
        "large on cpu (x86_64, 2 cores), 1 thread:",
        "tiny on cpu (x86_64, 2 cores), 1 thread:",
    ]
    assert [row[2] for row in cells(found)] == ["1", "1", "1"]


def test_rows_of_other_studies_compete_when_they_reach_the_first_mark_on_cifar10(tmp_path: Path) -> None:
    records = [racing("plain", 0, 0.30, 0.41), racing("new", 0, 0.30, 0.39)]
    elsewhere = {**record("slow", 0, 0, 0)["data"], "name": "digits"}
    records += [racing("slow", 0, 0.40, 0.60, data=elsewhere)]
    board = [record | {"column": "end"} for record in records[:2]]
    assert [row[0] for row in cells(lines(tmp_path, board))] == ["plain"]
    alone = lines(tmp_path, [record | {"row": "plain"} for record in records[2:]])
    assert alone.count("No entry yet.") == 2


def test_an_archive_named_cifar10_is_cifar10(tmp_path: Path) -> None:
    own = record("plain", 0, 0, 0)
    changes = {"data": {**own["data"], "name": "npz"}, "settings": {**own["settings"], "data.root": "cifar10.npz"}}
    assert len(cells(lines(tmp_path, [racing("plain", 0, 0.40, 0.41, **changes)]))) == 1
