"""One line of ``records.jsonl`` for each cell of a study: its scores, and all that is needed to judge and repeat them.

A record holds no path of the machine that it was made on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from clf import locks
from clf.errors import RunError
from clf.runs import replace_text, unwritable

Key = tuple[str, str, int]
"""Row, column and seed."""
PATIENCE = 60.0
"""Seconds to wait for another process that writes a record, which takes it milliseconds."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainedOn(Frozen):
    """The data of a training."""

    name: str
    fingerprint: str
    split: str
    """How training and test images were told apart, in words."""
    train_images: int
    """What the encoder was trained on, after ``data.limit``."""
    test_images: int
    image_size: int
    channels: int


class Record(Frozen):
    """One training of a study and its evaluation."""

    study: str
    scale: str
    row: str
    column: str
    seed: int
    plugin: str
    """A plugin's name, or the name of its file."""
    settings: dict[str, Any]
    """What the cell asked for, by dotted key, without plugin and seed; files and folders by their name alone."""
    evaluate: dict[str, Any]
    """What the study asked of the evaluation: ``knn_k``, ``linear``, ``bank``, ``queries``."""
    builds_on: dict[str, str] = {}
    """Settings that take the run of another cell, and that run's name; its time is not in this record."""
    command: str
    """The training by hand. Files and folders are named without their place."""
    data: TrainedOn
    backbone: str
    epochs: int
    batch_size: int
    steps: int
    """Optimiser steps."""
    parameters: int
    """Of the encoder."""
    wall_seconds: float
    """From the first optimiser step to the last: compiling, drawing and augmenting batches, the steps, writing records
    and checkpoints, and the engine's monitor where the study turns it on. Not in it: reading the data, the method's
    preparation, the study's own evaluations, and steps that were lost by a kill and done again."""
    preparation_seconds: float | None
    """Of the steps that the method takes before the first optimiser step, as of its GAN; None where it takes none."""
    images_per_second: float
    """Images that optimiser steps have seen, each counted as often as it was seen, by ``wall_seconds``."""
    device: str
    threads: int
    """CPU threads of torch."""
    world_size: int
    packages: dict[str, str]
    python: str
    commit: str | None
    """Of the source tree, with ``+`` when it had uncommitted changes; None for an installed package."""
    clf_version: str
    created: str
    """When the training began, UTC."""
    scores: dict[str, float]
    """Top-1 on the test images, in [0, 1], by ``knn`` and ``linear``; of the last epoch, not the best."""
    protocol: dict[str, str]
    """How the scores were measured, in words."""
    after: dict[str, dict[str, float]] = {}
    """Epoch -> ``knn``, ``linear`` after it, and the ``wall_seconds`` until then."""
    last: dict[str, float] = {}
    """The method's own figures in the last record of the training, among them ``loss``."""

    @property
    def key(self) -> Key:
        return self.row, self.column, self.seed


def read_records(path: Path) -> list[Record]:
    """All records of a file, in the order in which they were written; none where there is no file.

    Raises:
        RunError: a line is not a record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}): restore the file") from error
    return [_read_line(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_line(path: Path, number: int, line: str) -> Record:
    try:
        return Record.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise RunError(
            f"{path}, line {number} is not a record of a study ({what}): restore or remove the line"
        ) from error


def append_record(path: Path, record: Record) -> bool:
    """Adds a record, whole or not at all, unless there is one of the same cell; whether it was added.

    Raises:
        RunError: the file cannot be read or written, or another process does not let go of it.
    """
    with writing(path):
        known = read_records(path)
        if record.key in {each.key for each in known}:
            return False
        lines = [json.dumps(each.model_dump(mode="json"), ensure_ascii=False) for each in (*known, record)]
        replace_text(path, "".join(line + "\n" for line in lines))
        return True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Keeps other processes from writing the records, or what is made of them, inside the block.

    Raises:
        RunError: they do not let go, or the lock's file cannot be written.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    given_up = time.monotonic() + PATIENCE
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locks.lock(folder / f".{path.name}.lock", f"{path} is being written by {{holder}}"))
                break
            except locks.HeldError:
                if time.monotonic() > given_up:
                    raise
                time.sleep(0.05)
        yield
