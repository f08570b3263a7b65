"""Running what is missing of a study.

OUT/NAME-SCALE/runs/      one run folder a cell      OUT/NAME-SCALE/records.jsonl      one line a cell that is done
               table.md   made of the records        .locks/                           who is at which cell

Whatever ends the process, starting it again goes on: an interrupted training is resumed exactly, a finished one is
evaluated, and a cell with a record is left alone. Several processes share the cells, each of which one process locks.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from clf import checkpoint, experiment, guarded, kept, locks, plugins, training
from clf.callbacks import Watcher
from clf.config import Config
from clf.errors import ClfError, ConfigError, RunError
from clf.evaluate.measure import data_key
from clf.evaluate.results import add_evaluation
from clf.monitor import Monitor
from clf.runs import Run, replace_text, unwritable
from clf.study import cells as of_cells
from clf.study.judge import Judge, Judges, Measured
from clf.study.records import Key, Record, TrainedOn, append_record, read_records, writing
from clf.study.spec import Cell, Study, select, slug
from clf.study.tables import markdown
from clf.study.watch import (
    MEASURED,
    PREPARED,
    LateStop,
    Line,
    PreparationClock,
    Probe,
    figures,
    sigterm_interrupts,
)


@dataclass
class Outcome:
    """How a study stands when a process has done what it could."""

    done: int
    """Cells that have a record, of those asked for."""
    asked: int
    failed: dict[str, str] = field(default_factory=dict)
    """Cell -> why."""
    elsewhere: list[str] = field(default_factory=list)
    """Cells that another process is at, or that need the run of one."""


class Runner:
    """One process at work on a study."""

    def __init__(
        self,
        study: Study,
        out: Path,
        cells: Sequence[Cell],
        *,
        only: str = "",
        keep: bool = False,
        console: Console | None = None,
    ) -> None:
        """
        Args:
            out: the folder of all studies.
            cells: all of the study's, or of its cells at the seeds asked for.
            only: a part of the names of the cells to run; those whose runs they need come with them.
            keep: leave checkpoints of recorded cells.
            console: for one line a cell, and a bar where it is a terminal.
        """
        self.study = study
        self.folder = out / str(study)
        self.runs = self.folder / "runs"
        self.records = self.folder / "records.jsonl"
        self._cells = {cell.key: cell for cell in cells}
        self._asked = select(cells, only)
        self._keep = keep
        self._console = console or Console(stderr=True)
        self._judges = Judges(study.evaluate)
        self._failed: dict[Key, str] = {}

    def run(self) -> Outcome:
        """Does every cell that is missing and that no other process is at.

        Raises:
            ConfigError: the study has changed since a cell was measured or begun.
            RunError: the folder cannot be written.
            KeyboardInterrupt: the process was asked to stop; what was under way can be resumed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("clf study trains each cell in one process: start it several times to share the cells")
        self._prepare_folder()
        self._check_unchanged()
        waiting, before = list(self._asked), -1
        with sigterm_interrupts():
            while waiting and len(waiting) != before:
                before = len(waiting)
                waiting = [cell for cell in waiting if not self._settled(cell)]
            self._finish()
        done = self._recorded()
        return Outcome(
            done=sum(cell.key in done for cell in self._asked),
            asked=len(self._asked),
            failed={str(self._cells[key]): why for key, why in self._failed.items() if key not in done},
            elsewhere=[str(cell) for cell in waiting if cell.key not in done],
        )

    def _prepare_folder(self) -> None:
        for path in (self.runs, self.folder / ".locks"):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(path, error) from error

    def _check_unchanged(self) -> None:
        """Before anything is trained. A cell that cannot even be configured fails when its turn comes."""
        records = self._recorded()
        for record in records.values():
            if (record.study, record.scale) != (self.study.name, self.study.scale):
                raise ConfigError(
                    f"{self.records} holds a record of study {record.study} at scale {record.scale}, and this is "
                    f"{self.study.name} at scale {self.study.scale}: give another --out, or rename the study"
                )
        for cell in self._asked:
            try:
                config = of_cells.configure(cell, self.runs)
            except ClfError:
                continue
            of_cells.check_unchanged(self.study, cell, config, records.get(cell.key), Run(self.runs / cell.slug))

    def _settled(self, cell: Cell) -> bool:
        """Does a cell, if it can be done now; whether nothing is left to do for it."""
        if cell.key in self._failed or cell.key in self._recorded():
            return True
        try:
            if not self._ready(cell):
                return False
            with locks.lock(self.folder / ".locks" / cell.slug, f"cell {str(cell)!r} is being trained by {{holder}}"):
                if cell.key not in self._recorded():
                    self._do(cell)
        except locks.HeldError:
            return False
        except (ClfError, torch.OutOfMemoryError) as error:
            self._failed[cell.key] = str(error)
            self._say(f"{self._place(cell)}: failed: {error}")
        return True

    def _ready(self, cell: Cell) -> bool:
        """Whether the runs that a cell needs are there.

        Raises:
            RunError: they never will be.
        """
        records = self._recorded()
        for needed in cell.needs.values():
            other = self._cells[needed]
            if needed in self._failed:
                raise RunError(f"it needs the run of {str(other)!r}, which failed")
            if needed not in records:
                return False
            if checkpoint.newest(self.runs / other.slug / "checkpoints") is None:
                raise RunError(
                    f"it needs the checkpoints of runs/{other.slug}, which have been removed: remove that folder and "
                    "its line of records.jsonl too, so that it is trained again"
                )
        return True

    def _do(self, cell: Cell) -> None:
        """Trains what is left of a cell, measures it and writes its record."""
        config = of_cells.configure(cell, self.runs)
        run = Run(self.runs / cell.slug)
        judge = self._judges.of(config)  # first, for what cannot be scored is not worth its training
        of_cells.check_data(cell, config, judge.data, self._recorded().values())
        self._train(cell, config, run)
        record = self._measure(cell, config, run)
        append_record(self.records, record)
        scores = ", ".join(f"{NAMES[name]} {score:.1%}" for name, score in record.scores.items())
        self._say(f"{self._place(cell)}: {scores}, {record.wall_seconds / 60:.1f} min")
        self._finish()

    def _train(self, cell: Cell, config: Config, run: Run) -> None:
        begun = checkpoint.newest(run.checkpoints) is not None
        if run.state() == "complete":
            if not begun:
                raise RunError(
                    f"run {run.path} is complete, but has neither checkpoints nor a record: remove the folder to train "
                    "it again"
                )
            return
        if not begun and run.path.exists():  # killed before its first checkpoint
            with run.lock():
                _clear_away(run)
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # else shapes of earlier cells would count as ones that change
        late = LateStop()
        watchers: list[Watcher] = [Line(self._place(cell), self._console), PreparationClock(), late]
        if config.monitor.knn_every:
            watchers.append(Monitor())
        if cell.after_epochs:
            watchers.append(Probe(cell.after_epochs, lambda: self._judges.of(config)))
        plugin = plugins.load_plugin(kept.plugin_of(run, config) if begun else config.plugin)
        watchers += guarded.make(config.monitor.callbacks, plugin)
        if begun:
            training.resume(run, config, callbacks=watchers)
        else:
            training.train(config, callbacks=watchers)
        late.check()

    def _measure(self, cell: Cell, config: Config, run: Run) -> Record:
        """The scores of a finished run, as its ``evaluation.json`` has them too, and as a record."""
        judge = self._judges.of(config)
        experiment.check_data(run, judge.data)
        with training.session(config) as ranks:
            trained = experiment.load(run)
            found = judge.measure(trained.method.encoder().to(ranks.device), config.seed, ranks.device)
            evaluation = judge.evaluation(run, trained.step, found, ranks.device)
        add_evaluation(run, data_key(config.data), evaluation)
        return make_record(self.study, cell, config, run, judge, found)

    def _finish(self) -> None:
        """Removes checkpoints that nothing needs any more, and writes the table."""
        done = self._recorded()
        if not self._keep:
            needed = {key for cell in self._cells.values() if cell.key not in done for key in cell.needs.values()}
            for key in self._cells.keys() & done.keys() - needed:
                run = self.runs / slug(key)
                shutil.rmtree(run / "checkpoints", ignore_errors=True)
                with suppress(OSError):
                    (run / ".lock").unlink(missing_ok=True)
        with writing(self.records):
            replace_text(self.folder / "table.md", markdown(self.study, read_records(self.records)))

    def _recorded(self) -> dict[Key, Record]:
        """What has a record by now, whichever process wrote it."""
        return {record.key: record for record in read_records(self.records)}

    def _place(self, cell: Cell) -> str:
        number = next((i for i, each in enumerate(self._asked, start=1) if each.key == cell.key), 0)
        return f"cell {number} of {len(self._asked)}, {cell}"

    def _say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _clear_away(run: Run) -> None:
    """Removes what a training leaves that was killed before its first checkpoint.

    Raises:
        RunError: there is more in the folder, or it cannot be removed.
    """
    more = sorted(path.name for path in run.path.iterdir() if path.name not in _BEGINNING and path.suffix != ".tmp")
    if more:
        raise RunError(
            f"run {run.path} has no checkpoint to go on from, but holds {', '.join(more[:5])}: remove the folder to "
            "train the cell anew"
        )
    try:
        shutil.rmtree(run.path)
    except OSError as error:
        raise unwritable(run.path, error) from error


