"""The one way to open a gallery, wherever it is."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from clf.errors import GalleryError
from clf_serve.gallery import Gallery, Identity
from clf_serve.gallery.faults import has_database
from clf_serve.place import AnyPlace, Place
from clf_serve.stores import changing
from clf_serve.stores.calls import Calls, told
from clf_serve.stores.installed import find_store, load_store
from clf_serve.stores.interface import AnyGallery
from clf_serve.stores.store_gallery import FORMAT, StoreGallery
from clf_serve.stores.vector_store import NoGalleryError, VectorStore


def open_gallery(place: AnyPlace, model: Identity | None = None, *, write: bool = False) -> AnyGallery:
    """Opens a gallery that is there.

    Args:
        place: a folder, or a store's URL ``SCHEME://REST``.
        model: the model whose vectors will be used with it; another one than its own is refused.

    Raises:
        GalleryError: it is missing, damaged, of a newer format, made with another model, or being written; or the
            store fails.
        PluginError: no usable store of this scheme is installed.
    """
    place = Place.of(place)
    if place.folder is not None:
        return Gallery(place.folder, model, write=write)
    store, name = _store(place)
    return open_in(store, name, place, model, write=write)


def open_or_create(place: AnyPlace, model: Identity, model_path: Path) -> AnyGallery:
    """Opens for writing, and makes an empty gallery first where there is none. Raises as :func:`open_gallery`."""
    place = Place.of(place)
    if place.folder is not None:
        return Gallery.open_or_create(place.folder, model, model_path)
    store, name = _store(place)
    return create_in(store, name, place, model, model_path)


def is_there(place: AnyPlace) -> bool:
    """Whether there is a gallery. Raises as :func:`open_gallery`."""
    place = Place.of(place)
    if place.folder is not None:
        return has_database(place.folder)
    store, name = _store(place)
    try:
        _opened(store, name, place, write=False, create=None).close()
    except NoGalleryError:
        return False
    return True


def open_in(
    store: type[VectorStore], name: str, place: Place, model: Identity | None = None, *, write: bool = False
) -> StoreGallery:
    """Opens a gallery of a store's class. Args: name: of the store, as it is told to people."""
    try:
        calls = _opened(store, name, place, write=write, create=None)
    except NoGalleryError:
        text = f"there is no gallery at {place}; make one: clf index MODEL IMAGES -o {place}"
        raise GalleryError(text) from None
    return (store.gallery or StoreGallery)(calls, place, name, model, write=write)


def create_in(store: type[VectorStore], name: str, place: Place, model: Identity, model_path: Path) -> StoreGallery:
    """Opens for writing, and makes an empty gallery first where there is none."""
    where = {"model_path": str(model_path.resolve())}
    about = {"model": model.name, "model_sha256": model.sha256, "dim": str(model.dim), "format": str(FORMAT)}
    about |= where | {"uuid": uuid.uuid4().hex, "last_id": "0"}
    try:
        calls = _opened(store, name, place, write=True, create=about)
    except NoGalleryError as error:
        text = f"the {name} failed in open: it was to make a gallery at {place}, and says that there is none"
        raise GalleryError(text) from error
    gallery = (store.gallery or StoreGallery)(calls, place, name, model, write=True)
    try:
        changing.tell(calls, where)
    except BaseException:
        gallery.close()
        raise
    return gallery


def _store(place: Place) -> tuple[type[VectorStore], str]:
    info = find_store(place)
    return load_store(info), str(info)


def _opened(
    store: type[VectorStore], name: str, place: Place, *, write: bool, create: Mapping[str, str] | None
) -> Calls:
    with told(name, place, "open"):
        opened = store.open(place.url, write=write, create=create)
    if not isinstance(opened, VectorStore):
        raise GalleryError(f"the {name} failed in open: it gave a {type(opened).__name__} for the store {place}")
    return Calls(opened, name, place)
