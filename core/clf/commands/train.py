"""``clf train``."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from clf.commands import completion
from clf.commands.options import ConfigFile, PluginName
from clf.commands.output import is_main_rank, print_table, print_text

if TYPE_CHECKING:
    from clf.config import Config, Origins
    from clf.runs import Run

EXIT_CODE = {"SIGINT": 130, "SIGTERM": 75}
"""By the shell's convention for an interrupt; EX_TEMPFAIL, "try again", for a job that was asked to leave."""


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES|KEY=VALUE",
            help="A folder of images, and settings such as train.epochs=20; --print-config lists all keys.",
            show_default=False,
            autocompletion=completion.settings,
        ),
    ] = None,
    plugin: PluginName = None,
    config: ConfigFile = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Continue a run; auto: the newest unfinished one, or with run.name=X that one, started if need be.",
            autocompletion=completion.resumable,
        ),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show every key, its value and where it comes from; do not train.")
    ] = False,
) -> None:
    """Train an encoder on images without labels.

    Settings come from the defaults, the plugin's recommendations, the file and the command line; the last one wins.

    Exit status: 0 done; 2 a mistake in what was given, or training cannot go on; 75 stopped by SIGTERM, as a preempted
    job is, or 130 by Ctrl-C: a checkpoint of the last step is written, run again with --resume.

    Several processes: torchrun --nproc-per-node N $(which clf) train ...
    """
    from clf import config as configuration
    from clf import settings

    layers = [configuration.read_file(config)] if config else []
    layers.append(settings.command_line(words or [], plugin))
    run = settings.find_run(resume, layers) if resume else None
    wanted, origins = settings.resolve(layers, run)
    if print_config:
        _print_config(wanted, origins)
        return
    changed = run is None or any(layer.values for layer in layers)
    _start(wanted if changed else None, run)


def _print_config(config: Config, origins: Origins) -> None:
    """Values are written as they would be typed: ``null``, ``true``, ``[0.2, 1]``."""
    from clf.config import flatten

    rows = [
        [key, value if isinstance(value, str) else json.dumps(value), origins[key]]
        for key, value in flatten(config).items()
    ]
    print_table(["key", "value", "origin"], rows)


def _start(config: Config | None, run: Run | None) -> None:
    from clf import trainer, training

    try:
        if run is not None:
            run = training.resume(run, config)
        else:
            assert config is not None
            run = training.train(config)
    except trainer.Interrupted as stop:
        if is_main_rank():
            with suppress(OSError):  # the exit status matters more than a reader that has gone away
                typer.echo(str(stop), err=True)
        raise typer.Exit(EXIT_CODE.get(stop.signal_name, 130)) from None
    if is_main_rank():
        print_text(f"Next: clf evaluate {run.path}   clf export {run.path}   clf report {run.path}")
