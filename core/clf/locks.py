"""A lock between processes that the operating system takes away when its holder dies, however it dies."""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from clf.errors import RunError


class HeldError(RunError):
    """Another process holds the lock."""


@contextmanager
def lock(path: Path, complaint: str) -> Iterator[None]:
    """Holds a lock file. It belongs to this process alone: children that it forks do not keep it.

    Args:
        complaint: the sentence for the second who comes; ``{holder}`` becomes the first one's process and machine.

    Raises:
        HeldError: another process holds it.
        RunError: the file cannot be written.
    """
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}): check its permissions") from error
    with file:
        if not _acquire(file):
            file.seek(0)
            sentence = complaint.format(holder=file.read(200).strip() or "another process")
            raise HeldError(f"{sentence}: wait until it ends, or stop it")
        _sign(file)
        yield


def _sign(file: IO[str]) -> None:
    """Writes who holds the lock, for the one who comes second; on a full disk it stays unsaid."""
    if sys.platform == "win32":  # where a locked file cannot be read
        return
    with suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())


def _acquire(file: IO[str]) -> bool:
    """Whether this process has the lock now; closing the file gives it back. Where there are no locks, all have it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True
