"""Canvases and clean images of a folder, in a memory-mapped cache that fills once.

A row is checked when a process reads it for the first time. It is written before its record, so what a killed process
leaves behind is complete or counts as absent. Processes divide the filling among themselves: each takes a share of the
rows under a lock, and goes on to the next free one. A row that holds pixels is filled with others only when nobody
else uses the set (:mod:`clf.data.cache`); a process that finds its file changed while others do keeps what it needs to
itself. What is not in the cache is decoded whenever it is asked for, to the same pixels.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import threading
import zlib
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clf.data.cache import EMPTY, FILES, KNOWN, RECORD, RECORDS, STORED, UNREADABLE, Place, cache_error, checked, seal
from clf.data.decode import CHUNK, Picture, UnreadableError, Workers, decode
from clf.data.files import Files
from clf.data.listing import ENCODING
from clf.data.reasons import Reasons
from clf.data.shares import Share, claims
from clf.data.source import Progress
from clf.errors import DataError, ImageError

CANVASES, CLEAN = range(2)
_DRAW = (Picture.canvas, Picture.clean)


def name_keys(names: Sequence[str]) -> NDArray[np.bytes_]:
    """(n,) S16, the names of records."""
    sums = (hashlib.blake2b(name.encode(*ENCODING), digest_size=16).digest() for name in names)
    return np.frombuffer(b"".join(sums), "S16")


class Store:
    """The rows of a data set: fill them once, then read them. Reading is safe from several threads.

    Args:
        root: the folder of the files.
        names: of the files, relative to it.
        states: (n, 3) of the files, as the place was taken for them.
        sides: of the canvas and of the clean image.
    """

    def __init__(
        self,
        place: Place,
        root: Path,
        names: Sequence[str],
        states: NDArray[np.int64],
        sides: tuple[int, int],
        workers: Workers,
    ) -> None:
        self._place = place
        self._root = root
        self._names = names
        self._states = states
        self._shapes = tuple((3, side, side) for side in sides)
        self._bytes = tuple(3 * side * side for side in sides)
        self._workers = workers
        self._files = Files(place.folder, (*FILES, RECORDS))
        self._records = place.records
        self._reasons = Reasons(place.folder)
        self._local = threading.local()
        self._maps: list[NDArray[np.uint8] | None] = [None, None]
        self._stored = np.zeros(len(names), bool)
        self._seen = np.zeros((2, len(names)), bool)  # checked in this process

    def __len__(self) -> int:
        return len(self._names)

    @property
    def stored(self) -> NDArray[np.bool_]:
        """(n,) whether a row's canvas is in the cache."""
        return self._stored

    @property
    def withheld(self) -> int:
        """How many files have room in the cache that pixels of an earlier file take, because others use them."""
        return int(((self._records["status"] == KNOWN) & (self._place.rows < self._place.room)).sum())

    def skipped(self) -> dict[int, str]:
        """Files that cannot be used, rising, and why."""
        status = self._records["status"]
        return {
            i: self._reasons[self._names[i]] for i in ((status == EMPTY) | (status == UNREADABLE)).nonzero()[0].tolist()
        }

    def sha256(self, i: int) -> bytes:
        """Of the bytes of a file that can be used."""
        return bytes(self._records["sha256"][i].tobytes())

    def fill(self, progress: Progress | None) -> None:
        """Decodes what is missing or has changed, and waits for what other processes are decoding.

        Raises:
            DataError: the cache cannot be written, for instance because the disk is full, or there is no memory for a
                file.
        """
        n = len(self)
        missing = (~self._current(np.arange(n), self._records)).nonzero()[0]
        done = n - len(missing)
        with contextlib.closing(self._filling(missing)) as counts:
            for count in counts:
                for _ in range(count):
                    done += 1
                    if progress is not None:
                        progress(done, n)
        self._map()

    def read(self, kind: int, index: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Writes canvases or clean images of the files ``index`` into ``out`` (m, 3, side, side).

        A row is checked when this process reads it first, and decoded again and repaired where it is damaged.

        Raises:
            DataError: a file that has to be decoded has vanished or changed.
        """
        rows, mapped = self._place.rows[index], self._maps[kind]
        for j in (self._stored[index] & ~self._seen[kind, index]).nonzero()[0].tolist():
            assert mapped is not None
            i = int(index[j])
            if zlib.crc32(mapped[rows[j]]) != self._records["sums"][i, kind]:
                self._repair(i)
            self._seen[kind, i] = True
        stored = self._stored[index]  # now, for a row that could not be repaired no longer is
        if mapped is not None and stored.all():
            np.take(mapped, rows, axis=0, out=out, mode="clip")  # "raise" would go through a copy
            return
        for j in stored.nonzero()[0].tolist():
            assert mapped is not None
            out[j] = mapped[rows[j]]
        absent = (~stored).nonzero()[0].tolist()

        def draw(chunk: Sequence[int]) -> None:
            for j in chunk:
                _DRAW[kind](self._again(int(index[absent[j]])), out[absent[j]])

        for _ in self._workers.over(draw, len(absent), max(1, min(CHUNK, len(absent) // self._workers.count))):
            pass

    def _path(self, i: int) -> Path:
        return self._root / self._names[i]

    def _current(self, index: NDArray[np.int64], records: NDArray[np.void]) -> NDArray[np.bool_]:
        """(m,) whether records tell of these files as they are now, and their rows hold what they have room for."""
        status = records["status"]
        described = (status == STORED) | ((status == KNOWN) & (self._place.rows[index] >= self._place.room))
        for j in (status == UNREADABLE).nonzero()[0].tolist():
            described[j] = self._names[int(index[j])] in self._reasons
        found: NDArray[np.bool_] = described & (records["state"] == self._states[index]).all(axis=1)
        return found

    def _filling(self, missing: NDArray[np.int64]) -> Generator[int, None, None]:
        """Fills rows in, and tells how many have been done as it goes on."""
        done = len(self) - len(missing)
        with contextlib.closing(claims(self._place.folder, missing, self._place.rows[missing])) as claimed:
            try:
                for count in self._workers.map(self._fill_chunk, claimed):
                    done += count
                    yield count
            except OSError as error:
                raise self._write_error(error, done) from error

    def _fill_chunk(self, job: tuple[Share, NDArray[np.int64]]) -> int:
        """Decodes files of one block of rows, but those that another process has done meanwhile."""
        share, chunk = job
        rows = self._place.rows[chunk]
        start = int(rows[0]) // CHUNK * CHUNK
        block = checked(self._files.read(RECORDS, CHUNK * RECORD.itemsize, start * RECORD.itemsize))[rows - start]
        if (block["status"] == UNREADABLE).any():
            self._reasons.refresh()
        current = self._current(chunk, block)
        for i, record, good in zip(chunk.tolist(), block, current.tolist(), strict=True):
            if good:
                self._records[i] = record
            else:
                self._fill_one(i, record)
        share.finish_one()
        return len(chunk)

    def _fill_one(self, i: int, found: np.void) -> None:
        """Decodes a file whose record ``found`` is not of it as it is now. Pixels that are stored stay as they are."""
        taken = bool(found["status"] == STORED)
        record = self._records[i : i + 1]
        record["state"] = self._states[i]
        try:
            picture = decode(self._path(i))
        except ImageError as error:
            reason = str(error).removeprefix(f"{self._path(i)} ")
            remembered = not taken and not isinstance(error, UnreadableError)
            self._reasons.give(self._names[i], reason, remembered)
            record["status"] = UNREADABLE if remembered else EMPTY
        else:
            record["sha256"] = np.frombuffer(picture.sha256, "V32")
            stored = not taken and self._place.rows[i] < self._place.room
            if stored:
                self._write(i, picture)
            elif taken and found["sha256"] == record["sha256"][0]:  # only the file's properties have changed
                record["sums"], stored, taken = found["sums"], True, False
            record["status"] = STORED if stored else KNOWN
        if not taken:
            self._files.write(RECORDS, seal(record), int(self._place.rows[i]) * RECORD.itemsize)

    def _write(self, i: int, picture: Picture) -> None:
        """Both pixels of a row, and their sums into its record."""
        row = int(self._place.rows[i])
        for kind, file in enumerate(FILES):
            pixels = self._buffer(kind)
            _DRAW[kind](picture, pixels)
            self._files.write(file, pixels.data, row * self._bytes[kind])
            self._records["sums"][i, kind] = zlib.crc32(pixels.data)
            self._seen[kind, i] = True

    def _buffer(self, kind: int) -> NDArray[np.uint8]:
        """This thread's memory for one image; fresh memory each time would cost as much as the copy into it."""
        if not hasattr(self._local, "pixels"):
            self._local.pixels = [np.empty(shape, np.uint8) for shape in self._shapes]
        found: NDArray[np.uint8] = self._local.pixels[kind]
        return found

    def _repair(self, i: int) -> None:
        """Writes a damaged row again. Where it cannot be written, its file is decoded whenever it is drawn."""
        picture = self._again(i)
        try:
            self._write(i, picture)
            self._files.write(RECORDS, seal(self._records[i : i + 1]), int(self._place.rows[i]) * RECORD.itemsize)
        except OSError:
            self._stored[i] = False

    def _again(self, i: int) -> Picture:
        """A file that was decoded before.

        Raises:
            DataError: it has vanished, or is another one.
        """
        try:
            picture = decode(self._path(i))
        except ImageError as error:
            raise DataError(
                f"{error}, but could be read when the run began and is not in the cache: put it back, or start again"
            ) from error
        if picture.sha256 != self.sha256(i):
            raise DataError(
                f"{self._path(i)} has changed since the run began, and is not in the cache: restore it, or train a "
                "new run on the files as they are now"
            )
        return picture

    def _map(self) -> None:
        self._stored = (self._records["status"] == STORED) & (self._place.rows < self._place.room)
        for kind, (file, shape, size) in enumerate(zip(FILES, self._shapes, self._bytes, strict=True)):
            if self._place.room:
                mapped = self._files.map(file, self._place.room * size)
                self._maps[kind] = np.frombuffer(mapped, np.uint8).reshape(self._place.room, *shape)

    def _write_error(self, error: OSError, done: int) -> DataError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DataError(
                f"the disk of the image cache {self._place.folder.parent} is full after {done:,} of {len(self):,} "
                "images, which stay usable: make room, lower data.options.cache_limit_gib, or set "
                "data.options.cache_dir to another disk"
            )
        return cache_error(self._place.folder.parent, error)


class Table:
    """Canvases or clean images of some of a store's files: an :class:`clf.data.source.ImageTable`."""

    def __init__(self, store: Store, kind: int, side: int, index: NDArray[np.int64]) -> None:
        self._store = store
        self._kind = kind
        self._index = index
        self.shape = (len(index), 3, side, side)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        index = self._index[rows] if isinstance(rows, slice) else self._index[rows.numpy()]
        out = torch.empty(len(index), *self.shape[1:], dtype=torch.uint8)
        self._store.read(self._kind, index, out.numpy())
        return out
