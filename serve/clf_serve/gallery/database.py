"""The SQLite file of a gallery: its connections, who may write, and its checks."""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from clf.errors import GalleryError
from clf_serve.gallery import schema
from clf_serve.gallery.faults import damaged, in_words
from clf_serve.gallery.lock import WriteLock

FORMAT = schema.FORMAT
PATIENCE = 2.0
"""Seconds to wait for a connection, and for what another one does in the file."""
_DIM = 1 << 20  # the longest vector that is believed
_IDLE = 8  # read connections that are kept open
_WAL_BYTES = 64 << 20  # what of the write-ahead log is kept as a file after a large transaction


class Database:
    """Connections in WAL mode: one that writes, and as many that read as threads read at the same time.

    Every write transaction raises the *generation*; vectors carry the one that last changed them, so a reader knows in
    one query what is new since it last looked. Readers are never blocked by the writer, nor it by them. What was
    committed has been synced to the disk.

    In a folder that nobody may write to, SQLite can only read a database that stands still. It is read so, and a
    change from elsewhere that shows in the file's size or time is followed, or refused while it goes on.

    Raises:
        GalleryError: the file is missing, damaged, of a newer format, or another process writes.
    """

    def __init__(self, folder: Path, *, write: bool) -> None:
        self.path = folder / "gallery.sqlite"
        self._idle: list[sqlite3.Connection] = []
        self._pool = threading.Condition()
        self._turn = threading.RLock()  # of the connection that writes
        self._closed = False
        self._file: os.stat_result | None = None
        self._still: _Standing | None = None  # the file, where it can only be read standing still
        self._lock = WriteLock(folder) if write else None
        self._writer: sqlite3.Connection | None = None
        try:
            with in_words(self.path):
                self._open(folder)
        except BaseException:
            self.close()
            raise

    def _open(self, folder: Path) -> None:
        connection = self._connect_reader()
        try:
            version = _version(connection, self.path)
            self._file = _stat(self.path)
        finally:
            connection.close()
        if version < FORMAT:
            self._upgrade(folder, version)
        if self._lock is not None:
            self._writer = _connect(self.path, "mode=rw")

    def _upgrade(self, folder: Path, version: int) -> None:
        try:
            lock = self._lock or WriteLock(folder)
        except GalleryError as error:
            raise GalleryError(
                f"{self.path} has format {version} and must be converted to format {FORMAT}, which needs to write: "
                f"{error}. Or open it once where it can be written: clf gallery info {folder}"
            ) from error
        try:
            with closing(_connect(self.path, "mode=rw")) as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    if _version(connection, self.path) < FORMAT:  # nobody else has done it meanwhile
                        schema.migrate(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        finally:
            if lock is not self._lock:
                lock.close()

    @classmethod
    def create(cls, folder: Path, meta: dict[str, str]) -> None:
        """Makes the file with its tables, all or nothing. One that is there already is left as it is.

        Raises:
            GalleryError: another process is making it, or the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GalleryError(f"the folder {folder} cannot be made: {error.strerror}") from error
        path = folder / "gallery.sqlite"
        with closing(WriteLock(folder)), in_words(path), closing(_connect(path, "mode=rwc")) as connection:
            if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                return
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            schema.create(connection, meta | {"uuid": uuid.uuid4().hex})
            connection.execute("COMMIT")

    def is_wanted(self) -> bool:
        """Whether another process waits for the right to write, which this one has."""
        return self._lock is not None and self._lock.is_wanted()

    def close(self) -> None:
        """What is being read or written meanwhile is brought to its end."""
        with self._turn, self._pool:
            self._closed = True
            connections, self._idle = [*self._idle, self._writer, self._lock], []
        for connection in connections:
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the data, whatever is written meanwhile; several threads may read at once."""
        with in_words(self.path):
            connection = self._borrow()
            try:
                connection.execute("BEGIN")
                connection.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()  # fixes the view
                yield connection
                connection.execute("COMMIT")
                if self._still is not None and self._still != _standing(self.path):
                    raise GalleryError(
                        f"{self.path} was changed from elsewhere while it was read in a folder that cannot be written; "
                        "try again"
                    )
            except BaseException:
                connection.close()  # a cursor that some frame still holds would keep its old view
                raise
            self._give_back(connection)

    @contextmanager
    def writing(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A transaction, all or nothing, on the disk when it ends; yields the connection and its new generation."""
        with self.changing() as connection:
            generation = self.number("generation", connection) + 1
            connection.execute("UPDATE meta SET value = ? WHERE key = 'generation'", (str(generation),))
            yield connection, generation

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that changes nothing that is searched, and so not the generation."""
        if self._writer is None:
            raise ValueError("the gallery was opened for reading")
        with self._turn, in_words(self.path):
            self._require_open()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @property
    def writable(self) -> bool:
        return self._writer is not None

    def meta(self, key: str, connection: sqlite3.Connection | None = None) -> str:
        """A value that every gallery has; in the view of ``connection``, or as it is now."""
        value = self.option(key, connection)
        if value is None:
            raise self.damaged(f"{key} is missing")
        return value

    def number(self, key: str, connection: sqlite3.Connection | None = None) -> int:
        """A value that every gallery has, from 0 to 2**53."""
        value = self.meta(key, connection)
        if not (value.isdecimal() and value.isascii() and len(value) < 17):
            raise self.damaged(f"{key} is no number")
        return int(value)

    def dim(self, connection: sqlite3.Connection) -> int:
        """Length of the vectors."""
        dim = self.number("dim", connection)
        if not 1 <= dim <= _DIM:
            raise self.damaged(f"vectors of {dim} numbers")
        return dim

    def option(self, key: str, connection: sqlite3.Connection | None = None) -> str | None:
        if connection is None:
            with self.reading() as connection:
                return self.option(key, connection)
        row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, values: dict[str, str]) -> None:
        """Without a new generation."""
        with self.changing() as connection:
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))

    def damaged(self, detail: str) -> GalleryError:
        """The error for content that SQLite takes and a gallery cannot hold."""
        return damaged(self.path, detail)

    def _require_open(self) -> None:
        if self._closed:
            raise GalleryError(f"the gallery {self.path.parent} was closed")

    def _borrow(self) -> sqlite3.Connection:
        with self._pool:
            self._require_open()
            if self._still is not None and self._still != _standing(self.path):
                for connection in self._idle:
                    connection.close()
                self._idle.clear()
            if self._idle:
                return self._idle.pop()
        connection = self._connect_reader()
        try:
            connection.execute("PRAGMA user_version").fetchone()  # opens the file
            if self._file is not None and os.path.samestat(_stat(self.path), self._file):
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()  # another gallery was put in its place, and those that are open read the old one
        with self._pool:
            if self._pool.wait_for(lambda: self._idle, PATIENCE):
                return self._idle.pop()
        raise GalleryError(f"{self.path} was replaced by another gallery; open it again (a server: reload it)")

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._pool:
            if not self._closed and len(self._idle) < _IDLE:
                self._idle.append(connection)
                self._pool.notify()
                return
        connection.close()

    def _connect_reader(self) -> sqlite3.Connection:
        if os.access(self.path.parent, os.W_OK):
            return _connect(self.path, "mode=ro")
        now = _standing(self.path)
        if not now.log:
            self._still = now
            return _connect(self.path, "immutable=1")
        self._still = None
        try:
            return _connect(self.path, "mode=ro")
        except sqlite3.OperationalError as error:
            raise GalleryError(
                f"the gallery {self.path.parent} lies in a folder that cannot be written, and its writer left work "
                f"in {self.path.name}-wal ({error}); open it once where it can be written, or copy the folder"
            ) from error


class _Standing(NamedTuple):
    """What changes with the files of a database."""

    file: int
    size: int
    mtime_ns: int
    log: int
    """Bytes of the write-ahead log."""


def _stat(path: Path) -> os.stat_result:
    """Raises GalleryError when the file is gone."""
    try:
        return path.stat()
    except OSError as error:
        raise GalleryError(f"{path} cannot be read: {error.strerror}") from error


def _standing(path: Path) -> _Standing:
    """Raises GalleryError when the file is gone."""
    stat = _stat(path)
    try:
        log = path.with_name(path.name + "-wal").stat().st_size
    except OSError:
        log = 0
    return _Standing(stat.st_ino, stat.st_size, stat.st_mtime_ns, log)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if application != schema.APPLICATION:
        raise GalleryError(f"{path} is not a gallery of clf; name another folder")
    if version > FORMAT:
        raise GalleryError(
            f"{path} has format {version}, this clf reads up to format {FORMAT}; "
            "use the clf that wrote it (pip install --upgrade clf-vision), or index the images into a new folder"
        )
    if version < 1:
        raise damaged(path, "it names no format")
    return version


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?{mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
        connection.execute("PRAGMA cache_size = -8000")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection
