"""clf: from unlabelled images to a search engine over them.

The public names below are what a method plugin may use, with the modules :mod:`clf.losses` and :mod:`clf.nn`. They
load on first use, so that ``import clf`` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Backbone": "clf.backbones",
    "Batch": "clf.method",
    "BatchStream": "clf.method",
    "ClfError": "clf.errors",
    "Context": "clf.method",
    "DataSpec": "clf.method",
    "Method": "clf.method",
    "MethodConfig": "clf.method",
    "Recipe": "clf.augment",
    "StepOutput": "clf.method",
    "hookimpl": "clf.hookspecs",
    "simclr_recipe": "clf.augment",
}

if TYPE_CHECKING:
    from clf.augment import Recipe, simclr_recipe
    from clf.backbones import Backbone
    from clf.errors import ClfError
    from clf.hookspecs import hookimpl
    from clf.method import Batch, BatchStream, Context, DataSpec, Method, MethodConfig, StepOutput

__all__ = [
    "Backbone",
    "Batch",
    "BatchStream",
    "ClfError",
    "Context",
    "DataSpec",
    "Method",
    "MethodConfig",
    "Recipe",
    "StepOutput",
    "__version__",
    "hookimpl",
    "simclr_recipe",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'clf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
