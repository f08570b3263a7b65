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
from clf_serve.stores.store_gallery import FORMAT, UNFINISHED, StoreGallery
from clf_serve.stores.vector_store import ConflictError, NoGalleryError, VectorStore


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


def open_draft(place: Place, model: Identity, model_path: Path, work: str, *, write: bool = True) -> StoreGallery:
    """Opens an unfinished gallery of a store, which nothing else opens, and begins one where there is no gallery.

    Args:
        work: the command that makes it, which is told to others.

    Raises:
        GalleryError: there is a gallery, or one that another command has begun; else as :func:`open_gallery`.
    """
    store, name = _store(place)
    about = _about(model, model_path) | {UNFINISHED: work}
    gallery = _gallery(store, name, place, _opened(store, name, place, write=write, create=about), write=write)
    try:
        if not gallery.unfinished:
            raise GalleryError(f"there is a gallery at {place}, which is left as it is; name a new one")
        state = gallery.calls.state()
        if gallery.unfinished != work and state.images:
            begun = f"{place} was begun by another command ({gallery.unfinished})"
            raise GalleryError(f"{begun}; run that again to finish it, or name another place")
        gallery.require(model)
        if gallery.unfinished != work:  # which has left nothing
            gallery.calls.write((), (), {UNFINISHED: work}, state.generation)
    except ConflictError as error:
        gallery.close()
        raise GalleryError(f"another process has just begun a gallery at {place}; name another place") from error
    except BaseException:
        gallery.close()
        raise
    return gallery


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
    return _whole(_gallery(store, name, place, calls, write=write), model)


def create_in(store: type[VectorStore], name: str, place: Place, model: Identity, model_path: Path) -> StoreGallery:
    """Opens for writing, and makes an empty gallery first where there is none."""
    calls = _opened(store, name, place, write=True, create=_about(model, model_path))
    gallery = _whole(_gallery(store, name, place, calls, write=True), model)
    try:
        changing.tell(calls, {"model_path": str(model_path.resolve())})
    except BaseException:
        gallery.close()
        raise
    return gallery


def _about(model: Identity, model_path: Path) -> dict[str, str]:
    """What a new gallery remembers of itself."""
    about = {"model": model.name, "model_sha256": model.sha256, "dim": str(model.dim), "format": str(FORMAT)}
    return about | {"uuid": uuid.uuid4().hex, "last_id": "0", "model_path": str(model_path.resolve())}


def _gallery(store: type[VectorStore], name: str, place: Place, calls: Calls, *, write: bool) -> StoreGallery:
    return (store.gallery or StoreGallery)(calls, place, name, None, write=write)


def _whole(gallery: StoreGallery, model: Identity | None) -> StoreGallery:
    """Raises GalleryError for one that is still being made, or whose making was stopped, or of another model."""
    try:
        if gallery.unfinished:
            raise GalleryError(
                f"the gallery {gallery.place} is not whole yet: it is being made by another command, or that was "
                f"stopped; to go on: {gallery.unfinished}"
            )
        if model is not None:
            gallery.require(model)
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
    try:
        with told(name, place, "open"):
            opened = store.open(place.url, write=write, create=create)
    except NoGalleryError as error:
        if create is None:
            raise
        text = f"the {name} failed in open: it was to make a gallery at {place}, and says that there is none"
        raise GalleryError(text) from error
    if not isinstance(opened, VectorStore):
        raise GalleryError(f"the {name} failed in open: it gave a {type(opened).__name__} for the store {place}")
    return Calls(opened, name, place)
