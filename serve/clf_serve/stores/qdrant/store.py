"""The store ``qdrant://``: galleries in collections of Qdrant."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from qdrant_client import models

from clf.errors import GalleryError
from clf_serve.gallery.filters import Where
from clf_serve.stores.qdrant.address import Address
from clf_serve.stores.qdrant.ledger import FORMAT, Ledger
from clf_serve.stores.qdrant.marks import condition
from clf_serve.stores.qdrant.points import VECTOR, fields, first_after, row_id, row_of
from clf_serve.stores.qdrant.server import Server, connect
from clf_serve.stores.qdrant.writing import Writing
from clf_serve.stores.vector_store import Ids, NoGalleryError, Row, State, Vector, VectorStore

T = TypeVar("T")
SNAPSHOT_SECONDS = 300.0
"""What is read within so long of the ledger is read of one state: what ended since is kept for longer."""
_TRIES = 3
_PAGE = 1_000  # points with their payload, of one request
_ID_PAGE = 20_000  # without
_MOST_ALLOWED = 20_000  # ids in the filter of one search
_MOST_KEYS = 1_000
_OWN = {VECTOR}


class QdrantStore(VectorStore):
    """A handle. Keeps nothing of the gallery: each call asks the server."""

    approximate: ClassVar[bool] = True
    concurrent: ClassVar[bool] = True

    def __init__(self, server: Server, address: Address) -> None:
        self._server = server
        self._address = address
        self._writing = Writing(server, self._ledger)

    @classmethod
    def open(cls, url: str, *, write: bool, create: Mapping[str, str] | None = None) -> Self:
        address = Address.of(url)
        server = cls.connect(address)
        try:
            server.check_version()
            store = cls(server, address)
            store._require_gallery(create)
        except BaseException:
            server.close()
            raise
        return store

    @classmethod
    def connect(cls, address: Address) -> Server:
        return connect(address)

    def _require_gallery(self, create: Mapping[str, str] | None) -> None:
        """Raises NoGalleryError."""
        info = self._server.collection()
        if info is None and create is not None:
            self._server.create_collection(_dim(create))
            info = self._server.collection()
        if info is None:
            raise NoGalleryError
        dim = self._check(info)
        if self._server.ledger() is None:
            self._begin(info, dim, create)
        about = self._ledger().about
        if about.get("dim") != str(dim):
            raise self._strange(f"has vectors of {dim} numbers, and its facts say {about.get('dim')}")

    def _check(self, info: models.CollectionInfo) -> int:
        """The dimension. Raises GalleryError: the collection is not of clf, or its replicas are not waited for."""
        params = info.config.params
        vectors = params.vectors if isinstance(params.vectors, dict) else {}
        if vectors.keys() != _OWN or vectors[VECTOR].distance != models.Distance.DOT:
            raise self._strange("was not made by clf, which leaves it as it is; name another collection")
        replicas, waited = params.replication_factor or 1, params.write_consistency_factor or 1
        if replicas > 1 and waited < replicas:
            raise self._strange(
                f"has {replicas} replicas, and a write is told as done when {waited} have it: a reader could miss it. "
                f"Set its write_consistency_factor to {replicas}"
            )
        return int(vectors[VECTOR].size)

    def _begin(self, info: models.CollectionInfo, dim: int, create: Mapping[str, str] | None) -> None:
        """Makes an empty gallery in an empty collection. Raises NoGalleryError."""
        if self._server.count(models.Filter()):
            if self._server.ledger() is not None:
                return  # somebody else has just begun it
            raise self._strange("holds points and no gallery; name another collection")
        if create is None:
            raise NoGalleryError
        if _dim(create) != dim:
            raise self._strange(f"was begun for vectors of {dim} numbers, and these have {_dim(create)}; delete it")
        self._server.create_indexes()
        self._server.insert_ledger(Ledger(0, 0, create).payload())

    def _strange(self, what: str) -> GalleryError:
        return GalleryError(f"the collection {self._address.collection} at {self._address.server} {what}")

    def _ledger(self) -> Ledger:
        payload = self._server.ledger()
        if payload is None:
            raise self._strange("holds no gallery any more")
        form = payload.get("format", 0)
        if isinstance(form, int) and form > FORMAT:
            raise self._strange(f"has format {form}, this clf reads up to {FORMAT}; use the clf that wrote it")
        try:
            return Ledger.of(payload)
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange(f"was not made by clf, or is damaged ({error}); name another collection") from error

    def state(self) -> State:
        ledger = self._ledger()
        return State(ledger.generation, ledger.images, ledger.about)

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        self._writing.write(put, delete, about, at)

    def find(self, keys: Sequence[str]) -> Mapping[str, int]:
        return self._of_one_state(lambda ledger: self._find(ledger, keys)) if keys else {}

    def read(self, ids: Sequence[int], *, vectors: bool, thumbnails: bool) -> Sequence[Row]:
        among = models.FieldCondition(key="id", match=models.MatchAny(any=list(map(int, ids))))
        chosen, wanted = len(ids), fields(thumbnails=thumbnails)
        return (
            self._of_one_state(lambda now: self._rows(now.visible(among), chosen, None, wanted, vectors)) if ids else []
        )

    def scan(self, after: int, limit: int, *, vectors: bool, thumbnails: bool) -> Sequence[Row]:
        start, wanted = first_after(after), fields(thumbnails=thumbnails)
        return self._of_one_state(lambda now: self._rows(now.visible(), limit, start, wanted, vectors))

    def search(self, vector: Vector, k: int, allowed: Ids | None, *, exact: bool) -> Sequence[int]:
        numbers = np.asarray(vector, np.float32).tolist()
        parts = [None] if allowed is None else _parts(allowed.tolist(), _MOST_ALLOWED)

        def ask(ledger: Ledger) -> list[int]:
            found: list[tuple[str, float]] = []
            for part in parts:
                only = [] if part is None else [models.FieldCondition(key="id", match=models.MatchAny(any=part))]
                found += self._server.query(numbers, ledger.visible(*only), k, exact=exact)
            best = sorted(found, key=lambda pair: -pair[1])[:k]
            return [row_id(point) for point, _ in best]

        return self._of_one_state(ask) if parts else []

    def ids(self, where: Where | None) -> Ids | None:
        only = None if where is None else condition(where.node)
        if where is not None and only is None:
            return None

        def ask(ledger: Ledger) -> Ids:
            every, start, found = ledger.visible(*([] if only is None else [only])), None, list[int]()
            while True:
                points, start = self._server.scroll(every, _ID_PAGE, start=start, payload=[], vectors=False)
                found += (row_id(point.id) for point in points)
                if start is None:
                    return np.array(found, np.int64)

        return self._of_one_state(ask)

    def close(self) -> None:
        self._server.close()

    def _find(self, ledger: Ledger, keys: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for part in _parts(list(keys), _MOST_KEYS):
            among = models.FieldCondition(key="key", match=models.MatchAny(any=part))
            points = self._points(ledger.visible(among), len(part), None, ["key"], vectors=False)
            found |= {point.payload["key"]: row_id(point.id) for point in points}
        return found

    def _rows(
        self, where: models.Filter, limit: int, start: str | None, payload: list[str], vectors: bool
    ) -> list[Row]:
        return [row_of(point) for point in self._points(where, limit, start, payload, vectors=vectors)]

    def _points(
        self, where: models.Filter, limit: int, start: str | None, payload: list[str], *, vectors: bool
    ) -> list[Any]:
        """Up to ``limit``, by rising id."""
        found: list[Any] = []
        while len(found) < limit:
            size = min(_PAGE, limit - len(found))
            points, start = self._server.scroll(where, size, start=start, payload=payload, vectors=vectors)
            found += points
            if start is None:
                break
        return found

    def _of_one_state(self, ask: Callable[[Ledger], T]) -> T:
        """What the present state answers. Raises GalleryError: it takes too long."""
        for _ in range(_TRIES):
            start = time.monotonic()
            found = ask(self._ledger())
            if time.monotonic() - start < SNAPSHOT_SECONDS:
                return found
        raise GalleryError(
            f"the Qdrant at {self._address.server} takes more than {SNAPSHOT_SECONDS:g} s for what belongs together"
        )


def _dim(about: Mapping[str, str]) -> int:
    """Raises GalleryError."""
    text = about.get("dim", "")
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 7):
        raise GalleryError(f"a gallery in Qdrant needs the dimension of its vectors, and was given {text!r}")
    return int(text)


def _parts(values: list[T], size: int) -> list[list[T]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
