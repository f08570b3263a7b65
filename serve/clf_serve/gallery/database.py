"""The SQLite file of a gallery: its schema, its checks, who may write, and errors in words."""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from clf.errors import GalleryError

FORMAT = 1
_APPLICATION = 0x636C6647  # "clfG"
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE images (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    uri TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    vector BLOB NOT NULL,
    generation INTEGER NOT NULL
);
CREATE INDEX images_generation ON images (generation);
CREATE TABLE thumbnails (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE deleted (id INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
CREATE INDEX deleted_generation ON deleted (generation);
"""


class Database:
    """One connection in WAL mode, shared by the threads of a process under a lock.

    Every write transaction raises the *generation*; rows carry the one that last changed them, so a reader knows in
    one query what is new since it last looked. Readers are never blocked by the writer of another process.

    Raises:
        GalleryError: the file is missing, damaged, of another format, or another process writes.
    """

    def __init__(self, folder: Path, *, write: bool, patience: float = 2.0) -> None:
        self.path = folder / "gallery.sqlite"
        self.lock = threading.RLock()
        self._writer = _write_lock(folder, patience) if write else None
        try:
            with _errors(self.path):
                self._connection = _connect(self.path, _mode(self.path, write), patience)
                self._check()
        except BaseException:
            self.close()
            raise

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
        with closing(_write_lock(folder, 2.0)), _errors(path), closing(_connect(path, "mode=rwc", 2.0)) as connection:
            if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                return
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";")[:-1]:
                connection.execute(statement)
            values = meta | {"uuid": uuid.uuid4().hex, "generation": "0"}
            connection.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.execute("COMMIT")

    def close(self) -> None:
        for connection in (getattr(self, "_connection", None), self._writer):
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the data, whatever is written meanwhile."""
        with self.lock, _errors(self.path):
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A transaction, all or nothing; yields the connection and its new generation."""
        if self._writer is None:
            raise ValueError("the gallery was opened for reading")
        with self.lock, _errors(self.path):
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                generation = int(self.meta("generation")) + 1
                connection.execute("UPDATE meta SET value = ? WHERE key = 'generation'", (str(generation),))
                yield connection, generation
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def meta(self, key: str) -> str:
        with self.lock, _errors(self.path):
            row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise self.damaged(f"{key} is missing")
        return str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        with self.lock, _errors(self.path):
            self._connection.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))

    def _check(self) -> None:
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if application != _APPLICATION:
            raise GalleryError(f"{self.path} is not a gallery of clf; name another folder")
        if version != FORMAT:
            raise GalleryError(
                f"{self.path} has format {version}, this clf reads format {FORMAT}; index the images into a new folder"
            )

    def damaged(self, detail: str) -> GalleryError:
        """The error for content that SQLite takes and a gallery cannot hold."""
        return _damaged(self.path, detail)


def _damaged(path: Path, detail: str) -> GalleryError:
    return GalleryError(
        f"{path} is damaged ({detail}). Delete the folder {path.parent} and make it anew: "
        f"clf index MODEL IMAGES -o {path.parent}"
    )


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turns what SQLite says into what a person can do."""
    try:
        yield
    except sqlite3.ProgrammingError:  # a bug of ours
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        text = str(error)
        if _is_busy(error):
            raise GalleryError(f"{path} is locked: another process is writing; try again later") from error
        if "full" in text:
            raise GalleryError(
                f"{path} cannot be written: {text}; make room and run this again, earlier entries are kept"
            ) from error
        if any(words in text for words in ("disk I/O", "readonly", "unable to open")):
            raise GalleryError(f"{path} cannot be used: {text}; see to the disk and its permissions") from error
        raise _damaged(path, text) from error


def _is_busy(error: Exception) -> bool:
    return any(word in str(error) for word in ("locked", "busy"))


def _mode(path: Path, write: bool) -> str:
    if write:
        return "mode=rw"
    # WAL needs a writable folder even to read; in one that nobody can write to, nothing changes
    return "mode=ro" if os.access(path.parent, os.W_OK) else "immutable=1"


def _connect(path: Path, mode: str, patience: float) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?{mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=patience, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _write_lock(folder: Path, patience: float) -> sqlite3.Connection:
    """A lock that the operating system gives back when the process dies, on every platform SQLite runs on.

    Raises:
        GalleryError: another process has it, or the folder cannot be written.
    """
    path = folder / "write.lock"
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        if _is_busy(error):
            raise GalleryError(
                f"another process is writing to the gallery {folder}; wait for it, or end it, and run this again"
            ) from error
        raise GalleryError(
            f"the gallery {folder} cannot be written: {error} ({path.name}); "
            "see to the permissions of the folder and to its disk, or name another folder"
        ) from error
    return connection
