"""The HNSW index of a gallery in PostgreSQL: when it is worth building, with what it is built, and what it finds.

Y. Malkov and D. Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small
World graphs", arXiv:1603.09320, as pgvector has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from psycopg import errors, sql

from clf.errors import GalleryError
from clf_serve.gallery.following import Progress
from clf_serve.index.plan import RECALL_K, TARGET
from clf_serve.stores.postgres.binary import Float4s, Int8s, vectors_of
from clf_serve.stores.postgres.lines import Line
from clf_serve.stores.vector_store import Vector

if TYPE_CHECKING:
    from clf_serve.stores.postgres.store import PostgresStore

KINDS = ("auto", "flat", "hnsw")
FLAT_VALUES = 10_000_000
"""Numbers that an exact search may compare; an index is built for more of them."""
LINKS, EFFORT = 16, 64
"""pgvector's m and ef_construction."""
QUERIES = 100
"""Images of the gallery whose neighbours are looked for to measure recall."""
_EFFORTS = (40, 80, 160, 320, 640, 985)  # with the neighbours asked for no more than hnsw.ef_search may be
_SPARE = 5  # neighbours asked for beyond those that count: a gallery asks for some, and the image itself is one
_EQUAL = 4e-6  # scores of equal vectors differ by less
_GROWN = 1.5  # since recall was measured; then it is measured again
_MEMORY = 1 << 30  # bytes that the server may use to build, where nobody says
_OVERHEAD = 1.2


class BusyError(GalleryError):
    """Another process builds the index."""


@dataclass(frozen=True)
class Built:
    """What a gallery remembers of its index."""

    kind: str = "flat"
    type: str = ""
    """What the index holds: vector, or halfvec, which has half the bits of each number."""
    ef: int = 0
    """The effort found to reach the target; 0 for exact search."""
    recall: float | None = None
    queries: int = 0
    generation: int = 0
    images: int = 0
    """When it was measured."""
    why: str = "nothing was built yet"
    wishes: tuple[str | None, int | None, float | None] = (None, None, None)
    """Kind, memory and recall, where the user named them."""

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> Built:
        names = cls.__dataclass_fields__
        found = cls(**{name: value for name, value in known.items() if name in names})
        kind, memory, recall = found.wishes  # a list, as JSON has it
        return replace(found, wishes=(kind, memory, recall))

    @property
    def target(self) -> float:
        return self.wishes[2] or TARGET


def due(store: PostgresStore, images: int) -> bool:
    """Whether an index ought to be built, or its recall measured again."""
    built = Built.of(store.index)
    if built.kind == "hnsw":
        return built.recall is None or images >= _GROWN * built.images
    return decide(store, images, built.wishes[0])[0] == "hnsw"


def decide(store: PostgresStore, images: int, wish: str | None) -> tuple[str, str]:
    """Kind, and why. Raises GalleryError: what was wished for is not to be had."""
    server, size = store.lines.server, f"{images:,} vectors of {store.dim:,} dimensions"
    if wish == "hnsw":
        if not server.index_type(store.dim):
            raise GalleryError(f"{store.target.place} can have no HNSW index: {server.no_index(store.dim)}")
        return "hnsw", f"{size}: chosen by name"
    if wish == "flat":
        return "flat", f"{size}: chosen by name"
    if images * store.dim <= FLAT_VALUES:
        return "flat", f"{size}: few enough to compare each"
    if not server.index_type(store.dim):
        return "flat", f"{size}: too many to compare each in a moment, but {server.no_index(store.dim)}"
    return "hnsw", f"{size}: too many to compare each in a moment"


def bring_about(store: PostgresStore, wishes: tuple[str | None, int | None, float | None], progress: Progress) -> Built:
    """Builds, or drops, and measures; and remembers it with the gallery. Writes go on meanwhile.

    Raises:
        GalleryError: another process is at it, or what was wished for is not to be had.
    """
    with _apart(store) as line:
        [(images, generation)] = line.execute("SELECT images, generation FROM clf_gallery").fetchall()
        kind, why = decide(store, images, wishes[0])
        built = Built(kind, generation=generation, images=images, why=why, wishes=wishes)
        if kind == "hnsw":
            built = replace(built, type=store.lines.server.index_type(store.dim))
            _build(line, store, built, progress)
        else:
            _drop(line)
        for table in ("vectors", "images", "facts"):
            line.execute(f"VACUUM (ANALYZE) {table}")
        return _measured(line, store, built, progress)


def measure_again(store: PostgresStore, progress: Progress) -> Built:
    with _apart(store) as line:
        [(images, generation, known)] = line.execute("SELECT images, generation, index FROM clf_gallery").fetchall()
        built = replace(Built.of(json.loads(known)), images=images, generation=generation)
        return _measured(line, store, built, progress)


@contextmanager
def _apart(store: PostgresStore) -> Iterator[Line]:
    """A connection of its own without limits of time, for one process at a time. Raises BusyError."""
    line = store.lines.connect()
    try:
        line.execute("SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false)")
        lock = "SELECT pg_try_advisory_lock(hashtextextended('clf index', 'clf_gallery'::regclass::oid::bigint))"
        [(mine,)] = line.execute(lock).fetchall()
        if not mine:
            raise BusyError(f"another process builds the index of {store.target.place}; wait until it is done")
        yield line
    finally:
        line.close()


def _measured(line: Line, store: PostgresStore, built: Built, progress: Progress) -> Built:
    if built.kind == "hnsw":
        progress("measuring recall", 0.0)
        built = _tuned(line, store, built, progress)
    line.execute("UPDATE clf_gallery SET index = %s", (json.dumps(asdict(built)),))
    store.index = asdict(built)
    return built


