"""A plugin in words, for ``clf plugins show``."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clf import config
from clf.plugins import load_plugin, name_of

if TYPE_CHECKING:
    from clf.method import Method


@dataclass(frozen=True)
class Setting:
    """One ``method.*`` key."""

    key: str
    type: str
    default: Any
    description: str


@dataclass(frozen=True)
class MethodDescription:
    name: str
    summary: str
    settings: tuple[Setting, ...]
    defaults: dict[str, Any]
    """Engine keys that the method recommends, with its own settings left as they are."""


@dataclass(frozen=True)
class Description:
    """What ``clf plugins show`` prints."""

    name: str
    value: str
    distribution: str
    version: str
    builtin: bool
    text: str
    """Docstring of the plugin's module."""
    methods: tuple[MethodDescription, ...]
    datasets: tuple[str, ...]
    reachable: tuple[str, ...]
    """Those of ``datasets`` that ``data.name`` can name: a source is looked for in the plugin of the same name."""
    callbacks: tuple[str, ...]


def describe(name_or_path: str) -> Description:
    """A plugin in words: what it is, what it provides, and each setting of its methods. Raises as load_plugin does."""
    plugin = load_plugin(name_or_path)
    info = plugin.info
    datasets = tuple(name_of(source) for source in plugin.datasets)
    return Description(
        info.name,
        info.value,
        info.distribution,
        info.version,
        info.builtin,
        inspect.getdoc(plugin.module) or "",
        tuple(_describe_method(method) for method in plugin.methods),
        datasets,
        tuple(name for name in datasets if info.offer is not None and name == info.name and not _is_built_in(name)),
        tuple(callback.__name__ for callback in plugin.callbacks),
    )


def _is_built_in(source: str) -> bool:
    from clf.data import source_names  # torch

    return source in source_names()


def _describe_method(method: type[Method[Any]]) -> MethodDescription:
    settings = [
        Setting(
            key,
            config.describe_type(field_info),
            "(must be set)" if field_info.is_required() else field_info.get_default(call_default_factory=True),
            field_info.description or "",
        )
        for key, field_info in config.known_keys(method.Config, "method.").items()
    ]
    own_text = vars(method).get("__doc__")
    summary = inspect.cleandoc(own_text).split("\n\n")[0] if own_text else ""
    return MethodDescription(method.name, summary, tuple(settings), dict(method.recommended({})))
