"""All records that there are, beside the studies that asked for them: what is measured, missing or mixed."""

from __future__ import annotations

import json
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clf.errors import RunError, did_you_mean
from clf.study.records import Record, read_records
from clf.study.spec import Study

_OF_THE_DATA = ("data.root", "data.download", "data.options")
_FILES = ("npz", "folder")
"""Sources that are named by a file or folder of the user's."""


@dataclass(frozen=True)
class Cost:
    """What trainings took on one kind of machine; times of different machines are never put together."""

    machine: str
    wall_seconds: float
    """Median over seeds."""
    images_per_second: float
    preparation_seconds: float | None
    """Median over the seeds that have one."""
    builds_on: str
    """Rows whose runs the trainings start from, and whose time is in no figure here; empty for none."""


@dataclass(frozen=True)
class Evidence:
    """A study at one scale and its records."""

    study: Study
    records: tuple[Record, ...]
    """Of cells that the study has, in its order; other seeds than the study's count too."""
    strays: int
    """Records of rows and columns that the study does not have."""

    def __str__(self) -> str:
        return str(self.study)

    def of(self, row: str, column: str) -> list[Record]:
        return [record for record in self.records if (record.row, record.column) == (row, column)]

    @cached_property
    def cells(self) -> list[tuple[str, str]]:
        """Row and column of what is measured."""
        return list(dict.fromkeys((record.row, record.column) for record in self.records))

    @cached_property
    def missing(self) -> int:
        """Cells of the study without a record."""
        return len({cell.key for cell in self.study.cells()} - {record.key for record in self.records})

    @cached_property
    def given(self) -> list[str]:
        """Settings of records that are not those of the study's file, ``key=value``, with their number if not all."""
        asked = {(cell.row, cell.column): cell.settings for cell in self.study.cells()}
        found: Counter[str] = Counter()
        for record in self.records:
            found.update(_others(record, asked[record.row, record.column]))
        every = len(self.records)
        return [word if count == every else f"{word} ({count} of {every})" for word, count in sorted(found.items())]


def read_evidence(results: Path, studies: Sequence[Study]) -> list[Evidence]:
    """The records of ``results/<study>-<scale>.jsonl``, for each study.

    Raises:
        RunError: a file cannot be read, belongs to no study, or its records cannot be compared with each other.
    """
    by_name = {str(study): study for study in studies}
    for path in sorted(results.glob("*.jsonl")):
        if path.stem not in by_name:
            hint = did_you_mean(path.stem, by_name)
            raise RunError(f"{path} belongs to no study of the given folder.{hint} Remove it, or add the study's file")
    return [_evidence(results / f"{study}.jsonl", study) for study in studies]


def machine(record: Record) -> str:
    """Device, threads where the device is a CPU, and processes where there are several."""
    threads = f", {record.threads} thread{'s' * (record.threads > 1)}" if record.device.startswith("cpu") else ""
    ranks = f", {record.world_size} processes" if record.world_size > 1 else ""
    return f"{record.device}{threads}{ranks}"


def costs(records: Iterable[Record]) -> list[Cost]:
    """What the records of one cell took, for each kind of machine."""
    by_machine: dict[str, list[Record]] = {}
    for record in records:
        by_machine.setdefault(machine(record), []).append(record)
    return [_cost(name, each) for name, each in sorted(by_machine.items())]


def data_set(record: Record) -> str:
    """The data set's name; of an archive or a folder the name of that."""
    root = record.settings.get("data.root")
    return Path(str(root)).stem if record.data.name in _FILES and root else record.data.name


def _cost(name: str, records: Sequence[Record]) -> Cost:
    before = [record.preparation_seconds for record in records if record.preparation_seconds is not None]
    return Cost(
        machine=name,
        wall_seconds=statistics.median(record.wall_seconds for record in records),
        images_per_second=statistics.median(record.images_per_second for record in records),
        preparation_seconds=statistics.median(before) if before else None,
        builds_on=", ".join(
            dict.fromkeys(name.partition("--")[0] for record in records for name in record.builds_on.values())
        ),
    )


def _evidence(path: Path, study: Study) -> Evidence:
    records = read_records(path)
    for record in records:
        if (record.study, record.scale) != (study.name, study.scale):
            raise RunError(
                f"{path} holds a record of {record.study} at scale {record.scale}: move it to the file of that name"
            )
    twice = [key for key, count in Counter(record.key for record in records).items() if count > 1]
    if twice:
        raise RunError(f"{path} holds several records of {' | '.join(map(str, twice[0]))}: keep one of them")
    own = [record for record in records if study.has(record.row, record.column)]
    _comparable(path, own)
    rows, columns = list(study.rows), list(study.columns)
    own.sort(key=lambda record: (rows.index(record.row), columns.index(record.column), record.seed))
    return Evidence(study, tuple(own), len(records) - len(own))


def _comparable(path: Path, records: Sequence[Record]) -> None:
    """
    Raises:
        RunError: the scores are of different data or were measured in different ways.
    """
    for what, values in (
        ("data sets", [record.data.fingerprint for record in records]),
        ("evaluations", [str(sorted(record.evaluate.items())) for record in records]),
    ):
        other = next((i for i, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            one, two = (" | ".join(map(str, records[i].key)) for i in (0, other))
            raise RunError(
                f"{path} holds records of different {what}, for example {one} and {two}: their scores do not compare; "
                "keep those of one"
            )


def _others(record: Record, asked: Mapping[str, Any]) -> list[str]:
    mine = {key: value for key, value in record.settings.items() if key not in record.builds_on and key != "plugin"}
    changed = [
        f"{key}={shlex.quote(_word(value))}" for key, value in mine.items() if key not in asked or asked[key] != value
    ]
    return changed + [
        f"without {key}" for key in asked if key != "plugin" and key not in mine and not key.startswith(_OF_THE_DATA)
    ]


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
