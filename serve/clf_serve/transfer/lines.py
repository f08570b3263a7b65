"""JSON lines and CSV of a gallery's images."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator
from pathlib import Path

from clf_serve.transfer.plan import COLUMNS, Parts, Progress
from clf_serve.transfer.snapshot import Batch, Snapshot, metadata_text


def write_jsonl(path: Path, images: Snapshot, parts: Parts, progress: Progress) -> None:
    """An object a line: the facts of an image, ``metadata``, ``model``, ``vector``, ``thumbnail`` (JPEG in base64).

    Numbers of vectors are the shortest that give the same float32.
    """
    import orjson

    model = f"{images.model.name}@{images.model.sha256}"
    with path.open("wb") as file:
        for batch in images.batches(vectors=parts.vectors, thumbnails=parts.thumbnails):
            for i, item in enumerate(batch.items):
                row = {name: getattr(item, name) for name in COLUMNS}
                row |= {"metadata": orjson.Fragment(metadata_text(item)), "model": model}
                if parts.vectors:
                    row["vector"] = batch.vectors[i]
                if parts.thumbnails:
                    row["thumbnail"] = base64.b64encode(batch.thumbnails[i]).decode()
                file.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
            progress(len(batch.items))


def write_csv(path: Path, images: Snapshot, parts: Parts, progress: Progress) -> None:
    """A header, then a line for each image: its facts, ``metadata`` as JSON, and ``v0`` to ``v(D-1)``."""
    dim = images.model.dim if parts.vectors else 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "metadata", *(f"v{i}" for i in range(dim))])
        for batch in images.batches(vectors=parts.vectors):
            writer.writerows(_cells(batch))
            progress(len(batch.items))


def _cells(batch: Batch) -> Iterator[list[object]]:
    import orjson

    for item, vector in zip(batch.items, batch.vectors, strict=True):
        numbers = orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY).decode()[1:-1]  # shortest that are exact
        facts = [getattr(item, name) for name in COLUMNS]
        yield [*facts, metadata_text(item), *(numbers.split(",") if numbers else ())]
