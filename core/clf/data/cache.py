"""The folder that canvases are cached in: one subfolder a data set, together within a bound, the oldest thrown out.

A set's canvases lie in rows of two files whose length is what the set may use; they fill up bit by bit and take room on
the disk as they do. A record of each row says which file it holds, in which state, with which checksums. Whatever
changes who has how much room happens under one lock; a set in use is never touched. Stored pixels are replaced only
while one process alone uses the set, as far as locks can tell (not on Windows): what another process has mapped must
not change under it.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clf.data.locks import FileLock, NoLocksError, try_lock, wait_lock
from clf.errors import DataError

RECORD = np.dtype(
    [
        ("name", "S16"),  # BLAKE2 of the file's relative path
        ("state", "<i8", (3,)),  # of the file, as clf.data.decode.file_states tells it
        ("sha256", "V32"),  # of the file's bytes
        ("sums", "<u4", (2,)),  # CRC32 of the canvas and of the clean image
        ("status", "<u4"),
        ("check", "<u4"),  # CRC32 of all before it
    ]
)
EMPTY, STORED, KNOWN, UNREADABLE = range(4)
"""Status of a row: nothing yet; canvas and clean image stored; only described, there being no room; no image."""
FILES = ("canvases.u8", "clean.u8")
RECORDS = "rows"
RESERVE = 2 * 2**30
"""Bytes of the disk that are left free."""


@dataclass(frozen=True)
class Place:
    """A data set's part of the cache, in use by this process."""

    folder: Path
    rows: NDArray[np.int64]
    """(n,) row of each of the set's files."""
    records: NDArray[np.void]
    """(n,) their records as they are now."""
    room: int
    """Rows below this one have their canvases stored."""
    short_of_disk: bool
    """Whether free space, rather than the limit, bounds the room."""
    lock: FileLock
    """Held while the set is in use."""


