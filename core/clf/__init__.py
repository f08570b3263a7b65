"""clf: from unlabelled images to a search engine over them.

The public names below are what a plugin may use, with the modules that :mod:`clf.public` names. They load on first use,
so that ``import clf`` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Augment": "clf.augment",
    "Backbone": "clf.backbones",
    "Batch": "clf.method",
    "BatchStream": "clf.method",
    "Callback": "clf.callbacks",
    "ClfError": "clf.errors",
    "ConfigError": "clf.errors",
    "Context": "clf.method",
    "DataError": "clf.errors",
    "DataSpec": "clf.method",
    "Evaluator": "clf.evaluators",
    "Group": "clf.method",
    "Method": "clf.method",
    "MethodConfig": "clf.method",
    "Recipe": "clf.augment",
    "SavedMethod": "clf.saved",
    "StepOutput": "clf.method",
    "hookimpl": "clf.hookspecs",
    "saved_method": "clf.saved",
    "simclr_recipe": "clf.augment",
}
_DEPRECATED: dict[str, tuple[str, str, str]] = {}
"""By old name: the new one, written with its module; the version since which it is deprecated; the one it is gone in.
"""

if TYPE_CHECKING:
    from clf.augment import Augment, Recipe, simclr_recipe
    from clf.backbones import Backbone
    from clf.callbacks import Callback
    from clf.errors import ClfError, ConfigError, DataError
    from clf.evaluators import Evaluator
    from clf.hookspecs import hookimpl
    from clf.method import Batch, BatchStream, Context, DataSpec, Group, Method, MethodConfig, StepOutput
    from clf.saved import SavedMethod, saved_method

__all__ = [
    "Augment",
    "Backbone",
    "Batch",
    "BatchStream",
    "Callback",
    "ClfError",
    "ConfigError",
    "Context",
    "DataError",
    "DataSpec",
    "Evaluator",
    "Group",
    "Method",
    "MethodConfig",
    "Recipe",
    "SavedMethod",
    "StepOutput",
    "__version__",
    "hookimpl",
    "saved_method",
    "simclr_recipe",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    if name in _DEPRECATED:
        return import_module("clf.public").deprecated(name, _DEPRECATED)
    raise AttributeError(f"module 'clf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
