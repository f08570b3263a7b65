"""Locks between processes, kept in files. A lock ends with its holder, also with one that is killed."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from weakref import finalize

_POLL = 0.1  # seconds between two tries


class NoLocksError(OSError):
    """The file system knows no locks."""


class FileLock:
    """A lock that is held until :meth:`release`, or until this object or its process is gone."""

    def __init__(self, handle: int) -> None:
        self._close = finalize(self, os.close, handle)  # closing the file gives up its lock

    def release(self) -> None:
        self._close()


def try_lock(path: Path, *, shared: bool = False) -> FileLock | None:
    """The lock of a file, which is made if need be; None while someone else holds it.

    Several processes may share a lock, and two locks of one process exclude each other as those of two do. On Windows
    every lock is exclusive but a shared one, which locks nothing: an open file cannot be deleted there anyway, but
    nobody can tell who shares a lock.

    Raises:
        OSError: the folder is missing or cannot be written.
        NoLocksError: its file system knows no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        held = _try(handle, shared)
    except BaseException:
        os.close(handle)
        raise
    if not held:
        os.close(handle)
        return None
    return FileLock(handle)


def wait_lock(path: Path, *, shared: bool = False) -> FileLock:
    """The same, when it is free at last."""
    while (lock := try_lock(path, shared=shared)) is None:
        time.sleep(_POLL)
    return lock


if sys.platform == "win32":
    import msvcrt

    def _try(handle: int, shared: bool) -> bool:
        if shared:
            return True
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _try(handle: int, shared: bool) -> bool:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK):
                raise NoLocksError(error.errno, error.strerror) from error
            raise
        return True
