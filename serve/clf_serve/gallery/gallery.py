"""A gallery: a folder with the embedded images of one model.

``gallery.sqlite`` holds paths, metadata, thumbnails and vectors and is the only truth; ``index/`` is a cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from clf.errors import GalleryError
from clf_serve.gallery import facts, rows, writing
from clf_serve.gallery.database import FORMAT, Database
from clf_serve.gallery.facts import FieldFacts, GalleryFacts, Identity
from clf_serve.gallery.faults import has_database, is_empty
from clf_serve.gallery.filters import Where
from clf_serve.gallery.following import Follower, Progress, batches, forget_a_lost_future
from clf_serve.gallery.matching import Matching
from clf_serve.gallery.searching import Query, Searcher
from clf_serve.gallery.store import Entry, Hit, Item, Known, Moved, Thumbnail
from clf_serve.gallery.vectors import Ids, Vectors, decode, stored, unit
from clf_serve.index import IndexInfo
from clf_serve.place import Place

_LAST = 2**63 - 1  # id that SQLite can hold
_META = ("model", "model_sha256", "uuid")


class Gallery:
    """Thread-safe; one process writes, any number read.

    A reader sees what a writer in another process committed at its next call. Searches of several threads run at the
    same time, and wait for no writer.
    """

    def __init__(self, folder: Path, model: Identity | None = None, *, write: bool = False) -> None:
        """Opens a gallery; one of an older format is converted.

        Args:
            model: the model whose vectors will be used with it; another one than its own is refused.

        Raises:
            GalleryError: it is missing, damaged, of a newer format, made with another model, or being written.
        """
        if not has_database(folder):
            raise GalleryError(f"{folder} is not a gallery; make one: clf index MODEL IMAGES -o {folder}")
        self.folder = folder
        self._db = Database(folder, write=write)
        self._matching = Matching()
        self._fields: tuple[int, dict[str, FieldFacts]] | None = None
        try:
            with self._db.reading() as connection:
                meta = {key: self._db.meta(key, connection) for key in _META}
                dim, generation = self._db.dim(connection), self._db.number("generation", connection)
            self.model = Identity(meta["model"], meta["model_sha256"], dim)
            self._follower = Follower(self._db, folder, meta["uuid"], self.model.dim)
            self._searcher = Searcher(self._db, self._follower, self._matching, self.model.dim)
            if write:
                forget_a_lost_future(folder, generation)
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
        if not has_database(folder) and not is_empty(folder):
            raise GalleryError(f"{folder} exists and is not a gallery; name a new folder")
        meta = {"model": model.name, "model_sha256": model.sha256, "dim": str(model.dim)}
        Database.create(folder, meta | {"model_path": str(model_path.resolve())})
        gallery = cls(folder, model, write=True)
        gallery._db.set_meta({"model_path": str(model_path.resolve())})
        return gallery

    def require(self, model: Identity) -> None:
        """Raises GalleryError unless ``model`` is the one the gallery was made with."""
        if (model.sha256, model.dim) != (self.model.sha256, self.model.dim):
            raise GalleryError(
                f"the gallery {self.folder} was made with model {self.model}, not with {model}; use that model, index "
                "the images into a new folder, or embed them anew with this one: "
                f"clf gallery reembed {self.folder} MODEL -o NEW"
            )

    def is_wanted(self) -> bool:
        """Whether another process has waited to write since this was last asked; close the gallery, and it can."""
        return self._db.is_wanted()

    def close(self) -> None:
        """What other threads are reading is read to its end."""
        self._db.close()
        if hasattr(self, "_follower"):  # else it was never open
            self._follower.forget()

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
    def place(self) -> Place:
        return Place(self.folder)

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.resolve().name

    @property
    def generation(self) -> int:
        """Rises with each write, of any process."""
        return self._db.number("generation")

    @property
    def model_path(self) -> Path:
        """Where the model lay when images were last indexed."""
        return Path(self._db.meta("model_path"))

    @property
    def written(self) -> str:
        """When it was last, as ISO 8601 in UTC."""
        return facts.written(self.folder)

    @property
    def wishes(self) -> tuple[str | None, int | None, float | None]:
        """Kind, bytes and recall of the index, as the user chose them last; None where nothing was chosen."""
        return self._follower.wishes()

    @property
    def cache_note(self) -> str | None:
        """What was wrong with the saved index, in a sentence; it never costs more than time."""
        return self._follower.note

    def upsert(self, entries: Sequence[Entry], *, ids: Sequence[int] | None = None) -> list[int]:
        """Adds or replaces entries in one transaction, which is on the disk when this returns; their ids, in order.

        Args:
            ids: for the entries whose keys are new, so that a copy of a gallery keeps them; else new ones are drawn.

        Raises:
            EntryError: a text, a number or metadata that cannot be kept.
            GalleryError: the disk is full, or the database damaged.
            ValueError: a vector that is not (dim,) finite and of unit length.
        """
        checked = [(writing.row_of(e), e.thumbnail, unit(e.vector, self.model.dim)) for e in entries]
        if not checked:
            return []
        with self._db.writing() as (connection, generation):
            return writing.upsert(connection, generation, checked, ids or [None] * len(checked))

    def delete(self, ids: Sequence[int]) -> int:
        """Removes entries in one transaction; how many there were. Unknown ids are ignored."""
        known = [int(id_) for id_ in ids if _is_id(id_)]
        if not known:
            return 0
        with self._db.writing() as (connection, generation):
            return writing.delete(connection, generation, known)

    def relocate(self, moves: Sequence[Moved]) -> int:
        """Gives entries another key, URI, folder and time in one transaction; how many there were.

        Id, vector, thumbnail and metadata stay. An entry that has one of the new keys and does not move is removed.

        Raises:
            EntryError: two moves have the same id or key, or a text or number cannot be kept; nothing is changed.
        """
        known = [move for move in moves if _is_id(move.id)]
        if not known:
            return 0
        with self._db.writing() as (connection, generation):
            return writing.relocate(connection, generation, known)

    def set_metadata(self, changes: Mapping[int, Mapping[str, Any] | None], *, merge: bool = True) -> int:
        """Changes metadata by id in one transaction; how many of the ids there were. None empties an entry's.

        Args:
            merge: as JSON merge patch (RFC 7396): named ones change, null deletes a name; else all is replaced.

        Raises:
            EntryError: metadata that cannot be kept; nothing is changed.
        """
        known = {int(id_): change for id_, change in changes.items() if _is_id(id_)}
        if not known:
            return 0
        with self._db.writing() as (connection, _):
            return writing.set_metadata(connection, known, merge)

    def search(
        self,
        vector: Vectors,
        k: int,
        *,
        where: Where | None = None,
        but: Collection[int] = (),
        offset: int = 0,
        exact: bool = False,
    ) -> list[Hit]:
        """The k nearest images, best first; equal scores by id. Fewer only when there are fewer.

        Args:
            vector: (dim,), unit length.
            where: only images that it lets through.
            but: ids to leave out.
            offset: how many of the best to pass over.
            exact: look at every vector, whatever index there is. Scores are exact in any case.

        Raises:
            GalleryError: the database is damaged.
            ValueError: the vector has another shape, k is below 1, or the offset below 0.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if offset < 0:
            raise ValueError(f"offset must be at least 0, got {offset}")
        return self._searcher.search(Query(unit(vector, self.model.dim), k, where, but, offset, exact))

    def within(
        self,
        vector: Vectors,
        score: float,
        *,
        limit: int = 1000,
        where: Where | None = None,
        but: Collection[int] = (),
    ) -> list[Hit]:
        """The images whose cosine is at least ``score``, best first: all of them, or the best ``limit``, exactly.

        Raises:
            GalleryError: the database is damaged.
            ValueError: the vector has another shape, the limit is below 1, or the score is no number.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        if score != score:
            raise ValueError("score must be a number, got NaN")
        query = unit(vector, self.model.dim)
        return self._searcher.search(Query(query, limit, where, but, exact=True, at_least=score))

    def get(self, id_: int) -> Item | None:
        return next(iter(self.items([id_])), None)

    def items(self, ids: Sequence[int]) -> list[Item]:
        """In the order of ``ids``, without the unknown ones."""
        with self._db.reading() as connection:
            found = rows.by_ids(connection, ids)
        return [found[id_] for id_ in ids if id_ in found]

    def find(self, key: str) -> Item | None:
        with self._db.reading() as connection:
            return rows.by_key(connection, key) if _is_unicode(key) else None

    def vector(self, id_: int) -> Vectors | None:
        """(dim,), or None for an unknown id."""
        with self._db.reading() as connection:
            blobs = list(stored(connection, [id_]).values())
        return decode(self._db, blobs, self.model.dim)[0] if blobs else None

    def vectors(self, ids: Sequence[int]) -> Vectors:
        """(n, dim), in the order of ``ids``. Raises KeyError for an unknown one."""
        with self._db.reading() as connection:
            found = stored(connection, ids)
        return decode(self._db, [found[int(id_)] for id_ in ids], self.model.dim)

    def thumbnail(self, id_: int) -> Thumbnail | None:
        if not _is_id(id_):
            return None
        with self._db.reading() as connection:
            row = connection.execute(
                "SELECT data, sha256 FROM images JOIN thumbnails USING (id) WHERE id = ?", (int(id_),)
            ).fetchone()
            return Thumbnail(rows.picture(row[0], id_), str(row[1])) if row and row[0] != b"" else None

    def page(self, *, after: int = 0, limit: int = 100, where: Where | None = None) -> list[Item]:
        """Up to ``limit`` images by rising id, from the first whose id is greater than ``after``."""
        if limit < 1 or after >= _LAST:
            return []
        after, limit = max(after, 0), min(limit, _LAST)
        with self._db.reading() as connection:
            if where is None:
                return list(rows.in_order(connection, after, limit))
            ids = self._ids(connection, where)
            start = int(np.searchsorted(ids, after, "right"))
            found = rows.by_ids(connection, ids[start : start + limit].tolist())
            return [found[id_] for id_ in sorted(found)]

    def count(self, where: Where | None = None) -> int:
        """How many images ``where`` lets through."""
        if where is None:
            return len(self)
        with self._db.reading() as connection:
            return len(self._ids(connection, where))

    def sample(self, n: int) -> list[Item]:
        """Up to n images, evenly spread over the gallery."""
        if n < 1:
            return []
        with self._db.reading() as connection:
            ids = self._ids(connection, None)
            picked = ids[np.arange(n) * len(ids) // n] if len(ids) > n else ids
            found = rows.by_ids(connection, picked.tolist())
            return [found[id_] for id_ in sorted(found)]

    def ids(self, where: Where | None = None) -> Ids:
        """Of all images, or of those that ``where`` lets through: (n,), rising; read-only."""
        with self._db.reading() as connection:
            return self._ids(connection, where)

    def batches(self, rows: int = 10_000) -> Iterator[tuple[Ids, Vectors]]:
        """Ids (n,) and vectors (n, dim) of all images by rising id, up to ``rows`` at a time, of one state."""
        with self._db.reading() as connection:
            yield from batches(self._db, connection, self.model.dim, rows)

    def fields(self) -> dict[str, FieldFacts]:
        """The metadata names, and ``@folder``, with what they hold. Remembered until the gallery is written to."""
        with self._db.reading() as connection:
            generation = self._db.number("generation", connection)
            if self._fields is None or self._fields[0] != generation:
                self._fields = generation, facts.fields(connection)
            return dict(self._fields[1])

    def facts(self) -> GalleryFacts:
        """Opens the index, to say what it is."""
        with self._db.reading() as connection:
            generation = self._db.number("generation", connection)
            count = int(connection.execute("SELECT count(*) FROM images").fetchone()[0])
        return GalleryFacts(
            images=count,
            dim=self.model.dim,
            model=self.model,
            model_path=self.model_path,
            format=FORMAT,
            generation=generation,
            bytes=facts.bytes_on_disk(self.folder),
            index=self._follower.now().info,
        )

    def listing(self) -> dict[str, Known]:
        """Every key and what its file was like when it was indexed."""
        with self._db.reading() as connection:
            return rows.listing(connection)

    def load_index(self) -> None:
        """Reads the index now, so that the first search need not."""
        self._follower.now()

    def save_index(self, *, progress: Progress = lambda stage, done: None) -> None:
        """Brings the index up to date on the disk, builds it anew where that is due, and measures its recall.

        It is only a cache: where it cannot be written, ``cache_note`` says so and the gallery is none the worse.

        Args:
            progress: as of :meth:`optimize`; called only where the index is built anew.
        """
        self._follower.save(progress)

    def optimize(
        self,
        kind: str | None = None,
        *,
        memory: int | None = None,
        recall: float | None = None,
        progress: Progress = lambda stage, done: None,
    ) -> IndexInfo:
        """Builds the index anew and saves it.

        Args:
            kind: auto, flat, hnsw or ivf; what is left out stays as it was chosen last.
            memory: bytes that it may keep resident; 0 for no limit.
            recall: recall@10 to tune for.
            progress: called with the name of a stage and how much of it is done, in [0, 1].

        Raises:
            GalleryError: no such kind, or it cannot be written.
        """
        return self._follower.optimize(kind, memory, recall, progress)

    def _ids(self, connection: Any, where: Where | None) -> Ids:
        return self._matching.ids(connection, self._db.number("generation", connection), where)


def _is_id(id_: int) -> bool:
    return 0 < id_ <= _LAST


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
