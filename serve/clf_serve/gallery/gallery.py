"""A gallery: a folder with the embedded images of one model, searched exactly.

``gallery.sqlite`` holds paths, metadata, thumbnails and vectors and is the only truth. ``index.faiss`` is a cache.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from clf.errors import GalleryError
from clf.manifest import Manifest
from clf_serve.gallery.database import Database
from clf_serve.gallery.store import Entry, Hit
from clf_serve.vectors import Stamp, VectorIndex

_ROWS = 10_000  # vectors read at a time while catching up


@dataclass(frozen=True)
class Identity:
    """The model whose vectors a gallery holds; vectors of different models must never meet."""

    name: str
    sha256: str
    dim: int

    @classmethod
    def of(cls, manifest: Manifest) -> Identity:
        return cls(manifest.name, manifest.sha256, manifest.dim)

    def __str__(self) -> str:
        return f"{self.name} ({self.sha256[:12]}, {self.dim} dimensions)"


class Known(NamedTuple):
    """What a re-index needs to know of a file."""

    id: int
    size: int
    mtime_ns: int


class Thumbnail(NamedTuple):
    data: bytes
    sha256: str
    """Of the image's file: changes when the picture does."""


class Gallery:
    """Implements :class:`clf_serve.gallery.store.Store`. Thread-safe; one process writes, any number read.

    A reader sees what a writer in another process committed at its next search.
    """

    def __init__(self, folder: Path, model: Identity | None = None, *, write: bool = False) -> None:
        """Opens a gallery.

        Args:
            model: the model whose vectors will be used with it; another one than its own is refused.

        Raises:
            GalleryError: it is missing, damaged, of another format, made with another model, or being written.
        """
        if not _has_database(folder):
            raise GalleryError(f"{folder} is not a gallery; make one: clf index MODEL IMAGES -o {folder}")
        self.folder = folder
        self.cache_note: str | None = None
        self._db = Database(folder, write=write)
        self._index: VectorIndex | None = None
        try:
            self.model = Identity(self._db.meta("model"), self._db.meta("model_sha256"), int(self._db.meta("dim")))
            self._uuid = self._db.meta("uuid")
            if model is not None:
                self.require(model)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open_or_create(cls, folder: Path, model: Identity, model_path: Path) -> Self:
        """Opens for writing, and makes an empty gallery first where there is none.

        Raises:
            GalleryError: the folder holds something else; else as the constructor.
        """
        if not _has_database(folder) and not _is_empty(folder):
            raise GalleryError(f"{folder} exists and is not a gallery; name a new folder")
        meta = {"model": model.name, "model_sha256": model.sha256, "dim": str(model.dim)}
        Database.create(folder, meta | {"model_path": str(model_path.resolve())})
        gallery = cls(folder, model, write=True)
        gallery._db.set_meta("model_path", str(model_path.resolve()))
        return gallery

    def require(self, model: Identity) -> None:
        """Raises GalleryError unless ``model`` is the one the gallery was made with."""
        if (model.sha256, model.dim) != (self.model.sha256, self.model.dim):
            raise GalleryError(
                f"the gallery {self.folder} was made with model {self.model}, not with {model}; "
                "use that model, or index the images into a new folder"
            )

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        with self._db.reading() as connection:
            return int(connection.execute("SELECT count(*) FROM images").fetchone()[0])

    @property
    def model_path(self) -> Path:
        """Where the model lay when images were last indexed."""
        return Path(self._db.meta("model_path"))

    def upsert(self, entries: Sequence[Entry]) -> list[int]:
        """Adds or replaces entries in one transaction; their ids, in order.

        Raises:
            GalleryError: the disk is full, or the database damaged.
            ValueError: a vector that is not (dim,) finite and of unit length.
        """
        vectors = [_unit(entry.vector, self.model.dim) for entry in entries]
        ids = []
        with self._db.writing() as (connection, generation):
            for entry, vector in zip(entries, vectors, strict=True):
                values = (entry.uri, entry.size, entry.mtime_ns, entry.sha256, entry.width, entry.height)
                row = (entry.key, *values, json.dumps(dict(entry.metadata)), vector.tobytes(), generation)
                found = connection.execute(
                    "INSERT INTO images (key, uri, size, mtime_ns, sha256, width, height, metadata, vector, generation)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET uri = excluded.uri,"
                    " size = excluded.size, mtime_ns = excluded.mtime_ns, sha256 = excluded.sha256,"
                    " width = excluded.width, height = excluded.height, metadata = excluded.metadata,"
                    " vector = excluded.vector, generation = excluded.generation RETURNING id",
                    row,
                ).fetchone()
                connection.execute("INSERT OR REPLACE INTO thumbnails VALUES (?, ?)", (found[0], entry.thumbnail))
                ids.append(int(found[0]))
        return ids

    def delete(self, ids: Sequence[int]) -> int:
        """Removes entries in one transaction; how many there were."""
        count = 0
        with self._db.writing() as (connection, generation):
            for id_ in ids:
                gone = connection.execute("DELETE FROM images WHERE id = ?", (id_,)).rowcount
                if gone:
                    connection.execute("DELETE FROM thumbnails WHERE id = ?", (id_,))
                    connection.execute("INSERT OR REPLACE INTO deleted VALUES (?, ?)", (id_, generation))
                count += gone
        return count

    def search(self, vector: NDArray[np.float32], k: int) -> list[Hit]:
        """The k nearest images, exactly, best first; equal scores by id.

        Args:
            vector: (dim,), unit length.

        Raises:
            GalleryError: the database is damaged.
            ValueError: the vector has another shape, or k is below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        query = _unit(vector, self.model.dim)
        with self._db.reading() as connection:
            found = self._fresh_index(connection).search(query, k)
            rows = connection.execute(
                "SELECT id, uri, metadata, sha256 FROM images WHERE id IN (SELECT value FROM json_each(?))",
                (json.dumps([id_ for id_, _ in found]),),
            ).fetchall()
        facts = {row[0]: row[1:] for row in rows}
        return [
            Hit(id_, facts[id_][0], score, json.loads(facts[id_][1]), facts[id_][2])
            for id_, score in found
            if id_ in facts
        ]

    def vector(self, id_: int) -> NDArray[np.float32] | None:
        """(dim,), or None for an unknown id."""
        with self._db.reading() as connection:
            row = connection.execute("SELECT vector FROM images WHERE id = ?", (id_,)).fetchone()
        return self._decode([row[0]])[0] if row else None

    def thumbnail(self, id_: int) -> Thumbnail | None:
        with self._db.reading() as connection:
            row = connection.execute(
                "SELECT data, sha256 FROM images JOIN thumbnails USING (id) WHERE id = ?", (id_,)
            ).fetchone()
        return Thumbnail(*row) if row and row[0] else None

    def get(self, id_: int) -> Hit | None:
        """The entry itself, with score 1."""
        with self._db.reading() as connection:
            row = connection.execute("SELECT uri, metadata, sha256 FROM images WHERE id = ?", (id_,)).fetchone()
        return Hit(id_, row[0], 1.0, json.loads(row[1]), row[2]) if row else None

    def sample(self, n: int) -> list[Hit]:
        """Up to n entries, evenly spread over the gallery."""
        with self._db.reading() as connection:
            ids = [row[0] for row in connection.execute("SELECT id FROM images ORDER BY id")]
        picked = [ids[i * len(ids) // n] for i in range(n)] if len(ids) > n else ids
        return [hit for hit in map(self.get, picked) if hit]

    def listing(self) -> dict[str, Known]:
        """Every key and what its file was like when it was indexed."""
        with self._db.reading() as connection:
            rows = connection.execute("SELECT key, id, size, mtime_ns FROM images")
            return {key: Known(*rest) for key, *rest in rows}

    def load_index(self) -> None:
        """Reads the index now, so that the first search need not."""
        with self._db.reading() as connection:
            self._fresh_index(connection).search(np.zeros(self.model.dim, np.float32), 1)

    def save_index(self) -> None:
        """Brings the cache file up to date, so that the next one to open this gallery starts faster.

        It is only a cache: where it cannot be written, ``cache_note`` says so and the gallery is none the worse.
        """
        with self._db.reading() as connection:
            index = self._fresh_index(connection)
            try:
                index.save(self.folder / "index.faiss", self._uuid)
            except (OSError, RuntimeError) as error:  # FAISS raises RuntimeError on a full disk
                reason = getattr(error, "strerror", None) or " ".join(str(error).split())
                self.cache_note = (
                    f"index.faiss could not be saved ({reason}); the gallery is complete, and its first search slower"
                )

    def _fresh_index(self, connection: Connection) -> VectorIndex:
        """The index of the state that the transaction sees."""
        generation = int(self._db.meta("generation"))
        if self._index is None:
            stamp = Stamp(self._uuid, self.model.dim, generation)
            self._index, reason = VectorIndex.load(self.folder / "index.faiss", stamp)
            if reason and reason != "missing":
                self.cache_note = f"index.faiss is {reason}; the index was rebuilt from the database"
        if self._index.generation != generation:
            self._catch_up(connection, self._index, generation)
        return self._index

    def _catch_up(self, connection: Connection, index: VectorIndex, generation: int) -> None:
        since = (index.generation,)
        removed = [row[0] for row in connection.execute("SELECT id FROM deleted WHERE generation > ?", since)]
        changed = connection.execute("SELECT id, vector FROM images WHERE generation > ?", since)
        while rows := changed.fetchmany(_ROWS):
            index.update(removed, [row[0] for row in rows], self._decode([row[1] for row in rows]), index.generation)
            removed = []
        index.update(removed, [], np.empty((0, self.model.dim), np.float32), generation)

    def _decode(self, blobs: list[bytes]) -> NDArray[np.float32]:
        """Stored vectors, (n, dim); damage that SQLite cannot see shows in their length."""
        if any(len(blob) != 4 * self.model.dim for blob in blobs):
            raise self._db.damaged("a vector has the wrong size")
        vectors = np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), self.model.dim)
        if not _is_unit(vectors).all():
            raise self._db.damaged("a vector is not of unit length")
        return vectors


def _is_unit(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    norms: NDArray[np.float32] = np.linalg.norm(vectors, axis=-1)
    return np.abs(norms - 1) < 1e-3  # false for NaN


def _unit(vector: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    vector = np.ascontiguousarray(vector, "<f4")
    if vector.shape != (dim,) or not _is_unit(vector):
        raise ValueError(f"a vector must be finite, of shape ({dim},) and of unit length, got shape {vector.shape}")
    return vector


def _has_database(folder: Path) -> bool:
    """Raises GalleryError when the folder is locked and nobody can tell."""
    try:
        return stat.S_ISREG((folder / "gallery.sqlite").stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(folder, error) from error


def _is_empty(folder: Path) -> bool:
    try:
        if not folder.exists():
            return True
        return folder.is_dir() and all(path.name.startswith("write.lock") for path in folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> GalleryError:
    return GalleryError(
        f"the gallery {folder} cannot be read: {error.strerror}; see to its permissions, or name another folder"
    )
