"""A study at one scale: its table of settings, the cells it consists of, and what the paper claims of them.

Reading one needs no torch. Settings are checked as far as that goes: those of the engine by key, type and range;
those of a method when its cell is trained.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clf import config as configuration
from clf.config import Layer
from clf.errors import ConfigError, did_you_mean
from clf.study.document import Claim, Evaluate, Rule, Settings, StudyDocument, flat, read_document
from clf.study.records import Key

__all__ = ["Cell", "Claim", "Evaluate", "Study", "read_studies", "read_study", "select", "slug"]

DEFAULT_SCALE = "cpu"
ONLY_COLUMN = "end"
"""The column of a study that names none."""
OURS = ("seed", "run.name", "run.dir")
"""Keys that the study itself sets for each cell."""
_OF_THE_SOURCE = ("data.root", "data.download", "data.options.")


@dataclass(frozen=True)
class Cell:
    """One training: a row and a column of the table, a seed, and the settings that make it."""

    row: str
    column: str
    seed: int
    settings: Mapping[str, Any]
    """By dotted key, with ``plugin``; without the seed and the keys in ``needs``."""
    after_epochs: tuple[int, ...] = ()
    """Epochs after which the encoder is measured too, besides the end."""
    needs: Mapping[str, Key] = field(default_factory=dict)
    """Settings whose value is the run folder of another cell, which is trained first."""

    def __str__(self) -> str:
        return f"{self.row} | {self.column} | seed {self.seed}"

    @property
    def key(self) -> Key:
        return self.row, self.column, self.seed

    @property
    def slug(self) -> str:
        """The name of its run folder."""
        return slug(self.key)


@dataclass(frozen=True)
class Study:
    """A study at one scale."""

    path: Path
    name: str
    scale: str
    title: str
    question: str
    paper: str
    reference: str
    """The row that differences are taken to."""
    seeds: tuple[int, ...]
    base: Settings
    rows: Mapping[str, Settings]
    """Settings by row, in the order of the table; those of the scale included."""
    columns: Mapping[str, Settings]
    rules: tuple[Rule, ...]
    runs_of: Mapping[str, Mapping[str, str]]
    """Row -> setting -> the row whose run folder it takes."""
    evaluate: Evaluate
    claims: tuple[Claim, ...]
    """Those that cells of this scale can tell."""

    def __str__(self) -> str:
        return f"{self.name}-{self.scale}"

    def cells(self, given: Mapping[str, Any] | None = None) -> list[Cell]:
        """Every cell, those of one seed together, each behind the cells whose runs it needs.

        Args:
            given: settings that win over those of the study, by dotted key.

        Raises:
            ConfigError: a given key is one that the study sets.
        """
        own = flat(given)
        for name in OURS:
            if name in own:
                raise ConfigError(f"{name} (command line) is set for each cell by the study: use --seeds and --out")
        self._check_given(own)
        every = {
            (row, column, seed): self._cell(row, column, seed, own)
            for seed in self.seeds
            for column in self.columns
            for row in self.rows
            if self.has(row, column)
        }
        ordered: dict[Key, Cell] = {}
        for key in every:
            _add(ordered, every, key)
        return list(ordered.values())

    def _check_given(self, given: Settings) -> None:
        """Refuses a setting for all cells where the study's point is that they differ in it: names of rows and columns
        would no longer say what was trained."""
        cells = [(row, column) for column in self.columns for row in self.rows if self.has(row, column)]
        for name in given:
            found: dict[str, str] = {}
            for row, column in cells:
                values = [layer.values[name] for layer in self.layers(row, column) if name in layer.values]
                found.setdefault(repr(values[-1:]), f"{row} | {column}")
            if len(found) > 1:
                one, two = list(found.values())[:2]
                raise ConfigError(
                    f"{name} (command line) is what cells of study {self} differ in, for example {one!r} and {two!r}: "
                    "leave it out, use --only, or edit a copy of the file"
                )

    def has(self, row: str, column: str) -> bool:
        """Whether there is such a cell."""
        known = row in self.rows and column in self.columns
        return known and not any(rule.skip for rule in self.rules if _is_of(rule, row, column))

    def after_epochs(self, row: str) -> tuple[int, ...]:
        """Epochs after which the cells of a row are measured too."""
        asked = self.evaluate.after_epochs
        return tuple(sorted(asked.get(row, ()) if isinstance(asked, dict) else asked))

    def layers(self, row: str, column: str) -> list[Layer]:
        """What a cell's settings come from, the weakest first."""
        layers = [
            Layer(f"{self.path.name}, base", self.base),
            Layer(f"{self.path.name}, column {column!r}", self.columns[column]),
            Layer(f"{self.path.name}, row {row!r}", self.rows[row]),
        ]
        rules = [rule for rule in self.rules if _is_of(rule, row, column)]
        return [*layers, *(Layer(f"{self.path.name}, cells", flat(rule.settings)) for rule in rules)]

    def _cell(self, row: str, column: str, seed: int, given: Settings) -> Cell:
        settings: Settings = {}
        for layer in self.layers(row, column):
            settings |= layer.values
        if given.get("data.name") not in (None, settings.get("data.name")):  # place and options are another source's
            settings = {key: value for key, value in settings.items() if not key.startswith(_OF_THE_SOURCE)}
        settings |= given
        epochs = settings.get("train.epochs")
        after = tuple(e for e in self.after_epochs(row) if not isinstance(epochs, int) or e <= epochs)
        needs = {key: (other, column, seed) for key, other in self.runs_of.get(row, {}).items()}
        settings = {key: value for key, value in settings.items() if key not in needs}
        return Cell(row, column, seed, settings, after, needs)


