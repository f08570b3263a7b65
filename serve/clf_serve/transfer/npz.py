"""Files of numpy with a gallery's images: a zip of .npy members, written and read in parts. No pickle."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clf.errors import DataError
from clf_serve.gallery import Entry
from clf_serve.transfer.plan import COLUMNS, About, Parts, Progress, about, damaged, not_ours, read_about
from clf_serve.transfer.snapshot import ROWS, Snapshot, Survey, metadata_text

Array = NDArray[Any]
_TEXTS = ("key", "uri", "folder", "sha256")
_NUMBERS = tuple(name for name in COLUMNS if name not in _TEXTS)
_NAMES = {name: f"{name}s" for name in COLUMNS if name != "mtime_ns"} | {"mtime_ns": "mtimes_ns"}
_LARGE = 1 << 34  # bytes of one array of texts


def write_npz(path: Path, images: Snapshot, parts: Parts, progress: Progress) -> None:
    """Arrays ``ids`` (n,), ``keys`` (n,) and the other facts, and ``vectors`` (n, D).

    ``metadata`` is uint8, a line of JSON for each image; ``thumbnails`` is uint8, all JPEGs one after another, the i-th
    from ``thumbnail_offsets[i]`` to ``[i + 1]``. ``model`` is NAME@SHA256.

    Raises:
        DataError: a text is so long that arrays of fixed width would be huge.
    """
    survey = images.survey()
    model = f"{images.model.name}@{images.model.sha256}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _member(archive, "about", np.array(about(images.model, survey.images, parts)))
        _member(archive, "model", np.array(model))
        _write_facts(archive, images, survey, path)
        lines = ("".join(f"{metadata_text(item)}\n" for item in items).encode() for items in images.items())
        _stream(archive, "metadata", (survey.metadata_bytes + survey.images,), np.uint8, lines)
        if parts.thumbnails:
            _write_thumbnails(archive, images)
        if parts.vectors:
            shape = (survey.images, images.model.dim)
            _stream(archive, "vectors", shape, np.float32, _vectors(images, progress))
        else:
            progress(survey.images)


def _write_facts(archive: zipfile.ZipFile, images: Snapshot, survey: Survey, path: Path) -> None:
    """Numbers at once, 40 bytes an image; texts one column after another, in parts."""
    parts = [np.array(rows, "<i8").reshape(-1, len(_NUMBERS)) for rows in images.columns(*_NUMBERS)]
    numbers = np.concatenate([np.empty((0, len(_NUMBERS)), "<i8"), *parts])
    for column, name in enumerate(_NUMBERS):
        _member(archive, _NAMES[name], np.ascontiguousarray(numbers[:, column]))
    for name in _TEXTS:
        kind = np.dtype(f"<U{max(1, survey.longest[name])}")
        if kind.itemsize * survey.images > _LARGE:
            raise DataError(f"{path}: a {name} of {survey.longest[name]} characters makes it too large; use .parquet")
        texts = (np.array(rows, kind).tobytes() for rows in images.columns(name))
        _stream(archive, _NAMES[name], (survey.images,), kind, texts, compressed=True)


def _write_thumbnails(archive: zipfile.ZipFile, images: Snapshot) -> None:
    sizes = [len(one) for batch in images.batches(vectors=False, thumbnails=True) for one in batch.thumbnails]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype("<i8")
    _member(archive, "thumbnail_offsets", offsets)
    jpegs = (b"".join(batch.thumbnails) for batch in images.batches(vectors=False, thumbnails=True))
    _stream(archive, "thumbnails", (int(offsets[-1]),), np.uint8, jpegs)


def _vectors(images: Snapshot, progress: Progress) -> Iterator[bytes]:
    for batch in images.batches():
        yield batch.vectors.tobytes()
        progress(len(batch.items))


def _stream(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    kind: Any,
    parts: Iterable[bytes],
    *,
    compressed: bool = False,
) -> None:
    """A member .npy of this shape whose bytes come in parts."""
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part)


def _member(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    _stream(archive, name, array.shape, array.dtype, [array.tobytes()])


class NpzReader:
    """What :func:`write_npz` wrote. Raises DataError: it is damaged or was not written here."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        try:
            self._archive = self._stack.enter_context(zipfile.ZipFile(path))
            if "about.npy" not in self._archive.namelist():
                raise not_ours(path)
            self.about: About = read_about(str(self._open("about", ()).read(())), path)
        except _DAMAGE as error:
            self.close()
            raise damaged(path, error) from error
        except BaseException:
            self.close()
            raise

    def entries(self) -> Iterator[tuple[list[int], list[Entry]]]:
        """Ids and entries, in parts. Raises DataError."""
        try:
            yield from self._entries()
        except _DAMAGE as error:
            raise damaged(self._path, error) from error

    def close(self) -> None:
        self._stack.close()

    def _entries(self) -> Iterator[tuple[list[int], list[Entry]]]:
        n, dim, pictured = self.about.images, self.about.model.dim, self.about.parts.thumbnails
        facts = {name: self._open(member, (n,)) for name, member in _NAMES.items()}
        vectors, metadata = self._open("vectors", (n, dim)), self._open("metadata", None)
        thumbnails = self._open("thumbnails", None) if pictured else None
        sizes = np.diff(self._open("thumbnail_offsets", (n + 1,)).read((n + 1,))).tolist() if pictured else [0] * n
        for start in range(0, n, ROWS):
            count = min(ROWS, n - start)
            columns = {name: member.read((count,)).tolist() for name, member in facts.items()}
            rows = vectors.read((count, dim))
            entries = [
                Entry(
                    vector=rows[i],
                    metadata=json.loads(metadata.file.readline()),
                    thumbnail=thumbnails.read((sizes[start + i],)).tobytes() if thumbnails else b"",
                    **{name: values[i] for name, values in columns.items() if name != "id"},
                )
                for i in range(count)
            ]
            yield columns["id"], entries

    def _open(self, name: str, shape: tuple[int, ...] | None) -> _Member:
        file: IO[bytes] = self._stack.enter_context(self._archive.open(f"{name}.npy"))
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is of another version")
        found, _, kind = np.lib.format.read_array_header_1_0(file)
        if kind.hasobject or (shape is not None and found != shape):
            raise ValueError(f"{name} has the shape {found} and the type {kind}")
        return _Member(name, file, kind)


class _Member(NamedTuple):
    """An array of the archive, read from its beginning on."""

    name: str
    file: IO[bytes]
    kind: np.dtype[Any]

    def read(self, shape: tuple[int, ...]) -> Array:
        """Its next part. Raises ValueError where it ends before."""
        wanted = math.prod(shape) * self.kind.itemsize
        data = self.file.read(wanted) if wanted > 0 else b""
        if len(data) != wanted:
            raise ValueError(f"{self.name} ends early")
        return np.frombuffer(data, self.kind).reshape(shape)


# zipfile raises NotImplementedError for a compression, or a version of the format, that it does not know
_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError, NotImplementedError)
