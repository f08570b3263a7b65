"""The images of a gallery in one state, read in parts while others write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clf.errors import GalleryError
from clf_serve.gallery import Gallery, Identity, Item, Where
from clf_serve.gallery import rows as gallery_rows
from clf_serve.gallery.database import Database
from clf_serve.gallery.faults import DamageError
from clf_serve.gallery.matching import Matching
from clf_serve.place import AnyPlace, Place
from clf_serve.stores import StoreGallery, open_gallery

ROWS = 4096
"""Images read at a time."""
_MOST_COLUMNS = 256


@dataclass(frozen=True)
class Batch:
    """Some images by rising id: n items, their vectors (n, D), and their thumbnails (JPEG, or empty)."""

    items: list[Item]
    vectors: NDArray[np.float32]
    thumbnails: list[bytes]


@dataclass
class Survey:
    """What must be known of all images before the first is written."""

    images: int = 0
    longest: dict[str, int] = field(default_factory=lambda: {"key": 0, "uri": 0, "folder": 0, "sha256": 0})
    """Characters of the longest text."""
    metadata_bytes: int = 0
    """Of all metadata as :func:`metadata_text`, in UTF-8."""
    columns: dict[str, type] = field(default_factory=dict)
    """Names at the top of the metadata whose values are all of one scalar type (or null): bool, int, float or str."""


class Snapshot:
    """Made by :func:`snapshot`."""

    def __init__(self, connection: Connection, model: Identity, where: Where | None) -> None:
        self.model = model
        self._connection = connection
        self._ids = Matching().ids(connection, 0, where)

    def __len__(self) -> int:
        return len(self._ids)

    def items(self) -> Iterator[list[Item]]:
        """All images that the filter lets through, by rising id, in lists."""
        for start in range(0, len(self._ids), ROWS):
            ids = self._ids[start : start + ROWS].tolist()
            found = gallery_rows.by_ids(self._connection, ids)
            if missing := set(ids) - set(found):
                raise DamageError(f"image {min(missing)} is not among the rows")
            yield [found[id_] for id_ in ids]

    def columns(self, *names: str) -> Iterator[list[tuple[Any, ...]]]:
        """Only these facts (columns of the table ``images``) of the same images, quicker than :meth:`items`."""
        wanted = ", ".join(names)
        for start in range(0, len(self._ids), ROWS):
            ids = json.dumps(self._ids[start : start + ROWS].tolist())
            yield self._connection.execute(
                f"SELECT {wanted} FROM images WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id", (ids,)
            ).fetchall()

    def batches(self, *, vectors: bool = True, thumbnails: bool = False) -> Iterator[Batch]:
        """The same with what is asked for of the rest; what is not is empty."""
        for items in self.items():
            ids = json.dumps([item.id for item in items])
            rows = self._vectors(items, ids) if vectors else np.empty((len(items), 0), np.float32)
            yield Batch(items, rows, self._thumbnails(items, ids) if thumbnails else [])

    def survey(self) -> Survey:
        survey = Survey()
        kinds: dict[str, set[type]] = {}
        for items in self.items():
            survey.images += len(items)
            for name, longest in survey.longest.items():
                survey.longest[name] = max(longest, *(len(getattr(item, name)) for item in items))
            for item in items:
                survey.metadata_bytes += len(metadata_text(item).encode())
                for name, value in item.metadata.items():
                    kinds.setdefault(name, set()).add(_kind(value))
        for name, found in sorted(kinds.items()):
            kind = _common(found - {type(None)})
            if kind is not None and _is_text(name) and len(survey.columns) < _MOST_COLUMNS:
                survey.columns[name] = kind
        return survey

    def _vectors(self, items: list[Item], ids: str) -> NDArray[np.float32]:
        found = dict(
            self._connection.execute(
                "SELECT id, vector FROM vectors WHERE id IN (SELECT value FROM json_each(?))", (ids,)
            )
        )
        blobs = [found.get(item.id, b"") for item in items]
        for item, blob in zip(items, blobs, strict=True):
            if not isinstance(blob, bytes) or len(blob) != 4 * self.model.dim:
                raise DamageError(f"the vector of image {item.id} has the wrong size")
        return np.frombuffer(b"".join(blobs), "<f4").reshape(len(items), self.model.dim)

    def _thumbnails(self, items: list[Item], ids: str) -> list[bytes]:
        found = dict(
            self._connection.execute(
                "SELECT id, data FROM thumbnails WHERE id IN (SELECT value FROM json_each(?))", (ids,)
            )
        )
        return [gallery_rows.picture(found.get(item.id, b""), item.id) for item in items]


class StoreSnapshot(Snapshot):
    """Of a gallery in a store, which cannot be held still: the reading fails when somebody writes meanwhile.

    All methods raise GalleryError.
    """

    def __init__(self, gallery: StoreGallery, where: Where | None) -> None:
        self.model = gallery.model
        self._gallery = gallery
        self._generation = gallery.generation
        self._ids = gallery.ids(where)

    def items(self) -> Iterator[list[Item]]:
        for start in range(0, len(self._ids), ROWS):
            items = self._gallery.items(self._ids[start : start + ROWS].tolist())
            self._check()
            yield items

    def columns(self, *names: str) -> Iterator[list[tuple[Any, ...]]]:
        for items in self.items():
            yield [tuple(getattr(item, name) for name in names) for item in items]

    def _vectors(self, items: list[Item], ids: str) -> NDArray[np.float32]:
        try:
            return self._gallery.vectors([item.id for item in items])
        except KeyError:
            raise self._changed() from None

    def _thumbnails(self, items: list[Item], ids: str) -> list[bytes]:
        found = self._gallery.thumbnails([item.id for item in items])
        self._check()
        return found

    def _check(self) -> None:
        if self._gallery.generation != self._generation:
            raise self._changed()

    def _changed(self) -> GalleryError:
        return GalleryError(f"{self._gallery.place} was written to while it was read; run this again")


@contextmanager
def snapshot(gallery_: AnyPlace, where: Where | None = None) -> Iterator[Snapshot]:
    """The state of a gallery when this is entered. Of a folder writers go on and are not seen.

    Raises:
        GalleryError: it is missing, damaged, or of another format.
    """
    place = Place.of(gallery_)
    if (folder := place.folder) is None:
        with open_gallery(place) as opened:
            assert isinstance(opened, StoreGallery)
            yield StoreSnapshot(opened, where)
        return
    with Gallery(folder) as gallery:
        model = gallery.model
    with closing(Database(folder, write=False)) as database, database.reading() as connection:
        yield Snapshot(connection, model, where)


def metadata_text(item: Item) -> str:
    """JSON on one line, readable where it can be."""
    text = json.dumps(item.metadata, ensure_ascii=False, separators=(",", ":"))
    return text if _is_text(text) else json.dumps(item.metadata, separators=(",", ":"))


def _kind(value: Any) -> type:
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return object
    if isinstance(value, str) and not _is_text(value):
        return object
    return type(value) if isinstance(value, bool | int | float | str | None) else object


def _common(kinds: set[type]) -> type | None:
    if len(kinds) == 1 and object not in kinds:
        return next(iter(kinds))
    return float if kinds == {int, float} else None


def _is_text(text: str) -> bool:
    """False for half a surrogate pair, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
