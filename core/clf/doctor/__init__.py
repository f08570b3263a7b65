"""``clf doctor``: where the time of a training step goes on this machine, and the one setting to change.

The user's own configuration is built and takes some steps by the trainer itself; no run folder is made. Settings are
tried, not guessed: each by a trainer of its own, all in turns within every round, so that a machine that is slow for a
moment is slow for all of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch

from clf import experiment, training
from clf.config import Config
from clf.data import DataSource, Progress
from clf.distributed import Ranks
from clf.doctor import machine as machines
from clf.doctor import rival
from clf.doctor.advice import Advice, Setting, Trial, recommend, settings_to_try
from clf.doctor.machine import Machine
from clf.doctor.rival import Comparison
from clf.doctor.subject import Subject, changed
from clf.errors import ClfError, ConfigError

STEPS = (2, 20)
STEP_SECONDS = 5.0
"""Of the steps that the phases are measured over, and of as many without a stopwatch, as far as STEPS allows."""
TRIAL_SECONDS = 25.0
"""Of all trials together, as far as the smallest number of rounds allows."""
ROUNDS = (3, 9)
HOPELESS = 0.8
"""A setting that was this much slower in a round gets no further turn."""
SLOW = 1.5
"""Seconds of a step above which a CPU tries settings on smaller batches: what they gain hardly depends on the batch."""
SMALL_BATCH = 32
TURN = 0.25
"""Seconds that one turn takes at least; short steps are taken several at a time."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Diagnosis:
    """What was found. Seconds are those of one step."""

    plugin: str
    data: str
    images: int
    image_size: int
    views: int
    backbone: str
    batch_size: int
    total_steps: int
    preparation_steps: int
    """That come before, and are not measured."""
    steps: int
    """That the phases were measured over."""
    seconds: float
    """Of a step."""
    phases: dict[str, float]
    """Seconds per step. On a GPU they add up to a little more than a step, because each phase is waited for."""
    images_per_second: float
    peak_memory: int | None
    machine: Machine
    trials: tuple[Trial, ...]
    trial_batch: int
    """Images in a step of the trials; fewer than in one of the training where that one is slow."""
    untried: tuple[str, ...]
    """Settings that could not be tried, or were not, and why."""
    augmentation: Comparison
    workers: int
    """Processes that torchvision's pipeline is imagined to have: one a core."""
    advice: Advice

    @property
    def shares(self) -> dict[str, float]:
        """Of a step, by phase; they sum to one."""
        return _shares(self.phases)

    @property
    def torchvision_share(self) -> float:
        """How much of a step torchvision's pipeline would need for the same views."""
        return self.augmentation.share_of_step(self.views * self.batch_size, self.workers, self.seconds)


