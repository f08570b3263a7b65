"""Parts: what a shard's work becomes. ``part-00000.parquet``, or ``part-00000.npy`` with ``part-00000.json``.

A shard of a folder is one part, a tar as many as it has slices of ``shard_size`` images (``part-00000-00000.parquet``),
so that work within a large tar is kept too. The images that could not be used stand in ``skipped-00000.jsonl`` beside
it, which is written first: where there is a part, all of it is there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, NamedTuple

import numpy as np

from clf.errors import DataError, missing_extra
from clf_serve.backends.base import Vectors
from clf_serve.bulk.folders import Folder
from clf_serve.bulk.plan import Plan, Shard

COLUMNS = ("key", "uri", "width", "height", "size", "mtime_ns", "sha256")
"""Facts of an image, named as in the files of ``clf gallery export``; ``vector`` comes last."""
_TEXTS = ("key", "uri", "sha256")
_ABOUT = b"clf.bulk"
_FORMAT = 1


class Row(NamedTuple):
    """One image that was embedded."""

    key: str
    uri: str
    width: int
    height: int
    size: int
    mtime_ns: int
    sha256: str


class Unused(NamedTuple):
    """One image that could not be."""

    key: str
    reason: str


@dataclass(frozen=True)
class About:
    """What a part says of itself."""

    plan: str
    shard: int
    slice: int
    """Within the shard; 0 for the first, or the only one."""
    images: int
    skipped: int
    left_out: int = 0
    """Further images of a tar's samples, of which one is embedded."""
    next: int | None = None
    """Where in its tar the next slice begins; None for the last."""
    provider: str = ""
    """What ran the model."""

    @property
    def last(self) -> bool:
        return self.next is None


def stem(plan: Plan, shard: int, slice_: int) -> str:
    """``00012``, or ``00012-00003`` for a slice of a tar."""
    return f"{shard:05d}-{slice_:05d}" if plan.tars else f"{shard:05d}"


def part_name(plan: Plan, shard: int, slice_: int) -> str:
    """The file whose presence says that the part is whole."""
    return f"part-{stem(plan, shard, slice_)}.{'parquet' if plan.settings.form == 'parquet' else 'json'}"


def skipped_name(plan: Plan, shard: int, slice_: int) -> str:
    return f"skipped-{stem(plan, shard, slice_)}.jsonl"


def check_form(form: str) -> None:
    """Raises MissingExtraError: what it needs is not installed."""
    if form == "parquet":
        _pyarrow()


def write_part(
    folder: Folder, plan: Plan, about: About, rows: Sequence[Row], vectors: Vectors, skipped: Sequence[Unused]
) -> None:
    """Args: vectors: (n, D) for n rows. Raises DataError: it cannot be written."""
    if skipped:
        text = "".join(json.dumps(each._asdict()) + "\n" for each in skipped).encode()
        folder.put(skipped_name(plan, about.shard, about.slice), text)
    elif folder.has(old := skipped_name(plan, about.shard, about.slice)):  # of a part that was removed by hand
        folder.remove(old)
    facts = {"format": _FORMAT, **_model(plan), **asdict(about)}
    name = part_name(plan, about.shard, about.slice)
    if plan.settings.form == "parquet":
        folder.write(name, lambda file: _write_parquet(file, facts, rows, vectors))
        return
    folder.write(f"part-{stem(plan, about.shard, about.slice)}.npy", lambda file: np.save(file, vectors))
    table = {column: [getattr(row, column) for row in rows] for column in COLUMNS}
    folder.put(name, (json.dumps({**facts, **table}) + "\n").encode())


def read_about(folder: Folder, plan: Plan, shard: int, slice_: int) -> About | None:
    """Of a part that is there, whole and of this plan; None for any other, which is to be made again."""
    name = part_name(plan, shard, slice_)
    try:
        facts = _parquet_facts(folder, name) if plan.settings.form == "parquet" else _npy_facts(folder, plan, name)
        about = About(**{field: facts[field] for field in About.__dataclass_fields__})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, EOFError):
        return None
    mine = facts.get("format") == _FORMAT and (about.plan, about.shard, about.slice) == (plan.id, shard, slice_)
    if not mine or facts["rows"] != about.images:
        return None
    return about


