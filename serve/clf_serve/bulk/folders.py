"""Folders that output is written to and listings are read from: on a disk, or behind a URL by fsspec."""

from __future__ import annotations

import io
import os
import re
import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from clf.errors import DataError, MissingExtraError, in_one_line, missing_extra
from clf_serve.place import Place
from clf_serve.processes import runs
from clf_serve.transfer.whole import sync

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*://")
_ENDING = ".partial"


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def plain_path(text: str) -> str:
    """A path, or the path of a ``file://`` URL, made absolute; links stay. Other URLs as they are."""
    if text.lower().startswith("file://"):
        text = unquote(text[7:])
    elif is_url(text):
        return text
    return os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises:
        MissingExtraError: fsspec, or the package that it needs for this scheme, is not installed.
        DataError: fsspec knows no such scheme.
    """
    shown = str(Place.of(url))
    try:
        import fsspec
    except ModuleNotFoundError:
        raise missing_extra("fsspec", "remote", shown) from None
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = (error.name or getattr(error.__cause__, "name", None) or "").partition(".")[0]
        hint = f"pip install {package}" if package else in_one_line(error)
        raise MissingExtraError(f"{shown} needs a package that is not installed: {hint}") from error
    except ValueError as error:
        raise DataError(f"{shown} cannot be used: {Place.of(url).hide(in_one_line(error))}") from error
    return found


@contextmanager
def told(shown: str, hide: Callable[[str], str], doing: str) -> Iterator[None]:
    """Turns whatever a file system raises into one sentence. Raises DataError."""
    try:
        yield
    except (DataError, MissingExtraError):
        raise
    except Exception as error:  # the libraries' exceptions share no base class
        reason = getattr(error, "strerror", None) or in_one_line(error) or type(error).__name__
        if isinstance(error, FileNotFoundError):  # whose text is the address, and which may stand for a dead network
            reason = in_one_line(error.__cause__) if error.__cause__ else "it is not there"
        raise DataError(f"{shown} cannot be {doing}: {hide(str(reason))}") from error


class Folder(ABC):
    """A flat folder of output. Files in it are there whole or not at all."""

    shown: str
    """Its name for people, without passwords."""

    @abstractmethod
    def make(self) -> None:
        """Makes it where it is not there yet, and removes what killed processes have left half written."""

    @abstractmethod
    def names(self) -> set[str]:
        """Of its files, those of nobody's half-written ones left out; empty where it does not exist."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Raises DataError: nobody can say."""

    @abstractmethod
    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Raises FileNotFoundError, DataError."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """To be read from any position. Raises FileNotFoundError, DataError."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes. Raises FileNotFoundError, DataError."""

    @abstractmethod
    def write(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        """Puts a file there in one step; an earlier one is replaced. Raises DataError."""

    def put(self, name: str, data: bytes) -> None:
        """The same for what is in memory."""

        def write(file: IO[bytes]) -> None:
            file.write(data)

        self.write(name, write)

    @abstractmethod
    def remove(self, name: str) -> None: ...

    @staticmethod
    def of(place: str) -> Folder:
        """Raises MissingExtraError, DataError: a URL that cannot be used."""
        path = plain_path(place)
        return RemoteFolder(path) if is_url(path) else LocalFolder(path)


class LocalFolder(Folder):
    """On a disk of this machine, or one that it shares with others."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.shown = path

    def make(self) -> None:
        with told(self.shown, str, "made"):
            self.path.mkdir(parents=True, exist_ok=True)
            here = _here()
            for entry in self.path.iterdir():
                if entry.name.endswith(_ENDING) and entry.name.startswith("."):
                    host, pid = entry.name.split("~")[-3:-1] if entry.name.count("~") >= 3 else ("", "")
                    if host == here and pid.isdecimal() and not runs(int(pid)):
                        entry.unlink(missing_ok=True)

    def names(self) -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self.path) if not entry.name.endswith(_ENDING)}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise DataError(f"{self.shown} cannot be read: {error.strerror}; name another folder with -o") from error

    def has(self, name: str) -> bool:
        with self._read(name):
            return (self.path / name).exists()

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        with self._read(name), (self.path / name).open("rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start)

    def open(self, name: str) -> IO[bytes]:
        with self._read(name):
            return (self.path / name).open("rb")

    def size(self, name: str) -> int:
        with self._read(name):
            return (self.path / name).stat().st_size

    def write(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        draft = self.path / f".{name}~{_here()}~{os.getpid()}~{secrets.token_hex(4)}{_ENDING}"
        try:
            with draft.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path / name)
            sync(self.path)
        except OSError as error:
            reason = error.strerror or in_one_line(error)
            raise DataError(f"{self.path / name} cannot be written: {reason}; make room, or see to the disk") from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        with told(f"{self.path / name}", str, "removed"):
            (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def _read(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = error.strerror or in_one_line(error)
            raise DataError(f"{self.path / name} cannot be read: {reason}; remove it, or see to its rights") from error


class RemoteFolder(Folder):
    """Behind a URL. Each file is one put, which object stores take whole or not at all."""

    def __init__(self, url: str) -> None:
        self._place = Place.of(url)
        self.shown = str(self._place).rstrip("/")
        if self._place.scheme in ("http", "https"):
            raise DataError(f"{self.shown} cannot be written to; name a folder, or the URL of an object store, with -o")
        self._fs, self._path = filesystem(url)
        self._path = self._path.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFolder, (self._place.url,)

    def make(self) -> None:
        """An object store has no folders; where there are such, the first write makes it."""

    def names(self) -> set[str]:
        with self._told("read"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._path, detail=False)
            except FileNotFoundError:
                return set()
            return {name.rstrip("/").rpartition("/")[2] for name in found} - {""}

    def has(self, name: str) -> bool:
        with self._told("read"):
            self._fs.invalidate_cache()
            return bool(self._fs.exists(f"{self._path}/{name}"))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        with self._told("read"):
            data: bytes = self._fs.cat_file(f"{self._path}/{name}", start=start, end=end)
            return data

    def open(self, name: str) -> IO[bytes]:
        with self._told("read"):
            file: IO[bytes] = self._fs.open(f"{self._path}/{name}", "rb")
            return file

    def size(self, name: str) -> int:
        with self._told("read"):
            return int(self._fs.size(f"{self._path}/{name}"))

    def write(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        buffer = io.BytesIO()
        write(buffer)
        path, data = f"{self._path}/{name}", buffer.getvalue()
        with told(f"{self.shown}/{name}", self._place.hide, "written"), self._told("written"):
            try:
                self._fs.pipe_file(path, data)
            except FileNotFoundError:
                self._fs.makedirs(self._path, exist_ok=True)
                self._fs.pipe_file(path, data)

    def remove(self, name: str) -> None:
        with self._told("removed"), suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._path}/{name}")

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except NotImplementedError:
            scheme = self._place.scheme
            raise DataError(f"{self.shown} cannot be {doing}: {scheme}:// is not for that; name a folder") from None
        except Exception as error:
            with told(self.shown, self._place.hide, doing):
                raise error


def _here() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:60] or "host"
