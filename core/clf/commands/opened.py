"""The run that a command is about, with what a person has to know of its plugin's source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from clf.runs import Run


def opened(name: str, runs_dir: str) -> Run:
    """A run that is about to be loaded; says on standard error when the user's plugin file is not what it was.

    Raises:
        RunError: there is no such run, or its manifest is damaged.
    """
    from clf import kept
    from clf.runs import open_run

    run = open_run(name, runs_dir)
    if (said := kept.notice(run)) is not None:
        typer.echo(said, err=True)
    return run
