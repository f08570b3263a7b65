"""The sections of a report as HTML. Every text from outside goes through :func:`html.escape`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from statistics import median
from typing import Any

from torch import Tensor

from clf import diagnostics
from clf.diagnostics import Diagnostics
from clf.evaluate.results import Evaluation
from clf.evaluate.terminal import accuracy_cells, label_free_cells
from clf.report.charts import Point, line_chart
from clf.report.gallery import Gallery, Picture, Search
from clf.report.pictures import grid, img

Record = Mapping[str, Any]


def section(title: str, note: str, body: str) -> str:
    """A heading with one explaining sentence; nothing when there is no body."""
    return f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{body}</section>' if body else ""


def head(name: str, manifest: Record, config: Record) -> str:
    state = str(manifest.get("state", "unknown"))
    data = manifest.get("data", {})
    images = f"{data['train_images']:,} images, " if "train_images" in data else ""
    words = (
        f"{config['plugin']} with {config['backbone.name']} on {config['data.name']}: {images}"
        f"{config['train.epochs']} epochs, batch {config['train.batch_size']}, seed {config['seed']}"
    )
    return (
        f'<header><p class="eyebrow">clf run report <span class="pill{"" if state == "complete" else " bad"}">'
        f'{escape(state)}</span></p><h1>{escape(name)}</h1><p class="lead">{escape(words)}</p></header>'
    )


def cards(evaluations: Iterable[Evaluation], records: Sequence[Record], manifest: Record) -> str:
    """The few figures to read first."""
    found: list[tuple[str, str, str]] = []
    for evaluation in list(evaluations)[:1]:
        found += _accuracy_cards(evaluation)
    if not found and (monitored := [r for r in records if "knn" in r]):
        found.append(
            (f"{100 * monitored[-1]['knn']:.1f} %", "k-NN while training", f"epoch {monitored[-1]['epoch']:g}")
        )
    losses = [r for r in records if "loss" in r]
    if losses:
        found.append((f"{losses[-1]['loss']:.3f}", "loss", f"from {losses[0]['loss']:.3f}"))
    if "step" in manifest:
        found.append((f"{manifest['step']:,}", "optimiser steps", duration(manifest.get("wall_seconds", 0))))
    if "parameters" in manifest:
        found.append((f"{manifest['parameters'] / 1e6:.1f} M", "encoder parameters", str(manifest.get("device", ""))))
    rows = [
        f'<div class="card"><span>{escape(label)}</span><b>{escape(value)}</b><small>{escape(more)}</small></div>'
        for value, label, more in found
    ]
    return f'<div class="cards">{"".join(rows)}</div>' if rows else ""


def _accuracy_cards(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """The trained encoder's accuracies, each with those of the baselines."""
    *baselines, trained = evaluation.representations
    found = []
    if trained.knn:
        words = ", ".join(f"{row.name} {100 * row.knn[-1].accuracy:.1f}" for row in baselines)
        found.append((f"{100 * trained.knn[-1].accuracy:.1f} %", f"k-NN (k = {trained.knn[-1].k})", words))
    if trained.linear:
        words = ", ".join(f"{row.name} {100 * row.linear.accuracy:.1f}" for row in baselines if row.linear)
        found.append((f"{100 * trained.linear.accuracy:.1f} %", "linear probe", words))
    return found


def verdict(found: Diagnostics | None) -> str:
    """Good or bad news about the representation in a sentence."""
    if found is None:
        return ""
    bad = diagnostics.verdict(found)
    words = bad or (
        f"No collapse: the features of {found.images:,} images use about {found.rank_me:.0f} of {found.dim} "
        f"dimensions, and two different images have a mean cosine of {found.mean_cosine:.2f}."
    )
    return f'<p class="verdict{" bad" if bad else ""}">{escape(words)}</p>'


def charts(records: Sequence[Record]) -> str:
    """Loss, k-NN, learning rate, speed and what tells of collapse over epochs, those that were recorded."""
    wanted: list[tuple[str, list[Point], Callable[[float], str]]] = [
        ("loss", _series(records, "loss"), lambda y: f"{y:.3g}"),
        ("k-NN accuracy", _series(records, "knn"), lambda y: f"{100 * y:.3g} %"),
        ("learning rate", _series(records, "lr"), lambda y: f"{y:.2g}"),
        ("images per second", speed(records), lambda y: f"{y:,.0f}"),
        ("RankMe (dimensions in use)", _series(records, "rank_me"), lambda y: f"{y:.3g}"),
        ("alignment of two views", _series(records, "alignment"), lambda y: f"{y:.3g}"),
        ("uniformity", _series(records, "uniformity"), lambda y: f"{y:.3g}"),
    ]
    return _charts((_chart(label, points, text) for label, points, text in wanted))


