"""``clf doctor``."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clf.commands import completion
from clf.commands.options import ConfigFile, PluginName
from clf.commands.output import print_json, print_table, print_text

if TYPE_CHECKING:
    from clf.doctor import Diagnosis
    from clf.doctor.advice import Trial

MEANING = {
    "data": "waiting for raw images",
    "copy": "moving them to the device",
    "augment": "drawing the views",
    "forward": "the network and the loss",
    "backward": "their gradients",
    "optimizer": "averaging, clipping, updating the weights",
    "method": "the method's own work around the step",
    "other": "schedules, records, checks",
}


def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES|KEY=VALUE",
            help="The words that clf train would get: a folder of images, and settings such as train.batch_size=512.",
            show_default=False,
            autocompletion=completion.settings,
        ),
    ] = None,
    plugin: PluginName = None,
    config: ConfigFile = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps that the phases are measured over; else what takes five seconds, 2 to 20."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Try torch.compile on a CPU too; compiling takes a minute or so.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show where the time of a training step goes here, and name the one setting to change.

    Takes some steps with your own settings and tries others beside them; nothing is saved. Give it the words that you
    would give to clf train.
    """
    from clf import config as configuration
    from clf import settings
    from clf.doctor import examine
    from clf.progress import loading

    layers = [configuration.read_file(config)] if config else []
    layers.append(settings.command_line(words or [], plugin))
    wanted, _ = settings.resolve(layers)
    with loading() as progress:
        found = examine(wanted, steps, compiled=compiled, say=_say, progress=progress)
    if json:
        print_json(_plain(found))
    else:
        _print(found)


def _say(sentence: str) -> None:
    typer.echo(f"{sentence} ...", err=True)


def _plain(found: Diagnosis) -> dict[str, Any]:
    """All figures, with those that follow from others."""
    trials = [
        {**asdict(trial), "setting": trial.setting and str(trial.setting), "gain": trial.gain, "noise": trial.noise}
        for trial in found.trials
    ]
    advice = {**asdict(found.advice), "setting": found.advice.setting and str(found.advice.setting)}
    derived = {"shares": found.shares, "trials": trials, "advice": advice, "torchvision_share": found.torchvision_share}
    return {**asdict(found), **derived}


def _print(found: Diagnosis) -> None:
    machine = found.machine
    print_text(
        f"{found.plugin} on {found.data}: {found.images:,} images of {found.image_size} px, {found.views} views, batch "
        f"{found.batch_size}, {found.backbone}"
    )
    print_text(
        f"{machine.device}, {machine.cores} cores, {machine.threads} threads, torch {machine.torch}, bf16 "
        f"{'yes' if machine.bf16 else 'no'}, torch.compile {machine.compile_obstacle or 'possible'}\n"
    )
    rows = [
        [name, f"{1000 * found.phases[name]:.1f}", f"{share:.1%}", MEANING[name]]
        for name, share in found.shares.items()
    ]
    print_table(["phase", "ms/step", "share", "what it is"], rows)
    print_text(
        f"\n{found.images_per_second:,.0f} images/s, {1000 * found.seconds:.0f} ms a step; the whole training takes "
        f"about {_clock(found.total_steps * found.seconds)}{_before(found)}. Memory: {_memory(found)}.\n"
    )
    if found.trial_batch != found.batch_size:
        print_text(f"Tried on batches of {found.trial_batch}, because a step of the whole batch is slow:")
    print_table(["tried", "images/s", "gain", "+-", "what else it changes"], [_row(trial) for trial in found.trials])
    for words in found.untried:
        print_text(words)
    compared = found.augmentation
    print_text(
        f"\nAugmentation: {compared.ours:,.0f} views/s here; torchvision on PIL images {compared.torchvision:,.0f} in "
        f"one process: {compared.ratio:.1f} times as many. {found.workers} such processes, with nothing else to do, "
        f"would take {found.torchvision_share:.0%} of a step's time for its views.\n"
    )
    print_text(found.advice.sentence)
    if found.advice.setting is not None and not found.advice.setting.key.startswith("train.batch"):
        print_text(f"The whole training would take {_clock(found.total_steps * found.seconds / found.advice.gain)}.")


def _row(trial: Trial) -> list[str | None]:
    name, effect = "nothing changed", ""
    if trial.setting is not None:
        name, effect = str(trial.setting), trial.setting.effect or "nothing but last bits"
        if trial.setting.key == "train.compile":
            effect += f"; the first step took {trial.first_seconds:.0f} s"
    noise = f"{trial.noise:.2f}" if len(trial.rates) > 2 else None  # given up after a round
    return [name, f"{median(trial.rates):,.0f}", f"{trial.gain:.2f}", noise, effect]


def _before(found: Diagnosis) -> str:
    count = found.preparation_steps
    return f", after {count:,} steps of preparation, which are not measured here" if count else ""


def _memory(found: Diagnosis) -> str:
    if found.peak_memory is None:
        return "not known"
    whole = found.machine.memory
    return f"{found.peak_memory / 2**30:.1f} GiB at the peak" + (f" of {whole / 2**30:.0f}" if whole else "")


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
