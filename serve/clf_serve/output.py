"""Writes embeddings where the user asked for them: .npz, .npy with a .json beside it, or .jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clf.errors import DataError, did_you_mean
from clf.manifest import Manifest
from clf_serve.engine import Vectors


def writer(path: Path) -> Callable[[Path, Vectors, Sequence[Path], Manifest], None]:
    """The function that writes the format of ``path``'s suffix; ask before the work begins.

    Raises:
        DataError: an unknown suffix, or a folder that does not exist.
    """
    if path.suffix not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise DataError(f"{path} must end in one of {known}.{did_you_mean(path.suffix, _WRITERS)}")
    if not path.parent.is_dir():
        raise DataError(f"the folder {path.parent} of {path.name} does not exist; make it first")
    return _WRITERS[path.suffix]


def _npz(path: Path, vectors: Vectors, paths: Sequence[Path], manifest: Manifest) -> None:
    """Arrays ``vectors`` (n, D), ``paths`` (n,) and ``model`` (); no pickle."""
    with path.open("wb") as file:
        np.savez(file, vectors=vectors, paths=np.array([str(p) for p in paths], dtype=str), model=_model(manifest))


def _npy(path: Path, vectors: Vectors, paths: Sequence[Path], manifest: Manifest) -> None:
    np.save(path, vectors, allow_pickle=False)
    facts: dict[str, Any] = {"model": _model(manifest), "paths": [str(p) for p in paths]}
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _jsonl(path: Path, vectors: Vectors, paths: Sequence[Path], manifest: Manifest) -> None:
    """One object a line: path, model, embedding."""
    with path.open("w", encoding="utf-8") as file:
        for image, vector in zip(paths, vectors, strict=True):
            row = {"path": str(image), "model": _model(manifest), "embedding": vector.tolist()}
            file.write(json.dumps(row) + "\n")


def _model(manifest: Manifest) -> str:
    return f"{manifest.name}@{manifest.sha256}"


_WRITERS = {".npz": _npz, ".npy": _npy, ".jsonl": _jsonl}
