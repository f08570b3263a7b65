"""What is installed and which of it can be used, from packaging metadata alone. Imports no plugin.

Besides plugins, whose hooks provide methods, data sources, evaluators and callbacks, other distributions may offer
commands, vector stores and engines of bulk embedding, each by an entry-point group of its own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from clf import __version__
from clf.entrypoints import DISTRIBUTION, Offer, offers
from clf.errors import PluginError, did_you_mean

Kind: TypeAlias = Literal["plugin", "command", "store", "engine"]

GROUP = "clf.plugins"
GROUPS: Mapping[Kind, str] = MappingProxyType(
    {"plugin": GROUP, "command": "clf.commands", "store": "clf.indexes", "engine": "clf.engines"}
)
DISABLE = "CLF_DISABLE_PLUGINS"

State: TypeAlias = Literal["available", "disabled", "incompatible", "conflict", "broken"]

_REMEDY: dict[State, str] = {
    "disabled": f"Take it out of {DISABLE} to use it.",
    "incompatible": "Install a version of {distribution} that was made for this clf-vision.",
    "conflict": f"Uninstall one of them, or block one by its distribution, for example {DISABLE}={{distribution}}",
    "broken": "Reinstall {distribution}.",
}


@dataclass(frozen=True)
class PluginInfo:
    """What is known of a plugin, a command, a vector store or an engine without importing it."""

    name: str
    value: str
    """The module, or the path of a single-file plugin."""
    distribution: str
    version: str
    state: State = "available"
    reason: str = ""
    """Why it cannot be used; empty when it is available."""
    builtin: bool = False
    kind: Kind = "plugin"
    offer: Offer | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "offer"}

    def __str__(self) -> str:
        if self.offer is None:
            return f"{self.kind} {self.name}"
        return f"{self.kind} {self.name!r} ({self.distribution} {self.version})"


def list_plugins() -> list[PluginInfo]:
    """All installed plugins, built-in ones first, with what forbids their use. Imports none of them."""
    return list_entries("plugin")


def list_everything(commands: Iterable[str] = ()) -> list[PluginInfo]:
    """Plugins, then commands, vector stores and engines, each as :func:`list_entries` does.

    Args:
        commands: names of commands that no entry point may take.
    """
    return [row for kind in GROUPS for row in list_entries(kind, commands if kind == "command" else ())]


def list_entries(kind: Kind, reserved: Iterable[str] = ()) -> list[PluginInfo]:
    """All installed entries of a kind, built-in ones first, with what forbids their use. Imports none of them.

    Args:
        reserved: names that no entry may take, besides those of our own entries.
    """
    rows = [judge(offer) for offer in offers(GROUPS[kind])]
    taken = {row.name for row in rows if row.builtin} | set(reserved)
    claims = Counter(row.name for row in rows if row.state == "available")
    resolved = []
    for row in rows:
        row = replace(row, kind=kind)
        if row.state == "available" and not row.builtin and row.name in taken:
            row = replace(row, state="conflict", reason=f"the name {row.name!r} is reserved by {DISTRIBUTION}")
        elif row.state == "available" and not row.builtin and claims[row.name] > 1:
            same = [other for other in rows if other.name == row.name and other.state == "available"]
            rivals = ", ".join(sorted({other.distribution for other in same if other.offer is not row.offer}))
            row = replace(row, state="conflict", reason=f"the name {row.name!r} is also claimed by {rivals}")
        resolved.append(row)
    return sorted(resolved, key=lambda row: (not row.builtin, row.name, row.distribution))


def find_plugin(name: str) -> PluginInfo:
    """The one usable plugin of this name.

    Raises:
        PluginError: there is none, with the nearest name, or with the reason why it cannot be used.
    """
    rows = list_plugins()
    if named := [row for row in rows if row.name == name]:
        return the_usable(named)
    available = sorted(row.name for row in rows if row.state == "available")
    listing = (
        f"Available: {', '.join(available)}." if available else f"No plugin is installed; reinstall {DISTRIBUTION}."
    )
    raise PluginError(
        f"unknown plugin {name!r}.{did_you_mean(name, available)} {listing} A method in a file is given by its path, "
        "for example ./my_method.py"
    )


def the_usable(named: Sequence[PluginInfo]) -> PluginInfo:
    """The one of some entries of the same name that can be used.

    Raises:
        PluginError: none can, with the reason and the remedy.
    """
    for row in named:
        if row.state == "available":
            return row
    row = named[0]
    remedy = _REMEDY[row.state].format(distribution=row.distribution)
    raise PluginError(f"{row} cannot be used, state {row.state}: {row.reason}. {remedy}")


def judge(offer: Offer) -> PluginInfo:
    """What one entry says of itself, before the others are looked at: any extension point may ask."""
    row = PluginInfo(offer.name, offer.value, offer.distribution, offer.version, builtin=offer.builtin, offer=offer)
    disabled = {word.strip() for word in os.environ.get(DISABLE, "").split(",")}
    if offer.name in disabled or offer.distribution in disabled:
        return replace(row, state="disabled", reason=f"blocked by {DISABLE}")
    if offer.problem:
        return replace(row, state="broken", reason=offer.problem)
    for text in offer.requires:
        if unmet := _unmet(text):
            return replace(row, state="incompatible", reason=f"it needs {unmet}, and this is {__version__}")
    return row


def _unmet(text: str) -> str:
    """The requirement, when it is one on clf-vision that this version does not meet; else an empty string."""
    requirement = requirement_on_clf(text)
    if requirement is None or requirement.specifier.contains(__version__, prereleases=True):
        return ""
    return f"{DISTRIBUTION}{requirement.specifier}"


def requirement_on_clf(text: str) -> Requirement | None:
    """A line of ``Requires-Dist``, when it is about clf-vision and applies here."""
    if "clf" not in text.lower():  # to read all of everybody's takes most of the time of ``clf --help``
        return None
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    return requirement if applies and canonicalize_name(requirement.name) == DISTRIBUTION else None
