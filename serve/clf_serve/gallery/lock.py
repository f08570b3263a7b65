"""The right to write to a gallery: one process at a time has it, and the others are told who, or given a turn."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from clf.errors import GalleryError
from clf_serve.gallery.faults import is_busy

PATIENCE = 5.0
"""Seconds to wait for another process."""
_HANDOVER = 15.0  # seconds to wait for one that has heard of it and brings its work to an end
_PAUSE = 0.05  # seconds between two attempts


class WriteLock:
    """A lock that the operating system gives back when the process dies, on every platform SQLite runs on.

    It is the reserved lock of a small database of its own, so that others can read in it who has it. Whoever waits
    keeps making an empty file beside it, ``write.lock-wanted``. A holder that can let go asks :meth:`is_wanted` now and
    then, which takes the file away: so the one knows that somebody waits, and the other that it was heard. No clocks
    are compared, and a file left by a process that died costs one turn at most.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            GalleryError: another process has it and did not let go in time, or the folder cannot be written.
        """
        path = folder / "write.lock"
        self._wish = folder / "write.lock-wanted"
        connection = None
        try:
            connection = sqlite3.connect(path, timeout=2 * _PAUSE, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA synchronous = OFF")  # who has it matters only while the process lives
            self._wait(connection)
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            if is_busy(error):
                raise GalleryError(
                    f"another process is writing to the gallery {folder}{_holder(path)}; "
                    "wait for it, or end it, and run this again"
                ) from error
            raise GalleryError(
                f"the gallery {folder} cannot be written: {error} ({path.name}); "
                "see to the permissions of the folder and to its disk, or name another folder"
            ) from error
        self._connection = connection

    def _wait(self, connection: sqlite3.Connection) -> None:
        """Raises sqlite3.Error, of which a busy one says that time is up."""
        start = time.monotonic()
        heard = wished = False
        while True:
            try:
                _take(connection)
            except sqlite3.Error as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if not is_busy(error) or time.monotonic() - start > (_HANDOVER if heard else PATIENCE):
                    self.is_wanted()
                    raise
            else:
                self.is_wanted()  # the wish was this one's own; others repeat theirs
                return
            heard = heard or (wished and not self._wish.exists())
            with suppress(OSError):
                self._wish.touch()
                wished = True
            time.sleep(_PAUSE)

    def is_wanted(self) -> bool:
        """Whether another process has waited for it since this was last asked."""
        try:
            self._wish.unlink()
        except OSError:  # there is none
            return False
        return True

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._connection.close()


def _take(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE IF NOT EXISTS holder (process INTEGER, host TEXT, since TEXT)")
    connection.execute("DELETE FROM holder")
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    connection.execute("INSERT INTO holder VALUES (?, ?, ?)", (os.getpid(), socket.gethostname(), since))
    connection.execute("COMMIT")  # for others to see
    connection.execute("BEGIN IMMEDIATE")


def _holder(path: Path) -> str:
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0.2)) as connection:
        row = connection.execute("SELECT process, host, since FROM holder").fetchone()
        if row:
            return " (process {} on {}, since {})".format(*row)
    return ""
