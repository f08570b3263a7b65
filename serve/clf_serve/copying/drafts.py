"""A gallery that is being made, and is there for others only when it is whole.

In a folder the work is done beside the new gallery, and renamed at the end. In a store, where nothing can be renamed,
the gallery names the command that makes it among its texts, and everything else refuses to open it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from clf.errors import DataError, GalleryError
from clf_serve.copying.sides import About, FolderSide, Side, StoreSide
from clf_serve.gallery import Gallery
from clf_serve.gallery.database import Database
from clf_serve.gallery.faults import has_database
from clf_serve.gallery.lock import WriteLock
from clf_serve.gallery.writing import delete, row_of, upsert
from clf_serve.place import Place
from clf_serve.stores import AnyGallery, ConflictError, StoreGallery
from clf_serve.stores.opening import open_draft
from clf_serve.stores.rows import entry_of, row_from
from clf_serve.stores.store_gallery import UNFINISHED
from clf_serve.stores.vector_store import Row
from clf_serve.transfer.whole import refuse_existing, remove, sync

_DRAFT = "gallery"
_NOTE = "work.json"


class Draft(ABC):
    """For one thread. All methods raise GalleryError for what goes wrong where the gallery is made."""

    place: Place
    """Of the gallery when it is whole."""

    @abstractmethod
    def side(self) -> AbstractContextManager[Side]:
        """What is in it now, by a handle of its own: what has only been remembered does not count."""

    @abstractmethod
    def gallery(self) -> AbstractContextManager[AnyGallery]:
        """The same as a gallery that can be written to, and searched. Not to be open while :meth:`write` is called."""

    @abstractmethod
    def holders(self, keys: Sequence[str]) -> Mapping[str, int]:
        """The ids of those keys that there are."""

    @abstractmethod
    def write(self, put: Sequence[Row], gone: Collection[int]) -> None:
        """In one transaction: removes ``gone``, then adds ``put``, whose ids and keys are not there then.

        Raises EntryError: a row that cannot be kept.
        """

    @abstractmethod
    def settle(self, about: About) -> None:
        """Keeps what belongs to no row."""

    @abstractmethod
    def publish(self) -> None:
        """It is whole, and there for everybody."""


@contextmanager
def drafting(
    place: Place, about: About, work: str, *, suffix: str, note: Mapping[str, str] | None = None
) -> Iterator[Draft]:
    """Begins a gallery, or goes on with one that the same command has begun. What is there stays, whatever happens.

    Args:
        work: the command, as it is told to people.
        suffix: of the folder where a gallery in a folder is made, ``.NAME.SUFFIX``.
        note: by which that folder is known again; by default the command and the model.

    Raises:
        GalleryError: there is a gallery already, or the unfinished one of another command or model, or another process
            is at this work.
        DataError: a folder that cannot be written.
    """
    if place.folder is None:
        with open_draft(place, about.model, about.model_path, work) as gallery:
            yield StoreDraft(gallery, about, work)
        return
    refuse_existing(place.folder)
    folder = work_folder(place.folder, suffix)
    begin(folder, note or {"work": work, "model": about.model.sha256})
    with closing(WriteLock(folder)):
        refuse_existing(place.folder)  # another process has made it while this one waited
        draft = FolderDraft(place.folder, folder, about)
        try:
            yield draft
        finally:
            draft.close()


def work_folder(output: Path, suffix: str) -> Path:
    """Where a folder is made until it is whole."""
    return output.with_name(f".{output.name}.{suffix}")


def begin(work: Path, wanted: Mapping[str, str]) -> None:
    """Makes the folder of a work, or checks that the one that is there belongs to this work.

    Raises:
        GalleryError: it does not.
        DataError: it cannot be written.
    """
    note = work / _NOTE
    try:
        if not note.exists():
            work.mkdir(parents=True, exist_ok=True)
            (work / f"{_NOTE}.new").write_text(json.dumps(wanted), encoding="utf-8")
            (work / f"{_NOTE}.new").replace(note)
        found = json.loads(note.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{work} cannot be written: {error.strerror}; name another folder") from error
    except ValueError:
        found = None
    if found != wanted:
        raise GalleryError(
            f"{work} is left from another gallery or model; delete it to begin anew, or name another folder"
        )


class FolderDraft(Draft):
    """Args: folder: the new one. work: where it is made."""

    def __init__(self, folder: Path, work: Path, about: About) -> None:
        self.place = Place(folder)
        self._work, self._folder = work, work / _DRAFT
        self._model = about.model
        model = {"model": about.model.name, "model_sha256": about.model.sha256, "dim": str(about.model.dim)}
        Database.create(self._folder, model | {"model_path": str(about.model_path)})
        self._database: Database | None = None

    def close(self) -> None:
        """Removes what nobody needs to go on with."""
        self._shut()
        with suppress(GalleryError):
            if has_database(self._folder):
                with self.side() as side:
                    if side.images:
                        return
            remove(self._work)

    @contextmanager
    def side(self) -> Iterator[Side]:
        with closing(Database(self._folder, write=False)) as database, database.reading() as connection:
            yield FolderSide(self.place, connection, self._model)

    @contextmanager
    def gallery(self) -> Iterator[AnyGallery]:
        self._shut()
        with Gallery(self._folder, self._model, write=True) as gallery:
            yield gallery

    def holders(self, keys: Sequence[str]) -> Mapping[str, int]:
        ask = "SELECT key, id FROM images WHERE key IN (SELECT value FROM json_each(?))"
        with self._open().reading() as connection:
            return dict(connection.execute(ask, (json.dumps(keys),)).fetchall())

    def write(self, put: Sequence[Row], gone: Collection[int]) -> None:
        entries = [entry_of(row) for row in put]
        rows = [(row_of(entry), entry.thumbnail, entry.vector) for entry in entries]
        with self._open().writing() as (connection, generation):
            delete(connection, generation, list(gone))
            upsert(connection, generation, rows, [row.id for row in put])

    def settle(self, about: About) -> None:
        database = self._open()
        with database.changing() as connection:
            connection.execute("DELETE FROM sqlite_sequence WHERE name = 'images'")
            connection.execute("INSERT INTO sqlite_sequence VALUES ('images', ?)", (about.last_id,))
        database.set_meta({"model_path": str(about.model_path), **about.wishes})

    def publish(self) -> None:
        folder = self.place.folder
        assert folder is not None
        self._shut()
        refuse_existing(folder)
        try:
            self._folder.rename(folder)
            sync(folder.parent)
        except OSError as error:
            raise DataError(f"{folder} cannot be made: {error.strerror}; it is kept in {self._folder}") from error

    def _open(self) -> Database:
        if self._database is None:
            self._database = Database(self._folder, write=True)
        return self._database

    def _shut(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


class StoreDraft(Draft):
    """Args: gallery: open for writing, and unfinished. work: as it names it."""

    def __init__(self, gallery: StoreGallery, about: About, work: str) -> None:
        self.place = gallery.place
        self._calls = gallery.calls
        self._about, self._work = about, work
        self._at = gallery.generation

    @contextmanager
    def side(self) -> Iterator[Side]:
        with self._again(write=False) as gallery:
            yield StoreSide(gallery)

    @contextmanager
    def gallery(self) -> Iterator[AnyGallery]:
        with self._again(write=True) as gallery:
            yield gallery
        self._at = self._calls.state().generation

    def holders(self, keys: Sequence[str]) -> Mapping[str, int]:
        return self._calls.find(keys)

    def write(self, put: Sequence[Row], gone: Collection[int]) -> None:
        self._tell([row_from(row.id, entry_of(row), row.vector) for row in put], sorted(gone), {})

    def settle(self, about: About) -> None:
        self._tell((), (), {"last_id": str(about.last_id), "model_path": str(about.model_path), **about.wishes})

    def publish(self) -> None:
        self._tell((), (), {UNFINISHED: "", "written": datetime.now(UTC).isoformat(timespec="seconds")})

    def _again(self, *, write: bool) -> StoreGallery:
        return open_draft(self.place, self._about.model, self._about.model_path, self._work, write=write)

    def _tell(self, put: Sequence[Row], gone: Sequence[int], about: Mapping[str, str]) -> None:
        try:
            self._calls.write(put, gone, about, self._at)
        except ConflictError as error:
            raise GalleryError(
                f"another process writes to {self.place} too; end it, and run this again to go on"
            ) from error
        self._at += 1
