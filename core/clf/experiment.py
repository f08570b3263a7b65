"""From a configuration to the things it names: data, backbone, method."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from clf import checkpoint, kept, plugins
from clf.augment import Recipe
from clf.backbones import create_backbone
from clf.calls import Calls, calls_of
from clf.config import Config, DataSection
from clf.data import DataSource, Progress, plugged
from clf.errors import CheckpointError, ConfigError, DataError, PluginError, RunError
from clf.method import DataSpec, Method, MethodConfig
from clf.plugins import Plugin
from clf.random import derive_seed
from clf.runs import Run


@dataclass(frozen=True)
class Experiment:
    """A configuration with its data and its method. ``step`` is 0 for an untrained method."""

    config: Config
    data: DataSource
    spec: DataSpec
    method: Method[MethodConfig]
    recipes: Sequence[Recipe]
    step: int = 0
    plugin: Plugin | None = None
    """Where the method comes from, as it was loaded; None where it is no plugin's."""

    @property
    def calls(self) -> Calls:
        """For calls into the method."""
        if self.plugin is None:
            return Calls(f"method {type(self.method).__name__}", type(self.method), lambda: "Mend it.")
        return calls_of(self.plugin, type(self.method))


def build(
    config: Config,
    data: DataSource | None = None,
    *,
    fetch: bool = True,
    progress: Progress | None = None,
    plugin: Plugin | None = None,
) -> Experiment:
    """The untrained experiment; initial weights are a function of the configuration alone.

    Args:
        data: the loaded data, when the caller has it already.
        progress: called with the number of images read so far and in all.
        fetch: False leaves pretrained weights out, when a checkpoint is about to replace them.
        plugin: the loaded plugin, when it is not the one that the configuration names; a run's kept file, say.

    Raises:
        ClfError: the plugin, the data, the backbone or the method's settings are at fault.
    """
    plugin = plugin or plugins.load_plugin(config.plugin)
    method_type = plugins.method_of(plugin)
    calls = calls_of(plugin, method_type)
    data = data or load_data(config.data, config.seed, progress)
    spec = describe(config, data)
    try:
        with calls("Config"):
            settings = method_type.Config.model_validate(config.method)
    except ValidationError as error:
        raise ConfigError(f"method settings of {config.plugin!r}: {error.errors()[0]['msg']}") from error
    config = config.model_copy(update={"method": settings.model_dump(mode="json")})
    backbone = create_backbone(config.backbone, data.channels, data.image_size, config.seed, fetch=fetch)
    with torch.random.fork_rng(devices=[]), calls("build"):
        torch.manual_seed(derive_seed(config.seed, "method"))
        method = method_type.build(backbone, settings, spec)
    if config.train.precision == "fp64":
        method = method.double()
    overrides = config.augment.model_dump()
    with calls("views"):
        recipes = list(method.views())
    for each in recipes:
        if not isinstance(each, Recipe):
            raise PluginError(f"method {config.plugin!r}: views gave a {type(each).__name__} that is no clf.Recipe")
    recipes = [recipe.with_overrides(overrides) for recipe in recipes]
    return Experiment(config, data, spec, method, recipes, plugin=plugin)


def load_data(section: DataSection, seed: int, progress: Progress | None = None) -> DataSource:
    """Reads a data set: a built-in one, or a source of a plugin or of a file.

    Raises:
        ConfigError, DataError, PluginError: as the source does.
    """
    return plugged.load(section, seed, progress)


def describe(config: Config, data: DataSource) -> DataSpec:
    """What the method may know of the data.

    Raises:
        DataError: the training set is smaller than a batch.
    """
    n, batch = len(data.train.images), config.train.batch_size
    if n < batch:
        raise DataError(
            f"{data.name} has {n} training images, fewer than train.batch_size = {batch}: "
            f"lower train.batch_size to {n} or less, or add images"
        )
    return _spec(config, data.name, n, data.image_size, data.channels, data.fingerprint)


def describe_run(run: Run, config: Config) -> DataSpec:
    """What a run's method knew of its data, from the manifest.

    Raises:
        RunError: the manifest is missing or says nothing of the data.
    """
    data = run.manifest().get("data", {})
    try:
        return _spec(
            config, data["name"], data["train_images"], data["image_size"], data["channels"], data["fingerprint"]
        )
    except KeyError as error:
        raise RunError(f"{run.path / 'manifest.json'} does not say {error} of the data: train the run again") from error


def _spec(config: Config, name: str, n: int, image_size: int, channels: int, fingerprint: str) -> DataSpec:
    batch = config.train.batch_size
    return DataSpec(
        name=name,
        n_images=n,
        image_size=image_size,
        channels=channels,
        batch_size=batch,
        steps_per_epoch=n // batch / config.train.accumulate,
        epochs=config.train.epochs,
        fingerprint=_subset(fingerprint, config),
    )


def _subset(fingerprint: str, config: Config) -> str:
    """Identifies the training images: those of a source, or the part of them that ``data.limit`` takes by the seed."""
    limit = config.data.limit
    part = f"{fingerprint};{config.data.test_fraction}" + ("" if limit is None else f";{limit};{config.seed}")
    return hashlib.sha256(part.encode()).hexdigest()


def load(run: Run, *, data: DataSource | None = None, same_data: bool = True) -> Experiment:
    """A run's experiment with the weights of its newest good checkpoint, in eval mode on the CPU.

    Args:
        data: the loaded data, when the caller has it already.
        same_data: refuse data that have changed since the training; False where they only serve as examples.

    Raises:
        RunError: the run has no usable checkpoint, was trained on other data than is found now, or its kept plugin
            file is not what it was trained with.
    """
    state, _ = checkpoint.load_newest(run.checkpoints)
    config = run.config()
    experiment = build(config, data, fetch=False, plugin=plugins.load_plugin(kept.plugin_of(run, config)))
    if same_data:
        check_data(run, experiment.data)
    load_weights(experiment.method, state, run)
    experiment.method.eval()
    return Experiment(
        experiment.config,
        experiment.data,
        experiment.spec,
        experiment.method,
        experiment.recipes,
        int(state["step"]),
        experiment.plugin,
    )


def load_weights(method: Method[MethodConfig], state: Mapping[str, Any], run: Run) -> None:
    """Gives a method the weights of a checkpoint.

    Raises:
        CheckpointError: they are of another method, another version of one, or another backbone.
    """
    try:
        method.load_state_dict(state["method"])
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the weights of run {run.name!r} do not fit what its configuration builds now ({reason}): use the plugin "
            "and timm versions in its manifest.json"
        ) from error


def check_data(run: Run, data: DataSource) -> None:
    """Refuses data that differ from those the run was trained on."""
    known = run.manifest().get("data", {}).get("fingerprint")
    if known is not None and known != data.fingerprint:
        raise RunError(
            f"the data of run {run.name!r} have changed since it was trained (fingerprint {known[:12]} then, "
            f"{data.fingerprint[:12]} now): restore them, or train a new run"
        )
