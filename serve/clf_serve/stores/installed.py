"""Which vector stores are installed, from packaging metadata alone; and one of them, imported and checked."""

from __future__ import annotations

import inspect

from clf.catalogue import PluginInfo, list_entries, the_usable
from clf.errors import PluginError, did_you_mean
from clf_serve.installed import load_class
from clf_serve.place import Place
from clf_serve.stores.store_gallery import StoreGallery
from clf_serve.stores.vector_store import VectorStore


def list_stores() -> list[PluginInfo]:
    """All that are installed, by scheme, with what forbids their use. Imports none of them."""
    return list_entries("store")


def find_store(place: Place) -> PluginInfo:
    """The one usable store of a URL's scheme. Raises PluginError."""
    rows, scheme = list_stores(), place.scheme
    if named := [row for row in rows if row.name.lower() == scheme]:
        return the_usable(named)
    schemes = sorted({row.name for row in rows if row.state == "available"})
    known = f"Installed: {', '.join(each + '://' for each in schemes)}." if schemes else "No store is installed."
    raise PluginError(
        f"{place}: no installed package keeps galleries at {scheme}://.{did_you_mean(scheme, schemes)} {known} "
        "A folder is named by its plain path"
    )


def load_store(info: PluginInfo) -> type[VectorStore]:
    """The class of a store, imported and checked. Raises as :func:`clf_serve.installed.load_class`."""
    found: type[VectorStore] = load_class(info, VectorStore, _fault)
    return found


def _fault(store: type[VectorStore]) -> str:
    gallery = store.gallery
    if gallery is None or (inspect.isclass(gallery) and issubclass(gallery, StoreGallery)):
        return ""
    return f"{store.__name__}.gallery is no subclass of clf_serve.stores.StoreGallery"
