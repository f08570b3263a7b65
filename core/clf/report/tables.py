"""What ``clf evaluate`` measured, as tables with the protocol in a fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from clf.evaluate.results import NO_GAIN, Evaluation
from clf.evaluate.terminal import Cells, accuracy_cells, further_cells, label_free_cells


def evaluations(found: Mapping[str, Evaluation]) -> str:
    return "".join(_evaluation(entry) for entry in found.values())


def _evaluation(evaluation: Evaluation) -> str:
    wanted: list[tuple[str, Cells]] = [
        ("Top-1 accuracy", accuracy_cells(evaluation)),
        *((title[:1].upper() + title[1:], cells) for title, cells in further_cells(evaluation).items()),
        ("Without labels", label_free_cells(evaluation)),
    ]
    panels = "".join(
        f'<div class="panel"><div class="scroll">{table(*cells, title)}</div></div>'
        for title, cells in wanted
        if cells[1]
    )
    collapsed = f'<p class="verdict bad">{escape(evaluation.verdict)}</p>' if evaluation.verdict else ""
    told = [note for note in evaluation.notes if not note.startswith(NO_GAIN)]  # the verdicts of the page say it
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in told)
    words = {
        "measured": f"{evaluation.created} with clf {evaluation.clf_version}, in {evaluation.seconds:.0f} s on "
        f"{evaluation.device}",
        **evaluation.protocol,
        **{f"{name.replace('_', ' ')}, when": time for name, time in evaluation.measured.items()},
    }
    protocol = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in words.items())
    images = f"{evaluation.train_images:,} training and {evaluation.test_images:,} test images"
    return (
        f"<h3>{escape(evaluation.data)}: {images}, checkpoint of step {evaluation.step:,}</h3>{collapsed}{notes}"
        f'<div class="tables">{panels}</div>'
        f"<details><summary>How this was measured</summary><dl>{protocol}</dl></details>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """The last row, the trained encoder, stands out."""
    classes = ["", *[' class="number"'] * (len(header) - 1)]
    top = "".join(f'<th scope="col"{c}>{escape(cell)}</th>' for c, cell in zip(classes, header, strict=True))
    body = "".join(
        ('<tr class="best">' if i == len(rows) - 1 else "<tr>")
        + f'<th scope="row">{escape(row[0])}</th>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in row[1:])
        + "</tr>"
        for i, row in enumerate(rows)
    )
    words = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{words}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
