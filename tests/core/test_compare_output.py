"""``clf compare``: what it prints, its JSON and its page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from html_pages import Page
from written_runs import evaluation, records, write_run

from clf.compare import compare, to_plain, write_page
from clf.runs import Run

Cli = Callable[..., Any]
HOSTILE = "a <script>alert(1)<-script> & 'b' \"c\" [red]d"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of two methods; dcl is better by 2, 3 and 4 points."""
    for seed in range(3):
        for plugin, linear in (("simclr", 0.60 + seed / 100), ("dcl", 0.62 + seed / 50)):
            write_run(
                tmp_path / "runs",
                f"{plugin}-{seed}",
                plugin=plugin,
                seed=seed,
                metrics=records((0.3, 0.4, linear)),
                evaluations=[evaluation(linear - 0.1, linear)],
            )
    return tmp_path / "runs"


def test_the_tables_tell_means_differences_and_verdicts(folder: Path, run_cli: Cli) -> None:
    done = run_cli("compare", "simclr-*", "dcl-*", "--runs", str(folder))
    assert done.code == 0
    lines = [re.split(r" {2,}", line) for line in done.out.splitlines()]
    assert done.out.startswith("6 runs in 2 groups on toys, 400 training and 200 test images of 16 px\n")
    assert ["dcl", "3", "54.0 ± 2.0", "64.0 ± 2.0", "30.0 ± 0.0", "0.500 ± 0.000", "-2.000 ± 0.000"] in lines
    assert ["dcl", "linear, toys", "+3.0", "+0.5 to +5.5", "3 paired seeds", "better"] in lines
    assert ["plugin", "simclr", "dcl"] in lines
    assert "linear (toys): L-BFGS" in done.out
    assert "--html FILE" in done.out


def test_a_single_run_and_one_that_was_not_evaluated(tmp_path: Path, run_cli: Cli) -> None:
    path = write_run(tmp_path, "alone", evaluations=())
    done = run_cli("compare", str(path))
    assert done.code == 0
    assert f"no: clf evaluate {path}" in done.out
    assert "Difference" not in done.out


