"""``clf compare``."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clf.commands import completion
from clf.commands.evaluate import RunsFolder
from clf.commands.output import print_json, print_table, print_text

if TYPE_CHECKING:
    from clf.compare import Comparison
    from clf.compare.tables import TextTable
    from clf.runs import Run


def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, or names inside --runs; 'simclr-*' there means many.",
            autocompletion=completion.runs,
        ),
    ],
    runs_dir: RunsFolder = "runs",
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The group, or a run of it, that the others are compared with; else the first."
        ),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare runs on different data too, and flag it in every output.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with curves too: one file, no network.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: every figure, note and curve.")] = False,
) -> None:
    """Compare runs: mean ± std over seeds, differences in pairs of seeds, and what is not comparable.

    Runs that differ in nothing but their seed are one group. Reads configuration, manifest, records and evaluation of
    each run; trains and measures nothing.
    """
    from clf.compare import compare as compare_runs
    from clf.compare import to_plain, write_page

    found = compare_runs([run for name in names for run in _runs(name, runs_dir)], reference, anyway)
    if html is not None:
        write_page(found, html)
    if json:
        print_json(to_plain(found))
    else:
        _print(found)
    if html is not None:
        typer.echo(f"Wrote {html}", err=json)
    elif not json:
        print_text("With curves: --html FILE   For other programs: --json")


def _runs(name: str, runs_dir: str) -> list[Run]:
    """The runs that a word means: one, or those in the folder that it is a pattern of."""
    from clf.runs import list_runs, open_run

    if any(sign in name for sign in "*?[") and not Path(name).exists():
        matching = [run for run in list_runs(runs_dir) if fnmatchcase(run.name, name)]
        if matching:
            return matching
    return [open_run(name, runs_dir)]


def _print(found: Comparison) -> None:
    from clf.compare import tables

    print_text(tables.headline(found))
    for note in (note for note in found.notes if note.serious):
        print_text(f"! {note.text}")
    for table in tables.score_tables(found):
        _print_table(table)
    for extra in (tables.difference_table(found), tables.settings_table(found), tables.run_table(found)):
        if extra is not None:
            _print_table(extra)
    print()
    for name, words in tables.protocols(found):
        print_text(f"{name}: {words}")
    for note in (note for note in found.notes if not note.serious):
        print_text(f"Note: {note.text}")


def _print_table(table: TextTable) -> None:
    print_text(f"\n{table.title}. {table.note}".rstrip())
    print_table(table.header, table.rows)
    sys.stdout.flush()
