"""What a plugin may provide. Few hooks, because a hook is free to add and impossible to remove.

A plugin is a module with any of these functions, each marked with ``@clf.hookimpl``::

    @clf.hookimpl
    def clf_methods():
        return [MyMethod]

The module is named in the plugin's packaging metadata, under the entry-point group ``clf.plugins``, and is imported
only when somebody asks for that plugin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from clf.callbacks import Callback
    from clf.data import Source
    from clf.method import Method

PROJECT = "clf"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def clf_methods() -> Sequence[type[Method[Any]]]:  # type: ignore[empty-body]
    """The training methods of this plugin: classes, not instances. One carries the entry point's name."""


@hookspec
def clf_datasets() -> Sequence[Source]:  # type: ignore[empty-body]
    """Data sources of this plugin: functions ``(section, seed, progress) -> clf.data.DataSource``.

    Each goes by its attribute ``name``, or else by the function's own name; the one that goes by the entry point's is
    used for ``data.name=NAME``.
    """


@hookspec
def clf_callbacks() -> Sequence[type[Callback]]:  # type: ignore[empty-body]
    """Observers of the runs of this plugin's methods: classes that are made without arguments."""
