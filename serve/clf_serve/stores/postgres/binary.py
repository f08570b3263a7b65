"""Arrays and rows in PostgreSQL's binary format, straight from and to numpy: a hundred times as fast as by the number.

PostgreSQL, "Frontend/Backend Protocol" and COPY, "Binary Format"; vectors as pgvector's ``vector_send`` has them.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Sequence
from decimal import Decimal
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.pq import Format

from clf_serve.stores.vector_store import Ids, Vector

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
_LENGTH, _FIELDS, _LONG, _INT = (struct.Struct(f">{code}").pack for code in "ihqi")
_NULL = _LENGTH(-1)


class Packed:
    """An array in binary format."""

    element: ClassVar[int]
    """The type of its members, by oid."""
    kind: ClassVar[str]
    """The same for numpy."""

    def __init__(self, values: Any) -> None:
        members = np.asarray(values, self.kind)
        table = np.empty(len(members), np.dtype([("length", ">i4"), ("value", self.kind)]))
        table["length"], table["value"] = members.dtype.itemsize, members
        head = (1, 0, self.element, len(members), 1) if len(members) else (0, 0, self.element)
        self.data = struct.pack(f">{len(head)}i", *head) + table.tobytes()


class Int8s(Packed):
    element, kind = 20, ">i8"


class Float4s(Packed):
    element, kind = 700, ">f4"


class Uuids(Packed):
    """Args: values: 16 bytes each."""

    element, kind = 2950, "V16"

    def __init__(self, values: Sequence[bytes]) -> None:
        super().__init__(np.frombuffer(b"".join(values), "V16"))


class _PackedDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Packed) -> bytes:
        return obj.data


class _Int8sDumper(_PackedDumper):
    oid = 1016


class _Float4sDumper(_PackedDumper):
    oid = 1021


class _UuidsDumper(_PackedDumper):
    oid = 2951


def register(connection: Connection[Any]) -> None:
    for kind, dumper in ((Int8s, _Int8sDumper), (Float4s, _Float4sDumper), (Uuids, _UuidsDumper)):
        connection.adapters.register_dumper(kind, dumper)


def digest(text: str | bytes) -> bytes:
    """16 bytes that stand for a key or a name, which may be too long for an index."""
    return blake2b(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def as_uuid(digest: bytes) -> uuid.UUID:
    return uuid.UUID(bytes=digest)


def ids_of(array: bytes | None) -> Ids:
    """Of what ``array_send(array_agg(id))`` gave."""
    if array is None:
        return np.empty(0, np.int64)
    return np.frombuffer(array, np.dtype([("length", ">i4"), ("value", ">i8")]), offset=20)["value"].astype(np.int64)


def vectors_of(blobs: Sequence[bytes], dim: int) -> Vector:
    """(n, dim), of what ``vector_send`` gave."""
    table = np.frombuffer(b"".join(blobs), np.dtype([("head", ">i4"), ("values", ">f4", (dim,))]))
    return table["values"].astype(np.float32)


def copied_vectors(ids: Sequence[int], vectors: Sequence[Vector]) -> bytes:
    """A COPY of (id, vector). Raises ValueError: the vectors are not of one length."""
    dim = len(vectors[0]) if len(vectors) else 0
    fields: list[Any] = [
        ("fields", ">i2"),
        ("l1", ">i4"),
        ("id", ">i8"),
        ("l2", ">i4"),
        ("dim", ">i2"),
        ("none", ">i2"),
    ]
    table: NDArray[Any] = np.zeros(len(ids), np.dtype([*fields, ("values", ">f4", (dim,))]))
    table["fields"], table["l1"], table["l2"], table["dim"] = 2, 8, 4 + 4 * dim, dim
    if len(ids):
        table["id"], table["values"] = ids, np.stack(vectors)
    return SIGNATURE + table.tobytes() + TRAILER


def copied(rows: Iterable[Sequence[bytes | None]]) -> bytes:
    """A COPY of rows whose fields are in binary format."""
    parts = [SIGNATURE]
    for row in rows:
        parts.append(_FIELDS(len(row)))
        for field in row:
            parts += (_NULL,) if field is None else (_LENGTH(len(field)), field)
    return b"".join([*parts, TRAILER])


def long(value: Any) -> bytes | None:
    """A bigint, or NULL for what is none. Raises struct.error: it needs more than 64 bits."""
    return _LONG(value) if type(value) is int else None


def short(value: int) -> bytes:
    """A smallint."""
    return _FIELDS(value)


def integer(value: int) -> bytes:
    return _INT(value)


def numeric(value: Decimal) -> bytes:
    """Exact, whatever its size."""
    sign, figures, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    scale = max(0, -exponent)
    text = "".join(map(str, figures)) + "0" * (max(0, exponent) + -scale % 4)
    text = text.zfill(len(text) + -len(text) % 4)
    groups = [int(text[i : i + 4]) for i in range(0, len(text), 4)]
    weight = len(groups) - -(-scale // 4) - 1
    first = next((i for i, group in enumerate(groups) if group), len(groups))
    groups = groups[first:]
    return struct.pack(
        f">hhHH{len(groups)}h", len(groups), weight - first if groups else 0, 0x4000 * sign, scale, *groups
    )
