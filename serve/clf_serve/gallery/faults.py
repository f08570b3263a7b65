"""What SQLite and the operating system say, in words that a person can act on."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clf.errors import GalleryError


class DamageError(sqlite3.DatabaseError):
    """Content that SQLite takes and a gallery cannot hold; :func:`in_words` adds the place and the remedy."""


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turns errors of SQLite about the database ``path`` into GalleryError."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):  # a bug of ours
        raise
    except DamageError as error:
        raise damaged(path, str(error)) from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        text = str(error)
        if is_busy(error):
            raise GalleryError(f"{path} is locked: another process is writing; try again later") from error
        if "full" in text:
            raise GalleryError(
                f"{path} cannot be written: {text}; make room and run this again, earlier entries are kept"
            ) from error
        if any(words in text for words in ("disk I/O", "readonly", "unable to open")):
            raise GalleryError(f"{path} cannot be used: {text}; see to the disk and its permissions") from error
        raise damaged(path, text) from error


def damaged(path: Path, detail: str) -> GalleryError:
    folder = path.parent
    return GalleryError(
        f"{path} is damaged ({detail}); clf gallery check {folder} says more. "
        f"Restore a backup (clf gallery restore BACKUP -o {folder} --replace), "
        f"or delete the folder {folder} and make it anew: clf index MODEL IMAGES -o {folder}"
    )


def is_busy(error: Exception) -> bool:
    return any(word in str(error) for word in ("locked", "busy"))


def has_database(folder: Path) -> bool:
    """Raises GalleryError when the folder is locked and nobody can tell."""
    try:
        return stat.S_ISREG((folder / "gallery.sqlite").stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(folder, error) from error


def is_empty(folder: Path) -> bool:
    try:
        if not folder.exists():
            return True
        return folder.is_dir() and all(path.name.startswith("write.lock") for path in folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> GalleryError:
    return GalleryError(
        f"the gallery {folder} cannot be read: {error.strerror}; see to its permissions, or name another folder"
    )
