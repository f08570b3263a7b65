"""Two galleries row by row, and one brought to the state of the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np

from clf.errors import GalleryError
from clf_serve.copying.drafts import Draft
from clf_serve.copying.searches import Nearest
from clf_serve.copying.sides import ROWS, Side
from clf_serve.stores.rows import item_of, same_facts
from clf_serve.stores.vector_store import Row, Vector

SHOWN = 10
"""Differences that are told."""

Progress = Callable[[int], None]
"""Called with the number of rows done since the last call."""
Part = Literal["missing", "extra", "key", "facts", "vector", "thumbnail", "about"]


@dataclass(frozen=True)
class Difference:
    """``missing`` is what only the first gallery has, ``extra`` what only the second has."""

    id: int
    """Of the row; 0 for ``about``, what belongs to none."""
    part: Part
    text: str


@dataclass
class Compared:
    """What was compared, and what differs."""

    rows: int = 0
    """That both have."""
    thumbnails: int = 0
    """That are not empty in the first gallery."""
    bytes: int = 0
    """Of vectors and thumbnails of the first."""
    different: int = 0
    """Rows that differ, or are in one only."""
    first: list[Difference] = field(default_factory=list)

    def equal(self, row: Row, other: Row | None) -> bool:
        """Counts and notes a row of the first gallery, and that of the same id in the second."""
        if other is None:
            self.note(Difference(row.id, "missing", f"image {row.id} ({row.key[:80]}) is only in the first"))
            return False
        self.rows += 1
        self.thumbnails += bool(len(row.thumbnail))
        self.bytes += row.vector.nbytes + len(row.thumbnail)
        if (found := difference(row, other)) is not None:
            self.note(found)
        return found is None

    def extra(self, ids: Sequence[int]) -> None:
        for id_ in ids:
            self.note(Difference(id_, "extra", f"image {id_} is only in the second"))

    def note(self, found: Difference) -> None:
        self.different += 1
        if len(self.first) < SHOWN:
            self.first.append(found)


def difference(row: Row, other: Row) -> Difference | None:
    """Of two rows of one id: the first thing in which they differ. Raises GalleryError for damaged facts."""
    if row.key != other.key:
        return Difference(row.id, "key", f"the key of image {row.id} is {row.key[:80]!r} and {other.key[:80]!r}")
    try:
        if not same_facts(row, other):
            return Difference(row.id, "facts", f"of image {row.id} {_fact(row, other)}")
    except ValueError as error:
        raise GalleryError(f"the gallery is damaged: {error}") from error
    if row.vector.tobytes() != other.vector.tobytes():
        return Difference(row.id, "vector", f"the vectors of image {row.id} ({_numbers(row.vector, other.vector)})")
    if bytes(row.thumbnail) != bytes(other.thumbnail):
        sizes = f"{len(row.thumbnail)} and {len(other.thumbnail)} bytes"
        return Difference(row.id, "thumbnail", f"the thumbnail of image {row.id} ({sizes})")
    return None


def _numbers(one: Vector, other: Vector) -> str:
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} numbers"
    differ = one.view(np.uint32) != other.view(np.uint32)
    return f"{int(differ.sum())} of {len(one)} numbers"


def _fact(row: Row, other: Row) -> str:
    a, b = item_of(row), item_of(other)
    for name in ("uri", "sha256", "width", "height", "size", "mtime_ns", "folder"):
        if (one := getattr(a, name)) != (two := getattr(b, name)):
            return f"{name} is {one!r:.80} and {two!r:.80}"
    names = sorted(n for n in {*a.metadata, *b.metadata} if a.metadata.get(n, ...) != b.metadata.get(n, ...))
    return f"metadata differ ({', '.join(names)[:80] or 'in the types of values'})"


def compare(a: Side, b: Side, nearest: Nearest, progress: Progress) -> Compared:
    """Reads both from beginning to end; all vectors of ``a`` go to ``nearest``. Raises GalleryError."""
    found = Compared()
    with closing(Window(b.rows())) as window:
        for part in a.rows():
            there, extra = window.until(part)
            _add(nearest, part)
            for row in part:
                found.equal(row, there.get(row.id))
            found.extra(extra)
            progress(len(part))
        for rest in window.rest():
            found.extra(rest)
    return found


def bring(source: Side, draft: Draft, *, fresh: bool, nearest: Nearest, progress: Progress) -> Compared:
    """Compares, and writes to ``draft`` what differs.

    Args:
        fresh: nothing is in ``draft``, which need not be read.

    Raises:
        GalleryError: one of the two fails; EntryError: a row that cannot be kept there.
    """
    found, generation = Compared(), source.generation
    with closing(Window(iter(()) if fresh else _parts(draft))) as window:
        for part in source.rows():
            there, extra = window.until(part)
            _add(nearest, part)
            put = [row for row in part if not found.equal(row, there.get(row.id))]
            found.extra(extra)
            gone = {*extra, *(row.id for row in put if row.id in there)}
            if put:
                others = _others(source, draft, put, generation)
                window.forget(others)
                gone |= others
            if put or gone:
                _write(draft, put, gone)
            progress(len(part))
        for rest in window.rest():
            found.extra(rest)
            _write(draft, [], set(rest))
    return found


def _others(source: Side, draft: Draft, put: Sequence[Row], generation: int) -> set[int]:
    """The rows of the draft that have keys of ``put``, and get others when their turn comes.

    Raises GalleryError: one had its turn, and nobody has written to the source since.
    """
    rows = {row.id for row in put}
    held = {key: id_ for key, id_ in draft.holders([row.key for row in put]).items() if id_ not in rows}
    keys: dict[str, int] = {}
    done = [key for key, id_ in held.items() if id_ < put[0].id]
    done += [row.key for row in put if keys.setdefault(row.key, row.id) != row.id]
    if done and source.generation == generation:
        raise GalleryError(f"two images of {source.place} have the key {done[0][:80]!r}, which only one can have")
    return set(held.values())


def _parts(draft: Draft) -> Iterator[list[Row]]:
    with draft.side() as side:
        yield from side.rows()


def _write(draft: Draft, put: Sequence[Row], gone: set[int]) -> None:
    ids = iter(sorted(gone))
    while len(part := list(islice(ids, ROWS))) == ROWS:
        draft.write([], part)
    draft.write(put, part)


def _add(nearest: Nearest, part: Sequence[Row]) -> None:
    nearest.add(np.array([row.id for row in part], np.int64), np.stack([row.vector for row in part]))


class Window:
    """The rows of the second gallery, read as far as those of the first."""

    def __init__(self, parts: Iterator[list[Row]]) -> None:
        self._parts = parts
        self._ahead: list[Row] = []
        self._forgotten: set[int] = set()

    def close(self) -> None:
        close = getattr(self._parts, "close", None)
        if close is not None:
            close()

    def until(self, part: Sequence[Row]) -> tuple[dict[int, Row], list[int]]:
        """Up to the last id of ``part``: the rows that have an id of it, and the other ids."""
        wanted = {row.id for row in part}
        there: dict[int, Row] = {}
        extra: list[int] = []
        while self._more():
            n = bisect_right(self._ahead, part[-1].id, key=lambda row: row.id)
            for row in self._ahead[:n]:
                if row.id in wanted:
                    there[row.id] = row
                elif row.id not in self._forgotten:
                    extra.append(row.id)
            self._ahead = self._ahead[n:]
            if self._ahead:
                break
        for id_ in self._forgotten & there.keys():
            del there[id_]
        return there, extra

    def rest(self) -> Iterator[list[int]]:
        """The ids that are left, in parts."""
        while self._more():
            yield [row.id for row in self._ahead if row.id not in self._forgotten]
            self._ahead = []

    def forget(self, ids: set[int]) -> None:
        """These rows are removed."""
        self._forgotten |= ids

    def _more(self) -> bool:
        if not self._ahead:
            self._ahead = next(self._parts, [])
        return bool(self._ahead)
