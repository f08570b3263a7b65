"""``clf plugins check``."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from clf.commands import completion
from clf.commands.output import print_json

if TYPE_CHECKING:
    from clf.checks import Check, Outcome
    from clf.testing.suite import Conformance

FAILED = 1
COLOURS = {"passed": "green", "failed": "bold red", "skipped": "yellow", "not run": "yellow"}
INDENT = " " * 9


def check(
    name: Annotated[
        str, typer.Argument(help="A plugin's name, or the path of a Python file.", autocompletion=completion.plugins)
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings over the tiny trainings.",
            show_default=False,
            autocompletion=completion.settings,
        ),
    ] = None,
    only: Annotated[
        str,
        typer.Option("--only", metavar="CHECK,...", help="Only these checks.", autocompletion=completion.checks),
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check that a plugin keeps the contract: what is wrong, why it matters, and how to mend it.

    Exit status: 0 it conforms, 1 it does not, 2 a mistake in what was given.
    """
    from clf import config
    from clf.testing.suite import CHECKS, run_checks

    chosen = [each for each in only.split(",") if each.strip()]
    values = config.parse_overrides(words or []).values
    if json:
        found = run_checks(name, chosen, values)
        print_json(found.as_dict())
    else:
        lines = _Lines(max(len(each.name) for each in CHECKS))
        found = run_checks(name, chosen, values, on_start=lines.start, on_outcome=lines.outcome)
        lines.summary(found)
    raise typer.Exit(0 if found.conforms else FAILED)


class _Lines:
    """One line for each check; on a terminal it is there while the check runs."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)  # not that of the plugin

    def start(self, check: Check[Any]) -> None:
        if self._console.is_terminal:
            self._console.print(f"{'':{len(INDENT)}}{check.name} ...", end="\r", style="dim")

    def outcome(self, outcome: Outcome) -> None:
        name, seconds = outcome.check.name.ljust(self._width), f"{outcome.seconds:5.1f} s"
        text = outcome.text if outcome.state != "failed" else ""
        state = outcome.state.ljust(len(INDENT))
        line = Text.assemble((state, COLOURS[outcome.state]), f"{name} {seconds}  {text}".rstrip())
        if self._console.is_terminal:
            self._console.file.write("\x1b[K")  # the rest of the line that was there while it ran
        self._console.print(line)
        if outcome.state == "failed":
            for part in outcome.explain().splitlines():
                self._console.print(Text(INDENT + part))

    def summary(self, found: Conformance) -> None:
        counts = Counter[str](outcome.state for outcome in found.outcomes)
        told = ", ".join(f"{counts[state]} {state}" for state in COLOURS if counts[state])
        verdict = ("conforms", "bold green") if found.conforms else ("does not conform", "bold red")
        what = f"{found.plugin} ({found.distribution} {found.version}".rstrip() + ") "
        faults = ", ".join(outcome.check.name for outcome in found.of("failed"))
        end = f": {told}, in {found.seconds:.1f} s" + (f". Failed: {faults}" if faults else "")
        self._console.print(Text.assemble(what, verdict, end))
