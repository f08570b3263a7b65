"""``clf runs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clf.commands.evaluate import RunName, RunsFolder
from clf.commands.output import print_json, print_table
from clf.errors import ClfError

if TYPE_CHECKING:
    from clf.runs import Run

app = typer.Typer(no_args_is_help=True, help="List runs, and show one of them.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
COLUMNS = ("name", "state", "plugin", "data", "step", "loss", "knn", "created")


@app.command("list")
def list_(runs_dir: RunsFolder = "runs", json: Json = False) -> None:
    """List all runs, the oldest first, with their last figures."""
    from clf.runs import list_runs

    rows = [_summary(run) for run in list_runs(runs_dir)]
    if json:
        print_json(rows)
    elif rows:
        print_table(COLUMNS, [[row.get(column) for column in COLUMNS] for row in rows])
    else:
        typer.echo(f"There are no runs in {runs_dir} yet. Start one: clf train --plugin simclr", err=True)


@app.command()
def show(run: RunName, runs_dir: RunsFolder = "runs", json: Json = False) -> None:
    """Show a run: what it was trained with and on, how far it came, and its last figures."""
    from clf.runs import open_run

    found = open_run(run, runs_dir)
    manifest, last = found.manifest(), _last(found)
    if json:
        config = found.config().model_dump(mode="json")
        print_json({"name": found.name, "path": str(found.path), "manifest": manifest, "config": config, "last": last})
        return
    facts = {"path": str(found.path), **_dotted(manifest), **_dotted(last, "last.")}
    print_table(["key", "value"], list(facts.items()))


def _summary(run: Run) -> dict[str, Any]:
    """One row of the list; a run that cannot be read is a row too."""
    row: dict[str, Any] = {"name": run.name, "path": str(run.path)}
    try:
        manifest, config, last = run.manifest(), run.config(), _last(run)
    except ClfError as error:
        return {**row, "state": "damaged", "reason": str(error)}
    step = manifest.get("step", last.get("step", 0))
    figures = {"step": step, "loss": last.get("loss"), "knn": last.get("knn"), "created": manifest.get("created")}
    return {**row, "state": manifest.get("state"), "plugin": config.plugin, "data": config.data.name, **figures}


def _last(run: Run) -> dict[str, Any]:
    """The newest value of each recorded scalar."""
    merged: dict[str, Any] = {}
    for record in run.metrics():
        merged |= record
    merged.pop("kind", None)
    return merged


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
