"""Names of a new plugin: which are allowed, which are free, and what its class is called."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Collection
from importlib.machinery import PathFinder

from clf.catalogue import list_plugins
from clf.errors import PluginError

LONGEST = 28
"""So that lines with the name of the class fit into 120 columns."""
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def check_name(name: str) -> None:
    """Raises PluginError for a name that cannot be a plugin's, or that somebody has; with what to write instead."""
    if not _NAME.fullmatch(name):
        raise PluginError(
            f"{name!r} cannot be the name of a plugin, which has lower-case letters, digits and single underscores "
            f"between them, and a letter first{_suggestion(name)}"
        )
    if len(name) > LONGEST:
        raise PluginError(f"the name {name!r} has {len(name)} letters: choose one of {LONGEST} or fewer")
    if name.startswith("clf_"):
        raise PluginError(f"{name!r} would give a package clf_{name}: leave the clf_ away{_suggestion(name)}")
    if keyword.iskeyword(name):
        raise PluginError(f"{name!r} is a keyword of Python: choose another name, such as {name}_views")
    for row in list_plugins():
        if row.name == name:
            owner = "a built-in plugin" if row.builtin else f"of {row.distribution} {row.version}, which is installed"
            raise PluginError(f"the name {name!r} is taken: it is {owner}. Choose another one")
    spec = PathFinder.find_spec(f"clf_{name}")
    if spec is not None and spec.origin is not None:
        raise PluginError(f"a package clf_{name} is installed already ({spec.origin}): choose another name")


def _suggestion(name: str) -> str:
    """``": try 'my_idea'"``, or nothing where no allowed name is near."""
    plain = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    plain = plain.strip("_").removeprefix("clf_")
    return f": try {plain!r}" if _NAME.fullmatch(plain) and plain != name else ""


def class_name(name: str, taken: Collection[str]) -> str:
    """``my_idea`` -> ``MyIdea``; with ``Method`` after it where the file means something else by that.

    >>> class_name("my_idea", ()), class_name("tensor", {"Tensor"})
    ('MyIdea', 'TensorMethod')
    """
    plain = "".join(part.capitalize() for part in name.split("_"))
    if plain in taken or f"{plain}Config" in taken or keyword.iskeyword(plain) or hasattr(builtins, plain):
        return f"{plain}Method"
    return plain