def indexes(line: Line) -> list[tuple[str, bool]]:
    """Names of the HNSW indexes, and whether each is whole."""
    text = (
        "SELECT c.relname::text, indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
        " JOIN pg_am a ON a.oid = relam WHERE indrelid = 'vectors'::regclass AND amname = 'hnsw'"
    )
    return [(name, valid) for name, valid in line.execute(text)]


def indexes_of(store: PostgresStore) -> list[tuple[str, bool]]:
    return store.lines.again("look at the index", indexes)


def _drop(line: Line, but: str = "") -> None:
    for name, _ in indexes(line):
        if name != but:
            line.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name)))


def _build(line: Line, store: PostgresStore, built: Built, progress: Progress) -> None:
    """Beside the old one, which serves until then; what is half built, or left by processes that died, is removed."""
    _drop(line, but=next((name for name, whole in indexes(line) if whole), ""))
    taken = {name for name, _ in indexes(line)}
    name = next(each for each in ("vectors_hnsw", "vectors_hnsw_2") if each not in taken)
    column = "vector" if built.type == "vector" else f"(vector::halfvec({store.dim}))"
    text = (
        f"CREATE INDEX CONCURRENTLY {name} ON vectors USING hnsw ({column} {built.type}_ip_ops)"
        f" WITH (m = {LINKS}, ef_construction = {EFFORT})"
    )
    _allow_memory(line, store.dim, built)
    try:
        try:
            _watched(line, store, text, progress)
        except errors.DiskFull:  # a container's shared memory is too small for several processes
            _drop_one(line, name)
            line.execute("SELECT set_config('max_parallel_maintenance_workers', '0', false)")
            _watched(line, store, text, progress)
    except BaseException:
        if not line.closed:
            _drop_one(line, name)
        raise
    _drop(line, but=name)


def _drop_one(line: Line, name: str) -> None:
    line.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


def _allow_memory(line: Line, dim: int, built: Built) -> None:
    """As much as the graph takes, within limits: in less it is built many times slower."""
    size = 4 if built.type == "vector" else 2
    needed = int(built.images * (dim * size + LINKS * 2 * 8 + 100) * _OVERHEAD)
    wish = built.wishes[1]  # 0: no limit
    allowed = needed if wish == 0 else min(needed, wish or _MEMORY)
    line.execute(
        "SELECT set_config('maintenance_work_mem', greatest(pg_size_bytes(current_setting('maintenance_work_mem')),"
        " %s) / 1024 || 'kB', false)",
        (allowed,),
    )


def _watched(line: Line, store: PostgresStore, text: str, progress: Progress) -> None:
    """Executes it in a thread, and says how far it is. Where it is interrupted the server stops, too."""
    progress("building hnsw", 0.0)
    with ThreadPoolExecutor(1) as pool:
        future: Future[Any] = pool.submit(line.execute, text.encode())
        try:
            while True:
                try:
                    future.result(timeout=1)
                    return
                except TimeoutError:
                    if future.done():
                        raise
                progress("building hnsw", _share_done(store, line.info.backend_pid))
        except BaseException:
            if not future.done():
                line.cancel_safe()
            raise


def _share_done(store: PostgresStore, pid: int) -> float:
    text = (
        "SELECT coalesce(max(tuples_done::float8 / nullif(tuples_total, 0)), 0) FROM pg_stat_progress_create_index"
        " WHERE pid = %s"
    )
    return min(1.0, float(store.rows("watch the index being built", text, [pid])[0][0]))


def _tuned(line: Line, store: PostgresStore, built: Built, progress: Progress) -> Built:
    """With the least effort that reaches the target, and the recall that it has."""
    truths = list(_truths(line, store, progress))
    if not truths:
        return replace(built, ef=_EFFORTS[0])
    for effort in _EFFORTS:
        shares = []
        for number, (own, vector, least) in enumerate(truths):
            found = store.near(line, {"type": built.type, "ef": effort}, vector, RECALL_K + _SPARE)
            count = sum(id_ != own and score >= least - _EQUAL for id_, score in found)
            shares.append(min(count, RECALL_K) / RECALL_K)
            progress("measuring recall", 0.5 + 0.5 * number / len(truths))
        recall = float(np.mean(shares))
        if recall >= built.target:
            break
    else:
        built = replace(built, why=f"{built.why}; the recall of {built.target} is not reached")
    return replace(built, ef=effort, recall=recall, queries=len(truths))


def _truths(line: Line, store: PostgresStore, progress: Progress) -> Iterator[tuple[int, Vector, float]]:
    """Some images, evenly spread: id, vector, and the score of the last of its true neighbours."""
    ids = store.spread(line, QUERIES)
    text = "SELECT id, vector_send(vector) FROM vectors WHERE id = ANY(%s)"
    rows = line.execute(text, (Int8s(ids),), binary=True).fetchall()
    vectors = vectors_of([blob for _, blob in rows], store.dim)
    exact = f"SELECT 0.0 - (vector <#> %s::vector) FROM vectors WHERE id <> %s ORDER BY 1 DESC LIMIT {RECALL_K}"
    for number, ((own, _), vector) in enumerate(zip(rows, vectors, strict=True)):
        scores = [row[0] for row in line.execute(exact, (Float4s(vector), own), binary=True)]
        progress("measuring recall", 0.5 * number / len(rows))
        if len(scores) == RECALL_K:
            yield own, vector, scores[-1]
