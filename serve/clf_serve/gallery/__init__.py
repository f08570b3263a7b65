"""Embedded images of one model, kept in a folder and searched."""

from clf_serve.gallery.facts import FieldFacts, GalleryFacts, Identity
from clf_serve.gallery.filters import FilterError, Where
from clf_serve.gallery.gallery import Gallery
from clf_serve.gallery.metadata import EntryError
from clf_serve.gallery.store import Entry, Hit, Item, Known, Moved, Thumbnail

__all__ = [
    "Entry",
    "EntryError",
    "FieldFacts",
    "FilterError",
    "Gallery",
    "GalleryFacts",
    "Hit",
    "Identity",
    "Item",
    "Known",
    "Moved",
    "Thumbnail",
    "Where",
]
