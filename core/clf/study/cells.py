"""A cell as a configuration, as the command that repeats it, and against what was trained before."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from clf import config as configuration
from clf import plugins, settings
from clf.config import Config, Layer
from clf.data import DataSource
from clf.errors import ClfError, ConfigError, RunError
from clf.runs import Run
from clf.study.records import Record
from clf.study.spec import Cell, Study, slug
from clf.training import FREE_TO_CHANGE

_SETTLED = ("train.precision", "train.compile", "train.channels_last")
"""Keys of which a run's configuration holds what ``auto`` came to."""
_SILENT = {"monitor.knn_every": 0}
"""Below all settings: a study measures itself."""


def configure(cell: Cell, runs: Path) -> Config:
    """The whole configuration of a cell whose run lies in the folder ``runs``.

    Raises:
        ClfError: a setting is wrong, or the plugin cannot be used.
    """
    own = {"seed": cell.seed, "run.dir": str(runs), "run.name": cell.slug}
    taken = {key: str((runs / slug(needed)).resolve()) for key, needed in cell.needs.items()}
    return settings.resolve([Layer(f"cell {cell}", {**_SILENT, **cell.settings, **taken, **own})])[0]


def asked(cell: Cell, config: Config) -> dict[str, Any]:
    """What the cell's settings say, as the configuration reads them; files and folders by their names alone."""
    flat = configuration.flatten(config)
    keys = [key for key in cell.settings if key != "plugin"]
    return {key: _without_place(key, flat.get(key, cell.settings[key])) for key in keys}


def plugin_name(config: Config) -> str:
    """The plugin without the place of its file."""
    return Path(config.plugin).name if plugins.is_path(config.plugin) else config.plugin


def command(cell: Cell, config: Config) -> str:
    """``clf train --plugin NAME key=value ... seed=N``"""
    values = {**asked(cell, config), **builds_on(cell), "seed": cell.seed}
    words = [f"{key}={_as_typed(value)}" for key, value in values.items()]
    return shlex.join(["clf", "train", "--plugin", plugin_name(config), *words])


def builds_on(cell: Cell) -> dict[str, str]:
    """The runs that the cell takes, by setting."""
    return {key: slug(needed) for key, needed in cell.needs.items()}


def check_unchanged(study: Study, cell: Cell, config: Config, record: Record | None, run: Run) -> None:
    """Refuses a cell that the study describes otherwise now than when it was measured, or its training began.

    Raises:
        ConfigError: it does.
    """
    if record is not None:
        changes = _since_record(study, cell, config, record)
    elif (run.path / "config.yaml").is_file():
        changes = _since_start(cell, config, run)
    else:
        return
    if changes:
        raise ConfigError(
            f"cell {str(cell)!r} of study {study} was {'measured' if record else 'begun'} with other settings: "
            f"{'; '.join(changes)}. Give another --out, or remove {_remains(cell, record)} in {run.path.parent.parent}"
        )


def check_data(cell: Cell, config: Config, data: DataSource, records: Iterable[Record]) -> None:
    """Refuses data other than those of the cells of its column that are measured: a place is free to change, so that
    only the images themselves tell.

    Raises:
        RunError: they are others, where the settings say that they are the same.
    """
    wanted = _source(asked(cell, config))
    for record in records:
        same = record.column == cell.column and _source(record.settings) == wanted
        if same and record.data.fingerprint != data.fingerprint:
            raise RunError(
                f"the data are not those of the cell {' | '.join(map(str, record.key))!r}, which is measured "
                f"(fingerprint {record.data.fingerprint[:12]} there, {data.fingerprint[:12]} here), and the scores "
                "would not compare: give those data, or another --out"
            )


def _source(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k.startswith("data.") and not k.startswith(FREE_TO_CHANGE)}


def _remains(cell: Cell, record: Record | None) -> str:
    folder = f"the folder runs/{cell.slug}"
    return folder if record is None else f"its line of records.jsonl and {folder}"


def _since_record(study: Study, cell: Cell, config: Config, record: Record) -> list[str]:
    before = {"plugin": record.plugin, **record.settings, **record.builds_on, **_evaluation(record.evaluate)}
    after = {"plugin": plugin_name(config), **asked(cell, config), **builds_on(cell), **_evaluation(evaluation(study))}
    changes = _changes(before, after)
    missing = [epoch for epoch in cell.after_epochs if str(epoch) not in record.after]
    return [*changes, *(f"evaluate.after_epochs: {epoch} was not measured" for epoch in missing)]


def _since_start(cell: Cell, config: Config, run: Run) -> list[str]:
    try:
        before, after = configuration.flatten(run.config()), configuration.flatten(config)
    except ClfError:  # a damaged file: that cell fails when its turn comes
        return []
    open_ = [key for key in _SETTLED if after[key] in ("auto", None)]
    return [line for line in _changes(before, after) if not line.startswith((*open_, *cell.needs))]


def evaluation(study: Study) -> dict[str, Any]:
    """What a study asks of the evaluation of each cell's last epoch."""
    return study.evaluate.model_dump(mode="json", exclude={"after_epochs"})


def _evaluation(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"evaluate.{key}": value for key, value in values.items()}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    missing = "(none)"
    return [
        f"{key}: {before.get(key, missing)} -> {after.get(key, missing)}"
        for key in {**before, **after}
        if before.get(key, missing) != after.get(key, missing) and not key.startswith(FREE_TO_CHANGE)
    ]


def _without_place(key: str, value: Any) -> Any:
    """Files and folders by their name alone."""
    if isinstance(value, list):
        return [_without_place(key, each) for each in value]
    if isinstance(value, str) and (key == "data.root" or Path(value).expanduser().is_absolute()):
        return Path(value).name
    return value


def _as_typed(value: Any) -> str:
    """A value as a word of the command line, which reads it as YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.strip().removesuffix("...").strip()
