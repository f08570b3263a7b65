"""The calls to a store: one at a time where it wants that, and whatever goes wrong in one is told by name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import numpy as np

from clf.errors import ClfError, GalleryError
from clf_serve.gallery.filters import Where
from clf_serve.gallery.store import Item
from clf_serve.gallery.vectors import is_unit
from clf_serve.installed import quiet, reason_of
from clf_serve.place import Place
from clf_serve.stores.rows import item_of
from clf_serve.stores.vector_store import ConflictError, Ids, NoGalleryError, Row, State, Vector, VectorStore

MOST_READ = 1_000
"""Rows that are read at a time."""
_PATIENCE = 30.0  # seconds that calls may take to come back when the gallery is closed
_EXPECTED: dict[str, type[ClfError]] = {"open": NoGalleryError, "write": ConflictError}
"""What a call may raise that is no failure."""
_log = logging.getLogger(__name__)


class Calls:
    """What :class:`VectorStore` does, with the answers checked. Thread-safe.

    All methods raise GalleryError when the store fails, or gives what it must not.

    Args:
        name: of the store, as it is told to people.
        dim: of the vectors; known once the gallery's facts have been read.
    """

    def __init__(self, store: VectorStore, name: str, place: Place) -> None:
        self.store = store
        self.place = place
        self.dim = 0
        self._name = name
        self._first: State | None = None  # that was seen
        self._turn = threading.Lock()  # where calls take turns
        self._gate = threading.Condition()
        self._inside = 0  # calls that have begun
        self._closed = False

    def close(self) -> None:
        """Calls that have begun are brought to their end. What goes wrong is logged: all that was written is kept."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            if not self._gate.wait_for(lambda: not self._inside, _PATIENCE):
                _log.warning("%s has a call that does not come back; it is not closed", self.place)
                return
        try:
            with told(self._name, self.place, "close"):
                self.store.close()
        except ClfError as error:
            _log.warning("%s", error)

    def state(self) -> State:
        with self._calling("state"):
            state = self.store.state()
            if not _is_state(state):
                raise self._wrong("state", f"gave {state!r}"[:200])
            self._first = self._first or state
            if state.about.get("uuid") != self._first.about.get("uuid"):
                raise GalleryError(f"another gallery is at {self.place} than the one that was opened; open it again")
        return state

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], at: int) -> None:
        with self._calling("write"):
            self.store.write(put, delete, about, at=at)

    def find(self, keys: Sequence[str]) -> dict[str, int]:
        with self._calling("find"):
            found = {key: int(id_) for key, id_ in dict(self.store.find(keys)).items()}
            if strange := found.keys() - set(keys):
                raise self._wrong("find", f"gave the key {next(iter(strange))!r:.80}, which was not asked for")
        return found

    def read(self, ids: Sequence[int], *, vectors: bool = False, thumbnails: bool = False) -> dict[int, Row]:
        """By id; those that there are."""
        wanted = [id_ for id_ in dict.fromkeys(map(int, ids)) if 0 < id_ < 2**63]
        found: dict[int, Row] = {}
        for start in range(0, len(wanted), MOST_READ):
            part = wanted[start : start + MOST_READ]
            with self._calling("read"):
                rows = list(self.store.read(part, vectors=vectors, thumbnails=thumbnails))
                self._check("read", rows, vectors, thumbnails)
                known = {row.id: row for row in rows}
                if len(known) < len(rows) or known.keys() - set(part):
                    raise self._wrong("read", "gave a row twice, or one that was not asked for")
            found |= known
        return found

    def scan(self, after: int, limit: int, *, vectors: bool = False, thumbnails: bool = False) -> list[Row]:
        with self._calling("scan"):
            rows = list(self.store.scan(after, limit, vectors=vectors, thumbnails=thumbnails))
            self._check("scan", rows, vectors, thumbnails)
            ids = [after, *(row.id for row in rows)]
            if len(rows) > limit or any(one >= other for one, other in pairwise(ids)):
                raise self._wrong("scan", f"gave {len(rows)} rows after {after} with ids that do not rise, or too many")
        return rows

    def search(self, vector: Vector, k: int, allowed: Ids | None, *, exact: bool) -> list[int]:
        with self._calling("search"):
            ids = [int(id_) for id_ in self.store.search(vector, k, allowed, exact=exact)]
            if len(set(ids)) < len(ids):
                raise self._wrong("search", "gave an id twice")
            if allowed is not None and len(np.setdiff1d(np.array(ids, np.int64), allowed)):
                raise self._wrong("search", "gave an id that was not allowed")
        return ids

    def ids(self, where: Where | None) -> Ids | None:
        with self._calling("ids"):
            found = self.store.ids(where)
            return None if found is None else np.unique(np.asarray(found, np.int64))

    def item(self, row: Row) -> Item:
        """What a row holds."""
        try:
            return item_of(row)
        except ValueError as error:
            raise self._wrong("read", str(error)) from error

    def _check(self, call: str, rows: list[Row], vectors: bool, thumbnails: bool) -> None:
        if strange := [row for row in rows if not isinstance(row, Row)]:
            raise self._wrong(call, f"gave a {type(strange[0]).__name__} for a Row")
        if odd := [row.id for row in rows if type(row.id) is not int]:
            raise self._wrong(call, f"gave an id that is a {type(odd[0]).__name__} and no int")
        pictures = [row.thumbnail for row in rows] if thumbnails else []
        if unreadable := [each for each in pictures if not isinstance(each, bytes | bytearray | memoryview)]:
            raise self._wrong(call, f"gave a thumbnail that is a {type(unreadable[0]).__name__} and no bytes")
        if vectors and rows:
            kinds = {(np.shape(row.vector), getattr(row.vector, "dtype", None)) for row in rows}
            if kinds != {((self.dim,), np.dtype(np.float32))} or not is_unit(np.stack([r.vector for r in rows])).all():
                raise self._wrong(call, f"gave a vector that is not {self.dim} float32 numbers of unit length")

    @contextmanager
    def _calling(self, call: str) -> Iterator[None]:
        with self._gate:
            if self._closed:
                raise GalleryError(f"the gallery {self.place} was closed")
            self._inside += 1
        try:
            with nullcontext() if self.store.concurrent else self._turn, told(self._name, self.place, call):
                yield
        finally:
            with self._gate:
                self._inside -= 1
                self._gate.notify_all()

    def _wrong(self, call: str, what: str) -> GalleryError:
        return _failure(self._name, self.place, call, what)


