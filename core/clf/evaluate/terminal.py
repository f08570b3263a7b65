"""An evaluation on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clf.evaluate.results import PROTOCOL_NAMES, Evaluation, Representation, evaluator_key
from clf.spread import Spread

Cells = tuple[list[str], list[list[str]]]
"""Header and rows as text, the trained encoder last."""
CLASSES_SHOWN = 20
"""Classes in the table of classes, at most; those of lowest accuracy come first."""


def render(evaluation: Evaluation, classes: bool = False) -> RenderableType:
    """The tables of one evaluation, with its notes and protocol, for ``rich.print``.

    Args:
        classes: the accuracy of each class too.
    """
    title = Text(f"{evaluation.run} on {evaluation.data}, step {evaluation.step}", style="bold")
    parts: list[RenderableType] = [title, format_table(evaluation)]
    for name, cells in further_cells(evaluation).items():
        parts += [Text(name, style="bold"), _table(cells)]
    if classes and class_cells(evaluation)[1]:
        parts += [Text(_class_title(evaluation), style="bold"), _table(class_cells(evaluation), highlight=False)]
    if accuracy_cells(evaluation)[1]:
        parts.append(_table(label_free_cells(evaluation)))
    if evaluation.verdict:
        parts.append(Text(evaluation.verdict, style="bold red"))
    parts += [Text(note, style="yellow") for note in [*evaluation.notes, *_kept(evaluation)]]
    protocol = Table.grid(padding=(0, 2))
    protocol.add_column(style="dim", no_wrap=True)
    protocol.add_column(style="dim")
    for name, words in evaluation.protocol.items():
        protocol.add_row(Text(name), Text(words))
    return Group(*parts, Text(), protocol)


def format_table(evaluation: Evaluation) -> Table:
    """Accuracies in percent, one row for each representation; without labels the label-free figures."""
    scored = accuracy_cells(evaluation)
    return _table(scored if scored[1] else label_free_cells(evaluation))


def accuracy_cells(evaluation: Evaluation) -> Cells:
    """Top-1 in percent; no rows where accuracy could not be measured."""
    rows = [row for row in evaluation.representations if row.knn]
    ks = [f"k-NN {score.k}" for score in rows[0].knn] if rows else []
    return ["representation", "D", *ks, "linear"], [_accuracies(row) for row in rows]


def further_cells(evaluation: Evaluation) -> dict[str, Cells]:
    """By title, the tables of few labels, few shots, retrieval, fine-tuning and evaluators that have rows."""
    tables = {
        "few labels: linear probe, ± standard deviation over subsets": few_label_cells(evaluation),
        "few-shot: nearest class mean, ± 95 % interval of the mean": few_shot_cells(evaluation),
        "retrieval: recall@k (R) and precision@k (P)": retrieval_cells(evaluation),
        "fine-tuning on all labels": fine_tuned_cells(evaluation),
    }
    names = dict.fromkeys(name for row in evaluation.representations for name in row.extra)
    tables |= {evaluator_key(name): evaluator_cells(evaluation, name) for name in names}
    return {name: cells for name, cells in tables.items() if cells[1]}


def few_label_cells(evaluation: Evaluation) -> Cells:
    """Top-1 in percent by share of the labels."""
    rows = [row for row in evaluation.representations if row.few_labels]
    heads = [f"{found.share:.0%}, {found.images} labels" for found in rows[0].few_labels] if rows else []
    cells = [
        [row.name, *(Spread(found.accuracy, found.std, found.repeats).text() for found in row.few_labels)]
        for row in rows
    ]
    return ["representation", *heads], cells


def few_shot_cells(evaluation: Evaluation) -> Cells:
    """Top-1 in percent by shots."""
    rows = [row for row in evaluation.representations if row.few_shot]
    heads = [f"{found.ways}-way {found.shots}-shot" for found in rows[0].few_shot] if rows else []
    cells = [
        [row.name, *(f"{100 * found.accuracy:.1f} ± {100 * found.interval:.1f}" for found in row.few_shot)]
        for row in rows
    ]
    return ["representation", *heads], cells


def retrieval_cells(evaluation: Evaluation) -> Cells:
    """In percent; precision@1 is recall@1."""
    heads, cells = [], []
    for row in evaluation.representations:
        if row.retrieval is None:
            continue
        figures = {"mAP": row.retrieval.mean_average_precision}
        figures |= {f"R@{k}": value for k, value in row.retrieval.recall.items()}
        figures |= {f"P@{k}": value for k, value in row.retrieval.precision.items() if k != "1"}
        heads = list(figures)
        cells.append([row.name, *(f"{100 * value:.1f}" for value in figures.values())])
    return ["representation", *heads], cells


def fine_tuned_cells(evaluation: Evaluation) -> Cells:
    """Top-1 in percent after the last epoch."""
    return ["representation", "top-1", "epochs", "seconds"], [
        [row.name, f"{100 * found.accuracy:.2f}", str(found.epochs), f"{found.seconds:.0f}"]
        for row in evaluation.representations
        if (found := row.fine_tuned)
    ]


def evaluator_cells(evaluation: Evaluation, name: str) -> Cells:
    """What an evaluator of a plugin found, as it returned it."""
    rows = [row for row in evaluation.representations if name in row.extra]
    heads = list(dict.fromkeys(figure for row in rows for figure in row.extra[name]))
    cells = [
        [row.name, *(f"{row.extra[name][head]:.4g}" if head in row.extra[name] else "" for head in heads)]
        for row in rows
    ]
    return ["representation", *heads], cells


def class_cells(evaluation: Evaluation) -> Cells:
    """For each class, lowest linear accuracy of the trained encoder first: its test images, the linear probe's share of
    right answers by representation, and the k-NN's of the trained encoder.
    """
    rows = [row for row in evaluation.representations if row.per_class]
    if not rows:
        return [], []
    heads = [row.name.removesuffix(" encoder") for row in rows]
    order = sorted(range(len(rows[-1].per_class)), key=lambda i: rows[-1].per_class[i].linear)
    cells = []
    for i in order[:CLASSES_SHOWN]:
        last = rows[-1].per_class[i]
        figures = [f"{100 * value:.1f}" for value in [*(row.per_class[i].linear for row in rows), last.knn]]
        cells.append([last.name, str(last.images), *figures])
    return ["class", "images", *heads, f"{heads[-1]}, k-NN"], cells


def label_free_cells(evaluation: Evaluation) -> Cells:
    """RankMe, spread, alignment and uniformity of the encoders."""
    rows = [row for row in evaluation.representations if row.diagnostics]
    return ["representation", "D", "RankMe", "spread", "alignment", "uniformity"], [_label_free(row) for row in rows]


def _class_title(evaluation: Evaluation) -> str:
    count = len(evaluation.representations[-1].per_class)
    shown = f"the {CLASSES_SHOWN} of {count} classes of lowest accuracy" if count > CLASSES_SHOWN else "classes"
    return f"{shown}: share of their test images recognised, by the linear probe and by k-NN"


def _kept(evaluation: Evaluation) -> list[str]:
    """A sentence for each earlier evaluation that figures were kept of."""
    earlier: dict[str, list[str]] = {}
    for name, time in evaluation.measured.items():
        if time < evaluation.created:
            earlier.setdefault(time, []).append(PROTOCOL_NAMES.get(name, name))
    return [
        f"Of an earlier evaluation of this checkpoint, {time}: {', '.join(names)}." for time, names in earlier.items()
    ]


def _accuracies(row: Representation) -> list[str]:
    linear = f"{100 * row.linear.accuracy:.2f}" if row.linear else ""
    return [row.name, str(row.dim), *(f"{100 * score.accuracy:.2f}" for score in row.knn), linear]


def _label_free(row: Representation) -> list[str]:
    found = row.diagnostics
    assert found is not None
    aligned = "" if found.alignment is None else f"{found.alignment:.3f}"
    figures = [f"{found.rank_me:.1f}", f"{found.spread:.3f}", aligned, f"{found.uniformity:.3f}"]
    return [row.name, str(row.dim), *figures]


def _table(cells: Cells, highlight: bool = True) -> Table:
    header, rows = cells
    table = Table(header_style="bold")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left", no_wrap=True)
    for i, row in enumerate(rows):
        table.add_row(*map(Text, row), style="bold green" if highlight and i == len(rows) - 1 else None)
    return table
