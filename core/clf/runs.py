"""The run folder: everything about one training, in files one can read.

runs/NAME/config.yaml       resolved configuration; training with it again repeats the run
          manifest.json     command, versions, commit, seed, device, data fingerprint, wall time, state
          metrics.jsonl     one JSON object per record: kind, step, epoch and scalars
          checkpoints/      the newest good states, for resuming and for export
          plugin/           the source of the method, where that is a single file
          evaluation.json   results of clf evaluate        report.html   clf report        model/   clf export
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal

from clf import config as configuration
from clf import locks
from clf.config import Config
from clf.errors import RunError, did_you_mean

_BEFORE_TRAINING = {".lock", "config.yaml", "manifest.json", "plugin", "checkpoints"}
CLOCK = ("seconds", "images_per_second")
"""Names in records that tell the time; all others are the same however often a run was stopped and resumed."""

State = Literal["running", "complete", "interrupted", "failed"]


class Run:
    """One run folder. Reading needs no torch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def config(self) -> Config:
        """The resolved configuration.

        Raises:
            RunError: ``config.yaml`` is missing.
            ConfigError: it is not valid.
        """
        path = self.path / "config.yaml"
        if not path.is_file():
            raise RunError(f"{self.path} is not a run folder: config.yaml is missing")
        return configuration.build([configuration.read_file(path)])[0]

    def manifest(self) -> dict[str, Any]:
        return self.read_json("manifest.json")

    def state(self) -> str:
        """``running`` (also of a run that was killed), ``complete``, ``interrupted``, ``failed``, or ``damaged``."""
        try:
            return str(self.manifest().get("state", "damaged"))
        except RunError:
            return "damaged"

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Writes one record.

        Raises:
            RunError: the disk is full, or the file cannot be written.
        """
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise unwritable(self.metrics_file, error) from error

    def sync_metrics(self) -> None:
        """Has the records so far written to the disk itself.

        Raises:
            RunError: that fails.
        """
        if not self.metrics_file.is_file():
            return
        try:
            with self.metrics_file.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.metrics_file, error) from error

    def lock(self) -> AbstractContextManager[None]:
        """Keeps other processes from training this run; see :func:`clf.locks.lock`."""
        return locks.lock(self.path / ".lock", f"run {self.name!r} is being trained by {{holder}}")

    def remove_leftovers(self) -> None:
        """Removes halves of files that a killed process did not get to name. Call it with the lock held."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def metrics(self) -> list[dict[str, Any]]:
        """All records so far; a last line that was cut off by a kill is left out."""
        return list(self._records())

    def _records(self) -> Iterator[dict[str, Any]]:
        if not self.metrics_file.is_file():
            return
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return

    def truncate_metrics(self, step: int, prepared: int = 0) -> None:
        """Removes records later than a step, or a step of preparation, so that a resumed run writes them again."""
        kept = [r for r in self._records() if r["step"] <= step and r.get("prepared", 0) <= prepared]
        replace_text(self.metrics_file, "".join(json.dumps(record) + "\n" for record in kept))

    def read_json(self, name: str) -> dict[str, Any]:
        """One JSON file of the run.

        Raises:
            RunError: it is missing or not JSON.
        """
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path} has no {name}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{path} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise RunError(f"{path} is damaged: it holds no JSON object")
        return content

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Writes one JSON file of the run, whole or not at all."""
        return replace_text(self.path / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def update_manifest(self, **changes: Any) -> None:
        self.write_json("manifest.json", {**self.manifest(), **changes})


def create_run(config: Config) -> Run:
    """A new run folder: ``run.dir/run.name``, or a numbered one when no name is given.

    Raises:
        RunError: a run of the given name exists, or the folder cannot be made.
    """
    parent = Path(config.run.dir)
    names = [config.run.name] if config.run.name else _free_names(config)
    for name in names:
        path = parent / name
        try:
            if config.run.name:
                _clear_away(path)
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"the run folder {path} cannot be made ({error.strerror}): set another run.dir") from error
        return Run(path)
    raise RunError(
        f"a run named {config.run.name!r} exists in {parent}: choose another run.name, or continue it with "
        f"clf train --resume {parent / str(config.run.name)}"
    )


def _clear_away(path: Path) -> None:
    """Deletes a run that ended before its first checkpoint, so that a job killed so early can start again."""
    run = Run(path)
    if not path.is_dir() or any(run.checkpoints.glob("step-*")):
        return
    if any(each.name not in _BEFORE_TRAINING for each in path.iterdir()):
        return  # whatever this folder is, it is not ours to delete
    with suppress(RunError), run.lock():
        shutil.rmtree(path)


def _free_names(config: Config) -> Iterator[str]:
    plugin = Path(config.plugin).stem
    data = Path(config.data.name).name.replace(".py", "").replace(":", "-")
    number = 1
    while True:
        yield f"{plugin}-{data}-{number}"
        number += 1


def open_run(name: str | Path, runs_dir: str | Path = "runs") -> Run:
    """A run by path, or by name inside ``runs_dir``.

    Raises:
        RunError: there is none, with a suggestion.
    """
    for path in (Path(name), Path(runs_dir) / name):
        if (path / "config.yaml").is_file():
            return Run(path)
    if Path(name).is_dir():
        raise RunError(f"{name} is not a run folder: config.yaml is missing")
    known = [run.name for run in list_runs(runs_dir)]
    rest = f" Runs in {runs_dir}: {', '.join(known[-10:])}." if known else f" There are no runs in {runs_dir} yet."
    raise RunError(f"there is no run {str(name)!r}.{did_you_mean(str(name), known)}{rest}")


def list_runs(runs_dir: str | Path = "runs") -> list[Run]:
    """All runs in a folder, oldest first."""
    folders = [path.parent for path in Path(runs_dir).glob("*/config.yaml")]
    return [Run(path) for path in sorted(folders, key=lambda p: ((p / "config.yaml").stat().st_mtime_ns, p.name))]


def newest_unfinished(runs_dir: str | Path = "runs") -> Run:
    """The newest run that has not reached its end, for ``--resume auto``.

    Raises:
        RunError: every run is complete, or there is none.
    """
    for run in reversed(list_runs(runs_dir)):
        if run.state() != "complete" and any(run.checkpoints.glob("step-*.pt")):
            return run
    raise RunError(
        f"there is no unfinished run in {runs_dir} to resume; with run.name=NAME beside --resume auto a run of that "
        "name is continued, or started if there is none"
    )


def replace_text(path: Path, text: str) -> Path:
    """Writes a text file by way of a temporary one, so that a reader never sees half of it.

    Raises:
        RunError: it cannot be written, for instance because the disk is full; the old file remains.
    """
    return replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> Path:
    """Writes a file as :func:`replace_text` does, and raises as it does."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> RunError:
    """The error for a file of a run that cannot be written."""
    return RunError(f"{path} cannot be written ({error.strerror}): free some space or check its permissions")
