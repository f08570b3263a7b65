"""The embedding map as HTML: an inline SVG that stands alone, and the data that its script (``map.js``) moves it with.

A class is told by colour and mark together, so that no reader needs the colours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from clf.report.embedding import KEPT, Array, EmbeddingMap
from clf.report.lines import DARK, LIGHT
from clf.report.pictures import Sheet, sheet

WIDTH, HEIGHT, MARGIN = 760, 500, 22
MOST_CLASSES = 20
"""Classes with an entry of their own; of more, the largest, and the others together."""
LONGEST_NAME = 90
"""Letters of a file name that are shown, from its end."""

_MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",  # disc
    "M-3.5 -3.5H3.5V3.5H-3.5Z",  # square
    "M0 -4.8L4.5 3.4H-4.5Z",  # triangle
    "M0 -5L4.3 0L0 5L-4.3 0Z",  # diamond
)
_REST = len(LIGHT)
"""The colour of images without a class of their own."""


@dataclass(frozen=True)
class Slot:
    """An entry of the legend."""

    name: str
    images: int
    colour: int
    mark: int

    @property
    def use(self) -> str:
        """The SVG attributes of its points."""
        return f'class="k{self.colour}" href="#mark{self.mark}"'


def palette() -> str:
    """The style sheet of the marks, light and dark."""

    def rules(colours: Iterable[str]) -> str:
        return "".join(f".k{i}{{fill:{colour}}}" for i, colour in enumerate(colours))

    return f"{rules([*LIGHT, '#7d8089'])}@media (prefers-color-scheme: dark){{{rules([*DARK, '#7d8089'])}}}"


def slots(labels: Sequence[int], class_names: Sequence[str]) -> tuple[list[Slot], list[int]]:
    """The legend, and for each image its entry.

    Args:
        labels: (n,) class of each image, -1 where unknown.
    """
    counts = Counter(label for label in labels if label >= 0)
    largest = [label for label, _ in counts.most_common()]
    own = sorted(largest if len(largest) <= MOST_CLASSES else largest[: MOST_CLASSES - 1])
    found = [
        Slot(class_name(label, class_names), counts[label], i % len(LIGHT), i // len(LIGHT) % len(_MARKS))
        for i, label in enumerate(own)
    ]
    place = {label: i for i, label in enumerate(own)}
    others = sum(count for label, count in counts.items() if label not in place)
    if others:
        place |= {label: len(found) for label in counts if label not in place}
        found.append(Slot(f"{len(counts) - len(own)} other classes", others, _REST, 0))
    if unknown := sum(label < 0 for label in labels):
        place[-1] = len(found)
        found.append(Slot("no label", unknown, _REST, 3))
    return found, [place[max(label, -1)] for label in labels]


def class_name(label: int, class_names: Sequence[str]) -> str:
    """A class in words, also where the data set names none."""
    return class_names[label] if 0 <= label < len(class_names) else f"class {label}"


def embedding_map(found: EmbeddingMap | None) -> str:
    """The figure: picture, switch, legend, what it can tell, and the data of the script."""
    if found is None:
        return ""
    n = len(found.images)
    legend, entry = _legend(found)
    small = sheet(found.images)
    note = f"{n:,} of {found.total:,} {found.split} images" if n < found.total else f"all {n:,} {found.split} images"
    scale = 1.0 if n > 300 else 1.5
    shown = _fit(found.pca.points)
    points = "".join(
        f'<use {legend[entry[i]].use} transform="translate({x / 10:g} {y / 10:g})"/>' for i, (x, y) in enumerate(shown)
    )
    marks = "".join(f'<path id="mark{i}" d="{d}" transform="scale({scale:g})"/>' for i, d in enumerate(_MARKS))
    label = f"Map of {note} by the principal components of their features"
    return (
        '<figure class="panel map" id="map"><div class="map-bar">'
        f'{_switch(found)}<span class="soft">{note}</span></div>'
        f'<div class="map-stage"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'<defs>{marks}</defs>{_axes(found)}<g class="points">{points}</g>'
        '<circle class="ring" r="9" visibility="hidden"/></svg>'
        f'<div class="map-tip" hidden><div class="map-crop"><img src="{small.uri}" alt=""></div>'
        f"<b></b><span></span></div></div>{_buttons(legend)}{_about(found)}"
        '<p class="visually-hidden" aria-live="polite"></p>'
        f'<script type="application/json">{_data(found, small, legend, entry)}</script></figure>'
    )


def _legend(found: EmbeddingMap) -> tuple[list[Slot], list[int]]:
    if found.labels is None:
        n = len(found.images)
        return [Slot("", n, 0, 0)], [0] * n
    return slots(found.labels, found.class_names)


def _switch(found: EmbeddingMap) -> str:
    if found.tsne is None:
        return ""
    return (
        '<div class="switch" role="group" aria-label="Arrangement" hidden>'
        '<button type="button" data-layout="pca" aria-pressed="true">PCA</button>'
        '<button type="button" data-layout="tsne" aria-pressed="false">t-SNE</button></div>'
    )


def _axes(found: EmbeddingMap) -> str:
    first, second = (f"{100 * share:.1f} % of the variance" for share in found.explained)
    return (
        f'<g class="axes"><text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">component 1: {first}</text>'
        f'<text transform="translate(14 {HEIGHT - 26}) rotate(-90)">component 2: {second}</text></g>'
    )


def _buttons(legend: list[Slot]) -> str:
    if len(legend) == 1 and not legend[0].name:
        return ""
    items = "".join(
        f'<button type="button" data-slot="{i}" aria-pressed="true" disabled><svg viewBox="-6 -6 12 12" '
        f'aria-hidden="true"><use {slot.use}/></svg>{escape(slot.name)} <small>{slot.images:,}</small></button>'
        for i, slot in enumerate(legend)
    )
    every = '<button type="button" data-every aria-pressed="true" hidden>all</button>' if len(legend) > 2 else ""
    words = "Classes; press one to hide or show its images"
    return f'<div class="legend" role="group" aria-label="{words}">{items}{every}</div>'


def _about(found: EmbeddingMap) -> str:
    """What the pictures can and cannot tell."""
    share = 100 * sum(found.explained)
    others = len(found.images) - 1
    near = f"nearest images ({min(KEPT, others)} each)"
    chance = f"{100 * min(KEPT, others) / others:.3g} % would be by chance"
    words = (
        f"PCA is a shadow of the features: straight lines stay straight, and the two axes hold {share:.0f} % of the "
        f"variance. Groups that lie apart here are apart; groups that overlap may be apart in the other "
        f"{100 - share:.0f} %. Of the {near}, {100 * found.pca.kept:.0f} % are the nearest on this picture too; "
        f"{chance}."
    )
    text = f'<p class="note" data-about="pca">{escape(words)}</p>'
    if found.tsne is None:
        return text
    words = (
        f"t-SNE keeps neighbours together and gives up the rest: sizes of groups, gaps between them and directions "
        f"mean nothing, and it can show groups where there are none. Of the {near}, {100 * found.tsne.kept:.0f} % are "
        f"the nearest on this picture too; {chance}. Perplexity {found.perplexity:.3g}, from the first principal "
        "components."
    )
    return f'{text}<p class="note" data-about="tsne" hidden>{escape(words)}</p>'


def _data(found: EmbeddingMap, small: Sheet, legend: list[Slot], entry: list[int]) -> str:
    """What the script needs; coordinates in tenths of the picture's units."""
    names = found.names
    content = {
        "pca": _fit(found.pca.points),
        "tsne": _fit(found.tsne.points) if found.tsne else None,
        "entry": entry,
        "entries": len(legend),
        "words": [_words(found, i) for i in range(len(found.images))],
        "files": [name[-LONGEST_NAME:] for name in names] if names else None,
        "split": f"{found.split} image",
        "sheet": {"columns": small.columns, "cell": small.cell, "side": small.side},
    }
    return script_json(content)


def _words(found: EmbeddingMap, i: int) -> str:
    if found.labels is None:
        return ""
    return class_name(found.labels[i], found.class_names) if found.labels[i] >= 0 else "no label"


def script_json(content: object) -> str:
    """JSON that is safe inside a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _fit(points: Array) -> list[tuple[int, int]]:
    """(n, 2) as tenths of the picture's units, both axes on one scale, upwards as in a plot."""
    low, high = points.min(axis=0), points.max(axis=0)
    width, height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    span = max(float(high[0] - low[0]) / width, float(high[1] - low[1]) / height) or 1.0
    x, y = ((points - (low + high) / 2) / span).T
    return [(round(10 * (WIDTH / 2 + a)), round(10 * (HEIGHT / 2 - b))) for a, b in zip(x, y, strict=True)]
