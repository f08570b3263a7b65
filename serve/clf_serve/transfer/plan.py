"""What all formats of an export have in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from clf.errors import DataError
from clf_serve.gallery import Identity

Progress: TypeAlias = Callable[[int], None]
"""Called with the number of images done since the last call."""

COLUMNS = ("id", "key", "uri", "folder", "width", "height", "size", "mtime_ns", "sha256")
"""Facts of an image, in the order in which they are written."""
FORMAT = 1


@dataclass(frozen=True)
class Parts:
    """What goes with the facts and the metadata of each image."""

    vectors: bool = True
    thumbnails: bool = False


def about(model: Identity, images: int, parts: Parts) -> str:
    """What a file says of itself: JSON."""
    facts: dict[str, Any] = {"format": FORMAT, "model": model.name, "model_sha256": model.sha256, "dim": model.dim}
    return json.dumps(facts | {"images": images, "vectors": parts.vectors, "thumbnails": parts.thumbnails})


@dataclass(frozen=True)
class About:
    """What :func:`about` wrote."""

    model: Identity
    images: int
    parts: Parts


def read_about(text: str | bytes, path: Path) -> About:
    """Raises DataError for a file of another origin or of a later format."""
    try:
        facts = json.loads(text)
        number, images = int(facts["format"]), int(facts["images"])
        model = Identity(str(facts["model"]), str(facts["model_sha256"]), int(facts["dim"]))
        parts = Parts(bool(facts["vectors"]), bool(facts["thumbnails"]))
    except (ValueError, KeyError, TypeError):
        raise not_ours(path) from None
    if number != FORMAT:
        raise DataError(f"{path} has format {number}, this clf reads format {FORMAT}; use the clf that wrote it")
    return About(model, images, parts)


def not_ours(path: Path) -> DataError:
    return DataError(f"{path} was not written by clf gallery export; give a .parquet or .npz file that was")


def damaged(path: Path, reason: object) -> DataError:
    words = " ".join(str(reason).split())
    return DataError(f"{path} is damaged ({words}); export the gallery again, or use another copy of the file")
