"""Which plugins are installed and which of them can be used, from packaging metadata alone. Imports no plugin."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from typing import Literal, TypeAlias

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from clf import __version__
from clf.entrypoints import DISTRIBUTION, Offer, offers
from clf.errors import PluginError, did_you_mean

GROUP = "clf.plugins"
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
    """What is known of a plugin without importing it."""

    name: str
    value: str
    """The module, or the path of a single-file plugin."""
    distribution: str
    version: str
    state: State = "available"
    reason: str = ""
    """Why it cannot be used; empty when it is available."""
    builtin: bool = False
    offer: Offer | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "offer"}

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution} {self.version})" if self.offer else f"plugin {self.name}"


def list_plugins() -> list[PluginInfo]:
    """All installed plugins, built-in ones first, with what forbids their use. Imports none of them."""
    rows = [_judge(offer) for offer in offers(GROUP)]
    reserved = {row.name for row in rows if row.builtin}
    claims = Counter(row.name for row in rows if row.state == "available")
    resolved = []
    for row in rows:
        if row.state == "available" and not row.builtin and row.name in reserved:
            row = replace(row, state="conflict", reason=f"the name {row.name!r} is reserved by {DISTRIBUTION}")
        elif row.state == "available" and not row.builtin and claims[row.name] > 1:
            others = {other.distribution for other in rows if other.name == row.name and other is not row}
            rivals = ", ".join(sorted(others))
            row = replace(row, state="conflict", reason=f"the name {row.name!r} is also claimed by {rivals}")
        resolved.append(row)
    return sorted(resolved, key=lambda row: (not row.builtin, row.name, row.distribution))


def find_plugin(name: str) -> PluginInfo:
    """The one usable plugin of this name.

    Raises:
        PluginError: there is none, with the nearest name, or with the reason why it cannot be used.
    """
    rows = list_plugins()
    named = [row for row in rows if row.name == name]
    usable = [row for row in named if row.state == "available"]
    if usable:
        return usable[0]
    if named:
        row = named[0]
        remedy = _REMEDY[row.state].format(distribution=row.distribution)
        raise PluginError(f"{row} cannot be used, state {row.state}: {row.reason}. {remedy}")
    available = sorted(row.name for row in rows if row.state == "available")
    listing = (
        f"Available: {', '.join(available)}." if available else f"No plugin is installed; reinstall {DISTRIBUTION}."
    )
    raise PluginError(
        f"unknown plugin {name!r}.{did_you_mean(name, available)} {listing} A method in a file is given by its path, "
        "for example ./my_method.py"
    )


def _judge(offer: Offer) -> PluginInfo:
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
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return ""
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if canonicalize_name(requirement.name) != DISTRIBUTION or not applies:
        return ""
    return (
        ""
        if requirement.specifier.contains(__version__, prereleases=True)
        else f"{DISTRIBUTION}{requirement.specifier}"
    )
