"""``clf verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clf.commands import completion
from clf.commands.output import print_json, print_table, print_text
from clf.errors import ConfigError

if TYPE_CHECKING:
    from clf.verify import Report

app = typer.Typer(
    no_args_is_help=True,
    help="Prove on this machine, for any plugin: exact resume, several ranks that equal one process, faithful export. "
    "Exit status: 0 it holds, 1 it does not, 2 a mistake in what was given.",
)

Plugin = Annotated[
    str,
    typer.Option(
        "--plugin",
        metavar="NAME",
        help="A plugin's name, or a file such as ./mine.py",
        autocompletion=completion.plugins,
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings over the tiny default run.",
        show_default=False,
        autocompletion=completion.settings,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FAILED = 1


@app.command()
def resume(
    plugin: Plugin,
    words: Words = None,
    kills: Annotated[int, typer.Option(min=1, max=1000, help="How often the run is killed.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the steps and moments of the kills.")] = 0,
    json: Json = False,
) -> None:
    """Kill a run at random steps, resume it each time, and compare its bits with those of one left alone."""
    from clf import config, verify

    _tell(verify.resume(plugin, config.parse_overrides(words or []).values, kills, seed), json)


@app.command()
def ranks(
    plugin: Plugin,
    words: Words = None,
    counts: Annotated[str, typer.Option("--ranks", metavar="N,N", help="Numbers of ranks to compare.")] = "2,4",
    json: Json = False,
) -> None:
    """Train with one process and with several ranks in float64, and compare weights, optimizers and metrics."""
    from clf import config, verify

    _tell(verify.ranks(plugin, config.parse_overrides(words or []).values, _numbers(counts)), json)


@app.command()
def export(plugin: Plugin, words: Words = None, json: Json = False) -> None:
    """Train a few steps, export the encoder, and compare onnxruntime's embeddings with the trainer's."""
    from clf import config, verify

    _tell(verify.export(plugin, config.parse_overrides(words or []).values), json)


def _numbers(text: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--ranks {text} is no list of numbers: give, for example, --ranks 2,4")
    return [int(part) for part in parts]


def _tell(report: Report, json: bool) -> None:
    if json:
        differences = {"holds": report.holds, "differences": report.differences}
        print_json({"claim": report.claim, "facts": dict(report.facts), **differences})
    else:
        print_table(["fact", "value"], report.facts)
        print_text("\n".join([f"{'Holds' if report.holds else 'Does not hold'}: {report.claim}.", *report.differences]))
    raise typer.Exit(0 if report.holds else FAILED)
