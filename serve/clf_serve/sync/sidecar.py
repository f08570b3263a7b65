"""Metadata of images from a file beside them: one row for each image, named in its column ``file``.

``file`` (or ``file_name``, as in the image folders of Hugging Face) is the path relative to the folder that is indexed,
whatever folder the metadata file lies in; absolute paths are taken too. The other columns become metadata. An empty
cell, or null, says that the image has no such metadata, and removes what it had.
"""

from __future__ import annotations

import csv
import json
import math
import os
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from clf import images
from clf.errors import DataError, did_you_mean, missing_extra
from clf_serve.gallery.metadata import EntryError, encode
from clf_serve.stores import AnyGallery
from clf_serve.sync.scanning import root_of

Row = dict[str, Any]

_ROWS = 5000
_NAMES = ("file", "file_name")
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")  # "007" is a name, not a number
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_TRUTH = {"true": True, "false": False}


class Sidecar:
    """The rows of a metadata file by the image's path relative to the indexed folder, with ``/``."""

    def __init__(self, path: Path, rows: dict[str, Row]) -> None:
        self.path, self.rows = path, rows

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def described(self, name: str, metadata: Mapping[str, Any]) -> Row:
        """``metadata`` of the image ``name`` with what the file says of it."""
        new = {**metadata, **self.rows.get(name, {})}
        return {key: value for key, value in new.items() if value is not None}


def read_sidecar(path: Path | None, source: Path) -> Sidecar | None:
    """Reads ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` (a list of rows) or ``.parquet``; None for no file.

    The cells of a CSV column become numbers, or true and false, where all of them are; else they stay text.

    Args:
        source: the folder that is indexed.

    Raises:
        DataError: the file is missing, of another kind, damaged, has no column ``file``, or names an image twice.
        MissingExtraError: it is parquet, and pyarrow is not installed.
    """
    if path is None:
        return None
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise DataError(f"{path} must end in one of {known}.{did_you_mean(path.suffix.lower(), _READERS)}")
    rows: dict[str, Row] = {}
    folder = source if images.is_folder(source) else source.parent
    shown = os.path.abspath(folder).rstrip(os.sep) + os.sep  # noqa: PTH100
    tops = [top.replace(os.sep, "/") for top in (root_of(folder), shown)]
    try:
        for place, row in reader(path):
            name = _name(row, path, place, tops)
            if name in rows:
                raise DataError(f"{path}, {place}: {name} has a row already; keep one of them")
            new = {key: _clean(value, path, place) for key, value in row.items() if _is_told(key, path, place)}
            encode(new)
            rows[name] = new
    except (EntryError, RecursionError) as error:
        raise DataError(f"{path}, {place}: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    return Sidecar(path, rows)


def apply_metadata(
    reader: AnyGallery,
    writing: Callable[[], AbstractContextManager[AnyGallery]],
    sidecar: Sidecar,
    names: Mapping[str, str],
) -> tuple[int, list[str]]:
    """Gives entries what the file says of them, where it differs from what they have.

    Args:
        names: the keys of the images by their name.

    Returns:
        The number of entries that changed, and the names that are no image of the folder.
    """
    listing = reader.listing()
    wanted = {listing[key].id: name for name, key in names.items() if key in listing}
    ids, described = list(wanted), 0
    for start in range(0, len(ids), _ROWS):
        changes = {}
        for item in reader.items(ids[start : start + _ROWS]):
            new = sidecar.described(wanted[item.id], item.metadata)
            if new != item.metadata:
                changes[item.id] = new
        if changes:
            with writing() as gallery:
                described += gallery.set_metadata(changes, merge=False)
    return described, [name for name in sidecar.rows if name not in names]


def _name(row: Row, path: Path, place: str, tops: Iterable[str]) -> str:
    name = row.pop(_column(row, path, place))
    if not isinstance(name, str) or not name:
        raise DataError(f"{path}, {place}: 'file' must be the path of an image, got {name!r}")
    name = posixpath.normpath(name.replace(os.sep, "/"))
    for top in tops:
        name = name.removeprefix(top)
    return name


def _column(names: Collection[object], path: Path, place: str) -> str:
    """Of the image's path."""
    column = next((name for name in _NAMES if name in names), None)
    if column is None:
        found = ", ".join(map(str, names)) or "none"
        raise DataError(f"{path}, {place}: there is no column 'file' with the image's path; the columns are: {found}")
    return column


def _is_told(key: object, path: Path, place: str) -> bool:
    """Raises DataError for a name that no filter could ask for."""
    if not isinstance(key, str) or not key or key[0] in "@$":
        raise DataError(f"{path}, {place}: a column must have a name, not beginning with @ or $, got {key!r}")
    return True


def _clean(value: Any, path: Path, place: str) -> Any:
    """As JSON: numbers that are none become null, times ISO 8601."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _clean(inner, path, place) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(inner, path, place) for inner in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "as_integer_ratio"):  # a decimal number
        return float(value)
    raise DataError(f"{path}, {place}: {type(value).__name__} cannot be metadata; use text or numbers")


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            header = next(reader, [])
            lines = [(reader.line_num, cells) for cells in reader if cells]
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    _column(header, path, "line 1")
    if len(set(header)) != len(header):
        raise DataError(f"{path}: two columns have the same name: {', '.join(header)}")
    for line, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{path}, line {line}: {len(cells)} cells, and the first line names {len(header)} columns")
    columns = [
        list(cells) if name in _NAMES else _typed(cells)
        for name, cells in zip(header, zip(*(cells for _, cells in lines), strict=True), strict=False)
    ]
    for (line, _), values in zip(lines, zip(*columns, strict=True), strict=True):
        yield f"line {line}", dict(zip(header, values, strict=True))


def _typed(cells: Iterable[str]) -> list[Any]:
    """The cells of a column as what all of them are; empty ones are None."""
    cells = [cell.strip() for cell in cells]
    full = [cell for cell in cells if cell]
    convert: Callable[[str], Any] = str
    if all(cell.lower() in _TRUTH for cell in full):
        convert = _truth
    elif all(map(_is_whole, full)):
        convert = int
    elif all(map(_is_number, full)):
        convert = float
    return [convert(cell) if cell else None for cell in cells]


def _truth(cell: str) -> bool:
    return _TRUTH[cell.lower()]


def _is_whole(cell: str) -> bool:
    """Whether it is a whole number of at most 64 bits."""
    return len(cell) <= 20 and _WHOLE.fullmatch(cell) is not None and abs(int(cell)) < 2**63


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None and math.isfinite(float(cell))


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", _row(_parsed(line, path, f"line {number}"), path, f"line {number}")


def _json_list(path: Path) -> Iterator[tuple[str, Row]]:
    rows = _parsed(path.read_text(encoding="utf-8-sig"), path, "the file")
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a list of objects, one for each image")
    for number, row in enumerate(rows, 1):
        yield f"row {number}", _row(row, path, f"row {number}")


def _parsed(text: str, path: Path, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, {place}: not JSON ({error})") from error


def _row(value: Any, path: Path, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{path}, {place}: expected an object with a name 'file', got {type(value).__name__}")
    return value


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise missing_extra("pyarrow", "parquet", "reading a .parquet file") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no parquet file, or a damaged one ({' '.join(str(error).split())})") from error
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".parquet": _parquet,
}
