"""The report page: self-contained, complete, escaped, and written whatever is missing."""

import re
import shlex
import shutil
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from html_pages import Page
from hypothesis import given
from hypothesis import strategies as st

from clf import config as configuration
from clf import report, settings, training
from clf.config import Config
from clf.evaluate import evaluate_run
from clf.report import page
from clf.report.charts import line_chart, smooth, thin, ticks
from clf.report.gallery import _search
from clf.report.page import duration, speed
from clf.report.repeating import repeat_command
from clf.runs import Run


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("reported") / "tiny & <b>bold</b>".replace("/", "-")
    shutil.copytree(tiny_run.path, folder)
    return Run(folder)


def test_the_page_is_whole_and_fetches_nothing(run: Run) -> None:
    evaluate_run(run)
    path = report.write_report(run)
    assert path == run.path / "report.html"
    found = Page(path)
    assert any(source.startswith("data:image/") for source in found.fetched)
    assert all(source.startswith(("data:image/", "#")) for source in found.fetched)
    text = path.read_text()
    assert not re.search(r"https?://|@import|url\(", text)
    words = " ".join(found.words)
    for heading in (
        *("Training", "Embedding map", "Nearest neighbours", "What the method saw", "Classes", "Evaluation"),
        *("Without labels", "Configuration", "Repeat it"),
    ):
        assert words.count(heading) > 1, heading  # in the contents too
    assert "trained encoder" in words
    assert "clf train --config" in words
    assert "train.batch_size" in words


def test_links_lead_to_what_is_on_the_page(run: Run) -> None:
    text = report.write_report(run).read_text()
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_a_report_changes_no_other_file(run: Run) -> None:
    def others() -> dict[Path, bytes]:
        files = (path for path in run.path.rglob("*") if path.is_file() and path.name != "report.html")
        return {path: path.read_bytes() for path in files}

    before = others()
    report.write_report(run)
    assert others() == before


def test_text_from_outside_is_escaped(run: Run) -> None:
    text = report.write_report(run).read_text()
    assert "<b>bold" not in text
    assert "tiny &amp; &lt;b&gt;bold" in text


def test_without_a_checkpoint_the_page_says_why_it_has_no_pictures(tiny_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(tiny_run.path, folder)
    shutil.rmtree(folder / "checkpoints")
    found = Page(report.write_report(Run(folder)))
    words = " ".join(found.words)
    assert "There are no pictures in this report" in words
    assert "Training" in words
    assert "Embedding map" not in words
    assert all(source.startswith("#") for source in found.fetched)


def test_a_run_without_labels_has_a_map_and_no_classes(tiny: Callable[..., Config], tmp_path: Path) -> None:
    images = torch.randint(256, (40, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    np.savez(tmp_path / "grey.npz", images=images.numpy())
    data = {"data.name": "npz", "data.root": str(tmp_path / "grey.npz"), "data.options": {}, "train.epochs": 1}
    values = {**configuration.flatten(tiny(tmp_path)), **data, "train.batch_size": 16, "run.name": "grey"}
    kept = {k: v for k, v in values.items() if not k.startswith("data.options.")}
    kept.pop("data.options")
    config, _ = configuration.build([configuration.Layer("test", kept)])
    path = report.write_report(training.train(config, callbacks=[]))
    text = path.read_text()
    assert "all 40 training images" in text
    assert len(re.findall(r"<use ", text)) == 40
    assert 'class="legend"' not in text
    assert 'id="classes"' not in text
    Page(path)


def test_the_command_repeats_the_run(run: Run) -> None:
    config = run.config()
    command = repeat_command(config)
    assert command is not None
    assert escape(command) in report.write_report(run).read_text()
    assert resolved(command).model_copy(update={"run": config.run}) == config


def test_the_command_says_a_value_that_another_choice_would_change(tiny: Callable[..., Config]) -> None:
    derived = tiny(Path("runs"), {"optimizer.name": "sgd", "optimizer.lr": 0.001, "augment.crop_area": [0.3, 1.0]})
    config, _ = configuration.derive(derived)
    command = repeat_command(config)
    assert command is not None
    assert "optimizer.lr=0.001" in shlex.split(command)
    assert "augment.crop_area=[0.3, 1.0]" in shlex.split(command)
    again = resolved(command)
    assert configuration.differences(config, again, ignore=("run.", "method.")) == []


def resolved(command: str) -> Config:
    """The configuration that ``clf train`` makes of a command."""
    program, train, option, plugin, *words = shlex.split(command)
    assert [program, train, option] == ["clf", "train", "--plugin"]
    return settings.resolve([settings.command_line(words, plugin)])[0]


def test_a_plugin_that_is_gone_leaves_the_command_of_the_file(tiny: Callable[..., Config]) -> None:
    assert repeat_command(tiny(Path("runs"), {"plugin": "gone"})) is None


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_enough(run: Run, theme: str) -> None:
    """WCAG 2.2, success criterion 1.4.3: 4.5 to 1 between text and what is behind it."""
    roots = re.findall(r":root \{([^}]*)\}", report.write_report(run).read_text())
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6,8})", roots[0 if theme == "light" else 1]))
    pairs = [(ink, behind) for ink in ("ink", "soft", "accent", "good", "bad") for behind in ("page", "card")]
    pairs += [("ink", "code"), ("warn-ink", "warn")]
    for ink, behind in pairs:
        assert contrast(colours[ink], colours[behind]) >= 4.5, (ink, behind)
    for ink in ("ink", "accent", "bad"):
        tinted = over(colours["tint"], colours["page"])
        assert contrast(colours[ink], tinted) >= 4.5, (ink, "tint")


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def channels(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def over(front: str, back: str) -> str:
    alpha = int(front[7:9], 16) / 255
    mixed = [alpha * f + (1 - alpha) * b for f, b in zip(channels(front), channels(back), strict=True)]
    return "#" + "".join(f"{round(255 * c):02x}" for c in mixed)


def test_a_level_is_a_dashed_line_at_its_height() -> None:
    svg = line_chart([(0, 0.0), (1, 1.0)], "{:g}".format, "k-NN", levels=[("raw <pixels>", 0.5), ("random", 2.0)])
    heights = dict(re.findall(r'class="level" x1[^>]*y1="([0-9.]+)".*?>([^<]+)</text>', svg))
    assert len(heights) == 2
    lines = {words.split()[0]: float(y) for y, words in heights.items()}
    ticks = {text: float(y) - 4 for y, text in re.findall(r'y="([0-9.]+)" text-anchor="end">([0-9.]+)<', svg)}
    assert lines["raw"] == pytest.approx(ticks["0.5"], abs=0.11)
    assert lines["random"] == pytest.approx(ticks["2"], abs=0.11)
    assert "raw &lt;pixels&gt; 0.5" in svg


def test_changed_values_come_before_the_fold(tiny: Callable[..., Config]) -> None:
    html = page.configuration({"seed": 7, "train.epochs": 100}, {"seed": 0, "train.epochs": 100}, {"seed": "of <all>"})
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
