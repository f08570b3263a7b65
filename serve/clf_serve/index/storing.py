"""An index as files and back. What was saved is only believed whole: see ``files``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clf_serve.index import files
from clf_serve.index.bases import ROUNDING, Base, Flat, Graph, Lists
from clf_serve.index.effort import Effort
from clf_serve.index.files import Written
from clf_serve.index.library import library, read
from clf_serve.index.lookup import Lookup
from clf_serve.index.plan import Plan
from clf_serve.index.recall import Truth
from clf_serve.index.view import NO_IDS, View

_BASE_ROLES = ("ids", "vectors", "graph", "lists", "codes", "queries")
_ATTEMPTS = 5
OLD_FILE = "index.faiss"


class UnusableError(Exception):
    """Why a saved index cannot be used, in words that follow "the index is"."""


@dataclass(frozen=True)
class Kept:
    """Files of a base that need not be written again."""

    folder: Path
    files: dict[str, Written]


@dataclass(frozen=True)
class State:
    gallery: str
    dim: int
    generation: int
    plan: Plan
    view: View
    truth: Truth | None
    recall: tuple[float, int] | None
    built_recall: float | None
    kept: Kept | None = None
    identity: Any = None


def identity(folder: Path) -> tuple[int, int, int] | None:
    """Changes whenever an index is saved; None when there is none."""
    try:
        found = (folder / files.MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def save(folder: Path, state: State, kept: Kept | None) -> Kept:
    folder.mkdir(exist_ok=True)
    fresh: dict[str, Written] = {}
    try:
        if kept is not None and kept.folder == folder and files.intact(folder, kept.files.values()):
            base_files = kept.files
        else:
            base_files = {}
            for role, (suffix, writer) in _writers(state).items():
                base_files[role] = fresh[role] = files.write(folder, role, suffix, writer)
        fresh["changes"] = files.write(folder, "changes", "npz", lambda path: _write_changes(path, state.view))
        files.publish(folder, _manifest(state) | {"files": base_files | {"changes": fresh["changes"]}})
    except BaseException:
        for file in fresh.values():
            (folder / file.name).unlink(missing_ok=True)
        raise
    (folder.parent / OLD_FILE).unlink(missing_ok=True)
    return Kept(folder, base_files)


def load(folder: Path) -> State:
    """Raises UnusableError."""
    for attempt in range(_ATTEMPTS):
        before = identity(folder)
        if before is None:
            raise UnusableError("missing")
        try:
            return _load(folder, before)
        except FileNotFoundError:
            if identity(folder) == before or attempt == _ATTEMPTS - 1:  # else it was replaced while it was being read
                raise UnusableError("damaged (a file of it is gone)") from None
        except files.DamageError as error:
            raise UnusableError(f"damaged ({error})") from None
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
            raise UnusableError(f"damaged ({' '.join(str(error).split())[:200]})") from None
    raise AssertionError


def _manifest(state: State) -> dict[str, Any]:
    base = state.view.base
    found: dict[str, Any] = {
        "gallery": state.gallery,
        "dim": state.dim,
        "generation": state.generation,
        "plan": asdict(state.plan),
        "kind": base.kind,
        "codes": base.codes,
        "error": base.error,
        "recall": state.recall,
        "built_recall": state.built_recall,
    }
    if isinstance(base, Graph | Lists):
        found["effort"] = {"steps": base.effort.steps, "factor": base.effort.factor}
    return found


def _writers(state: State) -> dict[str, tuple[str, Callable[[Path], None]]]:
    base, faiss, truth = state.view.base, library(), state.truth
    writers: dict[str, tuple[str, Callable[[Path], None]]] = {}
    if not len(base.ids):
        return writers
    writers["ids"] = "bin", base.ids.astype("<i8").tofile
    if isinstance(base, Flat):
        vectors = base.vectors
        writers["vectors"] = "bin", lambda path: _write_array(path, vectors)
    if isinstance(base, Graph):
        graph = base.index
        writers["graph"] = "faiss", lambda path: faiss.write_index(graph, str(path))
    if isinstance(base, Lists):
        lists, codes = base.index, base.storage
        writers["lists"] = "faiss", lambda path: faiss.write_index(lists, str(path))
        writers["codes"] = "faiss", lambda path: faiss.write_index(codes, str(path))
    if truth is not None:
        writers["queries"] = "npz", lambda path: _write_truth(path, truth)
    return writers


def _write_array(path: Path, array: Any) -> None:
    with path.open("wb") as file:
        for start in range(0, len(array), 4096):
            file.write(np.ascontiguousarray(array[start : start + 4096], "<f4").data)


def _write_truth(path: Path, truth: Truth) -> None:
    np.savez(path, queries=truth.queries, own=truth.own, ids=truth.ids, scores=truth.scores)


def _write_changes(path: Path, view: View) -> None:
    live = view.recent_alive
    np.savez(path, dead=view.dead, ids=view.recent_ids[live], vectors=view.recent[live])


def _load(folder: Path, found: Any) -> State:
    manifest = files.read_manifest(folder)
    if manifest["format"] != files.FORMAT:
        raise UnusableError("of another version of clf")
    parts: dict[str, Written] = manifest["files"]
    files.check(folder, parts.values())
    dim = int(manifest["dim"])
    kept = Kept(folder, {role: file for role, file in parts.items() if role in _BASE_ROLES})
    base = _base(folder, manifest, parts, dim)
    truth = None
    if "queries" in parts:
        with np.load(folder / parts["queries"].name, allow_pickle=False) as held:
            truth = Truth(held["queries"], held["own"], held["ids"], held["scores"])
    with np.load(folder / parts["changes"].name, allow_pickle=False) as changes:
        view = View(base, changes["dead"], changes["ids"], changes["vectors"], NO_IDS, Lookup(base.ids))
    recall = manifest["recall"] and (float(manifest["recall"][0]), int(manifest["recall"][1]))
    return State(
        str(manifest["gallery"]), dim, int(manifest["generation"]), Plan(**manifest["plan"]), view, truth, recall,
        manifest["built_recall"], kept, found,
    )  # fmt: skip


def _base(folder: Path, manifest: dict[str, Any], parts: dict[str, Written], dim: int) -> Base:
    if "ids" not in parts:
        return Flat(NO_IDS, np.empty((0, dim), np.float32))
    faiss = library()
    path = {role: folder / file.name for role, file in parts.items()}
    ids = np.fromfile(path["ids"], "<i8").astype(np.int64, copy=False)
    if manifest["kind"] == "flat":
        return Flat(ids, np.memmap(path["vectors"], "<f4", "r", shape=(len(ids), dim)))
    effort = Effort.parse(manifest["effort"]["steps"], manifest["effort"]["factor"])
    codes, error = str(manifest["codes"]), max(float(manifest["error"]), ROUNDING)
    if manifest["kind"] == "hnsw":
        graph = read(faiss, path["graph"])
        _agree(graph, ids, dim)
        return Graph(ids, codes, error, graph, effort)
    lists = faiss.read_index(str(path["lists"]))  # FAISS copies these in any case
    storage = read(faiss, path["codes"])
    _agree(lists, ids, dim)
    _agree(storage, ids, dim)
    return Lists(ids, codes, error, lists, storage, effort)


def _agree(index: Any, ids: Any, dim: int) -> None:
    if (index.ntotal, index.d) != (len(ids), dim):
        raise ValueError("its files do not belong together")
