"""The sections of a report as HTML. Every text from outside goes through :func:`html.escape`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from statistics import median
from typing import Any

from torch import Tensor

from clf.evaluate.results import Diagnostics, Evaluation
from clf.report.charts import Level, Point, line_chart
from clf.report.gallery import Gallery, Picture, Search
from clf.report.pictures import grid, img
from clf.report.verdicts import Verdict

Record = Mapping[str, Any]


def section(title: str, note: str, body: str) -> str:
    """A heading with one explaining sentence; nothing when there is no body."""
    if not body:
        return ""
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{words}{body}</section>'


def contents(titles: Iterable[str]) -> str:
    """Links to the sections."""
    links = "".join(f'<li><a href="#{_anchor(title)}">{escape(title)}</a></li>' for title in titles)
    return f'<nav class="contents" aria-label="Contents"><ul>{links}</ul></nav>'


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


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
        words = ", ".join(f"{row.name} {100 * row.knn[-1].accuracy:.1f}" for row in baselines if row.knn)
        found.append((f"{100 * trained.knn[-1].accuracy:.1f} %", f"k-NN (k = {trained.knn[-1].k})", words))
    if trained.linear:
        words = ", ".join(f"{row.name} {100 * row.linear.accuracy:.1f}" for row in baselines if row.linear)
        found.append((f"{100 * trained.linear.accuracy:.1f} %", "linear probe", words))
    return found


_LEADS = {"good": "Good", "hint": "Hint", "bad": "Problem"}


def verdicts(found: Sequence[Verdict]) -> str:
    """Good and bad news, the worst first."""
    rows = "".join(
        f'<li class="verdict {each.kind}"><b>{_LEADS[each.kind]}.</b> {escape(each.words)}</li>' for each in found
    )
    return f'<ul class="verdicts" aria-label="Verdicts">{rows}</ul>' if rows else ""


def charts(records: Sequence[Record], baselines: Sequence[Level] = ()) -> str:
    """Loss, k-NN, learning rate, speed and what tells of collapse over epochs, those that were recorded.

    Args:
        baselines: accuracies in [0, 1] that the curve of the k-NN may be compared with.
    """
    wanted: list[tuple[str, list[Point], Callable[[float], str]]] = [
        ("loss", _series(records, "loss"), lambda y: f"{y:.3g}"),
        ("k-NN accuracy", _series(records, "knn"), lambda y: f"{100 * y:.3g} %"),
        ("learning rate", _series(records, "lr"), lambda y: f"{y:.2g}"),
        ("images per second", speed(records), lambda y: f"{y:,.0f}"),
        ("RankMe (dimensions in use)", _series(records, "rank_me"), lambda y: f"{y:.3g}"),
        ("alignment of two views", _series(records, "alignment"), lambda y: f"{y:.3g}"),
        ("uniformity", _series(records, "uniformity"), lambda y: f"{y:.3g}"),
    ]
    return _charts(
        _chart(label, points, text, levels=baselines if label == "k-NN accuracy" else ())
        for label, points, text in wanted
    )


def comparable_baselines(
    evaluations: Iterable[Evaluation], records: Sequence[Record], manifest: Record, values: Record
) -> list[Level]:
    """Accuracies of the baselines where ``clf evaluate`` measured just what the monitor did: same images, same k.

    The monitor looks at a part of a large set; then the two are not the same measurement, and nothing is returned.
    """
    banks = {record["bank"] for record in records if "knn" in record and "bank" in record}
    fingerprint = manifest.get("data", {}).get("fingerprint")
    for evaluation in evaluations:
        whole = banks == {evaluation.train_images} and 0 < evaluation.test_images <= evaluation.train_images
        if not whole or evaluation.fingerprint != fingerprint:
            continue
        return [
            (row.name, score.accuracy)
            for row in evaluation.representations[:-1]
            for score in row.knn
            if min(values.get("monitor.knn_k", 0), evaluation.train_images) == score.voters
        ][:3]
    return []


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


def _chart(
    label: str,
    points: list[Point],
    text: Callable[[float], str],
    x_label: str = "epoch",
    levels: Sequence[Level] = (),
) -> str:
    words = label.replace("_", " ")
    svg = line_chart(points, text, f"{words} over {x_label}s", x_label, levels)
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
        figures = [_figure(original, f"image: {original.text}" if original.text else "image", original.text or "image")]
        figures += [_figure(view, f"view {i + 1} of it", f"view {i + 1}") for i, view in enumerate(seen)]
        panels.append(f'<div class="panel">{"".join(figures)}</div>')
    return f'<div class="views">{"".join(panels)}</div>' if panels else ""


def searches(gallery: Gallery) -> str:
    return "".join(_search(search) for search in gallery.searches)


def _search(search: Search) -> str:
    query = _figure(search.query, f"query: {search.query.text}" if search.query.text else "query", search.query.text)
    sides = []
    for title, hits in (("trained encoder", search.trained), ("raw pixels", search.pixels)):
        figures = "".join(_figure(hit, f"neighbour, cosine {hit.text}{_judged(hit)}", hit.text) for hit in hits)
        judged = [hit.right for hit in hits if hit.right is not None]
        score = f", {sum(judged)} of {len(judged)} of the same class" if judged else ""
        sides.append(f'<div><p><b>{title}</b>{score}</p><div class="hits">{figures}</div></div>')
    return f'<div class="panel search"><div class="query">{query}</div><div class="both">{"".join(sides)}</div></div>'


def _judged(hit: Picture) -> str:
    return {True: ", same class", False: ", another class", None: ""}[hit.right]


def _figure(picture: Picture, alt: str, caption: str) -> str:
    kind = {True: ' class="right"', False: ' class="wrong"', None: ""}[picture.right]
    return f"<figure{kind}>{img(picture.image, alt)}<figcaption>{escape(caption)}</figcaption></figure>"


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
        f'<tr><th scope="row">{name}</th><td class="number">{value}</td><td class="soft">{words}</td></tr>'
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
            f'<tr><th scope="row" class="key">{escape(key)}</th><td>{escape(str(value))}{usual}</td>'
            f'<td class="about soft">{escape(about.get(key, ""))}</td></tr>'
        )
    return f'<div class="panel"><div class="scroll"><table>{"".join(rows)}</table></div></div>' if rows else ""


def repeat(alone: str | None, with_file: str, original: str | None) -> str:
    """Commands that train the run again: one that stands alone, and one that reads the run's own file."""
    commands = [
        ("From nothing but this line; a data.root in it is a place on the machine of the run:", alone),
        ("From the run's folder:" if alone else "", with_file),
        ("It was started with:", original),
    ]
    return "".join(
        (f'<p class="note">{escape(words)}</p>' if words else "") + f'<pre tabindex="0">{escape(command)}</pre>'
        for words, command in commands
        if command
    )


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
