"""An evaluation on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clf.evaluate.results import Evaluation, Representation

Cells = tuple[list[str], list[list[str]]]
"""Header and rows as text, the trained encoder last."""


def render(evaluation: Evaluation) -> RenderableType:
    """The tables of one evaluation, with its notes and protocol, for ``rich.print``."""
    title = Text(f"{evaluation.run} on {evaluation.data}, step {evaluation.step}", style="bold")
    parts: list[RenderableType] = [title, format_table(evaluation)]
    if accuracy_cells(evaluation)[1]:
        parts.append(_table(label_free_cells(evaluation)))
    if evaluation.verdict:
        parts.append(Text(evaluation.verdict, style="bold red"))
    parts += [Text(note, style="yellow") for note in evaluation.notes]
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


def label_free_cells(evaluation: Evaluation) -> Cells:
    """RankMe, spread, alignment and uniformity of the encoders."""
    rows = [row for row in evaluation.representations if row.diagnostics]
    return ["representation", "D", "RankMe", "spread", "alignment", "uniformity"], [_label_free(row) for row in rows]


def _accuracies(row: Representation) -> list[str]:
    linear = f"{100 * row.linear.accuracy:.2f}" if row.linear else ""
    return [row.name, str(row.dim), *(f"{100 * score.accuracy:.2f}" for score in row.knn), linear]


def _label_free(row: Representation) -> list[str]:
    found = row.diagnostics
    assert found is not None
    aligned = "" if found.alignment is None else f"{found.alignment:.3f}"
    figures = [f"{found.rank_me:.1f}", f"{found.spread:.3f}", aligned, f"{found.uniformity:.3f}"]
    return [row.name, str(row.dim), *figures]


def _table(cells: Cells) -> Table:
    header, rows = cells
    table = Table(header_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for i, row in enumerate(rows):
        table.add_row(*row, style="bold green" if i == len(rows) - 1 else None)
    return table
