"""Which classes a representation tells apart: accuracy of each, and which are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from clf.evaluate.results import Evaluation
from clf.report.scatter import class_name

CONFUSIONS = 8
MOST_ROWS = 24
"""Classes in the open; of more, the best and the worst twelve."""


@dataclass(frozen=True)
class Confusion:
    """Images of one class that k-NN took for another."""

    true: str
    taken_for: str
    count: int
    images: int
    """Of the true class."""


@dataclass(frozen=True)
class Judged:
    """How k-NN judged some held-out images."""

    images: int
    voters: int
    bank: int
    recall: Sequence[tuple[str, int, float]]
    """Name, images and share of right answers of each class."""
    confusions: Sequence[Confusion]


def judge(labels: Sequence[int], guesses: Sequence[int], names: Sequence[str], voters: int, bank: int) -> Judged:
    """Counts the answers (n,) of a classifier against the labels (n,), all of them known."""
    images = Counter(labels)
    pairs = Counter(zip(labels, guesses, strict=True))
    wrong = [(pair, count) for pair, count in pairs.items() if pair[0] != pair[1] and count > 1]
    wrong.sort(key=lambda item: (-item[1], item[0]))
    return Judged(
        images=len(labels),
        voters=min(voters, bank),
        bank=bank,
        recall=[(class_name(c, names), images[c], pairs[c, c] / images[c]) for c in sorted(images)],
        confusions=[
            Confusion(class_name(a, names), class_name(b, names), count, images[a])
            for (a, b), count in wrong[:CONFUSIONS]
        ],
    )


@dataclass(frozen=True)
class Bar:
    """One class."""

    name: str
    images: int
    trained: float
    random: float | None = None
    linear: float | None = None


def bars(evaluation: Evaluation | None, judged: Judged | None) -> list[Bar]:
    """The classes, best first: as ``clf evaluate`` measured them, else as the report's own k-NN did."""
    scores = evaluation.representations[-1].per_class if evaluation else ()
    if evaluation and scores:
        before = {
            score.name: score.knn
            for row in evaluation.representations[:-1]
            if row.name == "random encoder"
            for score in row.per_class
        }
        found = [Bar(s.name, s.images, s.knn, before.get(s.name), s.linear) for s in scores]
    else:
        found = [Bar(name, images, share) for name, images, share in (judged.recall if judged else ())]
    return sorted(found, key=lambda bar: -bar.trained)


def classes(evaluation: Evaluation | None, judged: Judged | None) -> str:
    """Bars of each class and the most frequent confusions; nothing without labels."""
    found = bars(evaluation, judged)
    if len(found) < 2:
        return ""
    half = MOST_ROWS // 2
    table = _table(found) if len(found) <= MOST_ROWS else _table([*found[:half], *found[-half:]])
    rest = found[half:-half] if len(found) > MOST_ROWS else []
    folded = f"<details><summary>{len(rest)} classes between them</summary>{_table(rest)}</details>" if rest else ""
    source = (
        "k-NN and linear probe of clf evaluate, on all test images"
        if any(bar.linear is not None for bar in found)
        else f"k-NN with {judged.voters} of {judged.bank:,} training images, on {judged.images:,} test images; "
        "clf evaluate measures on all of them, and beside a random encoder"
        if judged
        else ""
    )
    tick = " The tick on a bar is the random encoder." if any(bar.random is not None for bar in found) else ""
    note = f"Share of the test images of each class that get their class, in percent ({source}).{tick}"
    return f'<p class="note">{escape(note)}</p>{table}{folded}{confusions(judged)}'


def _table(found: Sequence[Bar]) -> str:
    against = any(bar.random is not None for bar in found)
    linear = any(bar.linear is not None for bar in found)
    head = ["class", "", "k-NN", *(["random encoder", "gain"] if against else []), *(["linear"] if linear else [])]
    top = "".join(f'<th scope="col"{_number(i)}>{escape(cell)}</th>' for i, cell in enumerate(head) if i != 1)
    top = top.replace("</th>", '</th><td class="bar" aria-hidden="true"></td>', 1)
    body = "".join(_row(bar, against, linear) for bar in found)
    table = f'<table class="bars"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="panel"><div class="scroll">{table}</div></div>'


def _row(bar: Bar, against: bool, linear: bool) -> str:
    cells = [_percent(bar.trained)]
    if against:
        gain = "" if bar.random is None else f"{100 * (bar.trained - bar.random):+.1f}"
        cells += [_percent(bar.random), gain]
    if linear:
        cells.append(_percent(bar.linear))
    mark = "" if bar.random is None else f'<i style="left: {100 * bar.random:.2f}%"></i>'
    return (
        f'<tr><th scope="row">{escape(bar.name)} <small>{bar.images:,}</small></th>'
        f'<td class="bar" aria-hidden="true"><div><b style="width: {100 * bar.trained:.2f}%"></b>{mark}</div></td>'
        + "".join(f'<td class="number">{cell}</td>' for cell in cells)
        + "</tr>"
    )


def confusions(judged: Judged | None) -> str:
    """The most frequent mistakes in words."""
    if judged is None or not judged.confusions:
        return ""
    rows = "".join(
        f'<tr><td>{escape(c.true)}</td><td>{escape(c.taken_for)}</td><td class="number">{c.count} of {c.images:,}</td>'
        f'<td class="number">{_percent(c.count / c.images)}</td></tr>'
        for c in judged.confusions
    )
    words = (
        f"By k-NN with {judged.voters} of {judged.bank:,} training images, on the {judged.images:,} labelled test "
        "images of the map."
    )
    head = '<th scope="col">images of</th><th scope="col">taken for</th><th scope="col" class="number">images</th>'
    return (
        f'<h3>Most frequent confusions</h3><p class="note">{words}</p><div class="panel"><div class="scroll"><table>'
        f'<thead><tr>{head}<th scope="col" class="number">percent</th></tr></thead><tbody>{rows}</tbody></table>'
        "</div></div>"
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _number(i: int) -> str:
    return ' class="number"' if i else ""
