"""What goes into a gallery and comes out of it. To keep galleries elsewhere, see :mod:`clf_serve.stores`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Entry:
    """One image to keep. ``key`` is its identity: an entry of the same key is replaced and keeps its id."""

    key: str
    uri: str
    """What is shown to people: the path as it was given."""
    vector: NDArray[np.float32]
    """(D,), unit length."""
    thumbnail: bytes = b""
    """JPEG; empty when there is none."""
    size: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    width: int = 0
    height: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Must be JSON."""
    folder: str = ""
    """The folder it lies in, relative to the one that was indexed; empty at the top."""


@dataclass(frozen=True)
class Item:
    """One image of a gallery, without what is large."""

    id: int
    key: str
    uri: str
    metadata: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    width: int = 0
    height: int = 0
    size: int = 0
    mtime_ns: int = 0
    folder: str = ""


@dataclass(frozen=True)
class Hit:
    """A neighbour. ``score`` is the cosine of the angle between it and the query, in [-1, 1]."""

    id: int
    uri: str
    score: float
    metadata: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    folder: str = ""
    width: int = 0
    height: int = 0


class Moved(NamedTuple):
    """An image whose file lies elsewhere now, or was touched; its content is the same."""

    id: int
    key: str
    uri: str
    size: int
    mtime_ns: int
    folder: str = ""


class Known(NamedTuple):
    """What a re-index needs to know of a file."""

    id: int
    size: int
    mtime_ns: int
    sha256: str = ""


class Thumbnail(NamedTuple):
    data: bytes
    sha256: str
    """Of the image's file: changes when the picture does."""
