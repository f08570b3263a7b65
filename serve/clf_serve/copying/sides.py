"""A gallery as a stream of rows by rising id, wherever it is kept: what a copy reads, and what it is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import numpy as np

from clf_serve.gallery import Gallery, Identity, Item
from clf_serve.gallery.database import Database
from clf_serve.gallery.faults import DamageError
from clf_serve.gallery.rows import picture
from clf_serve.gallery.vectors import is_unit
from clf_serve.place import AnyPlace, Place
from clf_serve.stores import StoreGallery, open_gallery
from clf_serve.stores.changing import number
from clf_serve.stores.rows import row_of_text
from clf_serve.stores.vector_store import Row, Vector

ROWS = 1_000
"""Rows of a part at most."""
PART_BYTES = 8 << 20
"""About what a part holds at most; a single row may hold more."""
WISHES = ("index_kind", "index_memory", "index_recall")
"""What the user chose of the index of a folder, by the names under which it is kept."""
_COLUMNS = "i.id, key, uri, sha256, width, height, size, mtime_ns, folder, metadata, vector, data"
_TYPES = [int, str, str, str, int, int, int, int, str, str]  # of all but the last two; SQLite keeps to none


@dataclass(frozen=True)
class About:
    """A gallery without its images."""

    model: Identity
    model_path: Path
    last_id: int
    """The greatest id that was ever given: those of deleted images are not given again."""
    wishes: Mapping[str, str] = field(default_factory=dict)


class Side(ABC):
    """One state of a gallery, or one that :attr:`generation` says to be the same still. For one thread."""

    place: Place
    images: int
    """How many rows there were when it was opened."""

    @property
    @abstractmethod
    def about(self) -> About:
        """As it is now."""

    @property
    @abstractmethod
    def generation(self) -> int:
        """Rises when what is read here may have changed."""

    @abstractmethod
    def rows(self) -> Iterator[list[Row]]:
        """All, with vectors and thumbnails, by rising id, in parts. Raises GalleryError."""

    @abstractmethod
    def sample(self, n: int) -> list[Vector]:
        """Vectors (D,) of up to n rows, spread over all as well as can be. Raises GalleryError."""


@contextmanager
def reading(named: AnyPlace) -> Iterator[Side]:
    """A gallery to read: of a folder one state, which writers do not change.

    Raises:
        GalleryError: it is missing, damaged, unfinished or of a newer format, or its store fails.
        PluginError: no usable store of the scheme is installed.
    """
    place = Place.of(named)
    if place.folder is None:
        with open_gallery(place) as gallery:
            assert isinstance(gallery, StoreGallery)
            yield StoreSide(gallery)
        return
    with Gallery(place.folder) as gallery:
        model = gallery.model
    with closing(Database(place.folder, write=False)) as database, database.reading() as connection:
        yield FolderSide(place, connection, model)


class FolderSide(Side):
    """In one read transaction of SQLite."""

    def __init__(self, place: Place, connection: Connection, model: Identity) -> None:
        self.place = place
        self._connection = connection
        self._model = model
        last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'images'").fetchone()
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        wishes = {name: str(meta[name]) for name in WISHES if name in meta}
        self._about = About(model, Path(meta.get("model_path", "")), int(last[0]) if last else 0, wishes)
        self.images = int(connection.execute("SELECT count(*) FROM images").fetchone()[0])

    @property
    def about(self) -> About:
        return self._about

    @property
    def generation(self) -> int:
        """Always the same: it is one state."""
        return 0

    def rows(self) -> Iterator[list[Row]]:
        found = self._connection.execute(
            f"SELECT {_COLUMNS} FROM images AS i LEFT JOIN vectors AS v ON v.id = i.id"
            " LEFT JOIN thumbnails AS t ON t.id = i.id ORDER BY i.id"
        )
        with closing(found):
            for part in in_parts(self._row(*values) for values in found):
                self._units([row.id for row in part], [row.vector for row in part])
                yield part

    def sample(self, n: int) -> list[Vector]:
        found = self._connection.execute("SELECT id FROM images ORDER BY id")
        ids = np.fromiter((row[0] for row in found), np.int64)
        picked = ids[np.arange(n) * len(ids) // n] if len(ids) > n else ids
        ask = "SELECT id, vector FROM vectors WHERE id = ?"
        rows = [row for id_ in picked.tolist() for row in self._connection.execute(ask, (id_,))]
        return self._units([row[0] for row in rows], [self._vector(*row) for row in rows])

    def _row(self, *values: Any) -> Row:
        *facts, metadata, vector, thumbnail = values
        id_, key, uri, sha256, width, height, size, mtime_ns, folder = facts
        if [*map(type, facts), type(metadata)] != _TYPES:
            raise DamageError(f"a fact of image {id_} has the wrong type")
        item = Item(id_, key, uri, {}, sha256, width, height, size, mtime_ns, folder)
        jpeg = picture(b"" if thumbnail is None else thumbnail, id_)
        return row_of_text(item, metadata, self._vector(id_, vector), jpeg)

    def _units(self, ids: list[int], vectors: list[Vector]) -> list[Vector]:
        """The vectors, checked. Raises DamageError."""
        right = is_unit(np.stack(vectors)) if vectors else np.ones(0, bool)
        if not right.all():
            raise DamageError(f"the vector of image {ids[int(right.argmin())]} is not of unit length")
        return vectors

    def _vector(self, id_: int, blob: Any) -> Vector:
        """Bit for bit; damage that SQLite cannot see shows in its length. Raises DamageError."""
        if not isinstance(blob, bytes) or len(blob) != 4 * self._model.dim:
            raise DamageError(f"the vector of image {id_} has the wrong size")
        return np.frombuffer(blob, "<f4")


class StoreSide(Side):
    """Page by page: whoever writes meanwhile is seen in ``generation``."""

    def __init__(self, gallery: StoreGallery) -> None:
        self.place = gallery.place
        self._calls = gallery.calls
        self._model = gallery.model
        self.images = gallery.calls.state().images

    @property
    def about(self) -> About:
        state = self._calls.state()
        wishes = {name: state.about[name] for name in WISHES if state.about.get(name)}
        return About(self._model, Path(state.about.get("model_path", "")), number(state, "last_id"), wishes)

    @property
    def generation(self) -> int:
        return self._calls.state().generation

    def rows(self) -> Iterator[list[Row]]:
        after, limit = 0, max(1, ROWS // 8)  # until it shows how large they are
        while part := self._calls.scan(after, limit, vectors=True, thumbnails=True):
            after = part[-1].id
            limit = max(1, min(ROWS, PART_BYTES * len(part) // sum(map(size_of, part))))
            yield part

    def sample(self, n: int) -> list[Vector]:
        """By even steps of the ids; of ids with wide gaps the first rows fill it up."""
        last = self.about.last_id
        found = {row.id: row for i in range(n) for row in self._calls.scan(i * last // n, 1, vectors=True)}
        if len(found) < n:
            found |= {row.id: row for row in self._calls.scan(0, n, vectors=True)}
        return [row.vector for row in found.values()][:n]


def in_parts(rows: Iterator[Row]) -> Iterator[list[Row]]:
    part: list[Row] = []
    size = 0
    for row in rows:
        part.append(row)
        size += size_of(row)
        if size >= PART_BYTES or len(part) >= ROWS:
            yield part
            part, size = [], 0
    if part:
        yield part


def size_of(row: Row) -> int:
    """Bytes, about."""
    return 100 + len(row.key) + len(row.facts) + row.vector.nbytes + len(row.thumbnail)