def read_study(path: Path, scale: str | None = None) -> Study:
    """A study at one scale; by default ``cpu``, or the only one that it has. Its other scales are checked too.

    Raises:
        ConfigError: the file cannot be read, has no such scale, or something in it is wrong.
    """
    studies = {each.scale: each for each in _read(path)}
    wanted = scale or (DEFAULT_SCALE if DEFAULT_SCALE in studies or len(studies) > 1 else next(iter(studies)))
    if wanted not in studies:
        raise ConfigError(
            f"study {path} has no scale {wanted!r}.{did_you_mean(wanted, studies)} It has {', '.join(studies)}: give "
            "one of them with --scale"
        )
    return studies[wanted]


def read_studies(folder: Path) -> list[Study]:
    """All studies of a folder's ``*.yaml``, at each of their scales.

    Raises:
        ConfigError: one of them is wrong, or two have the same name.
    """
    found: dict[str, Study] = {}
    for path in sorted(folder.glob("*.yaml")):
        for study in _read(path):
            other = found.setdefault(str(study), study)
            if other is not study:
                raise ConfigError(f"{other.path} and {path} are both named {study.name!r}: rename one of them")
    return list(found.values())


def select(cells: Sequence[Cell], only: str) -> list[Cell]:
    """The cells whose row or column has ``only`` in its name, and those whose runs they need, in order.

    Raises:
        ConfigError: there is none.
    """
    every = {cell.key: cell for cell in cells}
    keys: set[Key] = set()
    found = [cell for cell in cells if only in cell.row or only in cell.column]
    while found:
        cell = found.pop()
        if cell.key not in keys:
            keys.add(cell.key)
            found += [every[key] for key in cell.needs.values()]
    if not keys:
        rows = "; ".join(dict.fromkeys(cell.row for cell in cells))
        raise ConfigError(f"no row or column has {only!r} in its name. Rows: {rows}")
    return [cell for cell in cells if cell.key in keys]


def slug(key: Key) -> str:
    """``dcl-tau-0.1--batch-32--seed-0``"""
    row, column, seed = key
    return f"{_plain(row)}--{_plain(column)}--seed-{seed}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.") or "-"


def _read(path: Path) -> list[Study]:
    document = read_document(path)
    studies = [_at(path, document, scale) for scale in document.scales]
    for study in studies:
        _check(study, studies)
    told = [[claim for claim in each.claims if _can_tell(each, claim)] for each in studies]
    for claim in document.claims:
        if not any(claim in claims for claims in told):
            raise ConfigError(_no_cells(path, claim, studies))
    return [replace(study, claims=tuple(claims)) for study, claims in zip(studies, told, strict=True)]


def _at(path: Path, document: StudyDocument, scale: str) -> Study:
    """The study at one scale, not yet checked."""
    own = document.scales[scale]
    for name in own.rows:
        _known(f"study {path}, scales.{scale}.rows", "row", name, document.rows)
    columns = own if own.columns is not None or own.grid is not None else document
    evaluate = document.evaluate.model_copy(
        update={name: getattr(own.evaluate, name) for name in own.evaluate.model_fields_set}
    )
    rows = {name: {**flat(each), **flat(own.rows.get(name))} for name, each in document.rows.items()}
    return Study(
        path=path,
        name=document.name,
        scale=scale,
        title=" ".join(filter(None, [document.title, own.title])),
        question=document.question,
        paper=document.paper,
        reference=document.reference,
        seeds=document.seeds if own.seeds is None else own.seeds,
        base={**flat(document.base), **flat(own.base)},
        rows=rows,
        columns=_columns(path, columns.columns, columns.grid),
        rules=(*document.cells, *own.cells),
        runs_of=document.runs_of,
        evaluate=evaluate,
        claims=document.claims,
    )


