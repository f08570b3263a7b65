"""``clf evaluate``, ``clf export`` and ``clf report``: what is done with a finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from clf.commands.output import print_text

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name inside --runs.")]
RunsFolder = Annotated[str, typer.Option("--runs", metavar="FOLDER", help="The folder that holds all runs.")]
WIDE = 200
"""Columns of a table that goes to a file or a pipe."""


def evaluate(
    run: RunName,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="data.KEY=VALUE", help="Settings of the data.", show_default=False),
    ] = None,
    on: Annotated[str | None, typer.Option(metavar="DATA", help="Another data set, named as data.name.")] = None,
    runs_dir: RunsFolder = "runs",
) -> None:
    """Measure a run's encoder beside an untrained one and raw pixels: k-NN and a linear probe where labels exist."""
    from clf.runs import open_run
    from clf.settings import data_section

    found = open_run(run, runs_dir)
    section = data_section(found.config(), on, words or [])
    from clf.evaluate import evaluate_run, render

    evaluation = evaluate_run(found, section)
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    console.print(render(evaluation))


def export(
    run: RunName,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to write; default: RUN/model.")
    ] = None,
    runs_dir: RunsFolder = "runs",
) -> None:
    """Export a run's encoder to ONNX, and prove that it gives the trainer's own embeddings."""
    from clf.runs import open_run

    found = open_run(run, runs_dir)
    from clf.export import export_run

    folder = export_run(found, out)
    print_text(f"Exported {folder}")
    print_text(f"Next: clf index {folder} IMAGES -o GALLERY   clf serve {folder}")


def report(run: RunName, runs_dir: RunsFolder = "runs") -> None:
    """Write a run's report: curves, neighbours of a few queries and verdicts, as one HTML file."""
    from clf.runs import open_run

    found = open_run(run, runs_dir)
    from clf.report import write_report

    print_text(f"Wrote {write_report(found)}")
