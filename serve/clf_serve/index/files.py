"""The folder of a saved index: data files of unique names, and ``index.json``, replaced last, which names them.

Whoever reads sees one saved state or another, whole: data files are never changed, those of the last state are removed
only after the switch, and on POSIX a file that a reader has mapped outlives its name. Windows refuses to remove such a
file; it goes at a later save.

Every byte is checked when it is opened (CRC-32 of each file and of ``index.json`` itself), as FAISS trusts what it
reads and a wrong code would hide a neighbour for good. Nothing is left for later: it takes some tenths of a second for
1 GB that the system has in its cache, and the data come off the disk for the first searches anyway. Reading for the
check goes through a small buffer, so it does not count as memory of the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 1
MANIFEST = "index.json"
_BLOCK = 1 << 20
_OURS = re.compile(r"(ids|vectors|graph|lists|codes|queries|changes|index)-[0-9a-f]{32}\.(bin|faiss|npz|json)")


class Written(NamedTuple):
    """A data file as the manifest knows it."""

    name: str
    size: int
    crc32: int


class DamageError(Exception):
    """Says which file is not what was saved, or is gone."""


def write(folder: Path, role: str, suffix: str, writer: Callable[[Path], None]) -> Written:
    """A new file, on the disk for good when this returns. FAISS's errors become OSError."""
    path = folder / f"{role}-{uuid.uuid4().hex}.{suffix}"
    try:
        writer(path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        return Written(path.name, path.stat().st_size, _crc32(path))
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):
            raise OSError(" ".join(str(error).split())) from error
        raise


def intact(folder: Path, files: Iterable[Written]) -> bool:
    """Whether files of those names and sizes are there."""
    try:
        return all((folder / file.name).stat().st_size == file.size for file in files)
    except OSError:
        return False


def publish(folder: Path, manifest: dict[str, Any]) -> None:
    """Switches to a new state and removes what no state needs any more."""
    body = {"format": FORMAT} | manifest
    text = json.dumps(body | {"crc32": _seal(body)}, indent=1)
    written = write(folder, "index", "json", lambda path: _put(path, text.encode()))
    try:
        (folder / written.name).replace(folder / MANIFEST)
    except OSError:
        (folder / written.name).unlink(missing_ok=True)
        raise
    sync(folder)
    keep = {str(file[0]) for file in manifest["files"].values()}
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in keep:
            with contextlib.suppress(OSError):  # mapped by a reader on Windows, or removed by another
                path.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises DamageError unless it is as it was published, and FileNotFoundError when there is none."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        seal = manifest.pop("crc32")
        if manifest["format"] == FORMAT and seal != _seal(manifest):
            raise ValueError
        manifest["files"] = {role: Written(*facts) for role, facts in manifest["files"].items()}
        if any(not _OURS.fullmatch(file.name) for file in manifest["files"].values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamageError(MANIFEST) from None
    return manifest


def check(folder: Path, files: Iterable[Written]) -> None:
    """Raises DamageError naming the first file that differs, FileNotFoundError for one that is gone."""
    listed = list(files)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for file, right in zip(listed, pool.map(lambda file: _is_right(folder, file), listed), strict=True):
            if not right:
                raise DamageError(file.name)


def sync(folder: Path) -> None:
    """Makes a rename outlast a power cut. Windows cannot open folders and needs no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_right(folder: Path, file: Written) -> bool:
    path = folder / file.name
    return path.stat().st_size == file.size and _crc32(path) == file.crc32


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _seal(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def _crc32(path: Path) -> int:
    value, block = 0, memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            value = zlib.crc32(block[:size], value)
    return value
