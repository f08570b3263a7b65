"""Galleries compared with each other, and commands that are killed at work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from serve_helpers import PROGRAM, until

from clf_serve.gallery import Entry, Gallery, Identity

DIM = 8
MODEL = Identity("m", "ab" * 32, DIM)
METADATA: list[dict[str, Any]] = [
    {},
    {"label": "Käse", "year": 2020, "score": 1, "good": True, "uri": "taken"},
    {"label": "cat", "year": None, "score": 0.1, "good": False, "tags": ["a", "b"], "camera": {"iso": 100}},
    {"label": 'say "hi",\nthen\tgo', "year": -(2**63), "mixed": 1},
    {"mixed": "two", "big": 2**53 + 1},
]


def entry(i: int, dim: int = DIM) -> Entry:
    """The i-th image of a gallery: made up, the same in every process."""
    vector = np.random.default_rng(i).normal(size=dim)
    return Entry(
        key=f"/photos/ä/{i:05d}.jpg",
        uri=f"ä/{i:05d}.jpg",
        vector=(vector / np.linalg.norm(vector)).astype(np.float32),
        thumbnail=b"" if i % 7 == 3 else b"\xff\xd8jpeg %d\0" % i,
        size=1000 + i,
        mtime_ns=1_700_000_000_123_456_789 + i,
        sha256=f"{i:064x}",
        width=640,
        height=480,
        metadata=METADATA[i % len(METADATA)],
        folder="ä" if i % 2 else "",
    )


def made(folder: Path, n: int, model: Identity = MODEL, model_path: Path = Path("model")) -> Path:
    """A gallery of n entries with gaps among its ids."""
    with Gallery.open_or_create(folder, model, model_path) as gallery:
        ids = gallery.upsert([entry(i, model.dim) for i in range(n + 3)])
        gallery.delete([ids[0], ids[n // 2], ids[-1]])
        gallery.save_index()
    return folder


def contents(folder: Path, *, thumbnails: bool = True) -> list[tuple[Any, ...]]:
    """Everything a gallery holds, by id."""
    with Gallery(folder) as gallery:
        items = gallery.page(limit=100_000)
        vectors = gallery.vectors([item.id for item in items])
        pictures = [gallery.thumbnail(item.id) if thumbnails else None for item in items]
    return [
        (item, vector.tobytes(), picture and picture.data)
        for item, vector, picture in zip(items, vectors, pictures, strict=True)
    ]


def assert_finds_what_is_nearest(folder: Path) -> None:
    """Search equals brute force over the stored vectors."""
    with Gallery(folder) as gallery:
        ids = gallery.ids()
        vectors = gallery.vectors(ids.tolist()).astype(np.float64)
        for query in vectors[:: max(1, len(ids) // 10)]:
            scores = vectors @ query
            order = np.lexsort((ids, -scores))[:10]
            hits = gallery.search(query.astype(np.float32), 10)
            np.testing.assert_allclose([hit.score for hit in hits], scores[order], atol=1e-6)
            assert hits[0].id == ids[order[0]]


def start(*words: object, before: str = "") -> subprocess.Popen[bytes]:
    """``clf WORDS`` in a process of its own, after the statements ``before``."""
    command = [sys.executable, "-c", before + PROGRAM, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def kill_when(process: subprocess.Popen[bytes], sign: Path) -> None:
    """SIGKILL as soon as a file is there that the process makes."""
    kill_once(process, sign.exists)


def kill_once(process: subprocess.Popen[bytes], moment: Callable[[], bool]) -> None:
    """SIGKILL as soon as something is so; fails if the process ends before."""
    try:
        until(lambda: moment() or process.poll() is not None, 60)
        assert process.poll() is None, process.communicate()
    finally:
        process.kill()
        process.communicate()
