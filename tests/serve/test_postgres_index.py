"""HNSW in PostgreSQL: what it finds, what it is told to be, and what versions of pgvector can do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gallery_helpers import entries
from index_helpers import unit as clustered
from postgres_helpers import Postgres, make, read

from clf.errors import GalleryError
from clf_serve.gallery import Entry, Identity, Where
from clf_serve.stores import Row, StoreGallery

pytest.importorskip("psycopg")

from clf_serve.stores.postgres import PostgresStore, index
from clf_serve.stores.postgres.server import Server

N, DIM = 3000, 32
WIDE = Identity("wide", "cd" * 32, DIM)


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> str:
    place = postgres.url()
    with make(place, WIDE) as gallery:
        vectors = clustered(N)
        gallery.upsert([Entry(f"k{i}", f"{i}.jpg", v, metadata={"n": i}) for i, v in enumerate(vectors)])
        info = gallery.optimize("hnsw")
    assert (info.kind, info.exact, info.vectors) == ("hnsw", False, N)
    return place


@pytest.fixture
def gallery(url: str) -> Iterator[StoreGallery]:
    with read(url) as opened:
        yield opened


def plan(gallery: StoreGallery, query: Any) -> str:
    store: Any = gallery.calls.store
    from clf_serve.stores.postgres.binary import Float4s

    text = "EXPLAIN SELECT id FROM vectors ORDER BY vector <#> %s::vector LIMIT 10"
    return "\n".join(row[0] for row in store.rows("explain", text, [Float4s(query)]))


def test_recall_is_measured_as_it_is_and_told_as_of_a_folder(gallery: StoreGallery) -> None:
    info = gallery.facts().index
    assert info.recall is not None and info.recall >= info.target and info.queries == index.QUERIES
    assert info.bytes > N * DIM * 4 and info.parameters["ef_search"] in index._EFFORTS
    vectors, shared = clustered(N), 0
    queries = clustered(50, seed=7)
    assert "vectors_hnsw" in plan(gallery, queries[0])
    for query in queries:
        best = set((np.argsort(-(vectors @ query))[:10] + 1).tolist())
        shared += len({hit.id for hit in gallery.search(query, 10)} & best)
        assert {hit.id for hit in gallery.search(query, 10, exact=True)} == best
    assert shared / 500 >= 0.95


def test_an_exact_search_uses_no_index(gallery: StoreGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = gallery.calls.store
    asked: list[str] = []
    rows = store.rows

    def explained(purpose: str, text: str, values: Any = ()) -> Any:
        if purpose == "search":
            asked.append("\n".join(row[0] for row in rows("explain", f"EXPLAIN {text}", values)))
        return rows(purpose, text, values)

    monkeypatch.setattr(store, "rows", explained)
    gallery.search(clustered(1)[0], 5, exact=True)
    assert len(asked) == 1 and "Seq Scan on vectors" in asked[0] and "hnsw" not in asked[0]


@pytest.mark.parametrize(
    ("where", "used"),
    [
        ({"n": 7}, "facts_values"),
        ({"n": {"$lt": 9}}, "facts_values"),
        ({"n": {"$in": [1, 2, "three"]}}, "facts_values"),
        ({"n": "text"}, "facts_values"),
        ({"n": {"$prefix": "te"}}, "facts_values"),
        ({"@folder": {"$prefix": "a/b"}}, "images_folder"),
        ({"@key": "k7"}, "images_digest_key"),
    ],
)
def test_a_filter_goes_through_an_index(gallery: StoreGallery, where: dict[str, Any], used: str) -> None:
    store: Any = gallery.calls.store
    text, values = store.query("", Where.parse(where))
    plan = "\n".join(row[0] for row in store.rows("explain", f"EXPLAIN {text}", values))
    assert used in plan and "Seq Scan" not in plan


def test_more_neighbours_than_an_index_gives_are_found_exactly(gallery: StoreGallery) -> None:
    query, vectors = clustered(1, seed=3)[0], clustered(N)
    hits = gallery.search(query, 1500)
    assert [hit.id for hit in hits] == (np.argsort(-(vectors @ query), kind="stable")[:1500] + 1).tolist()


@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.9])
def test_a_filtered_search_finds_the_best_of_what_is_let_through(
    gallery: StoreGallery, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clf_serve.stores.postgres.store._FEW", 100)
    where, vectors = Where.parse({"n": {"$lt": int(N * share)}}), clustered(N)[: int(N * share)]
    shared = asked = 0
    for query in clustered(20, seed=5):
        best = set((np.argsort(-(vectors @ query))[:10] + 1).tolist())
        found = {hit.id for hit in gallery.search(query, 10, where=where)}
        assert len(found) == len(best) and max(found) <= len(vectors)
        assert {hit.id for hit in gallery.search(query, 10, where=where, exact=True)} == best
        shared, asked = shared + len(found & best), asked + len(best)
    assert shared / asked >= 0.95


def test_what_is_written_after_the_index_was_built_is_found_by_it(postgres: Postgres) -> None:
    with make(postgres.url(), WIDE) as gallery:
        vectors = clustered(2000)
        ids = gallery.upsert([Entry(f"k{i}", "u", v) for i, v in enumerate(vectors[:1000])])
        gallery.optimize("hnsw")
        gallery.delete(ids[:500])
        gallery.upsert([Entry(f"k{i}", "u", v) for i, v in enumerate(vectors[1000:], 1000)])
        found = sum(gallery.search(vectors[i], 1)[0].id == i + 1 for i in range(1000, 2000, 20))
        assert found >= 48
        assert not {hit.id for hit in gallery.search(vectors[3], 50)} & set(ids[:500])
        before = gallery.facts().index
        gallery.save_index()  # it has grown by half, so recall is measured again
        after = gallery.facts().index
        assert (before.generation, after.generation) == (1, gallery.generation) and after.recall is not None


def test_an_index_is_built_when_the_gallery_is_large_enough_and_dropped_on_wish(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, stages = postgres.url(), set[str]()
    with make(url, WIDE) as gallery, read(url) as other:
        gallery.upsert([Entry(f"k{i}", "u", v) for i, v in enumerate(clustered(300))])
        gallery.save_index()
        assert gallery.facts().index.kind == "flat" and "nothing was built" in gallery.facts().index.why
        monkeypatch.setattr(index, "FLAT_VALUES", 300 * DIM - 1)
        gallery.save_index(progress=lambda stage, done: stages.add(stage))
        info = gallery.facts().index
        assert (info.kind, gallery.wishes) == ("hnsw", (None, None, None)) and "too many to compare" in info.why
        assert stages == {"building hnsw", "measuring recall"}
        assert other.facts().index == info
        assert gallery.optimize("flat", recall=0.9).exact and gallery.wishes == ("flat", None, 0.9)
        gallery.save_index()
        assert other.facts().index.kind == "flat" and "chosen by name" in other.facts().index.why
        assert index.indexes_of(gallery.calls.store) == []  # type: ignore[arg-type]


def test_kinds_and_rights(postgres: Postgres) -> None:
    url = postgres.url()
    with make(url) as gallery:
        with pytest.raises(GalleryError, match="kinds auto, flat, hnsw; ivf is of galleries in folders"):
            gallery.optimize("ivf")
        gallery.upsert(entries(0, 3))
        assert gallery.optimize("hnsw").recall is None  # too few to have ten neighbours
        assert len(gallery.search(entries(0, 1)[0].vector, 10)) == 3
        with read(url) as reader, pytest.raises(ValueError, match="opened for reading"):
            reader.optimize()
        store: Any = gallery.calls.store
        with index._apart(store):
            gallery.save_index()  # which would have measured
            with pytest.raises(GalleryError, match="another process builds the index"):
                gallery.optimize()


def test_writes_and_searches_go_on_while_an_index_is_built(postgres: Postgres) -> None:
    with make(postgres.url(), WIDE) as gallery:
        gallery.upsert([Entry(f"k{i}", "u", v) for i, v in enumerate(clustered(3000))])
        building = threading.Thread(target=gallery.optimize, args=("hnsw",))
        building.start()
        written = 0
        while building.is_alive() or not written:
            gallery.upsert([Entry(f"new{written}", "u", clustered(1, seed=written)[0])])
            assert gallery.search(clustered(1, seed=written)[0], 1)[0].score > 0.999
            written += 1
        building.join()
        assert gallery.facts().index.kind == "hnsw" and len(gallery) == 3000 + written


def test_an_interrupted_build_leaves_no_half_index(postgres: Postgres) -> None:
    def stop(stage: str, done: float) -> None:
        raise KeyboardInterrupt

    with make(postgres.url(), WIDE) as gallery:
        gallery.upsert([Entry(f"k{i}", "u", v) for i, v in enumerate(clustered(300))])
        with pytest.raises(KeyboardInterrupt):
            gallery.optimize("hnsw", progress=stop)
        store: Any = gallery.calls.store
        assert index.indexes_of(store) == [] and gallery.facts().index.kind == "flat"
        gallery.optimize("hnsw")
        gallery.optimize("hnsw")
        assert [valid for _, valid in index.indexes_of(store)] == [True]


def test_what_builds_that_died_have_left_is_removed_by_the_next(postgres: Postgres) -> None:
    with make(postgres.url("left_"), WIDE) as gallery:
        gallery.upsert([Entry(f"k{i}", "u", v) for i, v in enumerate(clustered(50))])
        gallery.optimize("hnsw")
        for name in ("vectors_hnsw_2", "vectors_hnsw_3", "another"):  # the server ends a build whose client was killed
            postgres.execute(f"CREATE INDEX {name} ON left_.vectors USING hnsw (vector public.vector_ip_ops)")
        assert gallery.optimize("hnsw").kind == "hnsw"
        store: Any = gallery.calls.store
        assert [valid for _, valid in index.indexes_of(store)] == [True]


def test_the_first_gallery_of_a_database_gets_its_index_too(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection that created the extension was made before there was one."""
    monkeypatch.setattr(index, "FLAT_VALUES", 10)
    postgres.execute("CREATE DATABASE first")
    with make(postgres.url("g", database="first"), WIDE) as gallery:
        gallery.upsert([Entry(f"k{i}", "u", v) for i, v in enumerate(clustered(50))])
        gallery.save_index()
        assert gallery.facts().index.kind == "hnsw"
    postgres.execute("DROP DATABASE first WITH (FORCE)")


