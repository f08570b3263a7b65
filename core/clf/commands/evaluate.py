"""``clf evaluate``, ``clf export`` and ``clf report``: what is done with a finished run."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from clf.commands import completion
from clf.commands.opened import opened
from clf.commands.output import print_json, print_table, print_text
from clf.errors import ExportError, PluginError

RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run folder, or its name inside --runs.", autocompletion=completion.runs),
]
RunsFolder = Annotated[str, typer.Option("--runs", metavar="FOLDER", help="The folder that holds all runs.")]
WIDE = 200
"""Columns of a table that goes to a file or a pipe."""


class Layout(StrEnum):
    onnx = "onnx"
    triton = "triton"
    triton_python = "triton-python"


def evaluate(
    run: RunName,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="data.KEY=VALUE",
            help="Settings of the data.",
            show_default=False,
            autocompletion=completion.data_settings,
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Another data set, named as data.name.", autocompletion=completion.sources),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also 1 % and 10 % of the labels, few shots, retrieval; and each class.")
    ] = False,
    fine_tune: Annotated[
        bool, typer.Option("--fine-tune", help="Also train the whole network on the labels; slow, as training is.")
    ] = False,
    fine_tune_epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Epochs of fine-tuning; includes --fine-tune. [default: 20]"),
    ] = None,
    evaluator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="Also what evaluators of plugins measure: a plugin, PLUGIN:EVALUATOR, or ./file.py.",
            show_default=False,
            autocompletion=completion.evaluators,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    runs_dir: RunsFolder = "runs",
) -> None:
    """Measure a run's encoder beside an untrained one and raw pixels: k-NN and a linear probe where labels exist."""
    from clf.settings import data_section

    found = opened(run, runs_dir)
    section = data_section(found.config(), on, words or [])
    from clf.evaluate import evaluate_run, render
    from clf.evaluate.fine_tune import EPOCHS
    from clf.evaluate.plugged import Evaluators

    evaluators = Evaluators(evaluator or [])
    epochs = fine_tune_epochs or (EPOCHS if fine_tune else None)
    with Console(stderr=True).status("") as status:
        evaluation = evaluate_run(
            found,
            section,
            everything=everything,
            fine_tune_epochs=epochs,
            evaluators=evaluators if evaluator else None,
            say=lambda what: status.update(escape(what)),
        )
    if as_json:
        print_json(evaluation.model_dump(mode="json"))
    else:
        console = Console() if sys.stdout.isatty() else Console(width=WIDE)
        console.print(render(evaluation, classes=everything))
    if evaluators.complaints:
        raise PluginError(" ".join([*evaluators.complaints, "All else was measured and written."]))


def export(
    run: RunName,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where to write; default: RUN/model, or RUN/triton."),
    ] = None,
    variants: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Also write the graph in fewer bits, and measure what it keeps: fp16 (for GPUs), int8 (for CPUs), "
            "both as fp16,int8 or all.",
            show_default=False,
        ),
    ] = "",
    layout: Annotated[
        Layout,
        typer.Option(
            "--format",
            help="What the folder is for: onnx for clf serve, triton a model repository for Triton's onnxruntime "
            "backend, triton-python one for its Python backend, on the CPU.",
        ),
    ] = Layout.onnx,
    runs_dir: RunsFolder = "runs",
) -> None:
    """Export a run's encoder to ONNX, and prove that it gives the trainer's own embeddings."""
    from clf.manifest import variant_names

    names = variant_names(variants)
    found = opened(run, runs_dir)
    from clf import export as exporting
    from clf.variants import COLUMNS, doubts, rows

    with Console(stderr=True).status("") as status:
        exported = exporting.export(found, out, names, lambda what: status.update(escape(what)), layout.value)
    folder, manifest = exported.folder, exported.manifest
    print_text(f"Exported {folder}")
    if manifest.variants:
        print_table(COLUMNS, rows(manifest, exported.file.stat().st_size))
        devices = {variant.speed_device for variant in manifest.variants.values()}
        print_text(f"Each image alone, against encoder.onnx; speed on {', '.join(devices)}")
    for name, variant in manifest.variants.items():
        if doubt := doubts(name, variant):
            print_text(f"Warning: {doubt}")
    if gone := [name for name in exported.dropped if name not in names]:
        print_text(f"The earlier export had {' and '.join(gone)} too; to have that again: --variants {','.join(gone)}")
    if layout is Layout.onnx:
        print_text(f"Next: clf index {folder} IMAGES -o GALLERY   clf serve {folder}")
    else:
        own = exported.file.parent.parent
        needed = [path / "requirements.txt" for path in (own.with_name(f"{own.name}_decode"), own)]
        print_text(
            f"Next: pip install {' '.join(f'-r {path}' for path in needed if path.exists())}   # for Triton's Python"
        )
        print_text(f"      tritonserver --model-repository {folder}")
    if exported.refused:
        raise ExportError(f"{folder} was written without " + "; ".join(map(str, exported.refused)))


def report(run: RunName, runs_dir: RunsFolder = "runs") -> None:
    """Write a run's report: curves, neighbours of a few queries and verdicts, as one HTML file."""

    found = opened(run, runs_dir)
    from clf.report import write_report

    print_text(f"Wrote {write_report(found)}")
