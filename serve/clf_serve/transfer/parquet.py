"""Parquet files of a gallery's images (extra ``parquet``)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clf.errors import missing_extra
from clf_serve.gallery import Entry
from clf_serve.transfer.plan import COLUMNS, About, Parts, Progress, about, damaged, not_ours, read_about
from clf_serve.transfer.snapshot import Batch, Snapshot, Survey, metadata_text

_ABOUT = b"clf.gallery"
_TEXTS = ("key", "uri", "folder", "sha256")


def write_parquet(path: Path, images: Snapshot, parts: Parts, progress: Progress) -> None:
    """A row for each image.

    ``vector`` is a fixed-size list of float32, ``thumbnail`` a JPEG, ``metadata`` JSON text. A name at the top of the
    metadata whose values are all of one type is a column too (``metadata.NAME`` where NAME is taken).

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pa, pq = load_pyarrow()
    survey = images.survey()
    names = {name: name if name not in _reserved() else f"metadata.{name}" for name in survey.columns}
    schema = _schema(pa, images, parts, survey, names)
    plain = [*_TEXTS, "metadata", *names.values()]
    packed = dict.fromkeys(schema.names, "zstd") | {"thumbnail": "none", "vector.list.element": "none"}
    with pq.ParquetWriter(
        path, schema, compression=packed, use_dictionary=plain, write_statistics=plain, write_page_checksum=True
    ) as writer:
        for batch in images.batches(vectors=parts.vectors, thumbnails=parts.thumbnails):
            writer.write_table(_table(pa, schema, batch, names))
            progress(len(batch.items))


class ParquetReader:
    """What :func:`write_parquet` wrote.

    Raises:
        DataError: it is damaged or was not written here.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._pa, pq = load_pyarrow()
        self._path = path
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        except self._pa.ArrowInvalid as error:
            raise damaged(path, error) from error
        text = (self._file.schema_arrow.metadata or {}).get(_ABOUT)
        if text is None:
            raise not_ours(path)
        self.about: About = read_about(text, path)

    def entries(self) -> Iterator[tuple[list[int], list[Entry]]]:
        """Ids and entries, in parts. Raises DataError."""
        parts = self.about.parts
        names = [*COLUMNS, "metadata", "vector", *(("thumbnail",) if parts.thumbnails else ())]
        try:
            for batch in self._file.iter_batches(4096, columns=names):
                table = {name: batch.column(name) for name in names}
                vectors = table.pop("vector").flatten().to_numpy().reshape(batch.num_rows, self.about.model.dim)
                rows = {name: column.to_pylist() for name, column in table.items()}
                yield rows["id"], [_entry(rows, i, vector) for i, vector in enumerate(vectors)]
        except (self._pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise damaged(self._path, error) from error

    def close(self) -> None:
        self._file.close()


def load_pyarrow() -> tuple[Any, Any]:
    """The packages pyarrow and pyarrow.parquet. Raises MissingExtraError."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise missing_extra("pyarrow", "parquet", "a parquet file") from None
    return pyarrow, parquet


def _reserved() -> set[str]:
    return {*COLUMNS, "metadata", "vector", "thumbnail"}


def _schema(pa: Any, images: Snapshot, parts: Parts, survey: Survey, names: dict[str, str]) -> Any:
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    fields = [pa.field(name, pa.string() if name in _TEXTS else pa.int64(), nullable=False) for name in COLUMNS]
    fields.append(pa.field("metadata", pa.string(), nullable=False))
    fields += [pa.field(column, kinds[survey.columns[name]]) for name, column in names.items()]
    if parts.vectors:
        element = pa.field("element", pa.float32(), nullable=False)
        fields.append(pa.field("vector", pa.list_(element, images.model.dim), nullable=False))
    if parts.thumbnails:
        fields.append(pa.field("thumbnail", pa.binary(), nullable=False))
    return pa.schema(fields, metadata={_ABOUT: about(images.model, survey.images, parts).encode()})


def _table(pa: Any, schema: Any, batch: Batch, names: dict[str, str]) -> Any:
    columns: dict[str, Any] = {name: [getattr(item, name) for item in batch.items] for name in COLUMNS}
    columns["metadata"] = [metadata_text(item) for item in batch.items]
    for name, column in names.items():
        columns[column] = [item.metadata.get(name) for item in batch.items]
    arrays = {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
    if "vector" in schema.names:
        numbers = pa.array(np.ascontiguousarray(batch.vectors).reshape(-1), pa.float32())
        arrays["vector"] = pa.FixedSizeListArray.from_arrays(numbers, type=schema.field("vector").type)
    if "thumbnail" in schema.names:
        arrays["thumbnail"] = pa.array(batch.thumbnails, pa.binary())
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _entry(rows: dict[str, list[Any]], i: int, vector: Any) -> Entry:
    facts = {name: rows[name][i] for name in COLUMNS if name != "id"}
    thumbnail = rows["thumbnail"][i] if "thumbnail" in rows else b""
    return Entry(vector=vector, thumbnail=thumbnail, metadata=json.loads(rows["metadata"][i]), **facts)
