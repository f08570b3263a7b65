"""One run of a comparison: its settings, its facts and its scores, from four files of its folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from clf import config as configuration
from clf import plugins
from clf.compare.scores import SECONDS, Curves, Evaluated, read_curves, read_evaluated
from clf.config import Config
from clf.errors import RunError
from clf.runs import Run

NO_EFFECT = ("run.", "monitor.", "train.checkpoint_")
"""Prefixes of keys that change what is recorded and kept, not what is learned."""
ROUNDING = {
    *("seed", "train.threads", "train.device", "train.deterministic", "train.unreachable_seconds"),
    *("data.workers", "data.download"),
}
"""Keys that a group may differ in: the seed, and what changes rounding and speed only."""
BY_MANIFEST = {"data.name", "data.root", "data.limit", "data.test_fraction", "data.image_size"}
"""Keys that stand for the images a run had, which its manifest tells exactly."""
IN_MANIFEST: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("state", "device", "commit", "clf_version"), str),
    **dict.fromkeys(("step", "threads", "world_size"), int),
    "wall_seconds": int | float,
    "plugin_source": dict,
    "data": dict,
}
IN_DATA: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("name", "fingerprint", "split"), str),
    **dict.fromkeys(("train_images", "test_images", "image_size", "channels"), int),
}


@dataclass(frozen=True)
class Data:
    """The images that a run was trained and measured on."""

    name: str
    fingerprint: str
    split: str
    train_images: int
    test_images: int
    image_size: int
    channels: int
    labelled: bool

    @property
    def words(self) -> str:
        return (
            f"{self.name}, {self.train_images:,} training and {self.test_images:,} test images of {self.image_size} px"
        )


@dataclass(frozen=True)
class Member:
    """A run as far as a comparison reads it."""

    name: str
    """Of the folder, with those around it where several runs have the same."""
    path: Path
    seed: int
    plugin: str
    settings: Mapping[str, Any]
    """Dotted key -> value, of all that can change what is learned, but the seed."""
    config: Mapping[str, Any]
    derived: frozenset[str]
    """Keys whose values are those that follow from others where they are not set."""
    manifest: Mapping[str, Any]
    data: Data
    evaluated: Sequence[Evaluated]
    curves: Curves

    @property
    def state(self) -> str:
        return str(self.manifest.get("state") or "unknown")

    @property
    def step(self) -> int:
        """Optimiser steps that are done; by the records while it runs and where it was killed.

        The manifest of a run that was resumed has the step of its earlier end until it ends again.
        """
        if self.state == "running" and self.curves.step:
            return self.curves.step
        return self.manifest.get("step") or self.curves.step

    @property
    def address(self) -> str:
        """The folder as one types it in a shell."""
        return printable(shlex.quote(str(self.path)))

    @property
    def wall_seconds(self) -> float | None:
        """Of training, preparation and measurements; None where nothing tells."""
        return self.curves.last.get(SECONDS)

    @property
    def code(self) -> str:
        """Version and commit of clf, and version or digest of the plugin."""
        source = self.manifest.get("plugin_source", {})
        commit = self.manifest.get("commit")
        own = source.get("version") or str(source.get("sha256", ""))[:12]
        words = [f"clf {self.manifest.get('clf_version', 'unknown')}", f"commit {commit}" if commit else "", own]
        return ", ".join(word for word in words if word)


def read_members(runs: Sequence[Run]) -> list[Member]:
    """Each run once, in the order given, under names that differ.

    Raises:
        RunError: a run has no manifest, or a file of it is damaged.
        ConfigError: a configuration is not valid.
    """
    unique = list({run.path.resolve(): run for run in runs}.values())
    names = _names([run.path for run in unique])
    return [_read(run, name) for run, name in zip(unique, names, strict=True)]


def _read(run: Run, name: str) -> Member:
    whole, manifest = run.config(), _manifest(run)
    config = configuration.flatten(whole)
    return Member(
        name=name,
        path=run.path,
        seed=int(config["seed"]),
        plugin=_plugin(config["plugin"]),
        settings=_settings(config, manifest),
        config=config,
        derived=_derived(whole),
        manifest=manifest,
        data=_data(manifest.get("data", {})),
        evaluated=read_evaluated(run),
        curves=_curves(run, manifest),
    )


def _manifest(run: Run) -> dict[str, Any]:
    """What the manifest tells, without what it has no value for."""
    found = _known(run.manifest())
    wrong = _wrong(found, IN_MANIFEST)
    if not wrong:
        found["data"] = _known(found.get("data", {}))
        wrong = [f"data.{key}" for key in _wrong(found["data"], IN_DATA)]
    if wrong:
        raise RunError(
            f"{run.path / 'manifest.json'} is damaged: {wrong[0]} has a value of another kind. Restore the file, or "
            "leave this run out"
        )
    return found


def _known(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value is not None}


def _wrong(found: Mapping[str, Any], kinds: Mapping[str, type | UnionType]) -> list[str]:
    return [key for key, kind in kinds.items() if key in found and not isinstance(found[key], kind)]


def _curves(run: Run, manifest: Mapping[str, Any]) -> Curves:
    running = manifest.get("state") == "running"  # its manifest may tell of an earlier end
    try:
        return read_curves(run.metrics(), 0.0 if running else manifest.get("wall_seconds", 0.0))
    except (TypeError, KeyError, UnicodeDecodeError) as error:
        raise RunError(
            f"{run.metrics_file} is damaged: a line of it is no record with a step and an epoch. Remove that line, or "
            "leave this run out"
        ) from error


def _data(found: Mapping[str, Any]) -> Data:
    return Data(
        name=printable(found.get("name", "unknown data")),
        fingerprint=str(found.get("fingerprint", "")),
        split=str(found.get("split", "unknown")),
        train_images=int(found.get("train_images", 0)),
        test_images=int(found.get("test_images", 0)),
        image_size=int(found.get("image_size", 0)),
        channels=int(found.get("channels", 0)),
        labelled=bool(found.get("labelled", False)),
    )


def _settings(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        key: _without_seed(value, config["seed"])
        for key, value in config.items()
        if not key.startswith(NO_EFFECT) and key not in ROUNDING | BY_MANIFEST
    }
    kept["plugin"] = _plugin(config["plugin"])
    code = manifest.get("plugin_source", {}).get("sha256")
    facts = manifest.get("data", {})
    images = {f"data.{key}": facts.get(key) for key in ("name", "train_images", "test_images", "split", "image_size")}
    images["data.channels"] = facts.get("channels")
    images["data.fingerprint"] = str(facts.get("fingerprint", ""))[:12]
    source = {"plugin": kept.pop("plugin"), **({"plugin.sha256": str(code)[:12]} if code else {})}
    return {**source, **kept, "processes": manifest.get("world_size", 1), **images}


def _derived(config: Config) -> frozenset[str]:
    optimizer = config.optimizer.model_copy(update={"lr": None, "weight_decay": None})
    schedule = config.schedule.model_copy(update={"warmup_epochs": None})
    bare = config.model_copy(update={"optimizer": optimizer, "schedule": schedule})
    own, usual = configuration.flatten(config), configuration.flatten(configuration.derive(bare)[0])
    return frozenset(
        key for key in ("optimizer.lr", "optimizer.weight_decay", "schedule.warmup_epochs") if own[key] == usual[key]
    )


def _without_seed(value: Any, seed: int) -> Any:
    """A text that names the run's own seed, such as the folder of the run that a method starts from, without it."""
    return re.sub(rf"(seed[-_ =]?){seed}(?!\d)", r"\1*", value) if isinstance(value, str) else value


def _plugin(name: str) -> str:
    return Path(name).stem if plugins.is_path(name) else name


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many before it as make it differ from the others."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for own in parts:
        others = [each for each in parts if each != own]
        depth = next((d for d in range(1, len(own)) if all(each[-d:] != own[-d:] for each in others)), len(own))
        names.append(printable("/".join(own[-depth:])))
    return names


def printable(text: str) -> str:
    """Text on one line: what does not print, such as a line feed or half a character, by its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