def done(folder: Folder, plan: Plan, shard: Shard, there: Callable[[str], bool] | None = None) -> list[About]:
    """The parts of a shard that need not be made again, in order; the shard is done if the last of them is the last.

    Args:
        there: whether a name is in the folder, if that is known.
    """
    found: list[About] = []
    is_there = there or folder.has
    while not (found and found[-1].last) and is_there(part_name(plan, shard.number, len(found))):
        about = read_about(folder, plan, shard.number, len(found))
        if about is None or (about.skipped and not is_there(skipped_name(plan, shard.number, about.slice))):
            break
        found.append(about)
    return found


def read_skipped(folder: Folder, plan: Plan, shard: int, slice_: int) -> list[Unused]:
    """Raises DataError: its list is damaged."""
    name = skipped_name(plan, shard, slice_)
    try:
        return [Unused(**json.loads(each)) for each in folder.read(name).splitlines()]
    except (FileNotFoundError, ValueError, TypeError):
        raise DataError(f"{folder.shown}/{name} is damaged; remove it, and run the same command again") from None


def _model(plan: Plan) -> dict[str, Any]:
    settings = plan.settings
    return {
        "model": settings.model,
        "model_sha256": settings.model_sha256,
        "dim": settings.dim,
        "variant": settings.variant,
        "preprocessing": settings.preprocessing,
    }


def _write_parquet(file: IO[bytes], facts: Mapping[str, Any], rows: Sequence[Row], vectors: Vectors) -> None:
    pa, pq = _pyarrow()
    fields = [pa.field(name, pa.string() if name in _TEXTS else pa.int64(), nullable=False) for name in COLUMNS]
    element = pa.field("element", pa.float32(), nullable=False)
    fields.append(pa.field("vector", pa.list_(element, vectors.shape[1]), nullable=False))
    schema = pa.schema(fields, metadata={_ABOUT: json.dumps(facts).encode()})
    arrays = [pa.array([row[i] for row in rows], fields[i].type) for i in range(len(COLUMNS))]
    numbers = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float32())
    arrays.append(pa.FixedSizeListArray.from_arrays(numbers, type=fields[-1].type))
    table = pa.Table.from_arrays(arrays, schema=schema)
    packed = dict.fromkeys(COLUMNS, "zstd") | {"vector.list.element": "none"}
    plain = list(COLUMNS)
    buffer = io.BytesIO()  # pyarrow closes what it writes to
    pq.write_table(
        table, buffer, compression=packed, use_dictionary=False, write_statistics=plain, write_page_checksum=True
    )
    file.write(buffer.getbuffer())


def _parquet_facts(folder: Folder, name: str) -> dict[str, Any]:
    pa, pq = _pyarrow()
    with folder.open(name) as file:
        try:
            metadata = pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(str(error)) from error
    facts: dict[str, Any] = json.loads((metadata.metadata or {})[_ABOUT])
    return {**facts, "rows": metadata.num_rows}


def _npy_facts(folder: Folder, plan: Plan, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(folder.read(name))
    shape = (len(facts["key"]), plan.settings.dim)
    beginning = io.BytesIO()
    np.lib.format.write_array_header_1_0(beginning, {"descr": "<f4", "fortran_order": False, "shape": shape})
    wanted = beginning.getvalue()
    vectors = name.removesuffix(".json") + ".npy"
    if folder.size(vectors) != len(wanted) + 4 * shape[0] * shape[1] or folder.read(vectors, 0, len(wanted)) != wanted:
        raise ValueError(f"{vectors} is not what {name} says")
    return {**facts, "rows": shape[0]}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise missing_extra("pyarrow", "parquet", "--format parquet") from None
    return pyarrow, parquet
