"""What is to be embedded: a folder of images, or tar files; on a disk, or behind URLs by fsspec.

A source is listed in one order, by whoever lists it, and without holding the list in memory: a folder image by image,
tars one by one, as to list what is in them would be to read them.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from clf import images
from clf.errors import DataError, ImageError, in_one_line
from clf_serve.bulk.folders import filesystem, is_url, plain_path, told
from clf_serve.bulk.tars import ENDINGS, is_tar
from clf_serve.place import Place

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_GLOB = re.compile(r"[*?\[]")
_MOST_TARS = 1_000_000
_PASSING = (401, 407, 408, 425, 429)  # HTTP statuses that ask for credentials, or for patience


class Listed(NamedTuple):
    """One image of a folder, or one tar, as it was when it was listed."""

    key: str
    """Its path below the folder, with ``/``; of a tar its path below the folder that all tars share."""
    size: int
    """Bytes; -1 where that is not known."""
    mtime_ns: int
    """0 where that is not known."""


class Source(ABC):
    """Images to embed. Travels to other processes."""

    tars: bool = False

    @property
    @abstractmethod
    def shown(self) -> tuple[str, ...]:
        """Its names for people and for the plan, made absolute and without passwords."""

    @abstractmethod
    def listing(self) -> Iterator[Listed]:
        """All of it, in one and the same order. Raises DataError, ImageError."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """The address of a file or tar, without passwords."""

    @abstractmethod
    def check(self) -> None:
        """Raises DataError: it cannot be seen from this machine."""


class RefusedError(ImageError):
    """This image is kept from whoever asks now, and would be if he asked again."""


class Images(Source):
    """Files of which each is an image."""

    @abstractmethod
    def read(self, file: Listed) -> bytes:
        """An image. Raises ImageError: it cannot be used; RefusedError: not by us; DataError: nor can any other."""


def find_source(named: Sequence[str]) -> Source:
    """What one or several names mean: a folder or an image, or tars with braces and globs.

    Raises:
        DataError: there is nothing of that name; names that do not go together.
        MissingExtraError: fsspec, or what it needs for a URL, is not installed.
    """
    names = (name for text in named for name in ([text] if _is_there(text) else expand(text)))
    expanded = [plain_path(name) for name in itertools.islice(names, _MOST_TARS + 1)]
    if not expanded:
        raise DataError(f"{named[0]} names no file; the smaller number comes first: x-{{000..099}}.tar")
    if len(expanded) > _MOST_TARS:
        raise DataError(f"{named[0]} names more than {_MOST_TARS} files; name fewer")
    if len(expanded) == 1 and not is_tar(expanded[0]) and not _is_glob(expanded[0]):
        return _folder(expanded[0])
    found = [place for name in expanded for place in _matching(name)]
    others = [place for place in found if not is_tar(place)]
    if others:
        raise DataError(
            f"{Place.of(others[0])} is no tar file; name one folder of images, or any number of tars "
            f"({', '.join(ENDINGS)})"
        )
    return Tars(found)


def expand(text: str) -> Iterator[str]:
    """``x-{000..002}.tar`` is x-000.tar, x-001.tar and x-002.tar; ``{a,b}.tar`` is a.tar and b.tar."""
    found = _BRACES.search(text)
    if found is None:
        yield text
        return
    first, last, words = found.groups()
    if words is None:
        if int(last) - int(first) >= _MOST_TARS:
            raise DataError(f"{text} names more than {_MOST_TARS} files; name fewer")
        middle: Iterable[str] = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    else:
        middle = words.split(",")
    for word, rest in itertools.product(middle, list(expand(text[found.end() :]))):
        yield f"{text[: found.start()]}{word}{rest}"


@dataclass(frozen=True)
class LocalImages(Images):
    """A folder of images on a disk, or one image."""

    root: str
    only: str = ""
    """The name of the one image."""

    @property
    def shown(self) -> tuple[str, ...]:
        return (self._path(self.only),)

    def listing(self) -> Iterator[Listed]:
        for name in [self.only] if self.only else images.walk(Path(self.root)):
            try:
                found = os.stat(self._path(name))  # noqa: PTH116
                plain = stat.S_ISREG(found.st_mode)
                yield Listed(name, found.st_size if plain else -1, found.st_mtime_ns if plain else 0)
            except OSError:  # gone meanwhile, or a link to nowhere; told when it is read
                yield Listed(name, -1, 0)

    def uri(self, key: str) -> str:
        return self._path(key)

    def read(self, file: Listed) -> bytes:
        path = Path(self._path(file.key))
        data = images.read(path)
        try:
            found = path.stat()
        except OSError:  # removed at this moment
            found = None
        if found is None or (found.st_size, found.st_mtime_ns, len(data)) != (file.size, file.mtime_ns, file.size):
            raise ImageError(f"{path} has changed since it was listed")
        return data

    def check(self) -> None:
        if not os.path.exists(self._path(self.only)):  # noqa: PTH110
            raise DataError(
                f"{self.shown[0]} is not there (any more) on this machine; a cluster needs a folder that all its "
                "machines see, or a URL"
            )

    def _path(self, key: str) -> str:
        return f"{self.root.rstrip('/')}/{key}" if key else self.root


class RemoteImages(Images):
    """A folder of images behind a URL."""

    def __init__(self, url: str) -> None:
        self._place = Place.of(url)
        self._shown = str(self._place).rstrip("/")
        self._fs, path = filesystem(url)
        self._path = path.rstrip("/")

    @property
    def shown(self) -> tuple[str, ...]:
        return (self._shown,)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteImages, (self._place.url,)

    def listing(self) -> Iterator[Listed]:
        with told(self._shown, self._place.hide, "listed"):
            yield from self._walk()

    def _walk(self) -> Iterator[Listed]:
        """As :func:`clf.images.walk`: depth first, by name; one folder's entries in memory at a time."""
        self._fs.invalidate_cache()
        pending = [("", self._entries(self._path))]
        while pending:
            prefix, entries = pending[-1]
            if not entries:
                pending.pop()
                continue
            name, info = entries.pop()
            if info["type"] == "directory":
                pending.append((f"{prefix}{name}/", self._entries(f"{self._path}/{prefix}{name}")))
            else:
                yield Listed(prefix + name, *_version(info))

    def _entries(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        """Of one folder, last name first."""
        found = {}
        for info in self._fs.ls(folder, detail=True):
            name = str(info["name"]).rstrip("/").rpartition("/")[2]
            is_image = os.path.splitext(name)[1].lower() in images.SUFFIXES  # noqa: PTH122
            itself = str(info["name"]).strip("/") == folder.strip("/")  # as object stores list a folder's mark
            if not itself and not name.startswith(".") and (info["type"] == "directory" or is_image):
                found[name] = info
        self._fs.invalidate_cache()
        return sorted(found.items(), reverse=True)

    def uri(self, key: str) -> str:
        return f"{self._shown}/{key}"

    def read(self, file: Listed) -> bytes:
        limit = images.DEFAULT_LIMITS.max_bytes
        uri = self.uri(file.key)
        if file.size > limit:
            size = f"{file.size / 2**20:.1f} MiB"
            raise ImageError(f"{uri} has {size}, more than the limit of {limit / 2**20:g} MiB")
        try:
            data: bytes = self._fs.cat_file(f"{self._path}/{file.key}")
        except FileNotFoundError:
            raise ImageError(f"{uri} does not exist") from None
        except Exception as error:
            if _is_refusal(error):
                raise RefusedError(f"{uri} cannot be read: {self._place.hide(in_one_line(error))}") from error
            with told(uri, self._place.hide, "read"):  # a network that is down says nothing of the image
                raise error
        if file.size not in (-1, len(data)):
            raise ImageError(f"{uri} has changed since it was listed")
        return data

    def check(self) -> None:
        """What cannot be reached raises when it is read."""


class Tars(Source):
    """Tar files, local ones and such behind URLs."""

    tars = True

    def __init__(self, places: Sequence[str]) -> None:
        self._places = tuple(dict.fromkeys(places))
        self._shown = tuple(str(Place.of(place)) for place in self._places)
        self._by_key = dict(zip(_keys(self._shown), self._places, strict=True))

    @property
    def shown(self) -> tuple[str, ...]:
        return self._shown

    def __reduce__(self) -> tuple[Any, ...]:
        return Tars, (self._places,)

    def listing(self) -> Iterator[Listed]:
        for key, place in self._by_key.items():
            if is_url(place):
                fs, path = filesystem(place)
                with told(str(Place.of(place)), Place.of(place).hide, "read"):
                    yield Listed(key, *_version(fs.info(path)))
                continue
            try:
                found = os.stat(place)  # noqa: PTH116
            except OSError as error:
                raise DataError(f"{place} cannot be read: {error.strerror}") from error
            yield Listed(key, found.st_size, found.st_mtime_ns)

    def uri(self, key: str) -> str:
        return str(Place.of(self._by_key[key]))

    def open(self, tar: Listed) -> IO[bytes]:
        """A tar, to be read once from beginning to end. Raises FileNotFoundError, DataError."""
        place = self._by_key[tar.key]
        shown = str(Place.of(place))
        with told(shown, Place.of(place).hide, "read"):
            if not is_url(place):
                file: IO[bytes] = Path(place).open("rb")  # noqa: SIM115
                size = os.fstat(file.fileno()).st_size
            else:
                fs, path = filesystem(place)
                size = _version(fs.info(path))[0]
                streamed = {"block_size": 0} if place.startswith(("http://", "https://")) else {}
                file = fs.open(path, "rb", **streamed)
            if tar.size not in (-1, size):
                file.close()
                raise DataError(f"{shown} has changed since it was listed; name another folder with -o, or --restart")
            return file

    def check(self) -> None:
        """What is not there raises when it is opened."""


def _folder(name: str) -> Source:
    if is_url(name):
        return RemoteImages(name)
    path = Path(name)
    if images.is_folder(path):
        return LocalImages(name)
    if path.is_file():
        return LocalImages(str(path.parent), path.name)
    raise DataError(f"{name} does not exist; give an image, a folder of images, tar files or a URL")


def _matching(name: str) -> list[str]:
    """The files that a glob names, sorted; a plain name as it is. Raises DataError: none."""
    if not _is_glob(name):
        return [name]
    if not is_url(name):
        found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
    else:
        fs, path = filesystem(name)
        with told(str(Place.of(name)), Place.of(name).hide, "listed"):
            found = [str(fs.unstrip_protocol(each)) for each in sorted(fs.glob(path))]
    if not found:
        raise DataError(f"{Place.of(name)} matches no file; put it in quotes and check its name")
    return found


def _is_glob(name: str) -> bool:
    """Whether it has a sign of a pattern; that of a file which is there, or the ``?`` of a web address, is none."""
    if name.lower().startswith(("http://", "https://")):
        return bool(re.search(r"[*\[]", re.split(r"[?#]", name)[0]))
    return bool(_GLOB.search(name)) and not _is_there(name)


def _is_there(name: str) -> bool:
    return not is_url(name) and os.path.exists(name)  # noqa: PTH110


def _keys(shown: Sequence[str]) -> list[str]:
    """Names of tars below the folder that all of them share."""
    bare = [re.split(r"[?#]", name)[0] if is_url(name) else name for name in shown]
    folders = [name.replace("\\", "/").split("/")[:-1] for name in bare]
    shared = 0
    while folders and all(folder[shared : shared + 1] == folders[0][shared : shared + 1] != [] for folder in folders):
        shared += 1
    keys = ["/".join(name.replace("\\", "/").split("/")[shared:]) for name in bare]
    return keys if len(set(keys)) == len(keys) else list(shown)


def _version(info: dict[str, Any]) -> tuple[int, int]:
    """Size and time of modification, as far as a file system tells."""
    size = -1 if info.get("size") is None else int(info["size"])
    for name in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        moment = info.get(name)
        if isinstance(moment, str):
            with suppress(ValueError):
                moment = datetime.fromisoformat(moment)
        if isinstance(moment, datetime):
            moment = moment.timestamp()
        if isinstance(moment, (int, float)):
            return size, int(moment * 1e6) * 1000
    return size, 0


def _is_refusal(error: Exception) -> bool:
    """Whether asking again for this file would not help. The libraries' exceptions share no base class."""
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    lasts = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING
    return lasts or isinstance(error, PermissionError)


def any_tars(source: Source) -> bool:
    """Whether a folder without images holds tars, so that the user can be told to name those."""
    if not isinstance(source, LocalImages) or source.only:
        return False
    with closing(os.scandir(source.root)) as entries:
        return any(is_tar(entry.name) for entry in entries)
