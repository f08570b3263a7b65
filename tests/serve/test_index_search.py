"""Every kind of index against brute force: what is found, after changes, below filters, and beside a writer."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_helpers import DIM, KINDS, Brute, Ids, N, Vectors, built, in_batches, recall, unit

from clf_serve.index import VectorIndex, choose

IDS = np.arange(N, dtype=np.int64) * 3 + 5
VECTORS = unit(N)
QUERIES = unit(60, seed=1)
NONE = np.empty((0, DIM), np.float32)


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, whole_by_kind: dict[str, VectorIndex]) -> VectorIndex:
    """Not to be changed."""
    return whole_by_kind[request.param]


@pytest.fixture(params=KINDS)
def index(request: pytest.FixtureRequest, whole_by_kind: dict[str, VectorIndex]) -> VectorIndex:
    """One's own: updates make new views and leave the base as it is."""
    made = VectorIndex(DIM)
    made._start(whole_by_kind[request.param]._view.base)
    return made


@pytest.fixture(scope="module")
def whole_by_kind() -> dict[str, VectorIndex]:
    return {kind: built(kind, IDS, VECTORS) for kind in KINDS}


def test_an_empty_index_finds_nothing() -> None:
    index = VectorIndex(DIM)

    assert len(index) == 0 and len(index.search(QUERIES[0], 5).ids) == 0
    index.update([7], [], NONE, 3)
    assert index.generation == 3 and not index.due()
    assert len(index.search(QUERIES[0], 5, np.array([1, 2])).ids) == 0


def test_the_neighbours_are_found(whole: VectorIndex) -> None:
    truth = Brute(IDS, VECTORS)

    assert recall(whole, truth, QUERIES) >= (1 if whole.info.exact else 0.97)
    assert recall(whole, truth, QUERIES, k=100) >= (1 if whole.info.exact else 0.95)
    assert recall(whole, truth, QUERIES, exact=True) == 1


@pytest.mark.parametrize("k", [1, 10, 500, N, N + 50])
def test_exact_hands_up_all_that_may_be_among_the_best(whole: VectorIndex, k: int) -> None:
    assert recall(whole, Brute(IDS, VECTORS), QUERIES[:5], k, exact=True) == 1


