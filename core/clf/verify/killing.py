"""``clf verify resume``: a run that is killed again and again ends as the run left alone."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from clf import checkpoint
from clf.config import Config
from clf.runs import Run
from clf.verify.child import Child, Job, Place
from clf.verify.compare import End, differences, end_of
from clf.verify.report import Report
from clf.verify.tiny import named, tiny

PLACES: tuple[Place, ...] = get_args(Place)
"""Where a run is killed."""
IN_A_STEP = PLACES[0]
RENAMED: Place = "with old checkpoints not yet removed"
"""After this the newest checkpoint is cut short, as a power failure might, and the older one has to do."""


def resume(plugin: str, changes: Mapping[str, Any] | None = None, kills: int = 20, seed: int = 0) -> Report:
    """Whether a run that is killed with SIGKILL and resumed has the bits of one that is not.

    One run is left alone. Another is killed at ``kills`` random steps, each time in a process of its own: at a random
    moment of a step, half-way through a checkpoint or a record, before and after a checkpoint gets its name. It is
    resumed with another number of data workers, and sometimes after its newest checkpoint was cut short. Then all
    tensors of the two last checkpoints and all records, less their clock times, must be equal.

    Args:
        plugin: a plugin's name or the path of a file.
        changes: dotted configuration keys, over the tiny default.
        seed: of the steps and moments of the kills.

    Raises:
        ClfError: the training itself fails.
    """
    with tempfile.TemporaryDirectory(prefix="clf-verify-") as folder:
        own = {
            "train.epochs": max(2, -(-kills // 4)),
            "train.checkpoint_every": 1,
            "monitor.log_every": 4,
            "monitor.knn_every": 1,
        }
        config = tiny(plugin, Path(folder), changes or {}, own)
        report = Report(f"a run of {plugin} that is killed and resumed ends with the bits of one left alone")
        alone = _left_alone(config, "alone")
        killed, times = _killed(config, alone, kills, random.Random(seed), report)
        ends = end_of(alone), end_of(killed)
        _compare(report, ends, ("left alone", "killed and resumed"))
        if not report.holds:
            _blame(report, ends[0], end_of(_left_alone(config, "alone-again")))
        if times < kills:
            report.differences.append(
                f"The run was killed {times} of {kills} times, because it had ended before the next kill: what was "
                "asked for is not proved. Give it more steps (train.epochs), or fewer --kills."
            )
    return report


def _left_alone(config: Config, name: str) -> Run:
    job = Job(named(config, name))
    Child(job).join()
    return job.run


def _killed(config: Config, alone: Run, kills: int, rng: random.Random, report: Report) -> tuple[Run, int]:
    """The run that is killed, at its end, and how often it was."""
    manifest = alone.manifest()
    prepared, seconds = int(manifest.get("prepared", 0)), float(manifest["wall_seconds"])
    steps = prepared + int(manifest["step"])
    before = f", {prepared} of them preparation" if prepared else ""
    report.fact("run", f"{steps} steps of {config.train.batch_size} images{before}, {manifest['device']}")
    killed: list[tuple[int, Place]] = []
    cuts = 0
    run = Job(named(config, "killed")).run
    for i, (step, place) in enumerate(_plan(kills, steps, rng)):
        job = Job(_other_workers(config, i), resume=run.path.exists(), kill_step=step, place=place)
        if not Child(job).kill_there(rng.uniform(0, seconds / steps) if place == IN_A_STEP else 0.0):
            break
        killed.append((step, place))
        if place == RENAMED:
            _cut_newest(run)
            cuts += 1
    Child(Job(_other_workers(config, kills), resume=run.path.exists())).join()
    report.fact("killed", f"{len(killed)} times, after steps {', '.join(str(step) for step, _ in killed) or 'none'}")
    for place, count in Counter(place for _, place in killed).items():
        report.fact(f"  {place}", count)
    report.fact("newest checkpoint cut short", f"{cuts} times")
    return run, len(killed)


def _plan(kills: int, steps: int, rng: random.Random) -> Iterator[tuple[int, Place]]:
    """Rising steps, because a resumed run starts before the step at which it was killed; every place in turn."""
    places: list[Place] = []
    for writing in PLACES[1:]:
        places += [IN_A_STEP, writing]
    for i, step in enumerate(sorted(rng.randrange(1, max(2, steps)) for _ in range(kills))):
        yield step, places[i % len(places)]


def _other_workers(config: Config, i: int) -> Config:
    return named(config, "killed", data={"workers": 1 + i % 3})


def _cut_newest(run: Run) -> None:
    """Cuts the newest checkpoint in half. It was written just before a kill, so the one before is still there."""
    newest = next(checkpoint.paths(run.checkpoints))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])


def _compare(report: Report, ends: tuple[End, End], names: tuple[str, str]) -> None:
    for name, end in zip(names, ends, strict=True):
        report.fact(f"SHA-256 of state, {name}", end.state_sha256)
        report.fact(f"SHA-256 of metrics, {name}", end.records_sha256)
    report.differences += differences(*ends, names)


def _blame(report: Report, alone: End, again: End) -> None:
    """Says whether the resume is at fault, or the run is not even the same twice."""
    if differences(alone, again, ("left alone", "left alone again")):
        report.differences.append(
            "Two runs left alone differ too: something in the method draws random numbers that do not come from "
            "ctx.generator or torch's own generator, or the device's kernels are not deterministic."
        )
    else:
        report.differences.append(
            "Two runs left alone are equal: the method keeps something outside its parameters and buffers, which a "
            "checkpoint does not hold, or counts on random numbers drawn in an earlier step."
        )
