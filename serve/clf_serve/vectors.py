"""An exact FAISS index in memory, with a file beside the database that saves building it again.

The file is a plain FAISS index followed by a trailer (JSON, its length, a magic number) that says of which gallery and
generation it is. It is only ever a cache: stale means caught up, and missing, foreign or damaged means rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clf.errors import missing_extra

_MAGIC = b"clfidx01"
_TAIL = struct.Struct("<Q8s")


class Stamp(NamedTuple):
    gallery: str
    dim: int
    generation: int


class VectorIndex:
    """Inner products over all vectors: exact search, for unit vectors by cosine. Not thread-safe."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.generation = 0
        self._faiss = _faiss()
        self._index: Any = self._faiss.IndexIDMap2(self._faiss.IndexFlatIP(dim))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def update(self, removed: Iterable[int], ids: list[int], vectors: NDArray[np.float32], generation: int) -> None:
        """Removes some ids, then adds or replaces others, (n,) and (n, D)."""
        stale = np.fromiter({*removed, *ids}, np.int64)
        if len(stale) and len(self):
            self._index.remove_ids(stale)  # FAISS would keep two vectors of one id otherwise
        if ids:
            self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.asarray(ids, np.int64))
        self.generation = generation

    def search(self, vector: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """(id, score) of the k best, best first, equal scores by id."""
        k = min(k, len(self))
        if k < 1:
            return []
        scores, ids = self._index.search(np.ascontiguousarray(vector[None], np.float32), k)
        return sorted(zip(ids[0].tolist(), scores[0].tolist(), strict=True), key=lambda hit: (-hit[1], hit[0]))

    def save(self, path: Path, gallery: str) -> None:
        """Writes atomically: whoever reads sees the old file or the new one, whole."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            self._faiss.write_index(self._index, str(temporary))
            stamp = Stamp(gallery, self.dim, self.generation)._asdict() | {"sha256": _sha256(temporary)}
            text = json.dumps(stamp).encode()
            with temporary.open("ab") as file:
                file.write(text + _TAIL.pack(len(text), _MAGIC))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, now: Stamp) -> tuple[VectorIndex, str | None]:
        """The cached index, perhaps some generations old, or an empty one and the reason why."""
        empty = cls(now.dim)
        if not path.is_file():
            return empty, "missing"
        try:
            stamp, body_size = _read_trailer(path)
            if stamp.get("gallery") != now.gallery or stamp.get("dim") != now.dim:
                return empty, "of another gallery"
            if not 0 <= stamp["generation"] <= now.generation:
                return empty, "newer than the database"
            if _sha256(path, body_size) != stamp["sha256"]:  # FAISS trusts what it reads
                return empty, "damaged"
            loaded = empty._faiss.read_index(str(path))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, struct.error):
            return empty, "damaged"
        empty._index, empty.generation = loaded, stamp["generation"]
        return empty, None


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise missing_extra("faiss", "serve", "searching a gallery") from None
    return faiss


def _read_trailer(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(-_TAIL.size, os.SEEK_END)
        length, magic = _TAIL.unpack(file.read(_TAIL.size))
        body = size - _TAIL.size - length
        if magic != _MAGIC or body < 0:
            raise ValueError("no trailer")
        file.seek(body)
        stamp = json.loads(file.read(length))
    if not isinstance(stamp, dict):
        raise ValueError("the trailer is no object")
    return stamp, body


def _sha256(path: Path, size: int | None = None) -> str:
    """Of the first ``size`` bytes."""
    digest = hashlib.sha256()
    left = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlast a power cut. Windows cannot open folders and needs no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
