"""What the checks of a store share: fresh galleries, rows to put in them, and how a check comes out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from clf.checks import Failed
from clf_serve.gallery.facts import Identity
from clf_serve.gallery.store import Entry
from clf_serve.place import Place
from clf_serve.stores.opening import create_in, open_in
from clf_serve.stores.rows import loads, row_from, same
from clf_serve.stores.store_gallery import StoreGallery
from clf_serve.stores.vector_store import Ids, Row, State, Vector, VectorStore

Url: TypeAlias = Callable[[Path, str], str]
"""The URL of a gallery that is not there yet, of an empty folder and a name that differs each time."""

DIM = 8
_PATIENCE = 120.0  # seconds that threads may take together
MODEL = Identity("tiny", "ab" * 32, DIM)
ABOUT = {"model": "naïve ☃ \N{GRINNING FACE}", "dim": str(DIM), "empty": "", "quoted": "a'b\"c\\d%", "uuid": "one"}


class Bench:
    """One store under test. Handles that it opens are closed by :meth:`close`.

    Args:
        folder: empty.
    """

    def __init__(self, store: type[VectorStore], name: str, url: Url, folder: Path) -> None:
        self.store = store
        self.name = name
        self._url = url
        self._folder = folder
        self._numbers = count(1)
        self._open: list[VectorStore | StoreGallery] = []
        self._urls: list[str] = []

    def url(self) -> str:
        """Of a gallery that is not there."""
        self._urls.append(self._url(self._folder, f"g{next(self._numbers)}"))
        return self._urls[-1]

    def open(self, url: str, *, write: bool = False, create: Mapping[str, str] | None = None) -> VectorStore:
        handle = self.store.open(Place.of(url).url, write=write, create=create)
        if not isinstance(handle, VectorStore):
            raise Failed(f"open gave a {type(handle).__name__} and no {self.store.__name__}")
        self._open.append(handle)
        return handle

    def new(self, rows: Sequence[Row] = ()) -> tuple[str, VectorStore]:
        """The URL of a new gallery of these rows, and a handle to write to it."""
        url = self.url()
        handle = self.open(url, write=True, create=ABOUT)
        if rows:
            handle.write(rows, [], {}, at=0)
        return url, handle

    def gallery(self, url: str, *, create: bool = False, model: Identity = MODEL) -> StoreGallery:
        """As commands and server use it."""
        place = Place.of(url)
        if create:
            gallery = create_in(self.store, self.name, place, model, self._folder)
        else:
            gallery = open_in(self.store, self.name, place, model)
        self._open.append(gallery)
        return gallery

    def shut(self, handle: VectorStore) -> None:
        """Closes one that :meth:`open` gave, whatever that raises; no handle is closed twice."""
        self._open = [each for each in self._open if each is not handle]
        handle.close()

    def close(self) -> None:
        while self._open:
            with suppress(Exception):
                self._open.pop().close()

    def hide(self, text: str) -> str:
        """What is said of the store, without the passwords of the URLs."""
        for url in self._urls:
            text = Place.of(url).hide(text)
        return text


def run_all(works: Sequence[Callable[[], None]]) -> None:
    """At the same time, in threads that hold up nobody's end. Raises Failed: one does not come back."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    end = time.monotonic() + _PATIENCE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if stuck := sum(thread.is_alive() for thread in threads):
        raise Failed(f"{stuck} of {len(threads)} threads that used the store had not come back after {_PATIENCE:g} s")


def units(n: int, seed: int = 0, dim: int = DIM) -> Vector:
    """(n, dim), of unit length."""
    vectors = np.random.default_rng(seed).normal(size=(n, dim))
    rows: Vector = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return rows


def rows(n: int, first: int = 1, seed: int = 0) -> list[Row]:
    """n rows with ids from ``first`` on."""
    return [
        row(i, f"/photos/{i}.jpg", {"n": i, "label": "cat"}, vector, b"\xff\xd8 jpeg %d" % i)
        for i, vector in enumerate(units(n, seed + first), first)
    ]


def row(id_: int, key: str, metadata: Mapping[str, Any], vector: Vector, thumbnail: bytes = b"") -> Row:
    """As a gallery writes it. Args: vector: (D,)."""
    uri = f"photos/{id_}.jpg"
    about = Entry(key, uri, vector, thumbnail, 10_000 + id_ % 99, 10**18, "ab" * 32, 640, 480, metadata, f"f{id_ % 3}")
    return row_from(id_, about, vector)


