"""Writes embeddings where the user asked for them: .npz, .npy with a .json beside it, or .jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from clf.errors import DataError, did_you_mean
from clf.manifest import Manifest
from clf_serve.engine import Vectors

_PREFIX = ".clf-embed-"


def writer(path: Path) -> Callable[[Vectors, Sequence[Path], Manifest], None]:
    """The function that writes ``path`` in the format of its suffix; ask before the work begins.

    It writes beside ``path`` and renames, so an earlier file stays until the new one is whole (a link is replaced). It
    raises DataError where that fails, for example on a full disk.

    Raises:
        DataError: an unknown suffix, a folder that does not exist or cannot be written, or ``path`` is a folder.
    """
    if path.suffix not in _WRITERS:
        known = ", ".join(_WRITERS)
        near = did_you_mean(path.suffix, _WRITERS) or " For a folder of shards end its name in /."
        raise DataError(f"{path} must end in one of {known}.{near}")
    write = _WRITERS[path.suffix]
    files = [path, path.with_suffix(".json")] if write is _npy else [path]
    try:
        if not path.parent.is_dir():
            raise DataError(f"the folder {path.parent} of {path.name} does not exist; make it first")
        for file in files:
            if file.is_dir():
                raise DataError(f"{file} is a folder; name another file with -o")
        with TemporaryDirectory(prefix=_PREFIX, dir=path.parent):
            pass  # it can be written
    except OSError as error:
        raise _unwritable(path, error) from error

    def save(vectors: Vectors, paths: Sequence[Path], manifest: Manifest) -> None:
        try:
            with TemporaryDirectory(prefix=_PREFIX, dir=path.parent) as name:
                write(Path(name) / path.name, vectors, paths, manifest)
                for file in files:
                    (Path(name) / file.name).replace(file)
        except OSError as error:
            raise _unwritable(path, error) from error

    return save


def _unwritable(path: Path, error: OSError) -> DataError:
    reason = error.strerror or error  # numpy's own OSError has no strerror
    return DataError(f"{path} cannot be written: {reason}; make room, or name a file in another folder with -o")


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
