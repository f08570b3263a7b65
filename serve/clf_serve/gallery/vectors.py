"""Vectors as they are stored: little-endian float32, of unit length."""

from __future__ import annotations

import json
from collections.abc import Collection
from sqlite3 import Connection

import numpy as np
from numpy.typing import NDArray

from clf_serve.gallery.database import Database

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


def stored(connection: Connection, ids: Collection[int]) -> dict[int, bytes]:
    """Those of the ids that exist."""
    return dict(
        connection.execute(
            "SELECT id, vector FROM vectors WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps([int(id_) for id_ in ids]),),
        ).fetchall()
    )


def decode(database: Database, blobs: list[bytes], dim: int) -> Vectors:
    """(n, dim); damage that SQLite cannot see shows in their length."""
    if any(not isinstance(blob, bytes) or len(blob) != 4 * dim for blob in blobs):
        raise database.damaged("a vector has the wrong size")
    vectors = np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), dim)
    if not is_unit(vectors).all():
        raise database.damaged("a vector is not of unit length")
    return vectors


def unit(vector: Vectors, dim: int) -> Vectors:
    """Checked, (dim,); what is off by more than rounding is made of unit length.

    Raises:
        ValueError: another shape, or nowhere near unit length.
    """
    vector = np.ascontiguousarray(vector, "<f4")
    if vector.shape != (dim,) or not is_unit(vector):
        raise ValueError(f"a vector must be finite, of shape ({dim},) and of unit length, got shape {vector.shape}")
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if abs(norm - 1) < 1e-6 else (vector / norm).astype("<f4")


def is_unit(vectors: Vectors) -> NDArray[np.bool_]:
    """Of (..., dim): which are; damaged ones may hold any numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms: NDArray[np.float32] = np.linalg.norm(vectors, axis=-1)
    return np.abs(norms - 1) < 1e-3  # false for NaN