def take_place(
    cache: Path,
    key: str,
    names: NDArray[np.bytes_],
    states: NDArray[np.int64],
    row_bytes: Sequence[int],
    limit: int,
) -> Place:
    """Finds or makes the rows of a set's files, and room for as many as the bounds allow.

    Args:
        names: (n,) S16, one for each file.
        states: (n, 3) of the files as they are now.
        row_bytes: bytes of a row in each of the two files.
        limit: bytes of all sets together.

    Raises:
        OSError: the folder cannot be written or locked.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with_lock = wait_lock(cache / "lock")
    try:
        folder = cache / key
        folder.mkdir(exist_ok=True)
        alone = try_lock(folder / "use.lock")
        if alone is not None:
            alone.release()
        lock = wait_lock(folder / "use.lock", shared=True)  # at once: others ask under the lock that is held here
        os.utime(folder)
        old = read_records(folder)
        found = _find(names, old)
        wanted = len(old) + int((found < 0).sum())
        room, short = _room(cache, folder, wanted, row_bytes, limit, alone is not None)
        rows, records = _assign(names, old, found, room if alone is not None else None)
        if alone is not None:
            _let_go(records, rows, states, room)
        _write_new(folder, old, records)
        for file, size in zip(FILES, row_bytes, strict=True):
            with (folder / file).open("ab") as handle:
                handle.truncate(room * size)
        return Place(folder, rows, records[rows], room, short, lock)
    finally:
        with_lock.release()


def cache_error(cache: Path, error: OSError) -> DataError:
    """The cache cannot be used at all."""
    if isinstance(error, NoLocksError):
        return DataError(
            f"the image cache {cache} cannot be shared, because its file system has no file locks ({error.strerror}); "
            "set data.options.cache_dir to a folder on a local disk"
        )
    return DataError(
        f"the image cache {cache} cannot be written ({error.strerror}); "
        "set data.options.cache_dir to a folder that can be written and has room"
    )


def read_records(folder: Path) -> NDArray[np.void]:
    """All records of a set; a damaged one is empty."""
    path = folder / RECORDS
    if not path.exists():
        return np.zeros(0, RECORD)
    with path.open("rb") as file:
        return checked(file.read())


def checked(data: bytes) -> NDArray[np.void]:
    """Records from their bytes; those whose checksum is wrong are empty."""
    records = np.frombuffer(data, RECORD, len(data) // RECORD.itemsize).copy()
    records[_sums(records) != records["check"]] = np.zeros((), RECORD)
    return records


def seal(records: NDArray[np.void]) -> bytes:
    """The bytes of records with their checksums, which are set in the records too."""
    records["check"] = _sums(records)
    return records.tobytes()


def _sums(records: NDArray[np.void]) -> NDArray[np.uint32]:
    data, width = memoryview(records.tobytes()), RECORD.itemsize
    return np.fromiter((zlib.crc32(data[i : i + width - 4]) for i in range(0, len(data), width)), np.uint32)


def _find(names: NDArray[np.bytes_], old: NDArray[np.void]) -> NDArray[np.int64]:
    """(n,) the row of each name, -1 where it has none."""
    if not len(old):
        return np.full(len(names), -1)
    order = np.argsort(old["name"], kind="stable")
    place = np.minimum(np.searchsorted(old["name"], names, sorter=order), len(old) - 1)
    rows = order[place]
    return np.where(old["name"][rows] == names, rows, -1)


def _assign(
    names: NDArray[np.bytes_], old: NDArray[np.void], found: NDArray[np.int64], room: int | None
) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """Rows for all names, and all records.

    New names come behind the old ones. Where that exceeds the ``room`` (None: others use the set), rows of files that
    this set does not have take them first.
    """
    new = (found < 0).nonzero()[0]
    free = np.arange(len(old), len(old) + len(new))
    if room is not None and len(old) + len(new) > room:
        strangers = np.setdiff1d(np.arange(min(len(old), room)), found)
        free = np.concatenate([strangers, free])[: len(new)]
    rows = found.copy()
    rows[new] = free
    records = np.zeros(max(len(old), int(rows.max(initial=-1)) + 1), RECORD)
    records[: len(old)] = old
    fresh = np.zeros(len(new), RECORD)
    fresh["name"] = names[new]
    seal(fresh)
    records[free] = fresh
    return rows, records


def _let_go(records: NDArray[np.void], rows: NDArray[np.int64], states: NDArray[np.int64], room: int) -> None:
    """Stored pixels that are of no use any more: of files that have changed, and of rows beyond the ``room``."""
    stored = records["status"] == STORED
    changed = np.zeros(len(records), bool)
    changed[rows[(records["state"][rows] != states).any(axis=1)]] = True
    for which, status in ((stored & changed, EMPTY), (stored & ~changed & (np.arange(len(records)) >= room), KNOWN)):
        touched = records[which]
        touched["status"] = status
        seal(touched)
        records[which] = touched


def _write_new(folder: Path, old: NDArray[np.void], records: NDArray[np.void]) -> None:
    path = folder / RECORDS
    path.touch()
    same = len(old) <= len(records) and bool((old == records[: len(old)]).all())
    with path.open("r+b") as file:
        file.seek(len(old) * RECORD.itemsize if same else 0)
        file.write(records[len(old) if same else 0 :].tobytes())


def _room(
    cache: Path, folder: Path, wanted: int, row_bytes: Sequence[int], limit: int, alone: bool
) -> tuple[int, bool]:
    """Rows that may be stored, and whether it is the disk that allows no more; throws out what is oldest if need be."""
    size = sum(row_bytes)
    now = min(_length(folder / file) // each for file, each in zip(FILES, row_bytes, strict=True))
    others = [f for f in cache.iterdir() if f != folder and any((f / file).exists() for file in (*FILES, RECORDS))]
    evictable = sorted(others, key=_age)
    while True:
        theirs = [other / file for other in others for file in FILES]  # one that could not be deleted still counts
        of_limit = limit - sum(_length(file) for file in theirs)
        promised = sum(max(0, _length(file) - _allocated(file)) for file in theirs)  # what they have yet to fill in
        of_disk = shutil.disk_usage(cache).free + sum(_allocated(folder / file) for file in FILES) - promised - RESERVE
        rows = max(0, min(of_limit, of_disk) // size)
        if rows >= wanted or not _evict_one(evictable):
            break
    rows = min(rows, wanted)
    return (rows if alone else max(rows, now)), of_disk < of_limit


def _evict_one(evictable: list[Path]) -> bool:
    """Deletes the first set that is not in use and may be deleted; takes it, and those before it, off the list."""
    while evictable:
        other = evictable.pop(0)
        try:
            lock = try_lock(other / "use.lock")
            if lock is None:
                continue
            lock.release()  # Windows deletes no open file; nobody can take it now, for that needs the lock held here
            (other / RECORDS).unlink(missing_ok=True)  # first, so that a part of a set is never taken for one
        except OSError:  # somebody else's
            continue
        shutil.rmtree(other, ignore_errors=True)
        return True
    return False


def _age(folder: Path) -> float:
    return folder.stat().st_mtime


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _allocated(path: Path) -> int:
    if not path.exists():
        return 0
    found = path.stat()
    return int(getattr(found, "st_blocks", found.st_size / 512) * 512)
