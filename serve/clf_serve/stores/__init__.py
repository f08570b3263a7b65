"""Galleries that are kept elsewhere than in a folder: in PostgreSQL, in a search engine, in whatever is installed.

A package offers a store by an entry point of the group ``clf.indexes``: ``mine = "clf_mine:MyStore"``, where
``MyStore`` is a :class:`VectorStore`. From then on ``mine://...`` names a gallery wherever a folder does.
:func:`conformance` makes its tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clf_serve.place import AnyPlace, Place
from clf_serve.stores.installed import list_stores
from clf_serve.stores.interface import AnyGallery
from clf_serve.stores.opening import is_there, open_gallery, open_or_create
from clf_serve.stores.store_gallery import StoreGallery
from clf_serve.stores.vector_store import ConflictError, Ids, NoGalleryError, Row, State, Vector, VectorStore

if TYPE_CHECKING:
    from clf_serve.stores.checks import Check, Conformance, Outcome, conformance, run_checks

_CHECKS = ("Check", "Conformance", "Outcome", "conformance", "run_checks")

__all__ = [
    "AnyGallery",
    "AnyPlace",
    "Check",
    "ConflictError",
    "Conformance",
    "Ids",
    "NoGalleryError",
    "Outcome",
    "Place",
    "Row",
    "State",
    "StoreGallery",
    "Vector",
    "VectorStore",
    "conformance",
    "is_there",
    "list_stores",
    "open_gallery",
    "open_or_create",
    "run_checks",
]


def __getattr__(name: str) -> Any:
    """The checks load on first use: a server needs none of them."""
    if name not in _CHECKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from clf_serve.stores import checks

    return getattr(checks, name)
