"""The command that trains a run again, from nothing but itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from clf import config as configuration
from clf import settings
from clf.config import Config, Layer
from clf.errors import ClfError

ROUNDS = 5


def repeat_command(config: Config, plugin: str | None = None) -> str | None:
    """``clf train --plugin X key=value ...`` with every value that the plugin's own defaults do not give.

    Values follow from others (a learning rate from the optimizer), so the words are checked by what they resolve to
    and completed until that is the run's configuration. What only says where the run lies, ``run.*``, is left out.

    Args:
        plugin: what to give to ``--plugin``, where that is not what the configuration says.

    Returns:
        None where the plugin cannot be loaded any more.
    """
    wanted = {k: v for k, v in configuration.flatten(config).items() if k != "plugin" and not k.startswith("run.")}
    plugin = plugin or config.plugin
    given: dict[str, Any] = {}
    for _ in range(ROUNDS):
        try:
            found, _ = settings.resolve([Layer("the run", {"plugin": plugin, **given})])
        except ClfError:
            return None
        values = configuration.flatten(found)
        missing = {k: v for k, v in wanted.items() if k not in values or values[k] != v}
        if not missing:
            return _command(plugin, {k: given[k] for k in wanted if k in given})
        given |= missing
    return None


def _command(plugin: str, given: Mapping[str, Any]) -> str:
    return shlex.join(["clf", "train", "--plugin", plugin, *(f"{k}={_typed(v)}" for k, v in given.items())])


def _typed(value: Any) -> str:
    """A value as one types it, so that YAML reads it back."""
    if isinstance(value, str) and value and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
