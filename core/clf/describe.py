"""A plugin in words, for ``clf plugins show``."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clf import catalogue, config, distributions
from clf.distributions import About
from clf.errors import PluginError
from clf.plugins import is_path, load_plugin, name_of, remedy
from clf.testing import record

if TYPE_CHECKING:
    from clf.method import Method
    from clf.plugins import Plugin


@dataclass(frozen=True)
class Setting:
    """One ``method.*`` key."""

    key: str
    type: str
    """Type and range, such as ``float, above 0``."""
    default: Any
    description: str


@dataclass(frozen=True)
class MethodDescription:
    name: str
    summary: str
    paper: str
    """Authors, title, venue and number, where the method names them."""
    links: tuple[str, ...]
    """Addresses of the arXiv numbers and DOIs in ``paper``."""
    settings: tuple[Setting, ...]
    defaults: dict[str, Any]
    """Engine keys that the method recommends, with its own settings left as they are."""


@dataclass(frozen=True)
class Description:
    """What ``clf plugins show`` prints. Of a plugin that cannot be used, what its distribution's metadata tells."""

    name: str
    value: str
    distribution: str
    version: str
    builtin: bool
    state: str
    reason: str
    """Why it cannot be used; empty when it can."""
    about: About
    text: str = ""
    """Docstring of the plugin's module."""
    methods: tuple[MethodDescription, ...] = ()
    datasets: tuple[str, ...] = ()
    """Names of its data sources."""
    reachable: tuple[str, ...] = ()
    """For each of ``datasets`` the value of ``data.name``."""
    evaluators: tuple[str, ...] = ()
    callbacks: tuple[str, ...] = ()
    checks: dict[str, Any] | None = None
    """The last result of ``clf plugins check``, as :func:`clf.testing.record.read_last` gives it."""


def describe(name_or_path: str) -> Description:
    """A plugin in words: what it is, what it provides, each setting of its methods. Raises as load_plugin does."""
    plugin = load_plugin(name_or_path)
    known = _from_metadata(plugin.info)
    return replace(
        known,
        text=inspect.getdoc(plugin.module) or "",
        methods=tuple(_describe_method(plugin, method) for method in plugin.methods),
        datasets=tuple(map(name_of, plugin.datasets)),
        reachable=_reachable(plugin),
        evaluators=tuple(evaluator.name for evaluator in plugin.evaluators),
        callbacks=tuple(callback.__name__ for callback in plugin.callbacks),
        checks=record.read_last(name_or_path),
    )


def describe_unusable(name: str, error: PluginError) -> Description | None:
    """What the metadata tells of an installed plugin that raised ``error``; ``None`` for a file or an unknown name."""
    rows = [row for row in catalogue.list_plugins() if row.name == name and not is_path(name)]
    if not rows:
        return None
    row = next((row for row in rows if row.state == "available"), rows[0])
    if row.state == "available":  # it looks well from outside
        row = replace(row, state="broken", reason=str(error))
    return replace(_from_metadata(row), checks=record.read_last(name))


def _from_metadata(info: catalogue.PluginInfo) -> Description:
    about = distributions.about(info.distribution) if info.offer is not None else About()
    return Description(
        info.name, info.value, info.distribution, info.version, info.builtin, info.state, info.reason, about
    )


def _reachable(plugin: Plugin) -> tuple[str, ...]:
    """Values of ``data.name``: of the source with the plugin's name that name alone, unless a built-in one has it."""
    from clf.sources import BUILT_IN

    name = plugin.info.name
    short = plugin.info.offer is not None and name not in BUILT_IN
    found = map(name_of, plugin.datasets)
    return tuple(name if source == name and short else f"{name}:{source}" for source in found)


def _describe_method(plugin: Plugin, method: type[Method[Any]]) -> MethodDescription:
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
    paper = _paper(method)
    return MethodDescription(method.name, summary, paper, links(paper), tuple(settings), _recommended(plugin, method))


def _recommended(plugin: Plugin, method: type[Method[Any]]) -> dict[str, Any]:
    from clf.calls import Calls  # torch

    with Calls(str(plugin.info), method, lambda: remedy(plugin.info))("recommended"):
        return dict(method.recommended({}))


def _paper(method: type[Method[Any]]) -> str:
    """The paper that the method or a base class in the same package names; another package's is of another method."""
    package = method.__module__.partition(".")[0]
    for cls in method.__mro__:
        if "paper" in vars(cls):
            own = cls.__module__.partition(".")[0] == package
            return " ".join(str(vars(cls)["paper"]).split()) if own else ""
    return ""


def links(paper: str) -> tuple[str, ...]:
    """The addresses of the arXiv numbers and DOIs in a line.

    >>> links("Chen et al., SimCLR, ICML 2020, arXiv 2002.05709")
    ('https://arxiv.org/abs/2002.05709',)
    """
    arxiv = re.findall(r"arXiv[\s:]*(\d{4}\.\d{4,5}|[a-z-]+/\d{7})", paper, re.IGNORECASE)
    doi = re.findall(r"\b(10\.\d{4,9}/[^\s,;]+)", paper)
    return (*(f"https://arxiv.org/abs/{each}" for each in arxiv), *(f"https://doi.org/{each}" for each in doi))
