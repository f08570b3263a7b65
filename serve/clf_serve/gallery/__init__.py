"""Embedded images of one model, kept in a folder and searched."""

from clf_serve.gallery.gallery import Gallery, Identity, Known, Thumbnail
from clf_serve.gallery.store import Entry, Hit, Store

__all__ = ["Entry", "Gallery", "Hit", "Identity", "Known", "Store", "Thumbnail"]