@contextmanager
def told(name: str, place: Place, call: str) -> Iterator[None]:
    """Whatever a store raises becomes a GalleryError that names the store and the call; its prints go to stderr."""
    try:
        with quiet():
            yield
    except KeyboardInterrupt:
        raise
    except ClfError as error:
        if isinstance(error, _EXPECTED.get(call, ())):
            raise
        if not str(error).strip() or isinstance(error, tuple(_EXPECTED.values())):
            raise _failure(name, place, call, reason_of(error)) from error
        if (hidden := place.hide(str(error))) != str(error):
            error.args = (hidden,)
        raise
    except BaseException as error:
        raise _failure(name, place, call, reason_of(error)) from error


def _is_state(state: State) -> bool:
    """Whether it is one, whatever else a store may give."""
    if not isinstance(state, State) or not isinstance(state.about, Mapping):
        return False
    numbers = (state.generation, state.images, state.bytes)
    texts = [text for pair in state.about.items() for text in pair]
    return all(type(n) is int and n >= 0 for n in numbers) and all(isinstance(text, str) for text in texts)


def _failure(name: str, place: Place, call: str, what: str) -> GalleryError:
    return GalleryError(
        f"the {name} failed in {call}: {place.hide(what).rstrip('.')}. The gallery is {place}; see whether that can be "
        "reached and has room, else tell the authors of the store"
    )
