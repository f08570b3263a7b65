"""Charts of several groups: means at shared steps, positions, words for screen readers, colours one can see."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from clf.report import lines
from clf.report.lines import Bar, Cloud, Sample, Series

NAME = 'a <b> & "c"'


def samples(*values: float) -> list[Sample]:
    return [Sample(step, step, value) for step, value in enumerate(values, start=1)]


def svg(text: str) -> ET.Element:
    return ET.fromstring(text)


def texts(drawn: ET.Element) -> list[str]:
    return [each.text or "" for each in drawn.iter("text")]


def titles(drawn: ET.Element) -> list[str]:
    return [each.text or "" for each in drawn.iter("title")]


def test_the_mean_is_taken_at_steps_that_all_runs_have() -> None:
    found = lines.mean_curve({"a": samples(2, 4, 6), "b": samples(4, 6)})
    assert found == [Sample(1, 1, 3), Sample(2, 2, 5)]
    assert lines.mean_curve({"a": samples(1), "b": []}) == samples(1)
    assert lines.mean_curve({}) == []


def test_over_time_the_mean_is_of_seconds_and_of_values_at_a_step() -> None:
    slow, fast = [Sample(10, 30.0, 0.5)], [Sample(10, 10.0, 0.7)]
    assert lines.mean_curve({"slow": slow, "fast": fast}) == [Sample(10, 20.0, pytest.approx(0.6))]


def test_runs_are_thin_lines_and_their_mean_is_a_bold_one() -> None:
    drawn = svg(
        lines.line_plot([Series(NAME, 0, {"x": samples(0, 1), "y": samples(2, 3)})], "score", "epoch", "{:g}".format)
    )
    kinds = [each.get("class") for each in drawn.iter("path")]
    assert kinds.count("seed") == 2
    assert kinds.count("mean d0") == 1
    assert kinds.count("mark") == 2
    assert drawn.get("aria-label") == f"score. At the end: {NAME} 2."
    assert f"{NAME}, epoch 2: 2, mean of 2 runs" in titles(drawn)
    assert {"x", "y"} <= set(titles(drawn))


def test_a_single_run_is_its_own_mean() -> None:
    drawn = svg(lines.line_plot([Series("a", 3, {"x": samples(0, 1)})], "score", "epoch", "{:g}".format))
    assert [each.get("class") for each in drawn.iter("path")] == ["mean d3", "mark", "mark"]


def test_points_lie_inside_the_axes() -> None:
    drawn = svg(lines.line_plot([Series("a", 0, {"x": samples(5, 7, 6)})], "score", "epoch", "{:g}".format))
    for mark in (each for each in drawn.iter("path") if each.get("class") == "mark"):
        x, y = map(float, re.findall(r"-?[\d.]+", str(mark.get("transform"))))
        assert lines.LEFT <= x <= lines.WIDTH - lines.RIGHT
        assert lines.TOP <= y <= lines.HEIGHT - lines.BOTTOM


def test_long_curves_have_few_points_and_one_mark() -> None:
    drawn = svg(lines.line_plot([Series("a", 0, {"x": samples(*range(5000))})], "score", "epoch", "{:g}".format))
    paths = list(drawn.iter("path"))
    assert [each.get("class") for each in paths] == ["mean d0", "mark"]
    assert str(paths[0].get("d")).count("L") < 400


@pytest.mark.parametrize("values", [(), (float("nan"),), (float("inf"), float("nan"))])
def test_nothing_finite_draws_nothing(values: tuple[float, ...]) -> None:
    assert lines.line_plot([Series("a", 0, {"x": samples(*values)})], "score", "epoch", "{:g}".format) == ""
    assert lines.interval_plot([], "score", "{:g}".format) == ""
    assert lines.plane([Cloud("a", 0, {})], "plane", "x", "y") == ""


def test_a_bar_spans_its_interval_and_zero_is_in_view() -> None:
    drawn = svg(
        lines.interval_plot([Bar(NAME, 1, 2.0, (1.0, 3.0), "two", {"x": 1.5, "y": 2.5})], "score", "{:g}".format, True)
    )
    assert drawn.get("aria-label") == f"score: {NAME} two."
    (zero,) = [each for each in drawn.iter("line") if each.get("class") == "zero"]
    (bar,) = [each for each in drawn.iter("path") if each.get("class") == "mean"]
    low, high = map(float, re.findall(r"M([\d.]+) \d+H([\d.]+)", str(bar.get("d")))[0])
    width = lines.WIDTH - 2 * lines.RIGHT
    assert float(str(zero.get("x1"))) == lines.RIGHT
    assert (low, high) == (pytest.approx(lines.RIGHT + width / 3, abs=0.1), lines.WIDTH - lines.RIGHT)
    assert titles(drawn) == ["x: 1.5", "y: 2.5", f"{NAME}: two"]


def test_long_names_are_cut_in_the_chart_only() -> None:
    drawn = svg(lines.interval_plot([Bar("n" * 90, 0, 1.0, None, "one", {})], "score", "{:g}".format))
    assert max(map(len, texts(drawn))) == lines.MOST_LETTERS
    assert "n" * 90 in str(drawn.get("aria-label"))


def test_the_plane_has_runs_and_their_middle() -> None:
    drawn = svg(
        lines.plane([Cloud("a", 0, {"x": (0, 0), "y": (2, 4)}), Cloud("b", 1, {"z": (1, 1)})], "plane", "left", "up")
    )
    kinds = [each.get("class") for each in drawn.iter("path")]
    assert (kinds.count("hollow"), kinds.count("mark")) == (2, 2)
    assert "a: left 1.000, up 2.000" in titles(drawn)
    assert {"left", "up"} <= set(texts(drawn))


@pytest.mark.parametrize("values", [(0.6, 0.6 + 1e-16, 0.6 - 1e-16), (0.60001, 0.60002, 0.60005), (5.341, 5.3425)])
def test_an_axis_is_no_finer_than_its_figures(values: tuple[float, ...]) -> None:
    drawn = svg(lines.line_plot([Series("a", 0, {"x": samples(*values)})], "score", "epoch", "{:.2f}".format))
    words = texts(drawn)
    assert len(set(words)) == len(words)
    bars = [Bar(str(i), i, value, None, "one", {}) for i, value in enumerate(values)]
    words = texts(svg(lines.interval_plot(bars, "score", "{:.2f}".format)))
    assert len(set(words)) == len(words)


def test_a_run_with_one_value_beside_longer_ones_is_seen() -> None:
    members = {"long": samples(1, 2, 3), "other": samples(2, 3, 4)[1:], "late": [Sample(9, 9, 5)]}
    drawn = svg(lines.line_plot([Series("a", 0, members)], "score", "epoch", "{:g}".format))
    assert "late" in [each.findtext("title") for each in drawn.iter("path") if each.get("class") == "hollow"]


def test_short_figures_have_no_powers_of_ten() -> None:
    assert [lines.short(x) for x in (0.12345, 12.345, 999.9, 1000, 51200)] == [
        "0.123",
        "12.3",
        "1,000",
        "1,000",
        "51,200",
    ]


def test_the_legend_names_every_group_once() -> None:
    drawn = svg(lines.legend([NAME, "other"]))
    assert [each.text for each in drawn.iter("span")] == [NAME, "other"]
    assert drawn.get("aria-label")


def test_styles_of_35_groups_differ() -> None:
    drawn = svg(lines.legend([str(i) for i in range(35)]))
    pairs = [(next(each.iter("svg")).get("class"), next(each.iter("path")).get("class")) for each in drawn.iter("li")]
    assert len(set(pairs)) == 35


@pytest.mark.parametrize(("colours", "card"), [(lines.LIGHT, "#ffffff"), (lines.DARK, "#1a1c22")])
def test_lines_stand_out_from_the_page(colours: tuple[str, ...], card: str) -> None:
    """WCAG 2.1, 1.4.11: graphics have a contrast of 3 : 1 at least."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for colour in colours:
        low, high = sorted((luminance(colour), luminance(card)))
        assert (high + 0.05) / (low + 0.05) >= 3
