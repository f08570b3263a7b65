"""Whether another process still runs, and folders that a killed one has left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

OWNER = "owner"
"""The file in a temporary folder that its process holds a lock on."""
_MEANS = b"clf removes this folder when no process holds a lock on this file"


def runs(pid: int) -> bool:
    """Whether a process of this machine has not ended. Where nobody can say, it has not."""
    if sys.platform == "win32":  # where signal 0 is not a question
        return True
    with suppress(OSError):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":  # ended, not yet fetched
            return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


class Claim:
    """Says that a folder is in use, until it is released or the process ends, however it ends.

    Where there are no such locks it says nothing, and nobody removes the folder.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError: nothing can be written there."""
        self._handle: int | None = None
        if sys.platform == "win32":
            return
        draft = folder / f".{OWNER}"
        self._handle = os.open(draft, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.write(self._handle, _MEANS + f"\nprocess {os.getpid()}".encode())
            if _lock(self._handle):
                draft.rename(folder / OWNER)  # only now, so that it is never there and free
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None


def abandoned(place: Path, prefix: str) -> Iterator[Path]:
    """Folders in ``place`` of this user whose process has ended without removing them; no other process gets them too.

    On Windows there are none.
    """
    for path in place.glob(f"{prefix}*/{OWNER}"):
        with suppress(OSError):  # somebody else's, or gone meanwhile
            if path.parent.is_symlink() or path.parent.stat().st_uid != os.getuid():  # anybody may write there
                continue
            with path.open("r+b") as file:
                if file.read(len(_MEANS)) == _MEANS and _lock(file.fileno()):
                    yield path.parent


def _lock(handle: int) -> bool:
    """Whether this open file has the lock now; closing it gives it back."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
