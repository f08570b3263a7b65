"""One pass over a folder: every image file with its size and time of modification, for very many files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clf import images
from clf.errors import DataError, ImageError


class File(NamedTuple):
    """A file as it was when the folder was listed; a later change shows at the next run."""

    key: str
    """Real path of its folder, and its name: the same file has the same key however the folder was named."""
    uri: str
    """The path as it was given."""
    folder: str
    """Its folder relative to the one that is listed, with ``/``; empty at the top."""
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """Relative to the folder that is listed, with ``/``."""
        name = self.key.rpartition(os.sep)[2]
        return f"{self.folder}/{name}" if self.folder else name


class Unusable(NamedTuple):
    """A name that is there, and no file that could be read."""

    key: str
    uri: str
    reason: str
    gone: bool = False
    """It turned out not to be there: deleted meanwhile, or a link to nowhere."""


class Scan:
    """The image files below the folder ``source``, in no order, or the one file ``source``. Iterate it once.

    Hidden files and folders are left out; links to folders are followed, each real folder once.

    Iterating raises:
        DataError: ``source`` does not exist.
        ImageError: a folder cannot be read. What cannot be listed is never taken for empty.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self.roots: list[str] = []
        """What the keys of the files begin with: the folder, then folders elsewhere that links led to."""

    def __iter__(self) -> Iterator[File | Unusable]:
        if not images.is_folder(self.source):
            return self._one()
        return self._all(str(self.source), root_of(self.source))

    def _one(self) -> Iterator[File | Unusable]:
        source = self.source
        try:
            found = source.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise self._missing() from None
        except OSError as error:
            raise ImageError(f"{source} cannot be read: {error.strerror}") from error
        yield _found(root_of(source.parent) + source.name, str(source), "", found)

    def _all(self, top: str, root: str) -> Iterator[File | Unusable]:
        self.roots = [root]
        top = top.rstrip(os.sep) + os.sep
        seen = {root}
        pending = [("", root)]
        while pending:
            below, keyed = pending.pop()
            shown = top + below.replace("/", os.sep)
            folder = below[:-1]
            try:
                with os.scandir(shown[:-1] or os.sep) as entries:
                    for entry in entries:
                        name = entry.name
                        if name.startswith("."):
                            continue
                        if _is_folder(entry):
                            path = self._real(entry, keyed)
                            if path not in seen:
                                seen.add(path)
                                pending.append((f"{below}{name}/", path))
                        elif name[name.rfind(".") :].lower() in images.SUFFIXES:
                            yield _entry(entry, keyed + name, shown + name, folder)
            except FileNotFoundError:
                if not below:
                    raise self._missing() from None
            except OSError as error:
                raise ImageError(
                    f"{error.filename or shown[:-1]} cannot be read: {error.strerror or error}; "
                    "see to its permissions (chmod u+rx) and its disk, or move it elsewhere"
                ) from error

    def _real(self, entry: os.DirEntry[str], keyed: str) -> str:
        if not entry.is_symlink() and os.name != "nt":
            return keyed + entry.name + os.sep
        path = root_of(Path(entry.path))
        if not path.startswith(tuple(self.roots)):
            self.roots.append(path)
        return path

    def _missing(self) -> DataError:
        return DataError(f"{self.source} does not exist; give an image or a folder of images")


def root_of(folder: Path) -> str:
    """What the keys of all files directly below a folder begin with."""
    return os.path.realpath(folder).rstrip(os.sep) + os.sep


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) or error.errno == errno.ELOOP:
            return False
        raise


def _entry(entry: os.DirEntry[str], key: str, uri: str, folder: str) -> File | Unusable:
    try:
        found = entry.stat()
        if not key.isascii():
            key.encode()  # the database holds Unicode
    except UnicodeEncodeError:
        return Unusable(key, uri, f"{uri!r} is no valid Unicode file name; rename it", gone=True)
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        return Unusable(key, uri, f"{uri} cannot be read: {error.strerror}", gone)
    return _found(key, uri, folder, found)


def _found(key: str, uri: str, folder: str, found: os.stat_result) -> File | Unusable:
    if not stat.S_ISREG(found.st_mode):  # a pipe or a device would block
        return Unusable(key, uri, f"{uri} is not a file", gone=True)
    return File(key, uri, folder, found.st_size, found.st_mtime_ns)