def own_charts(records: Sequence[Record]) -> str:
    """What the method logged beyond its loss, over epochs; what it logged in its preparation, over that one's steps."""
    prepared = [r for r in records if r["kind"] == "preparation"]
    trained = [r for r in records if r["kind"] == "train"]
    return _charts(
        [
            *(_chart(name, _series(prepared, name, "prepared"), _three, "step") for name in _own_names(prepared)),
            *(_chart(name, _series(trained, name), _three) for name in _own_names(trained)),
        ]
    )


_ENGINES = {"kind", "step", "epoch", "prepared", "loss", "lr", "images", "seconds"}


def _own_names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record if name not in _ENGINES))


def _three(y: float) -> str:
    return f"{y:.3g}"


def _charts(figures: Iterable[str]) -> str:
    inside = "".join(figures)
    return f'<div class="charts">{inside}</div>' if inside else ""


def _chart(label: str, points: list[Point], text: Callable[[float], str], x_label: str = "epoch") -> str:
    words = label.replace("_", " ")
    svg = line_chart(points, text, f"{words} over {x_label}s", x_label)
    if not svg:
        return ""
    caption = f"<figcaption><b>{escape(words)}</b><span>{escape(text(points[-1][1]))}</span></figcaption>"
    return f'<figure class="chart">{caption}{svg}</figure>'


def own_pictures(pictures: Mapping[str, Tensor]) -> str:
    """The method's own pictures, each with its title."""
    return "".join(
        f'<figure class="panel own"><figcaption>{escape(title)}</figcaption>{grid(images, title)}</figure>'
        for title, images in pictures.items()
    )


def _series(records: Sequence[Record], key: str, x: str = "epoch") -> list[Point]:
    return [(float(r[x]), float(r[key])) for r in records if key in r]


def speed(records: Sequence[Record]) -> list[Point]:
    """Images per second between records, as the median of five, which leaves out pauses for measurements."""
    rows = [r for r in records if "images" in r and "seconds" in r]
    found = [
        (float(b["epoch"]), (b["images"] - a["images"]) / (b["seconds"] - a["seconds"]))
        for a, b in pairwise(rows)
        if b["seconds"] > a["seconds"]
    ]
    return [(x, median(y for _, y in found[max(0, i - 2) : i + 3])) for i, (x, _) in enumerate(found)]


def views(gallery: Gallery) -> str:
    panels = []
    for original, seen in gallery.views:
        figures = [_figure(original, "image", original.text or "image")]
        figures += [_figure(view, f"view {i + 1}", f"view {i + 1}") for i, view in enumerate(seen)]
        panels.append(f'<div class="panel">{"".join(figures)}</div>')
    return f'<div class="views">{"".join(panels)}</div>' if panels else ""


def searches(gallery: Gallery) -> str:
    return "".join(_search(search) for search in gallery.searches)


def _search(search: Search) -> str:
    query = _figure(search.query, "query", search.query.text)
    sides = []
    for title, hits in (("trained encoder", search.trained), ("raw pixels", search.pixels)):
        figures = "".join(_figure(hit, f"neighbour, cosine {hit.text}", hit.text) for hit in hits)
        judged = [hit.right for hit in hits if hit.right is not None]
        score = f", {sum(judged)} of {len(judged)} of the same class" if judged else ""
        sides.append(f'<div><p><b>{title}</b>{score}</p><div class="hits">{figures}</div></div>')
    return f'<div class="panel search"><div class="query">{query}</div><div class="both">{"".join(sides)}</div></div>'


def _figure(picture: Picture, alt: str, caption: str) -> str:
    kind = {True: ' class="right"', False: ' class="wrong"', None: ""}[picture.right]
    return f"<figure{kind}>{img(picture.image, alt)}<figcaption>{escape(caption)}</figcaption></figure>"


