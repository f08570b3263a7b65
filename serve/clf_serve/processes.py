"""Whether another process still runs, and folders that a killed one has left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

OWNER = "owner"
"""The file in a temporary folder that says whose it is."""
_NAMESPACE = Path("/proc/self/ns/pid")


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


def claim(folder: Path) -> None:
    """Makes a folder known as one of this process, so that a later one may remove it."""
    (folder / OWNER).write_text(f"{_namespace()} {os.getpid()}")


def abandoned(place: Path, prefix: str) -> Iterator[Path]:
    """Folders in ``place`` of this user whose process was killed. Those that another PID namespace may own stay."""
    if sys.platform == "win32":  # where nobody can say whether it runs
        return
    for file in place.glob(f"{prefix}*/{OWNER}"):
        with suppress(OSError, ValueError):
            if file.parent.is_symlink() or file.parent.stat().st_uid != os.getuid():  # anybody may write there
                continue
            namespace, pid = file.read_text().rsplit(" ", 1)
            if namespace == _namespace() and not runs(int(pid)):
                yield file.parent


def _namespace() -> str:
    """Where the numbers of processes mean something; containers have their own, and may share a folder."""
    return str(_NAMESPACE.readlink()) if _NAMESPACE.is_symlink() else ""