def make_record(study: Study, cell: Cell, config: Config, run: Run, judge: Judge, found: Measured) -> Record:
    """What is known of a finished run, without any place on this machine.

    Raises:
        RunError: the run's own records are lost.
    """
    manifest, records = run.manifest(), run.metrics()
    trained = [record for record in records if record["kind"] == "train"]
    if not trained:
        raise RunError(f"{run.metrics_file} has no record of the training: remove {run.path} to train the cell anew")
    prepared = next((float(record["seconds"]) for record in records if record["kind"] == PREPARED), None)
    seconds = float(manifest["wall_seconds"]) - (prepared or 0.0)
    return Record(
        study=study.name,
        scale=study.scale,
        row=cell.row,
        column=cell.column,
        seed=cell.seed,
        plugin=of_cells.plugin_name(config),
        settings=of_cells.asked(cell, config),
        evaluate=of_cells.evaluation(study),
        builds_on=of_cells.builds_on(cell),
        command=of_cells.command(cell, config),
        data=TrainedOn(**{name: manifest["data"][name] for name in TrainedOn.model_fields}),
        backbone=config.backbone.name,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        steps=manifest["step"],
        wall_seconds=round(seconds, 2),
        preparation_seconds=None if prepared is None else round(prepared, 2),
        images_per_second=round(trained[-1]["images"] / seconds, 1),
        scores=found.scores,
        protocol=judge.protocol(),
        after={str(r["after"]): _scores(r, prepared or 0.0) for r in records if r["kind"] == MEASURED},
        last=figures(trained[-1]),
        **{name: manifest[name] for name in _FROM_MANIFEST},
    )


_FROM_MANIFEST = (
    *("parameters", "device", "threads", "world_size", "packages", "python", "commit", "clf_version", "created"),
)
_BEGINNING = {".lock", "config.yaml", "manifest.json", "checkpoints"}
"""What is in a run folder before its first step."""
NAMES = {"knn": "k-NN", "linear": "linear"}


def _scores(record: dict[str, Any], prepared: float) -> dict[str, float]:
    scores = {name: float(record[name]) for name in NAMES if name in record}
    return {**scores, "wall_seconds": round(float(record["seconds"]) - prepared, 2)}