def test_scores_are_cosines_best_first(whole: VectorIndex) -> None:
    found = whole.search(QUERIES[0], 20)
    cosines = VECTORS[(found.ids - 5) // 3] @ QUERIES[0]

    np.testing.assert_allclose(found.scores, cosines, atol=1e-5 if whole.info.exact else whole._view.base.error)
    assert np.all(np.diff(found.scores) <= 0)


def test_what_is_surely_below_the_floor_stays_out(whole: VectorIndex) -> None:
    query = QUERIES[0]
    scores = np.sort(VECTORS @ query)[::-1]
    floor = float(scores[25] + scores[26]) / 2
    found = whole.search(query, 1000, exact=True, floor=floor).ids

    above = {int(id_) for id_, score in zip(IDS, VECTORS @ query, strict=True) if score >= floor}
    assert above <= set(found.tolist()) and len(above) == 26
    assert (VECTORS[(found - 5) // 3] @ query).min() >= floor - 2 * whole._view.base.error
    assert len(whole.search(query, 10, floor=1.5).ids) == 0


def test_deleted_replaced_and_new_ones(index: VectorIndex) -> None:
    truth = Brute(IDS, VECTORS)
    fresh = unit(900, seed=2)
    steps: list[tuple[Ids, Ids, Vectors]] = [
        (IDS[::5], np.empty(0, np.int64), NONE),
        (np.empty(0, np.int64), IDS[1::5], fresh[:600]),  # replaced
        (np.empty(0, np.int64), np.arange(100_000, 100_200), fresh[600:800]),  # new
        (IDS[1:500:5], np.arange(100_100, 100_200), fresh[800:]),  # recent ones deleted and replaced
    ]
    for number, (removed, ids, vectors) in enumerate(steps, 2):
        truth.update(removed, ids, vectors)
        index.update(removed.tolist(), ids, vectors, number)
        assert len(index) == len(truth.rows) and index.generation == number
        assert recall(index, truth, QUERIES) >= (1 if index.info.exact else 0.97)
        assert recall(index, truth, QUERIES[:5], 40, exact=True) == 1
    index.update(list(truth.rows), [], NONE, 9)
    assert len(index) == 0 and len(index.search(QUERIES[0], 3).ids) == 0


def test_a_replaced_vector_is_found_where_it_is_now(index: VectorIndex) -> None:
    for generation in (2, 3, 4):  # of the base, then of the recent ones
        moved = unit(1, seed=50 + generation)
        index.update([], [int(IDS[7])], moved, generation)

        found = index.search(moved[0], 1)
        assert found.ids[0] == IDS[7] and found.scores[0] == pytest.approx(1, abs=1e-5)
        assert np.count_nonzero(index.search(moved[0], 50, exact=True).ids == IDS[7]) == 1
    assert len(index) == N


def test_of_an_id_given_twice_the_last_counts() -> None:
    index, pair = VectorIndex(DIM), unit(3)
    index.update([], [4, 9, 4], pair, 1)

    assert len(index) == 2
    assert index.search(pair[2], 1).ids.tolist() == [4] and index.search(pair[2], 1).scores[0] > 0.999


def test_vectors_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected vectors of shape \(2, 32\), got \(2, 31\)"):
        VectorIndex(DIM).update([], [1, 2], np.zeros((2, 31), np.float32), 1)


def test_a_search_widens_itself_past_tombstones(index: VectorIndex) -> None:
    query = QUERIES[0]
    truth = Brute(IDS, VECTORS)
    nearest = truth.best(query, 400)
    index.update(nearest, [], NONE, 2)
    truth.update(nearest, [], [])

    found = truth.rescored(index.search(query, 10).ids, query, 10)
    assert len(set(found) & set(truth.best(query, 10))) >= 9


@pytest.mark.parametrize("through", ["scan", "near"])
@pytest.mark.parametrize("share", [0.0005, 0.01, 0.1, 0.5, 1.0])
def test_a_filter_loses_nothing(
    whole: VectorIndex, share: float, through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if through == "near":
        monkeypatch.setattr("clf_serve.index.view.rows_to_scan", lambda total, dim: 20)
    rng = np.random.default_rng(3)
    allowed = np.sort(rng.choice(IDS, max(1, int(share * N)), replace=False))
    strangers = np.sort(np.concatenate([allowed, [1, 2, 10**12, 10**15]]))

    for ids in (allowed, strangers, strangers):
        found = whole.search(QUERIES[0], 10, ids).ids
        assert np.isin(found, allowed).all() and len(found) >= min(10, len(allowed))
    assert recall(whole, Brute(IDS, VECTORS), QUERIES, 10, allowed) >= (1 if whole.info.exact else 0.97)
    assert recall(whole, Brute(IDS, VECTORS), QUERIES[:5], 10, allowed, exact=True) == 1


def test_a_filter_that_avoids_the_query_loses_nothing(whole: VectorIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clf_serve.index.view.rows_to_scan", lambda total, dim: 20)
    truth = Brute(IDS, VECTORS)
    hits = []
    for query in QUERIES[:20]:
        allowed = np.sort(np.array(truth.best(query, N)[N // 2 :]))  # the farther half
        found = truth.rescored(whole.search(query, 10, allowed).ids, query, 10)
        hits.append(len(set(found) & set(truth.best(query, 10, allowed))) / 10)
    assert np.mean(hits) >= 0.95


def test_filters_see_recent_ones_and_tombstones(index: VectorIndex) -> None:
    fresh = unit(50, seed=4)
    names = np.arange(50) * 2  # among and below the ids of the base, some of which they replace
    index.update(IDS[:100].tolist(), names, fresh, 2)
    truth = Brute(IDS, VECTORS)
    truth.update(IDS[:100], names, fresh)
    allowed = np.sort(np.array([*names[:25], *IDS[50:150]]))

    everything = index.search(QUERIES[0], 1000, allowed, exact=True).ids
    assert set(everything.tolist()) == set(truth.best(QUERIES[0], 1000, np.unique(allowed)))
    assert recall(index, truth, QUERIES, 10, np.unique(allowed)) == 1
    assert len(index.search(QUERIES[0], 5, np.empty(0, np.int64)).ids) == 0


def test_equal_vectors_all_come_while_they_are_few() -> None:
    index, vector = VectorIndex(DIM), unit(1)
    index.update([], np.arange(50), np.repeat(vector, 50, 0), 1)

    found = index.search(vector[0], 10)
    assert found.ids.tolist() == list(range(50))  # whoever cuts to ten does so by exact scores and ids


def test_ids_far_apart_need_no_table() -> None:
    ids = np.array([5, 10**15, 3, 10**17, -4], np.int64)
    vectors = unit(5, seed=8)
    index = built("flat", ids, vectors)
    index.update([3], [10**15], vectors[:1], 2)

    assert len(index) == 4
    assert sorted(index.search(vectors[0], 9, np.array([3, 5, 10**15])).ids.tolist()) == [5, 10**15]


operations = st.lists(
    st.tuples(st.sets(st.integers(0, 40), max_size=6), st.sets(st.integers(0, 40), max_size=8), st.integers(0, 2**31)),
    max_size=30,
)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=operations)
def test_any_history_ends_as_brute_force_says(
    kind: str, history: list[tuple[set[int], set[int], int]], whole_by_kind: dict[str, VectorIndex]
) -> None:
    index, truth = VectorIndex(DIM), Brute()
    if kind != "flat":
        index._start(whole_by_kind[kind]._view.base)
        truth = Brute(IDS, VECTORS)
    for generation, (removed, ids, seed) in enumerate(history, 1):
        names, vectors = np.array(sorted(ids), np.int64), unit(len(ids), seed)
        index.update(sorted(removed), names, vectors, generation)
        truth.update(removed, names, vectors)
        assert len(index) == len(truth.rows)
    query, allowed = QUERIES[0], np.arange(0, 60, 2)
    assert truth.rescored(index.search(query, 7, exact=True).ids, query, 7) == truth.best(query, 7)
    assert truth.rescored(index.search(query, 7, allowed).ids, query, 7) == truth.best(query, 7, allowed)


def test_searches_beside_a_writer_see_whole_states(index: VectorIndex) -> None:
    """Each update moves one id; a search sees it exactly once, wherever it is then."""
    query, failures, ended = QUERIES[0], [], threading.Event()
    pair = np.stack([query, unit(1, seed=9)[0]])

    def search() -> None:
        allowed = np.array([77_777])
        while not ended.is_set():
            found = index.search(query, 5, exact=True)
            only = index.search(query, 5, allowed)
            if np.count_nonzero(found.ids == 77_777) > 1 or only.ids.tolist() != [77_777]:
                failures.append((found, only))

    index.update([], [77_777], pair[:1], 2)
    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(300):
        index.update([], [77_777, 80_000 + number], np.concatenate([pair[number % 2][None], unit(1, number)]), number)
    ended.set()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert len(index) == N + 301


def test_a_rebuild_takes_the_place_of_what_was(whole_by_kind: dict[str, VectorIndex]) -> None:
    index = VectorIndex(DIM)
    index.update([], IDS[:100], VECTORS[:100], 4)
    seen: list[str] = []
    more = unit(1500, seed=5)
    ids = np.arange(1500)
    plan = choose(1500, DIM, None, "ivf")

    info = index.rebuild(
        lambda: in_batches(ids, more), 1500, plan, 9, lambda stage, done, whole: seen.append(stage) or None
    )

    assert (info.kind, info.vectors, info.recent, info.generation, index.generation) == ("ivf", 1500, 0, 9, 9)
    assert list(dict.fromkeys(seen)) == ["sampling", "training", "adding", "tuning"]
    assert recall(index, Brute(ids, more), QUERIES) >= 0.97


def test_a_gallery_that_changes_between_two_readings_does_no_harm() -> None:
    states = iter([(IDS, VECTORS), (IDS[:-40], VECTORS[:-40])])
    index = VectorIndex(DIM)
    index.rebuild(lambda: in_batches(*next(states)), N, choose(N, DIM, None, "ivf"), 1)

    held = set(IDS[-40:].tolist()) & set(index.search(QUERIES[0], N, exact=True).ids.tolist())
    index.update(IDS[-40:].tolist(), [], NONE, 2)  # what the caller catches up with
    assert len(held) <= 40
    assert recall(index, Brute(IDS[:-40], VECTORS[:-40]), QUERIES) >= 0.97
