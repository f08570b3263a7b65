"""clf_serve: embedding server, gallery, search page and client for exported encoders. Needs no torch.

The public names below load on first use: ``from clf_serve import Client`` needs httpx, numpy and Pillow only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "AsyncClient": "clf_serve.client.client",
    "AsyncEngine": "clf_serve.asynchronous",
    "BusyServerError": "clf_serve.client.client",
    "Client": "clf_serve.client.client",
    "ClientError": "clf_serve.client.client",
    "Engine": "clf_serve.engine",
    "FolderVectors": "clf_serve.client.client",
    "Gallery": "clf_serve.gallery",
    "GalleryHit": "clf_serve.client.client",
    "GalleryImage": "clf_serve.client.client",
    "Neighbour": "clf_serve.client.client",
    "RefusedError": "clf_serve.client.client",
    "RefusedImageError": "clf_serve.client.client",
    "ServeLimits": "clf_serve.limits",
    "Skipped": "clf_serve.client.client",
    "Stored": "clf_serve.client.client",
    "UnexpectedReplyError": "clf_serve.client.client",
    "UnreachableError": "clf_serve.client.client",
    "Weighted": "clf_serve.client.client",
    "WrongKeyError": "clf_serve.client.client",
}

if TYPE_CHECKING:
    from clf_serve.asynchronous import AsyncEngine
    from clf_serve.client.client import (
        AsyncClient,
        BusyServerError,
        Client,
        ClientError,
        FolderVectors,
        GalleryHit,
        GalleryImage,
        Neighbour,
        RefusedError,
        RefusedImageError,
        Skipped,
        Stored,
        UnexpectedReplyError,
        UnreachableError,
        Weighted,
        WrongKeyError,
    )
    from clf_serve.engine import Engine
    from clf_serve.gallery import Gallery
    from clf_serve.limits import ServeLimits

__all__ = [
    "AsyncClient",
    "AsyncEngine",
    "BusyServerError",
    "Client",
    "ClientError",
    "Engine",
    "FolderVectors",
    "Gallery",
    "GalleryHit",
    "GalleryImage",
    "Neighbour",
    "RefusedError",
    "RefusedImageError",
    "ServeLimits",
    "Skipped",
    "Stored",
    "UnexpectedReplyError",
    "UnreachableError",
    "Weighted",
    "WrongKeyError",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'clf_serve' has no attribute {name!r}")
    try:
        return getattr(import_module(_EXPORTS[name]), name)
    except ModuleNotFoundError as error:
        from clf.errors import missing_extra

        if (error.name or "").partition(".")[0] in ("clf", "clf_serve"):
            raise
        extra = "client" if _EXPORTS[name] == "clf_serve.client.client" else "serve"
        raise missing_extra(str(error.name), extra, f"clf_serve.{name}") from error


def __dir__() -> list[str]:
    return sorted(__all__)