def _columns(
    path: Path, columns: Mapping[str, Settings | None] | None, grid: Mapping[str, Sequence[Any]] | None
) -> dict[str, Settings]:
    """Named columns, or all combinations of the grid's values, named after them."""
    if columns is not None and grid is not None:
        raise ConfigError(f"study {path} gives columns and a grid in one place: a grid makes columns; keep one of them")
    if grid is None:
        return {name: flat(each) for name, each in (columns or {ONLY_COLUMN: {}}).items()}
    if not grid:
        raise ConfigError(f"study {path}: the grid is empty: give it 'key: [values]', or remove it")
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    names = [", ".join(f"{key} {_word(value)}" for key, value in each.items()) for each in combinations]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ConfigError(f"study {path}: the grid has {twice!r} twice: give each value of a key once")
    return {name: flat(each) for name, each in zip(names, combinations, strict=True)}


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _check(study: Study, scales: Sequence[Study]) -> None:
    """
    Raises:
        ConfigError: something names a row or column that there is not, two would share a run folder, or a setting of
            the engine is wrong.
    """
    place = f"study {study.path}"
    every_column = list(dict.fromkeys(column for each in scales for column in each.columns))
    _known(f"{place}, reference", "row", study.reference, study.rows)
    asked = study.evaluate.after_epochs
    for row in asked if isinstance(asked, dict) else ():
        _known(f"{place}, evaluate.after_epochs", "row", row, study.rows)
    for rule in study.rules:
        _known(f"{place}, cells", "row", rule.row, study.rows)
        _known(f"{place}, cells", "column", rule.column, every_column)
    for row, settings in study.runs_of.items():
        for name in (row, *settings.values()):
            _known(f"{place}, runs_of", "row", name, study.rows)
    for claim in study.claims:
        for row, column, _ in claim.sides:
            _known(f"{place}, claim {claim.text!r}", "row", row, study.rows)
            _known(f"{place}, claim {claim.text!r}", "column", column, every_column)
        if claim.sides[0] == claim.sides[1]:
            raise ConfigError(f"{place}, claim {claim.text!r} compares a cell with itself: see its row and against")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ConfigError(
            f"{place}, scale {study.scale!r}: seeds = {list(study.seeds)} must be different, and one at least"
        )
    _names_apart(place, "rows", study.rows)
    _names_apart(place, "columns", study.columns)
    for row, column in itertools.product(study.rows, study.columns):
        if study.has(row, column):
            _check_settings(study, row, column)
    if not study.cells():
        raise ConfigError(f"{place} has no cells at scale {study.scale!r}: all of them are skipped")


def _check_settings(study: Study, row: str, column: str) -> None:
    """Checks a cell's settings as far as the engine knows them."""
    layers = study.layers(row, column)
    plugin = next((layer.values["plugin"] for layer in reversed(layers) if "plugin" in layer.values), None)
    if not isinstance(plugin, str):
        raise ConfigError(f"study {study.path}: row {row!r} has no plugin; give it one, for example 'plugin: simclr'")
    for layer in layers:
        for key in OURS:
            if key in layer.values:
                raise ConfigError(f"{key} ({layer.origin}) is set for each cell by the study: remove it; see seeds")
    config, _ = configuration.build(layers)
    late = [
        e
        for e in study.after_epochs(row)
        if e > config.train.epochs and any("train.epochs" in x.values for x in layers)
    ]
    if late:
        raise ConfigError(
            f"study {study.path}: evaluate.after_epochs {late} of row {row!r} lie behind the end of its training, "
            f"train.epochs = {config.train.epochs} in column {column!r}"
        )


def _known(place: str, kind: str, name: str | None, names: Iterable[str]) -> None:
    every = list(names)
    if name is not None and name not in every:
        raise ConfigError(
            f"{place}: there is no {kind} {name!r}.{did_you_mean(name, every)} There are: {'; '.join(every)}"
        )


def _names_apart(place: str, kind: str, names: Iterable[str]) -> None:
    """Refuses names that would be the same in the name of a folder."""
    folders: dict[str, str] = {}
    for name in names:
        other = folders.setdefault(_plain(name), name)
        if other != name:
            raise ConfigError(f"{place}: {kind} {other!r} and {name!r} would have the same run folders: rename one")


def _can_tell(study: Study, claim: Claim) -> bool:
    """Whether the cells that a claim is about are measured at this scale."""
    return all(
        study.has(row, column) and (after is None or after in study.after_epochs(row))
        for row, column, after in claim.sides
    )


def _no_cells(path: Path, claim: Claim, studies: Iterable[Study]) -> str:
    names = ", ".join(each.scale for each in studies)
    return (
        f"study {path}, claim {claim.text!r}: no scale ({names}) measures both of its cells; see its rows, columns, "
        "after and against_after, and evaluate.after_epochs and skipped cells"
    )


def _is_of(rule: Rule, row: str, column: str) -> bool:
    return rule.row in (None, row) and rule.column in (None, column)


def _add(ordered: dict[Key, Cell], every: Mapping[Key, Cell], key: Key, path: tuple[Key, ...] = ()) -> None:
    """Puts a cell behind those that it needs."""
    if key in ordered:
        return
    if key in path:
        raise ConfigError(f"runs_of: the run of row {key[0]!r} would need itself")
    if key not in every:
        raise ConfigError(
            f"runs_of: row {path[-1][0]!r} needs the run of row {key[0]!r} in column {key[1]!r}, which is skipped"
        )
    for needed in every[key].needs.values():
        _add(ordered, every, needed, (*path, key))
    ordered[key] = every[key]