def by_id(found: Sequence[Row], call: str) -> dict[int, Row]:
    """Raises Failed: a row comes twice, or is none."""
    if strange := [row for row in found if not isinstance(row, Row)]:
        raise Failed(f"{call} gave a {type(strange[0]).__name__} for a Row")
    table = {row.id: row for row in found}
    if len(table) < len(found):
        raise Failed(f"{call} gave {len(found)} rows of {len(table)} ids: one comes twice")
    return table


def differs(wanted: Row, found: Row, *, large: bool = True) -> str:
    """What is not as it was written; empty when all is. Args: large: compare vector and thumbnail too."""
    if type(found.id) is not int or not isinstance(found.facts, str):
        return f"row {wanted.id} has an id of type {type(found.id).__name__}, facts of {type(found.facts).__name__}"
    if (found.id, found.key) != (wanted.id, wanted.key):
        return f"the key of row {wanted.id} came back as {found.key[:80]!r} and was {wanted.key[:80]!r}"
    try:
        equal = same(loads(found.facts), loads(wanted.facts))
    except (TypeError, ValueError):
        return f"the facts of row {wanted.id} came back as {found.facts!r:.80} and not as JSON text"
    if not equal:
        return f"the facts of row {wanted.id} came back as {found.facts[:120]} and were {wanted.facts[:120]}"
    if large and (found.vector.dtype != np.float32 or not np.array_equal(found.vector, wanted.vector)):
        return (
            f"the vector of row {wanted.id} came back with other numbers ({found.vector.dtype}, {found.vector.shape})"
        )
    if large and bytes(found.thumbnail) != wanted.thumbnail:
        return f"the thumbnail of row {wanted.id} ({len(wanted.thumbnail)} bytes) came back as {len(found.thumbnail)}"
    return ""


def expect(handle: VectorStore, wanted: Sequence[Row], moment: str) -> None:
    """Raises Failed unless the store holds exactly these rows, by every way to read them.

    Args:
        moment: when, for the message.
    """
    table = {row.id: row for row in wanted}
    state = handle.state()
    if not isinstance(state, State) or state.images != len(wanted):
        raise Failed(
            f"{moment}: state speaks of {getattr(state, 'images', state)!r} images, and there are {len(wanted)}"
        )
    ways = {
        "read": handle.read(list(table), vectors=True, thumbnails=True) if table else [],
        "scan": handle.scan(0, len(wanted) + 10, vectors=True, thumbnails=True),
    }
    for call, found in ways.items():
        there = by_id(found, call)
        if there.keys() != table.keys():
            odd = sorted(there.keys() ^ table.keys())[:5]
            raise Failed(f"{moment}: {call} gave {len(there)} rows of {len(table)}; ids that differ: {odd}")
        for id_, row in table.items():
            if difference := differs(row, there[id_]):
                raise Failed(f"{moment}: {difference} ({call})")
    keys = {row.key: row.id for row in wanted}
    if (found_keys := dict(handle.find(list(keys)))) != keys:
        raise Failed(f"{moment}: find gave {len(found_keys)} of {len(keys)} keys, or other ids")


def nearest(
    handle: VectorStore, wanted: Sequence[Row], query: Vector, k: int, allowed: Ids | None = None, *, exact: bool = True
) -> None:
    """Raises Failed unless search gives the k best of these rows, as comparing all of them does."""
    found = [int(id_) for id_ in handle.search(query, k, allowed, exact=exact)]
    inside = None if allowed is None else set(allowed.tolist())
    scores = {row.id: float(row.vector @ query) for row in wanted if inside is None or row.id in inside}
    what = f"search for {k} of {len(scores)} rows" + (" that are allowed" if allowed is not None else "")
    if len(set(found)) < len(found) or len(found) > k:
        raise Failed(f"{what} gave {len(found)} ids, {len(set(found))} different ones")
    if strange := set(found) - scores.keys():
        raise Failed(f"{what} gave the id {min(strange)}, which is not among them")
    if not exact:
        return
    if len(found) != min(k, len(scores)):
        raise Failed(f"{what} gave {len(found)}")
    best = sorted(scores.values(), reverse=True)[: len(found)]
    if found and min(scores[id_] for id_ in found) < best[-1] - 1e-5:
        missed = len(set(sorted(scores, key=lambda id_: -scores[id_])[: len(found)]) - set(found))
        raise Failed(f"{what} missed {missed} of the best, with exact=True")


@contextmanager
def refusal(kind: type[Exception], what: str) -> Iterator[None]:
    """Raises Failed unless the block raises ``kind``."""
    try:
        yield
    except kind:
        return
    except Exception as error:
        raise Failed(f"{what} raised {type(error).__name__} ({error}), and must raise {kind.__name__}") from error
    raise Failed(f"{what} raised nothing, and must raise {kind.__name__}")
