"""The right to write to a gallery: one process at a time has it, and the others are told who."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from clf.errors import GalleryError
from clf_serve.gallery.faults import is_busy

PATIENCE = 2.0
"""Seconds to wait for another process."""


class WriteLock:
    """A lock that the operating system gives back when the process dies, on every platform SQLite runs on.

    It is the reserved lock of a small database of its own, so that others can read in it who has it.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            GalleryError: another process has it, or the folder cannot be written.
        """
        path = folder / "write.lock"
        connection = None
        try:
            connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA synchronous = OFF")  # who has it matters only while the process lives
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE IF NOT EXISTS holder (process INTEGER, host TEXT, since TEXT)")
            connection.execute("DELETE FROM holder")
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            connection.execute("INSERT INTO holder VALUES (?, ?, ?)", (os.getpid(), socket.gethostname(), since))
            connection.execute("COMMIT")  # for others to see
            connection.execute("BEGIN IMMEDIATE")
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

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._connection.close()


def _holder(path: Path) -> str:
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0.2)) as connection:
        row = connection.execute("SELECT process, host, since FROM holder").fetchone()
        if row:
            return " (process {} on {}, since {})".format(*row)
    return ""
