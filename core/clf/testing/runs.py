"""Checks of whole runs: their checkpoints, their repetition and resumption, their ranks, their export."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clf import checkpoint, training
from clf.checks import Failed
from clf.config import Config
from clf.errors import CheckpointError, ExportError
from clf.export import export as export_run
from clf.runs import Run
from clf.testing.probing import Refused, prepared, take_step, telling, tensors
from clf.testing.subject import Subject
from clf.trainer import Trainer
from clf.verify import ranking
from clf.verify.child import Job, run_together
from clf.verify.compare import differences, end_of
from clf.verify.report import Report
from clf.verify.tiny import named

SIDE = 32
"""Pixels of the images by which a copy of the data set is told from what is kept of each image."""
FEWER, MORE = 96, 192
"""Images of two data sets, of which one holds more."""
SLACK = 256
"""Bytes by which a saved state may grow from step to step, for numbers are not all of one length."""
RUN_STEPS = 8
EXPORTED_STEPS = 3


def state_size(subject: Subject) -> str:
    """What a checkpoint keeps of the method: over the steps, for more images, and read back as data."""
    with telling(subject, "the training fails"), prepared(subject, {}, 6) as trainer:
        sizes, shapes = [], []
        for _ in range(trainer.total_steps):
            take_step(trainer)
            if trainer.step % 2 == 0:
                sizes.append(_bytes(trainer.method.state_dict()))
                shapes.append(_shapes(trainer.method.state_dict()))
        _require_readable(trainer)
    if all(later > earlier + SLACK for earlier, later in pairwise(sizes)):
        raise Failed(f"the saved state grows with the steps: {_growing(shapes, sizes)}")
    few, many = (_state_of(subject, n) for n in (FEWER, MORE))
    pixels = 3 * SIDE * SIDE
    growth = (_bytes(many) - _bytes(few)) / (MORE - FEWER)
    if growth >= pixels:
        raise Failed(
            f"the saved state grows by {growth:,.0f} bytes with each image of the data set, as much as the "
            f"{pixels:,} bytes of its pixels, mostly in {_largest_growth(few, many)}: it holds the images themselves"
        )
    return f"{sizes[-1] / 1024:,.0f} KiB of weights and buffers after 2 steps and after 6; read back as plain data"


def _require_readable(trainer: Trainer) -> None:
    """A checkpoint can be written, and read with ``weights_only``."""
    trainer.save()
    try:
        checkpoint.load_newest(trainer.run.checkpoints)
    except CheckpointError as error:
        state = trainer.method.state_dict()
        others = ", ".join(repr(name) for name in state if name not in tensors(state))
        cause = f"{others} is no tensor and no plain value" if others else str(error)
        raise Failed(f"a checkpoint cannot be read with torch.load(..., weights_only=True): {cause}") from None


def _state_of(subject: Subject, n: int) -> Mapping[str, Tensor]:
    """The state after two steps on so many images."""
    changes = {"data.image_size": SIDE, "data.options.train_images": n}
    with telling(subject, f"with {n} images"), prepared(subject, changes, 2) as trainer:
        for _ in range(trainer.total_steps):
            take_step(trainer)
        return trainer.method.state_dict()


def _bytes(state: Mapping[str, Any]) -> int:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.tell()


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors(state).items()}


def _growing(shapes: list[dict[str, tuple[int, ...]]], sizes: list[int]) -> str:
    early, late = shapes[0], shapes[-1]
    changed = [name for name in late if late[name] != early.get(name)]
    if not changed:
        return f"{sizes[0]:,} bytes after 2 steps and {sizes[-1]:,} after 6"
    before = early.get(changed[0])
    return f"{changed[0]!r} has the shape {late[changed[0]]} after 6 steps" + (f", {before} after 2" if before else "")


def _largest_growth(few: Mapping[str, Any], many: Mapping[str, Any]) -> str:
    before = {name: value.nbytes for name, value in tensors(few).items()}
    growth = {name: value.nbytes - before.get(name, 0) for name, value in tensors(many).items()}
    return repr(max(growth, key=lambda name: growth[name]))


def repeatable(subject: Subject) -> str:
    """Two trainings in processes of their own."""
    one, other = (end_of(job.run) for job in _alone(subject))
    if found := differences(one, other, ("in one process", "in another")):
        raise Failed(f"two runs of one configuration differ: {' '.join(found)}")
    return f"the same bits after {one.state['step']} steps in two processes"


def _alone(subject: Subject) -> list[Job]:
    """Two runs that are left alone, with a checkpoint of each step."""

    def make() -> list[Job]:
        config = subject.config({"train.max_steps": RUN_STEPS, "monitor.log_every": 3})
        return _done(subject, [Job(named(config, name), every_step=True) for name in ("alone", "again")])

    return subject.once("runs left alone", make)


def _done(subject: Subject, jobs: list[Job]) -> list[Job]:
    """Does jobs at the same time, each in a new process.

    Raises:
        Failed: one of them.
    """
    said = [subject.folder / f"{job.config.run.name}.txt" for job in jobs]
    with _in_processes(subject, said):
        run_together([_saying(job, file) for job, file in zip(jobs, said, strict=True)])
    return jobs


def _saying(job: Job, file: Path) -> Job:
    return Job(job.config, resume=job.resume, every_step=job.every_step, said=file)


@contextmanager
def _in_processes(subject: Subject, said: list[Path]) -> Iterator[None]:
    """What a process said last, where it ended without a word of its own."""
    try:
        with telling(subject, "a training in a process of its own fails"):
            yield
    except Refused:
        raise
    except Failed as failure:
        lines = [line for file in said if file.exists() for line in file.read_text(errors="replace").splitlines()]
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if "exit code" not in str(failure) or not last:
            raise
        raise Failed(f"a training in a process of its own fails: {last}{_place(subject, lines)}") from None


def _place(subject: Subject, lines: list[str]) -> str:
    own = {str(path.resolve()): path.name for path in subject.source_files}
    found = re.findall(r'File "(.+)", line (\d+)', "\n".join(lines))
    places = [f" ({own[str(Path(file).resolve())]}, line {n})" for file, n in found if str(Path(file).resolve()) in own]
    return places[-1] if places else ""


def resume(subject: Subject) -> str:
    """Runs that go on, in a new process, from a checkpoint half-way, and from one half-way through the preparation."""
    alone = _alone(subject)[0]
    whole = end_of(alone.run)
    prepared_steps, steps = int(whole.state["prepared"]), int(whole.state["step"])
    places = {f"{steps // 2} of {steps} steps": prepared_steps + steps // 2}
    if prepared_steps > 1:
        places[f"{prepared_steps // 2} of {prepared_steps} steps of preparation"] = prepared_steps // 2
    jobs = [_cut(alone.config, alone.run, f"resumed-{done}", done) for done in places.values()]
    for place, job in zip(places, _done(subject, jobs), strict=True):
        if found := differences(whole, end_of(job.run), ("left alone", "resumed")):
            raise Failed(f"resumed after {place}: {' '.join(found)}")
    return f"the same bits when resumed after {' and after '.join(places)}"


def _cut(config: Config, run: Run, name: str, done: int) -> Job:
    """The continuation of a copy of a run, less all that came after so many steps."""
    cut = Job(named(config, name), resume=True)
    shutil.copytree(run.path, cut.run.path)
    for path in checkpoint.paths(cut.run.checkpoints):
        if path.name > f"step-{done:09d}.pt":
            path.unlink()
    return cut


def ranks(subject: Subject) -> str:
    """The same steps by one process and by two, in float64."""
    folder = subject.folder / "ranks"
    folder.mkdir()
    said = folder / "said.txt"
    config = subject.config(ranking.settings_for([2]))
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(folder)})})
    report = Report("two ranks equal one process")
    with _in_processes(subject, [said]):
        ranking.side_by_side(config, [2], report, said)
    if not report.holds:
        raise Failed(" ".join(report.differences))
    return "; ".join(f"{name}: {value}" for name, value in report.facts[:1])


def export(subject: Subject) -> str:
    """A few steps, then ONNX, then onnxruntime against the encoder."""
    config = named(subject.config({"train.max_steps": EXPORTED_STEPS}), "exported")
    with telling(subject, "the export fails"):
        run = training.train(config, callbacks=[])
        try:
            parity = export_run(run).manifest.parity
        except ExportError as error:
            raise Failed(str(error)) from None
    return f"least cosine {parity.min_cosine:.7f} over {parity.images} images"
