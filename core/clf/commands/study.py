"""``clf study`` and ``clf board``: measurements over seeds, and what they say of the papers' claims."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from clf.commands import completion
from clf.commands.output import print_json, print_table, print_text
from clf.commands.train import EXIT_CODE
from clf.errors import ConfigError

if TYPE_CHECKING:
    from clf.study.records import Record
    from clf.study.spec import Cell, Study

UNDONE = 2
"""Exit status when a cell has failed."""


def study(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="The study's YAML, as in configs/studies.", autocompletion=completion.config_files
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of every cell, over the study's own.",
            show_default=False,
            autocompletion=completion.settings,
        ),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(metavar="NAME", help="How large everything is; default: cpu.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Holds a folder for each study and scale.")] = Path(
        "studies"
    ),
    only: Annotated[str, typer.Option(metavar="TEXT", help="Cells with this in the name of their row or column.")] = "",
    seeds: Annotated[str | None, typer.Option(metavar="0,1,...", help="Instead of the study's seeds.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the checkpoints of cells that are done.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the cells and how far they are; train nothing.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print the tables of what is done; train nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the records, or the list, as JSON.")] = False,
) -> None:
    """Run what is missing of a study, and print its tables.

    A study is a table of trainings, each repeated with several seeds and then measured by k-NN and a linear probe.
    Stop it at any time and start it again: it goes on where it was. Start it several times to share the cells between
    processes. Records are in FOLDER/NAME-SCALE/records.jsonl, the tables also in table.md beside it.

    Exit status: 0 done, or what is left is with other processes; 2 a mistake in what was given, or cells have failed;
    75 stopped by SIGTERM, or 130 by Ctrl-C.
    """
    from clf.config import parse_overrides
    from clf.study.records import read_records
    from clf.study.spec import read_study

    wanted = read_study(file, scale)
    of_seeds = wanted if seeds is None else replace(wanted, seeds=_seeds(seeds))
    cells = of_seeds.cells(parse_overrides(words or []).values)
    records = out / str(wanted) / "records.jsonl"
    if list_:
        _list(cells, read_records(records), records.parent / "runs", only, json)
        return
    failed = False if table else _run(wanted, cells, out, only, keep)
    if json:
        print_json([record.model_dump(mode="json") for record in read_records(records)])
    else:
        _print_tables(wanted, read_records(records))
    if failed:
        raise typer.Exit(UNDONE)


def board(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of STUDY-SCALE.jsonl and published.yaml.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The board; default: RESULTS/../RESULTS.md.")
    ] = None,
    studies: Annotated[Path, typer.Option(metavar="FOLDER", help="The studies' YAML files.")] = Path("configs/studies"),
    readmes: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Fill the blocks of FOLDER/*/README.md too.", show_default=False),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 where a text and the records differ.")
    ] = False,
) -> None:
    """Write the board of all results, from records, studies and published figures alone.

    RESULTS holds copies of the studies' records.jsonl, named STUDY-SCALE.jsonl. In a README everything between
    <!-- results: STUDY-SCALE --> and <!-- end of results --> is made anew, and with
    <!-- results: STUDY-SCALE, rows: ROW | ROW --> those rows only are shown.

    Exit status: 0 done, or text and records agree; 1 they differ; 2 a mistake in what was given.
    """
    from clf.study import board as boards

    found = boards.texts(boards.read_board(results, studies), out or results.parent / "RESULTS.md", readmes)
    if not check:
        changed = boards.write(found)
        print_text("\n".join(f"Wrote {path}" for path in changed) or "Nothing has changed")
    elif difference := boards.first_difference(found):
        print_text(f"{difference}\nMake the text anew: clf board {results}, with the same options and without --check")
        raise typer.Exit(1)


def _run(study: Study, cells: list[Cell], out: Path, only: str, keep: bool) -> bool:
    """Whether a cell has failed."""
    from clf.study.runner import Runner

    console = Console(stderr=True)
    runner = Runner(study, out, cells, only=only, keep=keep, console=console)
    try:
        outcome = runner.run()
    except KeyboardInterrupt as stop:
        signal = getattr(stop, "signal_name", "SIGINT")
        typer.echo(f"stopped by {signal}; start the same command again to go on where it was", err=True)
        raise typer.Exit(EXIT_CODE.get(signal, 130)) from None
    if outcome.elsewhere:
        names = "; ".join(outcome.elsewhere)
        typer.echo(
            f"{len(outcome.elsewhere)} cells are being trained by other processes, or wait for such: {names}", err=True
        )
    if outcome.failed:
        typer.echo(f"{len(outcome.failed)} of {outcome.asked} cells have failed:", err=True)
        for cell, why in outcome.failed.items():
            typer.echo(f"  {cell}: {why}", err=True)
    return bool(outcome.failed)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text!r} is not a list of whole numbers, for example 0,1,2") from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text!r}: seeds must be different, and 0 or more")
    return seeds


def _list(cells: list[Cell], records: list[Record], runs: Path, only: str, json: bool) -> None:
    from clf.study.spec import select

    known = {record.key: record for record in records}
    rows = []
    for cell in select(cells, only):
        record = known.get(cell.key)
        scores = record.scores if record else {}
        row = {"row": cell.row, "column": cell.column, "seed": cell.seed, "state": _state(cell, record, runs)}
        row |= {"knn": scores.get("knn"), "linear": scores.get("linear")}
        rows.append({**row, "minutes": round(record.wall_seconds / 60, 1) if record else None, "run": cell.slug})
    if json:
        print_json(rows)
    else:
        print_table(list(rows[0]), [list(row.values()) for row in rows])


def _state(cell: Cell, record: Record | None, runs: Path) -> str:
    """``done``, ``trained`` but not measured, ``begun``, ``failed`` or ``missing``."""
    from clf.runs import Run

    if record is not None:
        return "done"
    run = Run(runs / cell.slug)
    if not (run.path / "manifest.json").is_file():
        return "missing"
    return {"complete": "trained", "failed": "failed"}.get(run.state(), "begun")


def _print_tables(study: Study, records: list[Record]) -> None:
    """Titles between tables that rich draws on a terminal, and plain aligned lines elsewhere."""
    from clf.study.tables import summary, tables

    print_text(f"{study.title}. {summary(study, records)}")
    for each in tables(study, records) if records else ():
        print_text(f"\n{each.title}")
        print_table(["", *each.columns], each.rows)
    sys.stdout.flush()
