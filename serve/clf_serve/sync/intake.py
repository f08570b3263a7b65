"""Files on their way into a gallery: read once, hashed, decoded and embedded unless their bytes are known."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clf import images
from clf.errors import ImageError
from clf_serve.files import Chunk, Skipped
from clf_serve.gallery import Entry, Item
from clf_serve.stores import AnyGallery
from clf_serve.sync.exif import NAMES, photo_facts
from clf_serve.sync.scanning import File
from clf_serve.sync.thumbnails import thumbnail

if TYPE_CHECKING:
    from clf_serve.backends.base import Pixels, Vectors
    from clf_serve.sync.sidecar import Sidecar
    from clf_serve.sync.syncing import IndexReport, Settings


class Loaded(NamedTuple):
    """A file that was read. The digest is that of the bytes that were decoded, whatever lies there now."""

    file: File
    sha256: str
    facts: dict[str, Any]
    """From its EXIF."""
    width: int = 0
    height: int = 0
    thumbnail: bytes = b""


class _KnownBytesError(ImageError):
    """Nothing is to be embedded: another image has these bytes."""


class Intake:
    """The new and changed files of one run.

    Args:
        files: to be embedded.
        ids: of the entries they replace, by key.
        sources: of entries whose vectors may be taken, ids by the SHA-256 of their files.
    """

    def __init__(
        self,
        image_size: int,
        files: Iterable[File],
        ids: dict[str, int],
        sources: dict[str, int],
        settings: Settings,
        sidecar: Sidecar | None,
        report: IndexReport,
    ) -> None:
        self._size, self._settings, self._sidecar, self._report = image_size, settings, sidecar, report
        self._files = {Path(file.uri): file for file in files}
        self._ids, self._sources = ids, sources
        self._lock = threading.Lock()
        self._first: dict[str, Path] = {}  # by digest: the file that is decoded; the others with its bytes wait for it
        self._copies: dict[Path, Loaded] = {}
        self._waiting: list[Loaded] = []
        self._reasons: dict[Path, str] = {}
        self._unread: set[Path] = set()
        self.broken: dict[str, tuple[File, str]] = {}
        """Files that no decoder can read, by key, with the reason."""

    @property
    def paths(self) -> list[Path]:
        return list(self._files)

    def load(self, path: Path) -> tuple[Pixels, Loaded]:
        """Reads and decodes one file, in any thread. Raises ImageError, also where nothing is to be embedded."""
        file = self._files[path]
        try:
            data = images.read(path)
        except ImageError as error:
            if isinstance(error.__cause__, OSError):
                self._unread.add(path)
            raise
        digest = hashlib.sha256(data).hexdigest()
        facts = photo_facts(data, places=self._settings.places) if self._settings.exif else {}
        with self._lock:
            first = self._first.setdefault(digest, path)
        if digest in self._sources or first != path:
            self._copies[path] = Loaded(file, digest, facts)
            raise _KnownBytesError(f"{path} has the bytes of another image")
        try:
            picture = images.decode(data, name=str(path))
        except ImageError as error:
            if isinstance(error.__cause__, MemoryError):
                self._unread.add(path)
            else:
                self.broken[file.key] = (file, str(error))
            raise
        pixels = images.resize(picture, self._size)
        return pixels, Loaded(file, digest, facts, picture.width, picture.height, thumbnail(picture))

    def commit(self, chunk: Chunk[Loaded], gallery: AnyGallery) -> None:
        """Writes what came out of :meth:`load`, and then the copies of what is written."""
        skipped = []
        for path, reason in chunk.skipped:
            if path in self._copies:
                self._waiting.append(self._copies.pop(path))
            else:
                skipped.append(Skipped(path, reason))
                self._reasons[path] = reason
        self._write(gallery, [(loaded, vector) for loaded, vector in zip(chunk.items, chunk.vectors, strict=True)])
        skipped += self._write_copies(gallery)
        stale = [self._files[path] for path, _ in skipped if path not in self._unread]
        ids = [item.id for item in self._present(gallery, stale).values()]
        if ids:  # the vectors would be of pictures that are no longer there
            self._report.removed += gallery.delete(ids)
        self._report.skipped += skipped

    def _write(self, gallery: AnyGallery, read: list[tuple[Loaded, Vectors]]) -> None:
        if not read:
            return
        present = self._present(gallery, [loaded.file for loaded, _ in read])
        ids = gallery.upsert([self._entry(loaded, vector, present.get(loaded.file.key)) for loaded, vector in read])
        self._sources.update((loaded.sha256, id_) for (loaded, _), id_ in zip(read, ids, strict=True))
        updated = sum(loaded.file.key in present for loaded, _ in read)
        self._report.updated += updated
        self._report.added += len(read) - updated

    def _write_copies(self, gallery: AnyGallery) -> list[Skipped]:
        """Those whose first is written; the ones whose first has failed come back with its reason."""
        skipped, waiting, found = [], [], []
        for loaded in self._waiting:
            first = self._first[loaded.sha256]
            if loaded.sha256 in self._sources:
                found.append(loaded)
            elif first in self._reasons:
                path = Path(loaded.file.uri)
                reason = self._reasons[first].replace(str(first), str(path))
                skipped.append(Skipped(path, reason))
                self._reasons[path] = reason
                if self._files[first].key in self.broken:
                    self.broken[loaded.file.key] = (loaded.file, reason)
            else:
                waiting.append(loaded)
        self._waiting = waiting
        copies = list(self._with_vectors(gallery, found))
        self._report.resting += len(found) - len(copies)  # another process has changed what they are copies of
        self._report.copied += len(copies)
        self._write(gallery, copies)
        return skipped

    def _with_vectors(self, gallery: AnyGallery, copies: list[Loaded]) -> Iterator[tuple[Loaded, Vectors]]:
        items = {item.sha256: item for item in gallery.items(list({self._sources[c.sha256] for c in copies}))}
        vectors = dict(zip(items, gallery.vectors([item.id for item in items.values()]), strict=True)) if items else {}
        for copy in copies:
            item = items.get(copy.sha256)
            if item is not None:
                small = gallery.thumbnail(item.id)
                yield (
                    copy._replace(width=item.width, height=item.height, thumbnail=small.data if small else b""),
                    vectors[copy.sha256],
                )

    def _present(self, gallery: AnyGallery, files: list[File]) -> dict[str, Item]:
        """The entries that these files replace, by key."""
        ids = {self._ids[file.key]: file.key for file in files if file.key in self._ids}
        return {item.key: item for item in gallery.items(list(ids)) if ids[item.id] == item.key} if ids else {}

    def _entry(self, loaded: Loaded, vector: Vectors, old: Item | None) -> Entry:
        file = loaded.file
        metadata = dict(old.metadata) if old is not None else {}
        if self._settings.exif:  # of the picture that was there
            metadata = {name: value for name, value in metadata.items() if name not in NAMES}
        metadata |= loaded.facts
        return Entry(
            key=file.key,
            uri=file.uri,
            vector=vector,
            thumbnail=loaded.thumbnail,
            size=file.size,
            mtime_ns=file.mtime_ns,
            sha256=loaded.sha256,
            width=loaded.width,
            height=loaded.height,
            metadata=self._sidecar.described(file.name, metadata) if self._sidecar is not None else metadata,
            folder=file.folder,
        )
