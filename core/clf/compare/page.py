"""A comparison as one HTML file that needs no network. Every text from outside goes through :func:`html.escape`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import clf
from clf import runs
from clf.compare import tables
from clf.compare.comparison import (
    WHILE_TRAINING,
    Column,
    Comparison,
    difference,
    group_spread,
    verdict,
)
from clf.compare.groups import Group
from clf.compare.reading import Member
from clf.compare.scores import ALIGNMENT, UNIFORMITY
from clf.compare.tables import NOTHING, TextTable
from clf.errors import RunError
from clf.report import lines
from clf.report.lines import Bar, Cloud, Sample, Series

TEMPLATE = "compare.html"
Curve = Sequence[tuple[float, float, float, float]]
EPOCH, CLOCK = 1, 2
"""Places of the epoch and of the seconds in a point of a curve."""


def write_page(found: Comparison, path: Path) -> Path:
    """Writes the page, whole or not at all.

    Raises:
        RunError: it is a folder, or cannot be written.
    """
    if path.is_dir():
        raise RunError(f"{path} is a folder: name a file, for example {path / 'compare.html'}")
    folder = files("clf") / "templates"
    template = Template((folder / TEMPLATE).read_text(encoding="utf-8"))
    text = template.substitute(
        title=escape(f"{', '.join(group.name for group in found.groups)} · clf compare"),
        common=(folder / "common.css").read_text(encoding="utf-8"),
        lines=lines.css(),
        body=_body(found),
    )
    return runs.replace_text(path, text.encode("utf-8", "backslashreplace").decode())  # halves of characters


def _body(found: Comparison) -> str:
    footer = f"<footer>Written by clf {clf.__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</footer>"
    parts = [
        _head(found),
        *(_note(note.text, note.serious) for note in found.notes if note.serious),
        *_scores(found),
        _differences(found),
        _training(found),
        _section("Notes", "", "".join(f"<li>{escape(n.text)}</li>" for n in found.notes if not n.serious), "ul"),
        *(_table(each) for each in (tables.settings_table(found), tables.run_table(found)) if each is not None),
        _protocols(found),
        footer,
    ]
    return "\n".join(part for part in parts if part)


def _head(found: Comparison) -> str:
    pill = "" if found.comparable else '<span class="pill bad">not comparable</span>'
    title = " · ".join(group.name for group in found.groups[:3]) + (" …" if len(found.groups) > 3 else "")
    return (
        f'<header><p class="eyebrow">clf compare {pill}</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(tables.headline(found))}</p></header>{lines.legend(_names(found))}'
    )


def _names(found: Comparison) -> list[str]:
    return [group.name for group in found.groups]


def _note(text: str, serious: bool) -> str:
    return f'<p class="verdict{" bad" if serious else ""}">{escape(text)}</p>'


def _section(title: str, note: str, body: str, inside: str = "div") -> str:
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{words}<{inside}>{body}</{inside}></section>" if body else ""


def _scores(found: Comparison) -> list[str]:
    """The table of each evaluated set, with a chart of its main accuracies."""
    return [
        _section(table.title, table.note, _panel(table) + _bars(found, table.data))
        for table in tables.score_tables(found, minor=True)
        if table.data != WHILE_TRAINING
    ]


def _bars(found: Comparison, data: str) -> str:
    shown = [c for c in found.of_set(data) if c.measure.better == "higher" and not c.measure.minor]
    figures = []
    for column in shown:
        bars = [bar for group in found.groups if (bar := _bar(group, column)) is not None]
        svg = lines.interval_plot(bars, f"{column.measure.label} on {data}", column.measure.text)
        figures.append(_figure(column.measure.label, "mean ± standard deviation over seeds, in %", svg))
    return _charts(figures)


def _bar(group: Group, column: Column) -> Bar | None:
    spread = group_spread(group, column)
    if spread is None:
        return None
    single = {m.name: value for m in group.members if (value := column.value(m)) is not None}
    words = spread.text(column.measure.scale, column.measure.digits)
    reach = None if spread.std is None else (spread.mean - spread.std, spread.mean + spread.std)
    return Bar(group.name, group.style, spread.mean, reach, words, single)


def _differences(found: Comparison) -> str:
    table = tables.difference_table(found)
    if table is None:
        return ""
    figures = []
    for column in tables.told(found):
        pairs = [(group, difference(group, found.reference, column)) for group in found.others]
        bars = [
            Bar(
                group.name,
                group.style,
                each.mean,
                each.interval,
                f"{column.measure.text(each.mean, signed=True)}, {verdict(each, column.measure)}",
                {},
            )
            for group, each in pairs
            if each is not None
        ]
        signed = _signed(column)
        svg = lines.interval_plot(bars, f"Difference of {column.measure.label}, {column.data}", signed, zero=True)
        figures.append(_figure(f"{column.measure.label}, {column.data}", f"less {found.reference.name}", svg))
    return _section(table.title, table.note, _panel(table) + _charts(figures))


def _signed(column: Column) -> Callable[[float], str]:
    return lambda value: column.measure.text(value, signed=True)


def _training(found: Comparison) -> str:
    """What the training recorded: a table and the curves."""
    table = next((each for each in tables.score_tables(found) if each.data == WHILE_TRAINING), None)
    if table is None:
        return ""
    unit, seconds = tables.time_unit(found.members)
    losses = next((note.text for note in found.notes if note.kind == "loss"), "")
    figures = [
        _curves(found, "k-NN accuracy", lambda m: m.curves.knn, EPOCH, "epoch", _percent),
        _curves(found, "k-NN accuracy over wall time", lambda m: m.curves.knn, CLOCK, unit, _percent, seconds),
        _curves(found, "loss", lambda m: m.curves.loss, EPOCH, "epoch", lines.short, words=losses),
        _curves(found, "RankMe", lambda m: m.curves.rank_me, EPOCH, "epoch", lines.short, words="dimensions in use"),
        _plane(found),
    ]
    note = (
        f"{table.note} Thin lines are runs, bold ones the mean over seeds at steps that all seeds have. Wall time goes "
        "on where the checkpoint stopped that a resumed run began from: it holds preparation and measurements, neither "
        "pauses nor work that was lost."
    )
    return _section(table.title, note, _panel(table) + _charts(figures))


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _curves(
    found: Comparison,
    title: str,
    curve: Callable[[Member], Curve],
    axis: int,
    x_label: str,
    y_text: Callable[[float], str],
    unit: float = 1.0,
    words: str = "",
) -> str:
    series = [
        Series(g.name, g.style, {m.name: [Sample(p[0], p[axis] / unit, p[3]) for p in curve(m)] for m in g.members})
        for g in found.groups
    ]
    label = title if " over " in title else f"{title} over {x_label}s"
    return _figure(title, words, lines.line_plot(series, label, x_label, y_text, lines.short))


def _plane(found: Comparison) -> str:
    """Wang and Isola 2020 (arXiv 2005.10242), figure 3: the last point of each run."""
    clouds = [
        Cloud(
            group.name,
            group.style,
            {
                m.name: (m.curves.last[UNIFORMITY], m.curves.last[ALIGNMENT])
                for m in group.members
                if UNIFORMITY in m.curves.last and ALIGNMENT in m.curves.last
            },
        )
        for group in found.groups
    ]
    svg = lines.plane(clouds, "Alignment and uniformity at the end", "uniformity", "alignment")
    return _figure(
        "alignment and uniformity", "the last measurement; lower is closer and more even (Wang and Isola 2020)", svg
    )


def _figure(title: str, words: str, svg: str) -> str:
    if not svg:
        return ""
    about = f'<p class="soft">{escape(words)}</p>' if words else ""
    return f'<figure class="chart"><figcaption><b>{escape(title)}</b></figcaption>{about}{svg}</figure>'


def _charts(figures: Sequence[str]) -> str:
    inside = "".join(figures)
    return f'<div class="charts wide">{inside}</div>' if inside else ""


def _table(table: TextTable) -> str:
    return _section(table.title, table.note, _panel(table))


def _panel(table: TextTable) -> str:
    """The columns after the first are figures where every cell of them is one."""
    figures = [all(_is_figure(row[i]) for row in table.rows) for i in range(len(table.header))]
    kinds = [' class="number"' if figure else "" for figure in figures]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(kinds, table.header, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="panel"><div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>'
        f'<caption class="hidden">{escape(table.title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></div>"
    )


def _is_figure(text: str) -> bool:
    return text == NOTHING or text.lstrip("+-").replace(",", "")[:1].isdigit()


def _protocols(found: Comparison) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in tables.protocols(found))
    return _section("How it was measured", "", rows, "dl")
