"""The configuration that verifications train: small enough for seconds, and any key can be set otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clf import plugins, settings
from clf.config import Config, Layer
from clf.errors import ConfigError

IMAGES = 96

TINY: Mapping[str, Any] = {
    "backbone.name": "test_resnet",
    "train.batch_size": 16,
    "train.threads": 1,
    "monitor.max_images": 64,
}
SHAPES: Mapping[str, Any] = {
    "data.image_size": 16,
    "data.options.train_images": IMAGES,
    "data.options.test_images": 16,
}


def tiny(plugin: str, folder: Path, changes: Mapping[str, Any], own: Mapping[str, Any]) -> Config:
    """The plugin's recommendations, under what is tiny (also by :attr:`clf.Method.tiny`), under what one verification
    needs, under the user's words.

    Args:
        folder: where the runs lie for as long as the verification lasts.
        changes: dotted keys and values of the user.

    Raises:
        ConfigError: a key or value is wrong, or names a run folder.
        PluginError: the plugin cannot be used.
    """
    for key in changes:
        if key.startswith("run."):
            raise ConfigError(f"{key} cannot be set here: the runs of clf verify lie in a temporary folder")
    embedded = changes.get("data.name", "shapes") == "shapes"
    data = {"data.name": "shapes", **SHAPES} if embedded else {"data.limit": IMAGES}
    small = plugins.load_method(plugin).tiny
    below = Layer("clf verify", {**TINY, **data, **small, **own, "run.dir": str(folder)})
    given = Layer("command line", {"plugin": plugin, **changes})
    return settings.resolve([below, given])[0]


def named(config: Config, name: str, **changes: Any) -> Config:
    """The configuration of one run, with other values of some sections: ``named(c, "alone", data={"workers": 2})``."""
    updates = {section: getattr(config, section).model_copy(update=values) for section, values in changes.items()}
    return config.model_copy(update={**updates, "run": config.run.model_copy(update={"name": name})})
