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
    from clf.evaluators import Evaluator
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

    Each goes by its attribute ``name``, or else by the function's own name. The one that goes by the entry point's is
    used for ``data.name=NAME``, any for ``data.name=PLUGIN:SOURCE``.
    """


@hookspec
def clf_evaluators() -> Sequence[type[Evaluator]]:  # type: ignore[empty-body]
    """Measurements for ``clf evaluate RUN --evaluator PLUGIN``: classes that are made without arguments."""


@hookspec
def clf_callbacks() -> Sequence[type[Callback]]:  # type: ignore[empty-body]
    """Observers of a training: classes that are made without arguments.

    They watch the runs of this plugin's methods, and those that name the plugin in ``monitor.callbacks``.
    """
