"""From the words of a command to a checked configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clf import config as configuration
from clf import kept, plugins, runs
from clf.config import Config, DataSection, Layer, Origins
from clf.errors import ConfigError, DataError, RunError
from clf.runs import Run


def resolve(layers: Sequence[Layer], run: Run | None = None) -> tuple[Config, Origins]:
    """The whole configuration: a run's own, or the plugin's recommendations, under what the user gave.

    Raises:
        ConfigError: no plugin is named, or a key or value is wrong.
        PluginError: the plugin cannot be used.
        RunError: the run was trained with another plugin.
    """
    layers = [_with_kept_file(layer) for layer in layers]
    given = _merge(layers)
    name = given.get("plugin", run.config().plugin if run else None)
    if name is None:
        usable = ", ".join(row.name for row in plugins.list_plugins() if row.state == "available") or "none"
        raise ConfigError(f"no plugin is given: add --plugin NAME, or a 'plugin' key to the file. Available: {usable}")
    if not isinstance(name, str):
        raise ConfigError(f"plugin = {name!r} is not a name: give a plugin's name or the path of a Python file")
    if run is not None and not kept.is_plugin_of(run, name):
        raise RunError(f"run {run.name!r} was trained with {run.config().plugin!r} and cannot be resumed with {name!r}")
    if run is not None:
        layers = [*layers, Layer(f"run {run.name}", {"plugin": run.config().plugin})]  # however it is spelt now
    plugin = plugins.load_plugin(kept.plugin_of(run) if run else name)
    method = plugins.method_of(plugin)
    own = {key.removeprefix("method."): value for key, value in given.items() if key.startswith("method.")}
    from clf.calls import calls_of

    calls = calls_of(plugin, method)
    with calls("recommended"):
        below = Layer(f"plugin {name}", method.recommended(own))
    if run is not None:
        below = Layer(f"run {run.name}", configuration.flatten(run.config()))
    with calls.anywhere():
        return configuration.derive(*configuration.build([below, *layers], method.Config))


def _with_kept_file(layer: Layer) -> Layer:
    """A run's own config.yaml means the source that the run was trained with, wherever it is read."""
    path = Path(layer.origin)
    if path.name != "config.yaml" or "plugin" not in layer.values or not (path.parent / "manifest.json").is_file():
        return layer
    return Layer(layer.origin, {**layer.values, "plugin": kept.word_of(Run(path.parent))})


def command_line(words: Sequence[str], plugin: str | None) -> Layer:
    """The command line as one layer: a leading folder, then key=value words, then --plugin."""
    values: dict[str, Any] = {}
    rest = list(words)
    if rest and ("=" not in rest[0] or Path(rest[0]).is_dir()):
        folder = rest.pop(0)
        if not Path(folder).is_dir():
            raise DataError(f"{folder!r} is neither a folder of images nor of the form key=value")
        values |= {"data.name": "folder", "data.root": folder}
    values |= configuration.parse_overrides(rest).values
    if plugin is not None:
        if values.get("plugin", plugin) != plugin:
            raise ConfigError(f"the plugin is given twice: --plugin {plugin} and plugin={values['plugin']}")
        values["plugin"] = plugin
    return Layer("command line", values)


def find_run(name: str, layers: Sequence[Layer]) -> Run | None:
    """The run that ``--resume NAME`` means; ``None`` when a new one is to be started.

    ``auto`` is the newest unfinished run. With ``run.name`` it is that run, or a new one of that name, so that a job
    which is started again and again can use one command.

    Raises:
        RunError: there is no such run, or none that is unfinished.
    """
    given = _merge(layers)
    folder = given.get("run.dir", "runs")
    if name != "auto":
        return runs.open_run(name, folder)
    if given.get("run.name") is None:
        return runs.newest_unfinished(folder)
    run = Run(Path(folder) / str(given["run.name"]))
    return run if any(run.checkpoints.glob("step-*.pt")) else None


def data_section(config: Config, on: str | None, words: Sequence[str]) -> DataSection | None:
    """The data to evaluate on; ``None`` for the run's own, as they were.

    ``on`` starts from a source's defaults, because the run's folder and limits belong to the run's source; without
    it the words change the run's own section.

    Raises:
        ConfigError: a word is not a ``data.`` setting, or its key or value is wrong.
    """
    given = configuration.parse_overrides(words)
    for key in given.values:
        if not key.startswith("data."):
            raise ConfigError(
                f"{key!r} cannot be set here: clf evaluate takes data. settings, such as data.root=FOLDER"
            )
    if on is None and not given.values:
        return None
    below = Layer(config.run.name or "run", {"plugin": config.plugin, **_data_of(config, on)})
    return configuration.build([below, given])[0].data


def _merge(layers: Sequence[Layer]) -> Mapping[str, Any]:
    return {key: value for layer in layers for key, value in layer.values.items()}


def _data_of(config: Config, on: str | None) -> dict[str, object]:
    if on is not None:
        return {"data.name": on}
    return {key: value for key, value in configuration.flatten(config).items() if key.startswith("data.")}