def test_what_is_refused(folder: Path, run_cli: Cli) -> None:
    other = write_run(folder, "other", data={"fingerprint": "b" * 64, "name": "birds"}, evaluations=())
    words = ["compare", str(folder / "dcl-0"), str(other)]
    done = run_cli(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: run 'dcl-0' and run 'other' were trained on other images, toys and birds")
    assert done.err.count("\n") == 1
    anyway = run_cli(*words, "--anyway")
    assert anyway.code == 0
    assert "! Not comparable: run 'dcl-0' and run 'other'" in anyway.out
    page = folder / "page.html"
    plain = json.loads(run_cli(*words, "--anyway", "--json", "--html", str(page)).out)
    assert plain["comparable"] is False
    assert "not comparable" in page.read_text()


@pytest.mark.parametrize("words", [[], ["gone"], ["gone-*"]])
def test_without_a_run_it_is_the_users_mistake(folder: Path, run_cli: Cli, words: list[str]) -> None:
    done = run_cli("compare", *words, "--runs", str(folder))
    assert done.code == 2
    assert "Traceback" not in done.err


def test_json_has_every_figure(folder: Path, run_cli: Cli) -> None:
    done = run_cli("compare", "simclr-*", "dcl-*", "--runs", str(folder), "--json", "--reference", "dcl")
    plain = json.loads(done.out)
    assert plain == json.loads(
        json.dumps(to_plain(compare([Run(folder / f"{p}-{s}") for p in ("simclr", "dcl") for s in range(3)], "dcl")))
    )
    assert set(plain) == {
        *("format", "comparable", "reference", "notes", "columns", "groups", "differences", "settings", "runs"),
    }
    assert plain["reference"] == "dcl"
    group = next(each for each in plain["groups"] if each["name"] == "simclr")
    score = group["scores"]["toys/linear"]
    assert score["values"] == {"0": 0.6, "1": 0.61, "2": 0.62}
    assert score["std"] == pytest.approx(0.01)
    each = next(e for e in plain["differences"] if e["column"] == "toys/linear")
    assert (each["group"], each["verdict"], each["kind"], each["sign"]) == ("simclr", "worse", "paired", -1)
    assert plain["runs"][0]["curves"]["knn"] == [[40, 1, 10, 0.3], [80, 2, 20, 0.4], [120, 3, 30, 0.6]]
    assert plain["settings"]["plugin"] == {"simclr": "simclr", "dcl": "dcl"}


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    lines = [{**line, "loss": float("nan")} if "loss" in line else line for line in records()]
    plain = to_plain(compare([Run(write_run(tmp_path, "run", metrics=lines))]))
    assert json.loads(json.dumps(plain, allow_nan=False))["runs"][0]["curves"]["loss"] == []


def test_the_page_is_whole_and_fetches_nothing(folder: Path) -> None:
    found = compare([Run(folder / f"{p}-{s}") for p in ("simclr", "dcl") for s in range(3)])
    page = Page(write_page(found, folder / "page.html"))
    assert page.fetched == [] and "script" not in page.tags
    assert not re.search(r"https?://|@import|url\(|<script", page.text)
    words = " ".join(page.words)
    for title in ("On toys", "Difference to simclr", "While training", "RankMe", "alignment and uniformity", "Runs"):
        assert title in words
    assert words.count("over wall time") == 1
    assert "Losses of different methods are not comparable" in words
    assert any(label.startswith("k-NN accuracy over epochs. At the end: simclr 61 %") for label in page.labels)
    assert "Legend of the charts" in page.labels
    assert {"On toys", "Difference to simclr", "While training", "Runs"} <= set(page.labels)  # tables that scroll


def test_epochs_and_ranks_of_thousands_are_written_out(tmp_path: Path) -> None:
    long = [{**line, "epoch": 500 * line["epoch"], "rank_me": 1500.0} for line in records()]
    page = Page(write_page(compare([Run(write_run(tmp_path, "run", metrics=long))]), tmp_path / "page.html"))
    assert {"1,000", "1,500"} <= set(page.words)
    assert not re.search(r"\de[+]\d", " ".join(page.words))


def test_names_from_outside_are_escaped(tmp_path: Path, run_cli: Cli) -> None:
    paths = [
        write_run(tmp_path, f"{HOSTILE}{seed}", seed=seed, data={"name": "<b>toys"}, settings={"method.x": "<i>"})
        for seed in (0, 1)
    ]
    other = write_run(tmp_path, "<u>other", settings={"method.x": "<s>"}, manifest={"state": "<em>"})
    page = Page(write_page(compare([Run(path) for path in [*paths, other]]), tmp_path / "page.html"))
    assert "script" not in page.tags
    for tag in ("<script>", "<b>toys", "<i>", "<s>", "<u>", "<em>"):
        assert tag not in page.text
    assert any(HOSTILE in words for words in page.words)
    assert f"{HOSTILE}0" in run_cli("compare", *map(str, paths)).out


def test_a_page_that_cannot_be_written_is_told_in_a_sentence(folder: Path, run_cli: Cli) -> None:
    done = run_cli("compare", str(folder / "dcl-0"), "--html", str(folder / "gone" / "page.html"))
    assert done.code == 2
    assert "page.html cannot be written" in done.err
    done = run_cli("compare", str(folder / "dcl-0"), "--html", str(folder))
    assert done.code == 2
    assert f"{folder} is a folder: name a file" in done.err


def test_comparing_needs_no_torch_and_no_plugin(tmp_path: Path, run_cli_process: Cli) -> None:
    path = write_run(tmp_path, "run", plugin="a_plugin_that_is_not_installed")
    report = "import atexit, sys; atexit.register(lambda: print('LOADED', 'torch' in sys.modules))"
    done = run_cli_process("compare", str(path), "--html", str(tmp_path / "page.html"), before=report)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "LOADED False"
    assert (tmp_path / "page.html").is_file()
