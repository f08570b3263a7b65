"""The report page: self-contained, complete, escaped, and written whatever is missing."""

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clf import report
from clf.config import Config
from clf.evaluate import evaluate_run
from clf.report.charts import line_chart, smooth, thin, ticks
from clf.report.gallery import _search
from clf.report.page import configuration, duration, speed
from clf.runs import Run

VOID = {"meta", "img", "line", "circle", "path", "br"}


class Balanced(HTMLParser):
    """Fails on tags that do not nest; collects text and what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parse(path: Path) -> Balanced:
    parser = Balanced()
    parser.feed(path.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("reported") / "tiny & <b>bold</b>".replace("/", "-")
    shutil.copytree(tiny_run.path, folder)
    return Run(folder)


def test_the_page_is_whole_and_fetches_nothing(run: Run) -> None:
    evaluate_run(run)
    path = report.write_report(run)
    assert path == run.path / "report.html"
    page = parse(path)
    assert page.fetched
    assert all(source.startswith("data:image/") for source in page.fetched)
    text = path.read_text()
    assert not re.search(r"https?://|@import|url\(", text)
    words = " ".join(page.words)
    for heading in ("Nearest neighbours", "What the method saw", "Evaluation", "Without labels", "Configuration"):
        assert heading in words
    assert "trained encoder" in words
    assert "clf train --config" in words
    assert "train.batch_size" in words


def test_text_from_outside_is_escaped(run: Run) -> None:
    text = report.write_report(run).read_text()
    assert "<b>bold" not in text
    assert "tiny &amp; &lt;b&gt;bold" in text


def test_without_a_checkpoint_the_page_says_why_it_has_no_pictures(tiny_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(tiny_run.path, folder)
    shutil.rmtree(folder / "checkpoints")
    page = parse(report.write_report(Run(folder)))
    words = " ".join(page.words)
    assert "There are no pictures in this report" in words
    assert "Training" in words
    assert page.fetched == []


def test_changed_values_come_before_the_fold(tiny: Callable[..., Config]) -> None:
    html = configuration({"seed": 7, "train.epochs": 100}, {"seed": 0, "train.epochs": 100}, {"seed": "of <all>"})
    first, _, folded = html.partition("<details>")
    assert "seed" in first
    assert "(default 0)" in first
    assert "of &lt;all&gt;" in first
    assert "train.epochs" in folded
    assert "1 values at their default" in folded


def test_a_query_from_the_bank_does_not_find_itself() -> None:
    bank = torch.eye(4) + 0.1
    hits = _search(bank[1:2], bank, torch.tensor([1]))
    assert sorted(row for row, _ in hits[0]) == [0, 2, 3]
    assert _search(bank[1:2], bank, None)[0][0][0] == 1


def test_speed_is_images_over_seconds_without_the_pauses() -> None:
    records = [{"epoch": i / 10, "images": 100 * i, "seconds": 2 * i + (50 if i > 5 else 0)} for i in range(11)]
    assert [y for _, y in speed(records)] == [50.0] * 10
    assert speed(records[:1]) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 6, [0, 2, 4, 6]), (2.61, 3.38, [2.8, 3.0, 3.2]), (5, 5, [5])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e6))
def test_ticks_lie_in_the_range_and_rise(low: float, span: float) -> None:
    found = ticks(low, low + span, 5)
    slack = 1e-6 * span + 1e-9 * abs(low)
    assert 1 <= len(found) <= 7
    assert found == sorted(found)
    assert low - slack <= found[0]
    assert found[-1] <= low + span + slack


def test_a_long_curve_is_thinned_to_means_and_keeps_its_end() -> None:
    points = [(float(i), float(i % 2)) for i in range(3000)]
    thinned = thin(points, 300)
    assert len(thinned) == 300
    assert thinned[-1][0] == 2999
    assert {y for _, y in thinned} == {0.5}
    assert thin(points[:10], 300) == points[:10]


def test_smoothing_keeps_a_line_and_short_curves() -> None:
    line = [(float(i), 2.0 * i) for i in range(200)]
    assert smooth(line)[100] == pytest.approx((100.0, 200.0))
    assert smooth(line[:20]) == line[:20]


def test_a_chart_leaves_out_values_that_are_not_finite() -> None:
    svg = line_chart([(0, 1.0), (1, float("nan")), (2, 3.0), (3, float("inf"))], "{:g}".format, "loss <x>")
    assert "nan" not in svg
    assert "inf" not in svg
    assert "loss &lt;x&gt;" in svg
    assert line_chart([(0, 1.0), (1, float("nan"))], "{:g}".format, "loss") == ""


@pytest.mark.parametrize(("seconds", "words"), [(41.6, "42 s"), (190, "3 min 10 s"), (7322, "2 h 2 min")])
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words
