"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clf.errors import DataError, GalleryError
from clf_serve.processes import runs

_ENDING = ".partial"


@contextmanager
def whole(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A path beside ``path``, with nothing there yet, to write a file or a folder to.

    When the block ends well what was written is synced to the disk and takes the place of ``path``, in one step: an
    earlier file is replaced, a folder must not be in the way. Else it is removed. What an earlier attempt left behind
    because it was killed is removed too.

    Args:
        folder: a folder is to be made, not a file.

    Raises:
        DataError: the folder of ``path`` is missing or cannot be written, ``path`` is a folder (or a device, a pipe)
            where a file is to be made, or an OSError came out of the block, or SQLite could not write to the draft.
    """
    draft = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_ENDING}"
    try:
        if not path.parent.is_dir():
            raise DataError(f"the folder {path.parent} of {path.name} does not exist; make it first")
        if not folder and path.exists() and not path.is_file():
            what = "folder" if path.is_dir() else "device or a pipe, which would be replaced"
            raise DataError(f"{path} is a {what}; name a file")
        _remove_leftovers(path)
        draft.touch()  # whether it can be written shows before the work
        draft.unlink()
        yield draft
        sync(draft)
        draft.replace(path)
        sync(path.parent)
    except GalleryError as error:
        if draft.name not in str(error) or not isinstance(error.__cause__, sqlite3.OperationalError):
            raise
        raise DataError(f"{path} cannot be written: {error.__cause__}; make room, or name another place") from error
    except OSError as error:
        reason = error.strerror or error  # numpy's and pyarrow's own have no strerror
        raise DataError(f"{path} cannot be written: {reason}; make room, or name another place") from error
    finally:
        remove(draft)
        remove(draft.with_name(f"{draft.name}-journal"))  # of VACUUM INTO


def refuse_existing(folder: Path) -> None:
    """Raises GalleryError where ``folder`` holds anything, or has no name that one could give to another."""
    try:
        taken = folder.name in ("", "..") or (folder.exists() and (not folder.is_dir() or any(folder.iterdir())))
    except OSError as error:
        raise GalleryError(f"{folder} cannot be made: {error.strerror}; name another folder") from error
    if taken:
        raise GalleryError(f"{folder} exists; name a new folder")


def is_there(path: Path) -> bool:
    """Whether it exists. What the system will not even look for, such as a name that is too long, does not."""
    try:
        return path.exists()
    except OSError:
        return False


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Has the operating system write a file, or the names in a folder, to the disk, where it can."""
    if path.is_dir() and sys.platform == "win32":  # which cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Drafts of ``path`` whose process has ended."""
    beginning = f".{path.name}."
    for entry in list(path.parent.iterdir()):
        if entry.name.startswith(beginning) and _ENDING in entry.name:  # or a journal of SQLite's beside it
            pid = entry.name.removeprefix(beginning).partition("-")[0]
            if pid.isdecimal() and not runs(int(pid)):
                remove(entry)
