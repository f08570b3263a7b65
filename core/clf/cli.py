"""The command line: ``clf COMMAND ...``.

Importing this module, ``clf --help`` and ``clf plugins list`` load no torch: each command imports what it runs when it
runs. Commands of other source roots and distributions come by the entry-point group ``clf.commands``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

import clf
from clf import extras
from clf.commands import compare, doctor, evaluate, external, plugins, quickstart, runs, study, train, verify
from clf.commands.shell_line import asked
from clf.entrypoints import damage_survived
from clf.errors import ClfError, PluginError
from clf.signals import Stopped

MARKUP: external.Markup = "markdown"
USER_ERROR = 2


class Commands(TyperGroup):
    """The commands of this module, then those that came by entry point; a name of ours cannot be taken."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return own + [name for name in external.names() if name not in own]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or external.command(cmd_name, MARKUP)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; what Ctrl-C ended is said, and typer exits with 130."""
        try:
            return super().invoke(ctx)
        except Stopped as stop:
            with suppress(OSError):  # the exit status matters more than a reader that has gone away
                typer.echo(f"{_rank()}{stop}", err=True)
            raise


app = typer.Typer(
    name="clf",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
    pretty_exceptions_enable=False,
    help="From unlabelled images to a search engine over them: train, evaluate, export, index, serve.",
)
app.command()(quickstart.quickstart)
app.command()(train.train)
app.command()(doctor.doctor)
app.command()(evaluate.evaluate)
app.command()(evaluate.export)
app.command()(evaluate.report)
app.command()(compare.compare)
app.command()(study.study)
app.command()(study.board)
app.add_typer(runs.app, name="runs")
app.add_typer(plugins.app, name="plugins")
app.add_typer(verify.app, name="verify")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"clf {clf.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    return


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits: 0 done, 2 the user's mistake in one paragraph, 130 interrupted.

    Any other exception is a bug and keeps its traceback.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = typer.main.get_command(app)
    try:
        with asked(), damage_survived():
            command(args=words, prog_name="clf")
    except ClfError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        missing = extras.explain(error, " ".join(["clf", *words[:1]]))
        if missing is None:
            raise
        _fail(missing)
    finally:
        _flush()
    sys.exit(0)


def _fail(error: ClfError) -> NoReturn:
    if isinstance(error, PluginError) and error.details:
        with suppress(OSError):
            typer.echo(error.details, err=True, nl=False)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble((f"{_rank()}error: ", "bold red"), str(error)))
    sys.exit(USER_ERROR)


def _rank() -> str:
    """Which of several processes speaks."""
    return f"rank {os.environ.get('RANK', '?')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""


def _flush() -> None:
    """A reader that has gone away (``clf runs list | head``) is no reason to complain at exit."""
    if sys.stdout is None:  # started without one: clf ... >&-
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
