"""Line charts as inline SVG: sharp at any size, and in the page's own colours, light or dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 30
MOST_POINTS = 300
MOST_DOTS = 20

Point = tuple[float, float]
Level = tuple[str, float]
"""A name and a value of the y axis."""


def line_chart(
    points: Sequence[Point],
    y_text: Callable[[float], str],
    label: str,
    x_label: str = "epoch",
    levels: Sequence[Level] = (),
) -> str:
    """One curve with axes; an empty string without two finite points.

    Args:
        points: (x, y) in rising x; points that are not finite are left out, long curves are averaged in
            windows, and a bold line is their running mean.
        y_text: a value of the y axis in words.
        label: what the curve shows, for screen readers.
        levels: values to compare the curve with, as dashed lines with their names.
    """
    points = thin([p for p in points if all(map(math.isfinite, p))])
    if len(points) < 2:
        return ""
    x_ticks = ticks(points[0][0], points[-1][0], 5)
    heights = [*(y for _, y in points), *(y for _, y in levels)]
    low, high = min(heights), max(heights)
    y_ticks = ticks(low, high, 5)
    x_of = _scale(points[0][0], points[-1][0], LEFT, WIDTH - RIGHT)
    y_of = _scale(min(low, y_ticks[0]), max(high, y_ticks[-1]), HEIGHT - BOTTOM, TOP)
    told = f"{label}, from {y_text(points[0][1])} to {y_text(points[-1][1])}"
    told += "".join(f"; {name} {y_text(y)}" for name, y in levels)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">']
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y_of(y) + 4:.1f}" text-anchor="end">{escape(y_text(y))}</text>')
    for x in x_ticks:
        parts.append(f'<text x="{x_of(x):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{x:g}</text>')
    path, mean = ("L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in p) for p in (points, smooth(points)))
    floor, first, last = HEIGHT - BOTTOM, x_of(points[0][0]), x_of(points[-1][0])
    parts.append(f'<path class="area" d="M{first:.1f} {floor}L{mean}L{last:.1f} {floor}Z"/>')
    if path != mean:
        parts.append(f'<path class="raw" d="M{path}"/>')
    parts.append(f'<path class="curve" d="M{mean}"/>')
    if len(points) <= MOST_DOTS:
        for x, y in points:
            words = escape(f"{x_label} {x:g}: {y_text(y)}")
            parts.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3"><title>{words}</title></circle>')
    ordered = sorted(levels, key=lambda level: level[1])
    parts += [_level(name, y_of(y), y_text(y), at_end=i % 2 == 0) for i, (name, y) in enumerate(ordered)]
    parts.append("</svg>")
    return "".join(parts)


def _level(name: str, y: float, value: str, at_end: bool) -> str:
    """A dashed line with its name above it; neighbours have theirs at different ends."""
    words = escape(f"{name} {value}")
    place = f'x="{WIDTH - RIGHT}" text-anchor="end"' if at_end else f'x="{LEFT + 4}"'
    return (
        f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="level" {place} y="{y - 4:.1f}">{words}</text>'
    )


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points, each the mean of a window of neighbours; the last x is kept."""
    if len(points) <= most:
        return list(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    windows = [points[a:b] for a, b in pairwise(edges)]
    means = [(sum(x for x, _ in w) / len(w), sum(y for _, y in w) / len(w)) for w in windows]
    return [*means[:-1], (points[-1][0], means[-1][1])]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Each value replaced by the mean over a thirtieth of the curve around it."""
    half = len(points) // 60
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in w) / len(w)) for (x, _), w in zip(points, windows, strict=True)]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) inside [low, high], at most about ``about`` of them.

    >>> ticks(0, 1, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(3, 3, 5)
    [3]
    """
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5) if m * power >= rough * 0.999), 10 * power)
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, digits) for i in range(first, last + 1)] or [low]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low
    return lambda value: start + (end - start) * ((value - low) / span if span else 0.5)
