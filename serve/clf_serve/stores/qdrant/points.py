"""Rows as points of Qdrant, and back.

Each *version* of a row is a point of its own. It is never changed but for ``to``, the number of the write that ended
it. The point's id is a UUID whose upper half is the row's id and whose lower half is the number of the write that
made it, so points come by rising id of their rows.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import numpy as np
from qdrant_client import models

from clf.errors import GalleryError
from clf_serve.stores.qdrant.marks import FIELD, marks_of
from clf_serve.stores.vector_store import NO_VECTOR, Row, Vector

VECTOR = "clf"
"""Name of the vector; a collection that has another is not of clf."""
LEDGER = str(UUID(int=0))
"""Id of the point that holds the state; ids of rows begin at 1."""
FOR_EVER = 2**53 - 1
"""``to`` of a version that no write has ended. Qdrant compares ranges in float64, which is exact up to here."""
_TEXTS = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, on_disk=True)  # which are long, and many
INDEXED: dict[str, models.PayloadSchemaType | models.KeywordIndexParams] = {
    "id": models.PayloadSchemaType.INTEGER,
    "key": _TEXTS,
    "from": models.PayloadSchemaType.INTEGER,
    "to": models.PayloadSchemaType.INTEGER,
    FIELD: _TEXTS,
}
_LOW = 2**64 - 1
_MOST_POINTS = 256  # in one request
_MOST_BYTES = 4 << 20  # about; Qdrant takes requests of up to 32 MiB


def point_id(id_: int, number: int) -> str:
    return str(UUID(int=id_ << 64 | number))


def row_id(point: Any) -> int:
    return UUID(str(point)).int >> 64


def first_after(id_: int) -> str:
    """The least id of a point whose row's id is greater."""
    return point_id(id_ + 1, 0)


def point_of(row: Row, number: int) -> models.PointStruct:
    """The version of a row that write ``number`` makes."""
    payload: dict[str, Any] = {"id": row.id, "key": row.key, "from": number, "to": FOR_EVER, "facts": row.facts}
    payload[FIELD] = marks_of(row)
    if row.thumbnail:
        payload["thumbnail"] = base64.b64encode(row.thumbnail).decode("ascii")
    vector = np.asarray(row.vector, np.float32).tolist()
    return models.PointStruct(id=point_id(row.id, number), vector={VECTOR: vector}, payload=payload)


def row_of(record: Any) -> Row:
    """Args: record: of Qdrant, with its payload. Raises GalleryError: it is none that clf wrote."""
    payload = record.payload or {}
    try:
        thumbnail = base64.b64decode(payload.get("thumbnail", ""), validate=True)
        return Row(row_id(record.id), payload["key"], payload["facts"], _vector(record.vector), thumbnail)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise GalleryError(
            f"the point {record.id} is no image as clf wrote it ({type(error).__name__}: {error})"
        ) from error


def fields(*, thumbnails: bool) -> list[str]:
    """The payload that a row is made of."""
    return ["key", "facts", *(["thumbnail"] if thumbnails else [])]


def batches(points: Sequence[models.PointStruct]) -> Iterator[list[models.PointStruct]]:
    """Such as fit into one request each."""
    part: list[models.PointStruct] = []
    size = 0
    for point in points:
        own = _size(point)
        if part and (len(part) == _MOST_POINTS or size + own > _MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(point)
        size += own
    if part:
        yield part


def _size(point: models.PointStruct) -> int:
    """About, in bytes of JSON."""
    assert isinstance(point.vector, dict) and point.payload is not None
    numbers = point.vector[VECTOR]
    texts = (point.payload["key"], point.payload["facts"], point.payload.get("thumbnail", ""))
    return 200 + 12 * len(numbers) + sum(map(len, texts)) + 35 * len(point.payload[FIELD])  # type: ignore[arg-type]


def _vector(found: Any) -> Vector:
    if not found:
        return NO_VECTOR
    return np.array(found[VECTOR], np.float32)