def test_a_build_goes_on_by_one_process_where_shared_memory_is_short(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    watched, workers = index._watched, list[str]()

    def short(line: Any, *given: Any) -> None:
        workers.append(line.execute("SHOW max_parallel_maintenance_workers").fetchone()[0])
        if len(workers) == 1:
            raise psycopg.errors.DiskFull("could not resize shared memory segment")
        watched(line, *given)

    monkeypatch.setattr(index, "_watched", short)
    with make(postgres.url(), WIDE) as gallery:
        gallery.upsert([Entry(f"k{i}", "u", v) for i, v in enumerate(clustered(50))])
        assert gallery.optimize("hnsw", memory=0).kind == "hnsw" and workers == ["2", "0"]


@pytest.mark.parametrize(
    ("version", "dim", "kind"),
    [
        ("0.4.4", 8, ""),
        ("0.5.0", 2000, "vector"),
        ("0.6.2", 2001, ""),
        ("0.6.2", 2048, ""),
        ("0.7.0", 2000, "vector"),
        ("0.7.0", 2048, "halfvec"),
        ("0.7.4", 4000, "halfvec"),
        ("0.8.1", 4001, ""),
        ("1.0", 2001, "halfvec"),
        ("", 8, ""),
    ],
)
def test_what_a_version_of_pgvector_can_index(version: str, dim: int, kind: str) -> None:
    server = Server(extension=version)
    assert server.index_type(dim) == kind
    assert kind or f"{dim:,}" in server.no_index(dim) or "has no HNSW" in server.no_index(dim)


def test_2048_dimensions_are_searched_exactly_and_told_why(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    resnet = Identity("resnet50", "ef" * 32, 2048)
    monkeypatch.setattr(index, "FLAT_VALUES", 2048 * 10)
    with make(postgres.url(), resnet) as gallery:
        vectors = _units(40, 2048)
        gallery.upsert([Entry(f"k{i}", "u", v) for i, v in enumerate(vectors)])
        assert gallery.vectors([1, 40]).tobytes() == vectors[[0, 39]].tobytes()
        assert gallery.search(vectors[7], 3)[0].id == 8
        with pytest.raises(GalleryError, match=r"takes up to 2,000 dimensions, and these are 2,048; 0.7 takes them"):
            gallery.optimize("hnsw")
        assert "takes up to 2,000 dimensions" in gallery.optimize().why


def test_more_dimensions_than_pgvector_keeps_are_refused(postgres: Postgres) -> None:
    with pytest.raises(GalleryError, match="1 to 16,000 dimensions, and those of this model have 16001"):
        make(postgres.url(), Identity("huge", "ef" * 32, 16_001))
    with make(postgres.url(), Identity("huge", "ef" * 32, 16_000)) as gallery:
        [vector] = _units(1, 16_000)
        gallery.upsert([Entry("k", "u", vector)])
        assert gallery.vectors([1])[0].tobytes() == vector.tobytes()


class _Later(PostgresStore):
    """On a server whose pgvector is newer than the one that is here: what it sends is looked at, and not run."""

    sent: list[str]

    def later(self, version: str, type_: str) -> None:
        self.lines.server = replace(self.lines.server, extension=version)
        self.index, self._seen, self.sent = {"ef": 40, "type": type_}, float("inf"), []

    def near(self, line: Any, *given: Any) -> list[tuple[int, float]]:
        class Recording:
            effort = None

            def execute(_, text: str, values: Any = (), **other: Any) -> list[tuple[int, float]]:  # noqa: N805
                self.sent.append(f"{text} {values if 'set_config' in text else ''}".strip())
                return [(1, 0.5)]

        return super().near(Recording(), *given)  # type: ignore[arg-type]


def test_newer_versions_get_half_vectors_and_iterative_scans(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_FEW", "_MANY"):
        monkeypatch.setattr(f"clf_serve.stores.postgres.store.{name}", 1)
    store = _Later.open(postgres.url(), write=True, create={"dim": "3"})
    vector = np.array([1, 0, 0], np.float32)
    store.write([Row(i, f"k{i}", "{}", vector) for i in range(1, 4)], [], {}, at=0)
    store.later("0.7.0", "halfvec")
    assert store.search(vector, 1, None, exact=False) == [1]
    assert store.sent[0].endswith("('41',)")
    assert store.sent[1].count("vector::halfvec(3) <#> %s::vector::halfvec(3)") == 1
    store.later("0.8.0", "vector")
    monkeypatch.setattr("clf_serve.stores.postgres.store.DEEPEST", 30)
    assert store.search(vector, 1, np.array([1, 2]), exact=False) == [1]
    assert any("hnsw.iterative_scan" in text and "strict_order" in text for text in store.sent)
    assert "WHERE id = ANY(%s)" in store.sent[-1]
    store.later("0.7.0", "vector")
    assert store.search(vector, 2, np.array([2, 3]), exact=False) == [2, 3] and not store.sent
    store.close()


def _units(n: int, dim: int) -> Any:
    vectors = np.random.default_rng(0).normal(size=(n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
