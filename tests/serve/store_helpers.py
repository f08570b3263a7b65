"""Galleries in the example store, with and without its package being installed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gallery_helpers import MODEL
from shelf_store import Shelf

from clf_serve.gallery import Identity
from clf_serve.place import Place
from clf_serve.stores import StoreGallery, VectorStore
from clf_serve.stores.opening import create_in, open_in

NAME = "store 'shelf' (clf-shelf 1.0)"
HERE = str(Path(__file__).parent)
"""What a child process needs in its ``PYTHONPATH`` to import the example."""


class Heedful(Shelf):
    """The example, unless it is called in the thread of an event loop, where it would hold up everybody."""

    closed_by = ""

    def __getattribute__(self, name: str) -> Any:
        if name in VectorStore.__dict__ and name != "open":
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                pass
            else:
                raise AssertionError(f"{name} is called on the event loop")
        return super().__getattribute__(name)

    def close(self) -> None:
        Heedful.closed_by = threading.current_thread().name.rpartition("_")[0]
        super().close()


def shelf_url(folder: Path, name: str) -> str:
    return f"shelf://{folder / name}"


def make(path: Path, model: Identity = MODEL, store: type[VectorStore] = Shelf) -> StoreGallery:
    """A gallery at ``shelf://PATH``, open for writing."""
    return create_in(store, NAME, Place.of(f"shelf://{path}"), model, path.parent)


def read(path: Path, model: Identity | None = None, store: type[VectorStore] = Shelf) -> StoreGallery:
    return open_in(store, NAME, Place.of(f"shelf://{path}"), model)


def install_shelf(install: Callable[..., Path]) -> Path:
    """The example as an installed distribution; its folder."""
    return install("clf-shelf", entry_points="[clf.indexes]\nshelf = store_helpers:Heedful\n")


def child_environment(site: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{site}:{HERE}"}
