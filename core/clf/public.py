"""Which names of clf a plugin may use, and what becomes of one that is renamed.

Public are the names in ``clf.__all__`` and in the ``__all__`` of each module in :data:`MODULES`, with their public
attributes. Everything else may change in any release.

A public name that goes keeps working for one minor version at least, with a ``DeprecationWarning`` that says what to
write instead and in which version it is gone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import clf

MODULES = ("callbacks", "data", "evaluators", "losses", "nn", "testing")
"""Modules ``clf.X`` whose ``__all__`` is public."""
ELSEWHERE = ("clf_serve.bulk", "clf_serve.stores")
"""Public modules of the server, for packages that keep vectors or bring the work to machines."""


def is_public(name: str) -> bool:
    """Whether a plugin may import or use a name, written with its module: ``clf.Method``, ``clf.nn.mlp``.

    Names outside of clf are not judged and count as public. A deprecated name is public until it is gone; see
    :func:`replacement`.
    """
    top, *rest = name.split(".")
    if top not in ("clf", "clf_serve"):
        return True
    for module in (*(f"clf.{each}" for each in MODULES), *ELSEWHERE):
        if name == module:
            return True
        if name.startswith(f"{module}."):
            return _offers(module, name.removeprefix(f"{module}.").split("."))
    return top == "clf" and (not rest or _offers("clf", rest))


def replacement(name: str) -> str | None:
    """What to write instead of a deprecated name such as ``clf.Old``; None for every other name."""
    former = clf._DEPRECATED.get(name.removeprefix("clf.")) if name.startswith("clf.") else None
    return former[0] if former else None


def deprecated(name: str, table: Mapping[str, tuple[str, str, str]]) -> Any:
    """The value of a deprecated name of the package, with a warning at the line that used it.

    For ``clf.__getattr__``, whose caller's line is the one that is named.

    Args:
        table: by old name the new one written with its module, the version since which it is deprecated, and the
            version in which it is gone.
    """
    new, since, gone = table[name]
    warnings.warn(
        f"clf.{name} is deprecated since clf-vision {since} and gone in {gone}: use {new}",
        DeprecationWarning,
        stacklevel=3,
    )
    module, _, attribute = new.rpartition(".")
    return getattr(import_module(module), attribute)


def _offers(module: str, path: list[str]) -> bool:
    """Whether a module's ``__all__`` has the first word of a path, and no further word is private."""
    first, *rest = path
    if any(word.startswith("_") and not word.endswith("__") for word in rest):
        return False
    if module == "clf" and first in clf._DEPRECATED:
        return True
    return first in getattr(import_module(module), "__all__", ())
