"""Every change of a gallery as one write of a store: worked out from a state, and again when that has passed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from clf.errors import GalleryError
from clf_serve.gallery.metadata import EntryError, merged
from clf_serve.gallery.store import Entry, Moved
from clf_serve.gallery.vectors import Vectors
from clf_serve.gallery.writing import check_moves
from clf_serve.stores.calls import Calls
from clf_serve.stores.rows import described, moved, row_from
from clf_serve.stores.vector_store import ConflictError, Row, State

LAST = 2**63 - 1
"""The greatest id."""
_TRIES = 20  # while others write in between
_PAUSE = 0.01  # seconds, longer after each


class _Change(NamedTuple):
    put: Sequence[Row]
    delete: Collection[int]
    result: Any
    last_id: int | None = None


def upsert(calls: Calls, entries: Sequence[Entry], vectors: Sequence[Vectors], ids: Sequence[int] | None) -> list[int]:
    """Args: vectors: (D,) each, checked. ids: of the entries whose keys are new. Raises EntryError."""
    rows = [row_from(0, entry, vector) for entry, vector in zip(entries, vectors, strict=True)]

    def work(state: State) -> _Change:
        known = calls.find(list(dict.fromkeys(row.key for row in rows)))
        last = number(state, "last_id")
        put: dict[str, Row] = {}
        for i, row in enumerate(rows):
            if row.key not in known:
                known[row.key] = last + 1 if ids is None else int(ids[i])
                last = max(last, known[row.key])
            put[row.key] = replace(row, id=known[row.key])  # of a key given twice the last counts
        _check_ids(calls, put, ids)
        return _Change(list(put.values()), (), [known[row.key] for row in rows], last)

    found: list[int] = _carry_out(calls, work)
    return found


def delete(calls: Calls, ids: Sequence[int]) -> int:
    def work(state: State) -> _Change:
        there = calls.read(ids)
        return _Change((), there, len(there))

    return int(_carry_out(calls, work))


def relocate(calls: Calls, moves: Sequence[Moved]) -> int:
    """Two files may have changed places: the rows are written together. Raises EntryError."""
    check_moves(moves)

    def work(state: State) -> _Change:
        rows = calls.read([move.id for move in moves], vectors=True, thumbnails=True)
        put = [moved(rows[move.id], calls.item(rows[move.id]), move) for move in moves if move.id in rows]
        taken = set(calls.find([row.key for row in put]).values()) - rows.keys() if put else set()
        return _Change(put, taken, len(put))

    return int(_carry_out(calls, work))


def set_metadata(calls: Calls, changes: Mapping[int, Mapping[str, Any] | None], merge: bool) -> int:
    """Raises EntryError."""
    for change in changes.values():
        if change is not None and not isinstance(change, Mapping):
            raise EntryError(f"metadata must be an object of names and values, not {type(change).__name__}")

    def work(state: State) -> _Change:
        rows = calls.read(list(changes), vectors=True, thumbnails=True)
        put = []
        for id_, row in rows.items():
            item, change = calls.item(row), changes[id_]
            put.append(
                described(row, item, {} if change is None else merged(item.metadata, change) if merge else change)
            )
        return _Change(put, (), len(put))

    return int(_carry_out(calls, work))


def tell(calls: Calls, about: Mapping[str, str]) -> None:
    """Changes what is remembered of the gallery, where it differs."""
    for attempt in range(_TRIES):
        state = calls.state()
        if all(state.about.get(name) == text for name, text in about.items()):
            return
        if _written(calls, state, (), (), about, attempt):
            return


def number(state: State, name: str) -> int:
    """A number that every gallery has. Raises GalleryError."""
    text = state.about.get(name, "")
    if not (isinstance(text, str) and text.isdecimal() and text.isascii() and len(text) < 20):
        raise GalleryError(f"the gallery is damaged: {name} is no number")
    return int(text)


def _carry_out(calls: Calls, work: Callable[[State], _Change]) -> Any:
    """The result of what ``work`` makes of the present state, once that is written."""
    for attempt in range(_TRIES):
        state = calls.state()
        change = work(state)
        if not change.put and not change.delete:
            return change.result
        about = {"written": datetime.now(UTC).isoformat(timespec="seconds")}
        if change.last_id is not None:
            about["last_id"] = str(change.last_id)
        if _written(calls, state, change.put, sorted(change.delete), about, attempt):
            return change.result
    raise AssertionError


def _written(
    calls: Calls, state: State, put: Sequence[Row], gone: Sequence[int], about: Mapping[str, str], attempt: int
) -> bool:
    """Whether the state was still the present one. Raises GalleryError at the last attempt."""
    try:
        calls.write(put, gone, about, state.generation)
    except ConflictError as error:
        if attempt + 1 < _TRIES:
            time.sleep(_PAUSE * (attempt + 1))
            return False
        raise GalleryError(f"others write to the gallery {calls.place} all the time; try again later") from error
    return True


def _check_ids(calls: Calls, put: Mapping[str, Row], ids: Sequence[int] | None) -> None:
    """Raises GalleryError where a new entry was given an id that another one has, or there is none left."""
    if wrong := [row.id for row in put.values() if not 0 < row.id <= LAST]:
        raise GalleryError(f"{wrong[0]} is no id of an image")
    if ids is None:
        return
    there = calls.read([row.id for row in put.values()])
    for row in put.values():
        if (other := there.get(row.id)) is not None and other.key != row.key:
            raise GalleryError(f"the id {row.id} is that of another image, {other.key[:80]}")
    if len({row.id for row in put.values()}) < len(put):
        raise GalleryError("two new images were given the same id")
