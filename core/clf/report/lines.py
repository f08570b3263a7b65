"""Several groups in one chart, as inline SVG: curves with their mean, means with intervals, points in a plane.

A group is told by colour, dash pattern and mark together, so that no reader needs the colours. They are those of Okabe
and Ito (Color Universal Design, 2008), made darker on white and lighter on black where a line would be too faint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from clf.report.charts import Point, smooth, thin, ticks

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 42
ROW = 40
"""Height of one row of :func:`interval_plot`."""
MOST_DOTS = 25
MOST_DOUBLINGS = 60
"""Of a range, from the rounding error of a figure to the figure."""
MOST_LETTERS = 58
"""Of a name inside a chart."""

LIGHT = ("#0072b2", "#d55e00", "#008a63", "#b5578b", "#9c6a00", "#2b8bc4", "#1c1d21")
DARK = ("#3d9be0", "#f07f2e", "#1fb88a", "#d98cb8", "#e69f00", "#8fd0f5", "#e8e8ea")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2")
_MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",  # disc
    "M-3.6 -3.6H3.6V3.6H-3.6Z",  # square
    "M0 -4.8L4.4 3.2H-4.4Z",  # triangle
    "M0 -5L4.2 0L0 5L-4.2 0Z",  # diamond
    "M0 4.8L4.4 -3.2H-4.4Z",  # triangle on its tip
)

Text = Callable[[float], str]


@dataclass(frozen=True)
class Sample:
    """A value of a run at an optimiser step; x is what the chart has on its axis, epochs or seconds."""

    step: float
    x: float
    y: float


@dataclass(frozen=True)
class Series:
    """The curves of one group, by run."""

    name: str
    style: int
    members: Mapping[str, Sequence[Sample]]


@dataclass(frozen=True)
class Bar:
    """A mean with its interval, and the single values that it is the mean of."""

    name: str
    style: int
    mean: float
    interval: tuple[float, float] | None
    words: str
    dots: Mapping[str, float]


@dataclass(frozen=True)
class Cloud:
    """The points of one group in a plane, by run."""

    name: str
    style: int
    points: Mapping[str, Point]


def css() -> str:
    """Colours and dash patterns of the groups, light and dark; 35 groups differ in one of the two."""
    lines = [
        ".lines .seed { fill: none; stroke: var(--c); stroke-width: 1; opacity: .45; }",
        ".lines .mean { fill: none; stroke: var(--c); stroke-width: 2.6; stroke-linejoin: round; }",
        ".lines .mark { fill: var(--c); stroke: var(--card); stroke-width: 1; }",
        ".lines .hollow { fill: none; stroke: var(--c); stroke-width: 1.3; opacity: .8; }",
        ".lines .zero { stroke: var(--soft); stroke-width: 1.2; } .lines .name { fill: var(--ink); }",
        *(f".s{i} {{ --c: {colour}; }}" for i, colour in enumerate(LIGHT)),
        *(f".d{i} {{ stroke-dasharray: {dash}; }}" for i, dash in enumerate(DASHES) if dash),
        "@media (prefers-color-scheme: dark) {",
        *(f"  .s{i} {{ --c: {colour}; }}" for i, colour in enumerate(DARK)),
        "}",
    ]
    return "\n".join(lines)


def legend(names: Sequence[str]) -> str:
    """A list of the groups in order of their styles, each with its line and its mark."""
    rows = [
        f'<li><svg class="lines s{i % len(LIGHT)}" viewBox="0 0 38 14" aria-hidden="true">'
        f'<path class="mean d{i % len(DASHES)}" d="M2 7H36"/>{_mark(i, 19, 7)}</svg><span>{escape(name)}</span></li>'
        for i, name in enumerate(names)
    ]
    return f'<ul class="legend" aria-label="Legend of the charts">{"".join(rows)}</ul>'


def mean_curve(members: Mapping[str, Sequence[Sample]]) -> list[Sample]:
    """The mean over runs of x and of y at each step that all of them have.

    >>> mean_curve({"a": [Sample(1, 1, 2.0), Sample(2, 2, 4.0)], "b": [Sample(1, 3, 4.0)]})
    [Sample(step=1, x=2.0, y=3.0)]
    """
    found = [{sample.step: sample for sample in samples} for samples in members.values() if samples]
    shared = [step for step in found[0] if all(step in each for each in found)] if found else []
    rows = [(step, [each[step] for each in found]) for step in sorted(shared)]
    return [Sample(step, _mean([s.x for s in row]), _mean([s.y for s in row])) for step, row in rows]


def line_plot(series: Sequence[Series], label: str, x_label: str, y_text: Text, x_text: Text = "{:g}".format) -> str:
    """Thin lines for runs and a bold one for their mean; an empty string without a finite value.

    Args:
        label: what the curves show, for screen readers, who are told the last mean of each group too.
        x_text, y_text: values of the axes in words.
    """
    kept = [Series(s.name, s.style, {n: _finite(c) for n, c in s.members.items() if _finite(c)}) for s in series]
    kept = [each for each in kept if each.members]
    samples = [sample for each in kept for curve in each.members.values() for sample in curve]
    if not samples:
        return ""
    frame = _Frame([s.x for s in samples], [s.y for s in samples], x_text, y_text)
    means = [mean_curve(each.members) for each in kept]
    last = [f"{s.name} {y_text(m[-1].y)}" for s, m in zip(kept, means, strict=True) if m]
    words = f"{label}. At the end: {'; '.join(last)}." if last else label
    parts = [frame.open(words), frame.axes(x_label, x_text, y_text)]
    parts += [_seeds(each, frame) for each in kept]
    parts += [_bold(s, m, frame, x_label, x_text, y_text) for s, m in zip(kept, means, strict=True)]
    return "".join([*parts, "</svg>"])


def interval_plot(bars: Sequence[Bar], label: str, text: Text, zero: bool = False) -> str:
    """One row for each mean: its name, its interval, the single values as hollow marks.

    Args:
        zero: whether zero, no difference, is drawn and always in view.
    """
    values = [v for bar in bars for v in (bar.mean, *(bar.interval or ()), *bar.dots.values()) if math.isfinite(v)]
    if not values:
        return ""
    height = TOP + ROW * len(bars) + 24
    frame = _Frame([*values, *([0.0] if zero else [])], [0.0], text, text, left=RIGHT, height=height)
    words = "; ".join(f"{bar.name} {bar.words}" for bar in bars)
    parts = [frame.open(f"{label}: {words}.")]
    for x in frame.x_ticks:
        at = frame.x(x)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - 22}"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - 8}" text-anchor="middle">{escape(text(x))}</text>')
    if zero:
        parts.append(f'<line class="zero" x1="{frame.x(0):.1f}" x2="{frame.x(0):.1f}" y1="{TOP}" y2="{height - 22}"/>')
    parts += [_bar(bar, TOP + ROW * i, frame, text) for i, bar in enumerate(bars)]
    return "".join([*parts, "</svg>"])


def plane(clouds: Sequence[Cloud], label: str, x_label: str, y_label: str) -> str:
    """A filled mark for the mean of each group, hollow ones for its runs; an empty string without points."""
    clouds = [cloud for cloud in clouds if cloud.points]
    if not clouds:
        return ""
    points = [point for cloud in clouds for point in cloud.points.values()]
    frame = _Frame([x for x, _ in points], [y for _, y in points], short, short, margin=0.08)
    middles = [tuple(map(_mean, zip(*cloud.points.values(), strict=True))) for cloud in clouds]
    words = "; ".join(f"{cloud.name} ({x:.3g}, {y:.3g})" for cloud, (x, y) in zip(clouds, middles, strict=True))
    parts = [frame.open(f"{label}: {words}."), frame.axes(x_label, short, short, y_label)]
    for cloud in (cloud for cloud in clouds if len(cloud.points) > 1):
        marks = (_mark(cloud.style, frame.x(x), frame.y(y), run, "hollow") for run, (x, y) in cloud.points.items())
        parts.append(_group(cloud.style, marks))
    for cloud, (x, y) in zip(clouds, middles, strict=True):
        title = f"{cloud.name}: {x_label} {x:.3f}, {y_label} {y:.3f}"
        parts.append(_group(cloud.style, [_mark(cloud.style, frame.x(x), frame.y(y), title)]))
    return "".join([*parts, "</svg>"])


class _Frame:
    """From values to positions, with the axes."""

    def __init__(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        x_text: Text,
        y_text: Text,
        left: int = LEFT,
        height: int = HEIGHT,
        margin: float = 0.0,
    ) -> None:
        self._left, self._height = left, height
        x_low, x_high = _widened(xs, margin, x_text)
        y_low, y_high = _widened(ys, margin, y_text)
        self.x_ticks, self._y_ticks = ticks(x_low, x_high, 5), ticks(y_low, y_high, 5)
        self._x = _Scale(x_low, x_high, left, WIDTH - RIGHT)
        low, high = min(y_low, self._y_ticks[0]), max(y_high, self._y_ticks[-1])
        self._y = _Scale(low, high, height - BOTTOM, TOP)

    def x(self, value: float) -> float:
        return self._x.at(value)

    def y(self, value: float) -> float:
        return self._y.at(value)

    def open(self, words: str) -> str:
        return f'<svg class="lines" viewBox="0 0 {WIDTH} {self._height}" role="img" aria-label="{escape(words)}">'

    def axes(self, x_label: str, x_text: Text, y_text: Text, y_label: str = "") -> str:
        """Grid, values and names; what the y axis shows is said above the chart unless it is named here."""
        floor, right = self._height - BOTTOM, WIDTH - RIGHT
        parts = []
        for y in self._y_ticks:
            at = self.y(y)
            parts.append(f'<line class="grid" x1="{self._left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text x="{self._left - 7}" y="{at + 4:.1f}" text-anchor="end">{escape(y_text(y))}</text>')
        for x in self.x_ticks:
            at = self.x(x)
            parts.append(f'<text x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{escape(x_text(x))}</text>')
        middle = (self._left + right) / 2
        parts.append(f'<text x="{middle:.0f}" y="{self._height - 6}" text-anchor="middle">{escape(x_label)}</text>')
        if y_label:
            turn = f'transform="rotate(-90 11 {floor / 2:.0f})"'
            parts.append(f'<text x="11" y="{floor / 2:.0f}" text-anchor="middle" {turn}>{escape(y_label)}</text>')
        return "".join(parts)


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        span = self.high - self.low
        return self.start + (self.end - self.start) * ((value - self.low) / span if span else 0.5)


def _widened(values: Sequence[float], margin: float, text: Text) -> tuple[float, float]:
    """The range of an axis: no finer than its figures are, so that no two ticks read alike."""
    span = max(values) - min(values)
    low, high = min(values) - margin * span, max(values) + margin * span
    middle, half = (low + high) / 2, (high - low) / 2
    for doubling in range(MOST_DOUBLINGS if half else 0):
        words = [text(tick) for tick in ticks(low, high, 5)]
        if len(set(words)) == len(words):
            break
        low, high = middle - half * 2 ** (doubling + 1), middle + half * 2 ** (doubling + 1)
    return low, high


def _seeds(series: Series, frame: _Frame) -> str:
    """The curve of each run; none where there is only one, for the mean is the same."""
    if len(series.members) < 2:
        return ""
    paths = []
    for run, samples in series.members.items():
        points = thin([(s.x, s.y) for s in samples])
        if len(points) > 1:
            paths.append(f'<path class="seed" d="{_path(points, frame)}"><title>{escape(run)}</title></path>')
        else:
            paths += [_mark(series.style, frame.x(x), frame.y(y), run, "hollow") for x, y in points]
    return _group(series.style, paths)


def _bold(series: Series, mean: Sequence[Sample], frame: _Frame, x_label: str, x_text: Text, y_text: Text) -> str:
    points = thin([(sample.x, sample.y) for sample in mean])
    smoothed = smooth(points)
    runs = f", mean of {len(series.members)} runs" if len(series.members) > 1 else ""
    parts = []
    if len(points) > 1:
        title = f"<title>{escape(series.name + runs)}</title>"
        parts.append(f'<path class="mean d{series.style % len(DASHES)}" d="{_path(smoothed, frame)}">{title}</path>')
    dots = points if len(points) <= MOST_DOTS else smoothed[-1:]
    for x, y in dots:
        words = f"{series.name}, {x_label} {x_text(x)}: {y_text(y)}{runs}"
        parts.append(_mark(series.style, frame.x(x), frame.y(y), words))
    return _group(series.style, parts)


def _bar(bar: Bar, top: float, frame: _Frame, text: Text) -> str:
    name = bar.name if len(bar.name) <= MOST_LETTERS else bar.name[: MOST_LETTERS - 1] + "…"
    at = top + 27
    parts = [f'<text class="name" x="{RIGHT}" y="{top + 12}">{escape(name)}</text>']
    if bar.interval is not None:
        low, high = map(frame.x, bar.interval)
        parts.append(f'<path class="mean" d="M{low:.1f} {at}H{high:.1f}M{low:.1f} {at - 4}v8M{high:.1f} {at - 4}v8"/>')
    if len(bar.dots) > 1:
        parts += [
            _mark(bar.style, frame.x(v), at, f"{run}: {text(v)}", "hollow")
            for run, v in bar.dots.items()
            if math.isfinite(v)
        ]
    parts.append(_mark(bar.style, frame.x(bar.mean), at, f"{bar.name}: {bar.words}"))
    return _group(bar.style, parts)


def _group(style: int, parts: Iterable[str]) -> str:
    return f'<g class="s{style % len(LIGHT)}">{"".join(parts)}</g>'


def _mark(style: int, x: float, y: float, title: str = "", kind: str = "mark") -> str:
    words = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<path class="{kind}" transform="translate({x:.1f} {y:.1f})" d="{_MARKS[style % len(_MARKS)]}">{words}</path>'
    )


def _path(points: Sequence[Point], frame: _Frame) -> str:
    return "M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in points)


def _finite(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if math.isfinite(sample.x) and math.isfinite(sample.y)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def short(value: float) -> str:
    """Three digits, or all of a whole number's: no powers of ten.

    >>> short(0.12345), short(12.345), short(1000), short(51200)
    ('0.123', '12.3', '1,000', '51,200')
    """
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