def examine(
    config: Config,
    steps: int | None = None,
    *,
    compiled: bool = False,
    say: Say = lambda sentence: None,
    progress: Progress | None = None,
    trial_seconds: float = TRIAL_SECONDS,
) -> Diagnosis:
    """Takes steps of a training and tries settings.

    Args:
        config: derived, as for :func:`clf.training.train`.
        steps: that the phases are measured over; when it is not given, as many as STEP_SECONDS and STEPS allow.
        compiled: try torch.compile on a CPU too, where compiling takes a minute or so.
        say: hears what is being done.
        progress: called with the number of images read so far and in all.

    Raises:
        ClfError: as a training would; ConfigError under torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("clf doctor examines the training of one process: run it without torchrun")
    with training.session(config) as ranks:
        devices = [ranks.device] if ranks.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            return _examine(training.settle(config, ranks.device), steps, compiled, say, progress, trial_seconds, ranks)


def _examine(
    config: Config, steps: int | None, compiled: bool, say: Say, progress: Progress | None, seconds: float, ranks: Ranks
) -> Diagnosis:
    say("reading the data")
    data = experiment.load_data(config.data, config.seed, progress)
    say("warming up")
    with closing(_fitting(config, data, ranks)) as plain:
        return _measure(plain, steps, compiled, say, seconds, ranks)


def _measure(plain: Subject, steps: int | None, compiled: bool, say: Say, seconds: float, ranks: Ranks) -> Diagnosis:
    trainer, config, data = plain.trainer, plain.trainer.config, plain.trainer.data
    steps = steps or _clamp(STEP_SECONDS / plain.seconds, STEPS)
    say(f"measuring {steps} steps")
    phases = plain.phases(steps)
    rate = plain.rate(steps) if ranks.device.type == "cuda" else plain.images / sum(phases.values())
    shares = _shares(phases)
    machine, peak = machines.describe(ranks.device), machines.peak_memory(ranks.device)
    say("comparing the augmentation with torchvision's")
    augmentation = rival.compare(trainer.stream.next(), trainer.experiment.recipes)
    memory_share = (peak or 0) / machine.memory if machine.memory else 0.0
    wanted = settings_to_try(
        config,
        machine,
        images=len(data.train),
        memory_share=memory_share,
        waiting=shares["data"],
        compiled=compiled,
    )
    with _for_trials(plain, ranks, say) as small:
        trials, failed = _try_out(small, wanted, ranks, say, seconds)
        trial_batch = small.images
    if machine.kind == "cpu" and not compiled and machine.compile_obstacle is None and config.train.compile == "off":
        failed.append("train.compile=on: not tried, because compiling takes a minute or so; add --compile")
    if machine.compile_obstacle is not None:
        failed.append(f"train.compile=on: {machine.compile_obstacle}")
    return Diagnosis(
        plugin=config.plugin,
        data=data.name,
        images=len(data.train),
        image_size=data.image_size,
        views=len(trainer.experiment.recipes),
        backbone=config.backbone.name,
        batch_size=plain.images,
        total_steps=trainer.total_steps,
        preparation_steps=trainer.preparation_steps,
        steps=steps,
        seconds=plain.images / rate,
        phases=phases,
        images_per_second=rate,
        peak_memory=peak,
        machine=machine,
        trials=tuple(trials),
        trial_batch=trial_batch,
        untried=tuple(failed),
        augmentation=augmentation,
        workers=machine.cores,
        advice=recommend(trials, shares, memory_share, config),
    )


def _clamp(number: float, bounds: tuple[int, int]) -> int:
    return min(max(bounds[0], math.floor(number)), bounds[1])


def _shares(phases: Mapping[str, float]) -> dict[str, float]:
    total = sum(phases.values())
    return {name: seconds / total for name, seconds in phases.items()}


def _fitting(config: Config, data: DataSource, ranks: Ranks) -> Subject:
    """The configuration as it is.

    Raises:
        ConfigError: it does not fit into the device's memory, with the ``train.chunk_size`` that does.
    """
    try:
        return Subject(config, data, ranks)
    except torch.OutOfMemoryError:
        pass
    size = config.train.chunk_size or 2 * config.train.batch_size
    while size >= 2:
        size //= 2
        torch.cuda.empty_cache()
        try:
            Subject(changed(config, Setting("train.chunk_size", size)), data, ranks).close()
        except torch.OutOfMemoryError:
            continue
        raise ConfigError(
            f"a step of batch {config.train.batch_size} does not fit into the memory of {ranks.device}; with "
            f"train.chunk_size={size} it does, for the same loss and one more forward pass"
        )
    raise ConfigError(
        f"a step of batch {config.train.batch_size} does not fit into the memory of {ranks.device}, whatever "
        "train.chunk_size is: choose a smaller backbone.name, data.image_size or train.batch_size"
    )


@contextmanager
def _for_trials(plain: Subject, ranks: Ranks, say: Say) -> Iterator[Subject]:
    """What settings are tried on: the configuration as it is, or with a smaller batch where steps are slow."""
    config = plain.trainer.config
    size = config.train.batch_size
    if ranks.device.type == "cpu" and plain.seconds > SLOW:
        size = min(size, max(SMALL_BATCH, int(size * SLOW / plain.seconds)))
    if size == config.train.batch_size:
        yield plain
        return
    say(f"trying settings with batches of {size}, because a step takes {plain.seconds:.1f} s")
    try:
        small = _subject(plain, changed(config, Setting("train.batch_size", size)), ranks)
    except ClfError:  # a queue, say, whose length is no multiple of it
        say("trying settings with the whole batch, because the method takes no smaller one")
        yield plain
        return
    with closing(small):
        yield small


def _try_out(
    plain: Subject, wanted: Sequence[Setting], ranks: Ranks, say: Say, seconds: float
) -> tuple[list[Trial], list[str]]:
    """Trials of each setting and of nothing changed, and why a setting could not be tried."""
    subjects: dict[Setting, Subject] = {}
    failed = []
    for setting in wanted:
        say(f"trying {setting}")
        try:
            subjects[setting] = _subject(plain, changed(plain.trainer.config, setting), ranks)
        except torch.OutOfMemoryError:
            failed.append(f"{setting}: does not fit into memory")
        except ClfError as error:
            failed.append(f"{setting}: {error}")
    try:
        return _take_turns(plain, subjects, say, seconds), failed
    finally:
        for subject in subjects.values():
            subject.close()


def _take_turns(plain: Subject, subjects: Mapping[Setting, Subject], say: Say, seconds: float) -> list[Trial]:
    """The configuration as it is at the beginning and the end of each round, the others between."""
    each = max(1, round(TURN / plain.seconds))
    turn = each * plain.seconds * (2 + len(subjects))
    rounds = _clamp(seconds / turn, ROUNDS)
    say(f"{rounds} rounds of {each} steps with each, about {rounds * turn:.0f} s")
    before: list[float] = []
    after: list[float] = []
    rates: dict[Setting, list[float]] = {setting: [] for setting in subjects}
    hopeful = set(subjects)
    for number in range(rounds):
        before.append(plain.rate(each))
        for setting in rates:
            if setting in hopeful:
                rates[setting].append(subjects[setting].rate(each))
        after.append(plain.rate(each))
        now = (before[-1] + after[-1]) / 2
        hopeful -= {s for s, found in rates.items() if len(found) > number and found[-1] < HOPELESS * now}
    both = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
    trials = [Trial(None, tuple(after), tuple(before), plain.first_seconds)]
    for setting, found in rates.items():
        trials.append(Trial(setting, tuple(found), tuple(both[: len(found)]), subjects[setting].first_seconds))
    return trials


def _subject(plain: Subject, config: Config, ranks: Ranks) -> Subject:
    """Takes the images from the device's memory where the plain configuration has put them."""
    same = config.data == plain.trainer.config.data
    return Subject(config, plain.data if same else experiment.load_data(config.data, config.seed), ranks)
