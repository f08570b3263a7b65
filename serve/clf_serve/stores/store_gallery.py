"""A gallery that is kept in a vector store: all that commands, server and page ask of one, by the store's few methods.

A store that can do better does so in a subclass, which its attribute ``gallery`` names.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from clf.errors import GalleryError
from clf_serve.gallery.facts import FieldFacts, GalleryFacts, Identity
from clf_serve.gallery.filters import Where
from clf_serve.gallery.following import Progress
from clf_serve.gallery.store import Entry, Hit, Item, Known, Moved, Thumbnail
from clf_serve.gallery.vectors import Ids, Vectors, unit
from clf_serve.index import TARGET, IndexInfo
from clf_serve.place import Place
from clf_serve.stores import changing
from clf_serve.stores.calls import Calls
from clf_serve.stores.changing import LAST
from clf_serve.stores.matching import field_facts, lets_through
from clf_serve.stores.searching import Query, search
from clf_serve.stores.vector_store import Row, State

T = TypeVar("T")
FORMAT = 1
"""Of the facts in a row."""
UNFINISHED = "unfinished"
"""The text about a gallery that names the command which still makes it."""
_PAGE = 5_000  # rows of a scan
_KEPT_BYTES = 64 << 20  # of the answers that are remembered of one generation


class StoreGallery:
    """Thread-safe. Each method does what that of :class:`clf_serve.gallery.Gallery` of the same name does, except:

    - any number of processes may write; a change is worked out anew when another came first.
    - ``batches`` is read page by page: what is written meanwhile may be missed or seen.
    - the store keeps its own index, so ``save_index`` does nothing, and ``optimize`` says so.

    Args:
        calls: to the store, which is closed with the gallery.
        store_name: as it is told to people: ``store 'mine' (clf-mine 1.0)``.
        model: whose vectors will be used with it.
        write: whether it may be changed.

    Raises:
        GalleryError: the store fails, or the gallery was made with another model or by a newer clf.
    """

    def __init__(self, calls: Calls, place: Place, store_name: str, model: Identity | None, *, write: bool) -> None:
        self.place = place
        self.calls = calls
        """For subclasses: ``calls.store`` is the store itself."""
        self._store_name = store_name
        self._write = write
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._kept_of = -1
        self._lock = threading.Lock()
        try:
            state = calls.state()
            self.model = self._identity(state)
            self.unfinished = state.about.get(UNFINISHED, "")
            calls.dim = self.model.dim
            if model is not None:
                self.require(model)
        except BaseException:
            self.close()
            raise

    def _identity(self, state: State) -> Identity:
        try:
            about = state.about
            dim, form = changing.number(state, "dim"), changing.number(state, "format")
            found = Identity(about["model"], about["model_sha256"], dim)
        except KeyError as error:
            raise GalleryError(f"the gallery {self.place} is damaged: {error.args[0]} is missing") from error
        if form > FORMAT:
            text = (
                f"the gallery {self.place} has format {form}, this clf reads up to {FORMAT}; use the clf that wrote it"
            )
            raise GalleryError(text)
        return found

    def require(self, model: Identity) -> None:
        if (model.sha256, model.dim) != (self.model.sha256, self.model.dim):
            raise GalleryError(
                f"the gallery {self.place} was made with model {self.model}, not with {model}; use that model, or "
                "index the images into a new gallery"
            )

    def is_wanted(self) -> bool:
        return False  # nobody waits: any number may write

    def close(self) -> None:
        self.calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.calls.state().images

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def generation(self) -> int:
        return self.calls.state().generation

    @property
    def model_path(self) -> Path:
        return Path(self.calls.state().about.get("model_path", ""))

    @property
    def written(self) -> str:
        return self.calls.state().about.get("written", "")

    @property
    def wishes(self) -> tuple[str | None, int | None, float | None]:
        return None, None, None

    @property
    def cache_note(self) -> str | None:
        return None

    def upsert(self, entries: Sequence[Entry], *, ids: Sequence[int] | None = None) -> list[int]:
        vectors = [unit(entry.vector, self.model.dim) for entry in entries]
        self._require_write()
        return changing.upsert(self.calls, entries, vectors, ids) if entries else []

    def delete(self, ids: Sequence[int]) -> int:
        self._require_write()
        return changing.delete(self.calls, ids)

    def relocate(self, moves: Sequence[Moved]) -> int:
        self._require_write()
        return changing.relocate(self.calls, [move for move in moves if _is_id(move.id)])

    def set_metadata(self, changes: Mapping[int, Mapping[str, Any] | None], *, merge: bool = True) -> int:
        self._require_write()
        known = {int(id_): change for id_, change in changes.items() if _is_id(id_)}
        return changing.set_metadata(self.calls, known, merge)

    def search(
        self,
        vector: Vectors,
        k: int,
        *,
        where: Where | None = None,
        but: Collection[int] = (),
        offset: int = 0,
        exact: bool = False,
    ) -> list[Hit]:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if offset < 0:
            raise ValueError(f"offset must be at least 0, got {offset}")
        query = Query(unit(vector, self.model.dim), k, where, but, offset, exact)
        return search(self.calls, query, self.ids)

    def within(
        self,
        vector: Vectors,
        score: float,
        *,
        limit: int = 1000,
        where: Where | None = None,
        but: Collection[int] = (),
    ) -> list[Hit]:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        if score != score:
            raise ValueError("score must be a number, got NaN")
        query = Query(unit(vector, self.model.dim), limit, where, but, exact=True, at_least=score)
        return search(self.calls, query, self.ids)

    def get(self, id_: int) -> Item | None:
        return next(iter(self.items([id_])), None)

    def items(self, ids: Sequence[int]) -> list[Item]:
        found = {id_: self.calls.item(row) for id_, row in self.calls.read(ids).items()}
        return [found[id_] for id_ in ids if id_ in found]

    def find(self, key: str) -> Item | None:
        if not _is_kept(key):
            return None
        for id_ in self.calls.find([key]).values():
            item = self.get(id_)
            return item if item is not None and item.key == key else None
        return None

    def vector(self, id_: int) -> Vectors | None:
        rows = self.calls.read([id_], vectors=True)
        return _plain(rows[id_].vector) if rows else None

    def vectors(self, ids: Sequence[int]) -> Vectors:
        rows = self.calls.read(ids, vectors=True)
        listed = [rows[int(id_)].vector for id_ in ids]
        return _plain(np.stack(listed)) if listed else np.empty((0, self.model.dim), np.float32)

    def thumbnail(self, id_: int) -> Thumbnail | None:
        for row in self.calls.read([id_], thumbnails=True).values():
            return Thumbnail(bytes(row.thumbnail), self.calls.item(row).sha256) if row.thumbnail else None
        return None

    def thumbnails(self, ids: Sequence[int]) -> list[bytes]:
        """In the order of ``ids``; empty where there is none."""
        rows = self.calls.read(ids, thumbnails=True)
        return [bytes(rows[int(id_)].thumbnail) if int(id_) in rows else b"" for id_ in ids]

    def page(self, *, after: int = 0, limit: int = 100, where: Where | None = None) -> list[Item]:
        if limit < 1 or after >= LAST:
            return []
        after, limit = max(after, 0), min(limit, LAST)
        if where is None:
            return [self.calls.item(row) for row in self.calls.scan(after, limit)]
        ids = self.ids(where)
        start = int(np.searchsorted(ids, after, "right"))
        return self.items(ids[start : start + limit].tolist())

    def count(self, where: Where | None = None) -> int:
        return len(self) if where is None else len(self.ids(where))

    def sample(self, n: int) -> list[Item]:
        if n < 1:
            return []
        ids = self.ids()
        return self.items((ids[np.arange(n) * len(ids) // n] if len(ids) > n else ids).tolist())

    def ids(self, where: Where | None = None) -> Ids:
        return self._remembered(f"ids {where or ''}", lambda: self._find_ids(where))

    def batches(self, rows: int = 10_000) -> Iterator[tuple[Ids, Vectors]]:
        after = 0
        while part := self.calls.scan(after, rows, vectors=True):
            after = part[-1].id
            yield np.array([row.id for row in part], np.int64), _plain(np.stack([row.vector for row in part]))

    def listing(self) -> dict[str, Known]:
        return {item.key: Known(item.id, item.size, item.mtime_ns, item.sha256) for item in self._all()}

    def fields(self) -> dict[str, FieldFacts]:
        return dict(self._remembered("fields", lambda: field_facts(self._all())))

    def facts(self) -> GalleryFacts:
        state = self.calls.state()
        return GalleryFacts(
            images=state.images,
            dim=self.model.dim,
            model=self.model,
            model_path=Path(state.about.get("model_path", "")),
            format=changing.number(state, "format"),
            generation=state.generation,
            bytes=state.bytes,
            index=self.index_info(state),
        )

    def index_info(self, state: State) -> IndexInfo:
        """What is known of how the store searches."""
        exact = not self.calls.store.approximate
        return IndexInfo(
            kind=self.place.scheme,
            parameters={},
            vectors=state.images,
            recent=0,
            tombstones=0,
            bytes=0,
            recall=1.0 if exact else None,
            queries=0,
            target=TARGET,
            generation=state.generation,
            exact=exact,
            why=f"searched by the {self._store_name}",
        )

    def load_index(self) -> None:
        """Asks the store, which shows whether it is there."""
        self.calls.state()

    def save_index(self, *, progress: Progress = lambda stage, done: None) -> None:
        """Nothing: the store keeps its own."""

    def optimize(
        self,
        kind: str | None = None,
        *,
        memory: int | None = None,
        recall: float | None = None,
        progress: Progress = lambda stage, done: None,
    ) -> IndexInfo:
        """Raises GalleryError."""
        raise GalleryError(
            f"the index of {self.place} is kept by the {self._store_name}, and not chosen here: leave out --index, "
            "--memory and --recall, which are of galleries in folders"
        )

    def _find_ids(self, where: Where | None) -> Ids:
        found = self.calls.ids(where)
        if found is None:
            passing = (row.id for row in self._rows() if where is None or lets_through(where, self.calls.item(row)))
            found = np.fromiter(passing, np.int64)
        found.setflags(write=False)
        return found

    def _rows(self) -> Iterator[Row]:
        after = 0
        while rows := self.calls.scan(after, _PAGE):
            after = rows[-1].id
            yield from rows

    def _all(self) -> Iterator[Item]:
        return map(self.calls.item, self._rows())

    def _remembered(self, name: str, ask: Callable[[], T]) -> T:
        """An answer for as long as nothing is written; never older than the generation it is kept for."""
        generation = self.generation
        with self._lock:
            if generation != self._kept_of:
                self._kept.clear()
                self._kept_of = generation
            if name in self._kept:
                self._kept.move_to_end(name)
                kept: T = self._kept[name]
                return kept
        found = ask()
        with self._lock:
            if generation == self._kept_of:
                self._kept[name] = found
                size = sum(_bytes(*each) for each in self._kept.items())
                while size > _KEPT_BYTES and len(self._kept) > 1:
                    size -= _bytes(*self._kept.popitem(last=False))
        return found

    def _require_write(self) -> None:
        if not self._write:
            raise ValueError("the gallery was opened for reading")


def _plain(vectors: Vectors) -> Vectors:
    return np.ascontiguousarray(vectors, "<f4")


def _bytes(name: str, answer: Any) -> int:
    """About, of an answer and its name, which may be a long filter."""
    return 1_000 + len(name) + (answer.nbytes if isinstance(answer, np.ndarray) else 0)


def _is_id(id_: int) -> bool:
    return 0 < id_ <= LAST


def _is_kept(key: str) -> bool:
    """Whether a gallery can hold such a key."""
    return "\0" not in key and not any("\ud800" <= letter <= "\udfff" for letter in key)