def evaluations(found: Mapping[str, Evaluation]) -> str:
    return "".join(_evaluation(entry) for entry in found.values())


def _evaluation(evaluation: Evaluation) -> str:
    tables = [_table(*cells) for cells in (accuracy_cells(evaluation), label_free_cells(evaluation)) if cells[1]]
    panels = "".join(f'<div class="panel"><div class="scroll">{table}</div></div>' for table in tables)
    notes = [evaluation.verdict or "", *evaluation.notes]
    words = "".join(f'<p class="verdict bad">{escape(note)}</p>' for note in notes if note)
    protocol = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in evaluation.protocol.items())
    return (
        f"<h3>{escape(evaluation.data)}, step {evaluation.step:,}</h3>{words}"
        f'<div class="tables">{panels}</div>'
        f"<details><summary>How this was measured</summary><dl>{protocol}</dl></details>"
    )


def figures_in_words(found: Diagnostics | None) -> str:
    """The label-free figures with what each of them means."""
    if found is None:
        return ""
    rows = [
        ("RankMe", f"{found.rank_me:.1f} of {found.dim}", "dimensions that the features really use; more is better"),
        (
            "spread",
            f"{found.spread:.3f}",
            "standard deviation of unit-length features times the square root of their length: 0 is collapsed, 1 is "
            "spread evenly over the sphere",
        ),
        ("mean cosine", f"{found.mean_cosine:.3f}", "between two different images; near 1 they cannot be told apart"),
        ("uniformity", f"{found.uniformity:.3f}", "0 is collapsed, about -4 is spread evenly; lower is better"),
    ]
    if found.alignment is not None:
        words = "squared distance between two views of an image, 0 to 4; lower means views are recognised as one image"
        rows.append(("alignment", f"{found.alignment:.3f}", words))
    body = "".join(
        f'<tr><td>{name}</td><td class="number">{value}</td><td class="soft">{words}</td></tr>'
        for name, value, words in rows
    )
    return f'<div class="panel"><div class="scroll"><table>{body}</table></div></div>'


def configuration(values: Mapping[str, Any], defaults: Mapping[str, Any], about: Mapping[str, str]) -> str:
    """Changed values in the open, the others behind a fold."""
    changed = {k: v for k, v in values.items() if k not in defaults or defaults[k] != v}
    rest = {k: v for k, v in values.items() if k not in changed}
    folded = f"<details><summary>{len(rest)} values at their default</summary>{_settings(rest, {}, about)}</details>"
    return _settings(changed, defaults, about) + (folded if rest else "")


def _settings(values: Mapping[str, Any], defaults: Mapping[str, Any], about: Mapping[str, str]) -> str:
    rows = []
    for key, value in values.items():
        usual = f' <span class="soft">(default {escape(str(defaults[key]))})</span>' if key in defaults else ""
        rows.append(
            f'<tr><td class="key">{escape(key)}</td><td>{escape(str(value))}{usual}</td>'
            f'<td class="about soft">{escape(about.get(key, ""))}</td></tr>'
        )
    return f'<div class="panel"><div class="scroll"><table>{"".join(rows)}</table></div></div>' if rows else ""


def repeat(command: str, original: str | None) -> str:
    first = f'<p class="note">It was started with</p><pre>{escape(original)}</pre>' if original else ""
    return f"<pre>{escape(command)}</pre>{first}"


def provenance(manifest: Record) -> str:
    """Everything the run's manifest knows, nested values on one line each."""
    flat: dict[str, str] = {}
    for key, value in manifest.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": str(inner) for name, inner in value.items() if inner not in (None, [], "")}
        elif value not in (None, [], ""):
            flat[key] = str(value)
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in flat.items() if k != "command")
    return f"<details><summary>Versions, device, data fingerprint</summary><dl>{rows}</dl></details>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The last row, the trained encoder, stands out."""
    classes = ["", *[' class="number"'] * (len(header) - 1)]
    top = "".join(f"<th{c}>{escape(cell)}</th>" for c, cell in zip(classes, header, strict=True))
    body = "".join(
        ('<tr class="best">' if i == len(rows) - 1 else "<tr>")
        + "".join(f"<td{c}>{escape(cell)}</td>" for c, cell in zip(classes, row, strict=True))
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(190), duration(7322)
    ('42 s', '3 min 10 s', '2 h 2 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
