"""Brings a gallery in line with a folder of images: new and changed files are embedded, gone ones removed.

Work is committed batch by batch, so a process that is killed loses one batch, and the next run goes on from there.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from clf import images
from clf.errors import DataError, ImageError
from clf.manifest import sha256_file
from clf_serve.engine import Engine, Pixels, Skipped, Vectors
from clf_serve.gallery import Gallery, Known
from clf_serve.gallery.store import Entry

THUMBNAIL = 256
"""Longest side of a thumbnail in pixels."""


@dataclass
class IndexReport:
    """What a run did, in numbers of files."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.added} added", f"{self.updated} updated", f"{self.unchanged} unchanged"]
        return ", ".join([*parts, f"{self.removed} removed", f"{len(self.skipped)} skipped"])


@dataclass(frozen=True)
class _File:
    """A file as it was when the folder was listed; a later change shows at the next run."""

    path: Path
    key: str
    size: int
    mtime_ns: int


def list_images(path: Path) -> list[Path]:
    """One image file, or all images below a folder.

    Raises:
        DataError: nothing is there, or no image.
        ImageError: the folder, or one below it, cannot be read.
    """
    if not images.is_folder(path):
        if path.is_file():
            return [path]
        raise DataError(f"{path} does not exist; give an image or a folder of images")
    found = images.find_images(path)
    if not found:
        raise DataError(f"{path} holds no images ({', '.join(sorted(images.SUFFIXES))})")
    return found


def index_images(
    gallery: Gallery,
    engine: Engine,
    source: Path,
    *,
    batch_size: int = 32,
    begin: Callable[[int], None] = lambda total: None,
    progress: Callable[[int], None] = lambda done: None,
) -> IndexReport:
    """Brings ``gallery`` in line with the file or folder ``source``.

    A file counts as unchanged when its size and time of modification are. Entries of other folders stay.

    Args:
        gallery: opened for writing.
        begin: called once with the number of files to embed.
        progress: called with the number of files done since the last call.

    Raises:
        DataError: ``source`` does not exist or holds no images.
        ImageError: a folder cannot be read; nothing is changed.
        GalleryError: the gallery cannot be written.
    """
    report = IndexReport()
    unread: set[str] = set()
    files = {file.path: file for file in _stat(list_images(source), report, unread)}
    known = gallery.listing()
    changed = [file.path for file in files.values() if not _same(file, known.get(file.key))]
    report.unchanged = len(files) - len(changed)
    gone = _gone(source, {file.key for file in files.values()} | unread, known)
    if gone:
        report.removed = gallery.delete(gone)
    begin(len(changed))
    for chunk in engine.stream(changed, lambda path: _load(engine, files[path]), batch_size):
        gallery.upsert([loaded.entry(vector) for loaded, vector in zip(chunk.items, chunk.vectors, strict=True)])
        updated = sum(loaded.file.key in known for loaded in chunk.items)
        report.updated += updated
        report.added += len(chunk.items) - updated
        stale = [known[files[path].key].id for path, _ in chunk.skipped if files[path].key in known]
        if stale:  # the vector would be of a picture that is no longer there
            report.removed += gallery.delete(stale)
        report.skipped += chunk.skipped
        progress(len(chunk.items) + len(chunk.skipped))
    gallery.save_index()
    return report


class _Loaded(NamedTuple):
    file: _File
    sha256: str
    width: int
    height: int
    thumbnail: bytes

    def entry(self, vector: Vectors) -> Entry:
        return Entry(
            key=self.file.key,
            uri=str(self.file.path),
            vector=vector,
            thumbnail=self.thumbnail,
            size=self.file.size,
            mtime_ns=self.file.mtime_ns,
            sha256=self.sha256,
            width=self.width,
            height=self.height,
        )


def _stat(paths: list[Path], report: IndexReport, unread: set[str]) -> Iterator[_File]:
    """The files as they are now; the keys of those that are there and may not be looked at go to ``unread``."""
    for path in paths:
        key = str(path.parent.resolve() / path.name)
        try:
            key.encode()  # the database holds Unicode
            stat = path.stat()
        except UnicodeEncodeError:
            report.skipped.append(Skipped(path, f"{str(path)!r} is no valid Unicode file name; rename it"))
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                unread.add(key)
            report.skipped.append(Skipped(path, f"{path} cannot be read: {error.strerror}"))
        else:
            yield _File(path, key, stat.st_size, stat.st_mtime_ns)


def _same(file: _File, known: Known | None) -> bool:
    return known is not None and (file.size, file.mtime_ns) == (known.size, known.mtime_ns)


def _gone(source: Path, present: set[str], known: dict[str, Known]) -> list[int]:
    """Entries from below the folder ``source`` whose files are no longer there."""
    if not source.is_dir():
        return []
    below = str(source.resolve()).rstrip(os.sep) + os.sep
    return [entry.id for key, entry in known.items() if key.startswith(below) and key not in present]


def _load(engine: Engine, file: _File) -> tuple[Pixels, _Loaded]:
    picture = images.decode(file.path)
    pixels = images.resize(picture, engine.image_size)
    try:
        digest = sha256_file(file.path)
    except OSError as error:
        raise ImageError(f"{file.path} cannot be read: {error.strerror}") from error
    return pixels, _Loaded(file, digest, picture.width, picture.height, thumbnail(picture))


def thumbnail(picture: Image.Image) -> bytes:
    """A small JPEG of a decoded picture, which is shrunk in place."""
    picture.thumbnail((THUMBNAIL, THUMBNAIL))  # never enlarges
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
