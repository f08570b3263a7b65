"""Small galleries for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clf_serve.gallery import Entry, Gallery, Identity

DIM = 6
MODEL = Identity("m", "ab" * 32, DIM)


def unit(rng: np.random.Generator, n: int, dim: int = DIM) -> NDArray[np.float32]:
    """(n, dim), of unit length."""
    vectors = rng.normal(size=(n, dim))
    rows: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return rows


def entries(first: int, n: int, seed: int = 0, **facts: Any) -> list[Entry]:
    return [
        Entry(f"k{i}", f"{i}.jpg", vector, b"jpeg%d" % i, **facts)
        for i, vector in enumerate(unit(np.random.default_rng(seed), n), first)
    ]


def make(folder: Path, n: int = 0, **facts: Any) -> Path:
    """A gallery of n entries, its index saved; its folder."""
    with Gallery.open_or_create(folder, MODEL, folder.parent) as writer:
        writer.upsert(entries(0, n, **facts))
        writer.save_index()
    return folder
