"""Which index is chosen and why, how it is tuned, what it says of itself, and when another is due."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_helpers import DIM, Brute, N, built, fresh, recall, unit

from clf_serve.index import KINDS, IndexInfo, VectorIndex, choose
from clf_serve.index.effort import Effort
from clf_serve.index.plan import lists_for, subquantizers
from clf_serve.index.recall import DEPTH, Truth

GB = 10**9
NONE = np.empty((0, DIM), np.float32)


@pytest.mark.parametrize(
    ("n", "dim", "memory", "name", "kind", "codes"),
    [
        (0, 512, None, "auto", "flat", "fp32"),
        (19_000, 512, None, "auto", "flat", "fp32"),
        (19_000, 512, 10_000_000, "auto", "ivf", "sq6"),  # 39 MB flat
        (100_000, 512, None, "auto", "ivf", "sq6"),
        (150_000, 128, 70_000_000, "auto", "hnsw", "sq8"),  # 77 MB flat
        (150_000, 128, 30_000_000, "auto", "ivf", "sq6"),
        (150_000, 128, None, "auto", "hnsw", "sq8"),
        (150_000, 128, GB, "auto", "hnsw", "fp32"),
        (1_000_000, 128, None, "auto", "ivf", "sq6"),
        (1_000_000, 512, None, "auto", "ivf", "sq6"),
        (1_000_000, 512, 700_000_000, "auto", "ivf", "sq6"),
        (1_000_000, 512, 400_000_000, "auto", "ivf", "sq4"),
        (1_000_000, 510, None, "auto", "ivf", "sq8"),
        (1_000_000, 512, None, "flat", "flat", "fp32"),
        (5_000, 64, None, "hnsw", "hnsw", "sq8"),
        (5_000, 64, None, "ivf", "ivf", "sq6"),
        (300, 64, None, "ivf", "flat", "fp32"),
        (300, 64, None, "hnsw", "flat", "fp32"),
    ],
)
def test_the_kind(n: int, dim: int, memory: int | None, name: str, kind: str, codes: str) -> None:
    plan = choose(n, dim, memory, name)

    assert (plan.kind, plan.codes) == (kind, codes)
    assert plan.why.startswith(f"{n:,} vectors of {dim} dimensions: ")
    assert ("more than the" in plan.why) == (memory is not None and plan.bytes > memory)


def test_a_million_fits_into_its_budget() -> None:
    assert choose(1_000_000, 512).bytes < 0.5e9


@given(
    st.integers(0, 10**8), st.integers(1, 4096), st.none() | st.integers(0, 10**12), st.sampled_from(KINDS)
)  # fmt: skip
def test_there_is_a_plan_for_everything(n: int, dim: int, memory: int | None, name: str) -> None:
    plan = choose(n, dim, memory, name)

    assert plan.kind in KINDS[1:] and plan.why and plan.bytes >= 0
    assert dim % subquantizers(dim) == 0
    assert (plan.kind == "ivf") == (plan.lists > 0)
    assert not plan.lists or 39 * lists_for(n) <= n


def test_what_cannot_be_chosen_is_said() -> None:
    with pytest.raises(ValueError, match="unknown kind of index 'tree'; choose from auto, flat, hnsw, ivf"):
        choose(10, 4, None, "tree")
    for target in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            choose(10, 4, None, "auto", target)


def test_effort_goes_from_rank_to_rank() -> None:
    effort = Effort(((20, 4), (80, 16), (320, 32)), 8)

    assert [effort.width(rank) for rank in (1, 20, 40, 80, 320, 640, 3200)] == [4, 4, 8, 16, 32, 64, 320]
    for steps, factor in (((), 1), (((0, 1),), 1), (((1, 0),), 1), (((5, 1), (5, 2)), 1), (((1, 1),), 0)):
        with pytest.raises(ValueError, match="steps of a search"):
            Effort.parse(steps, factor)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_higher_target_costs_more_and_finds_more(kind: str) -> None:
    ids, vectors, queries = np.arange(N), unit(N), unit(100, seed=1)
    low, high = built(kind, ids, vectors, target=0.6), built(kind, ids, vectors, target=0.995)
    truth = Brute(ids, vectors)

    assert high.info.recall is not None and high.info.recall >= 0.99 and high.info.queries == 300
    assert abs(recall(high, truth, queries) - high.info.recall) < 0.03  # of other queries, drawn likewise
    assert low.info.recall is not None and 0.6 <= low.info.recall <= high.info.recall
    assert low._view.base.effort.width(20) <= high._view.base.effort.width(20)  # type: ignore[attr-defined]


def test_a_target_that_is_out_of_reach_is_said() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4000, 64)).astype(np.float32)  # without any structure 4-bit codes tell little
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    index = built("ivf", np.arange(4000), noise, target=1.0)
    info = index.info

    assert info.recall is not None and info.recall > 0.9
    said = f"; recall@10 is {info.recall:.3f}, below the target of 1"
    assert info.why.endswith(said) == (info.recall < 1)
    index._recall = (0.5, 300)
    assert index.info.why.endswith("; recall@10 is 0.500, below the target of 1")


def test_truth_is_what_brute_force_says() -> None:
    vectors, ids = unit(900), np.arange(900) * 7
    truth = Truth.start(vectors[:5], ids[:5])
    for start in range(0, 900, 250):
        truth.add(ids[start : start + 250], vectors[start : start + 250])
    brute = Brute(ids, vectors)

    for number in range(5):
        best = [id_ for id_ in brute.best(vectors[number], DEPTH + 1) if id_ != ids[number]]
        assert truth.ids[number].tolist() == best


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_what_changed_since_is_measured(kind: str) -> None:
    ids, index = np.arange(N), fresh(kind)
    at_build = index.measure()
    assert at_build == index.info.recall and index.info.queries == 300

    index.update(ids[::4].tolist(), np.arange(N, N + 400), unit(400, seed=2), 2)
    after = index.measure()

    assert after is not None and after == index.info.recall and after != at_build and after >= 0.95
    base = index._view.base
    index._start(base.with_effort(Effort(((1, 1),))))  # type: ignore[attr-defined]
    index.update([], [N], unit(1), 3)
    blunted = index.measure()
    assert blunted is not None and blunted <= after
    index.update(np.arange(N).tolist(), [], NONE, 4)  # nothing is left that the truth knew
    assert index.measure() is None and index.info.recall is None


def test_exact_search_needs_no_measuring() -> None:
    index = built("flat", np.arange(500), unit(500))

    assert index.measure() == 1
    assert (index.info.exact, index.info.recall, index.info.queries, index.info.kind) == (True, 1.0, 0, "flat")


def test_it_tells_what_it_is() -> None:
    index = fresh("ivf")
    index.update([0], [N, N + 1], unit(2), 8)
    info = index.info

    assert (info.kind, info.vectors, info.recent, info.tombstones, info.generation) == ("ivf", N + 1, 2, 1, 8)
    assert set(info.parameters) == {"codes", "lists", "nprobe", "refine"}
    assert info.bytes > N * DIM * 6 // 8 and info.target == 0.98 and not info.exact
    assert set(info.json()) == set(IndexInfo.__dataclass_fields__)
    assert "chosen by name" in info.why


def test_a_rebuild_is_due_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clf_serve.index.vector_index.RECENT_VALUES", 200 * DIM)
    index = VectorIndex(DIM)
    index.update([], np.arange(200), unit(200), 1)
    assert not index.due()
    index.update([], [200], unit(1), 2)
    assert index.due()  # to be mapped, and not read and written as a whole

    index = fresh("ivf")
    assert not index.due()
    index.update(np.arange(N // 5).tolist(), [], NONE, 2)
    assert not index.due()
    index.update([N - 1], [], NONE, 3)
    assert index.due()

    index = fresh("hnsw")
    index.update([], np.arange(N, N + 150), unit(150), 2)
    assert not index.due()
    index.update([], np.arange(N, N + 250), unit(250), 3)
    assert index.due()


def test_a_rebuild_is_due_when_it_grew_out_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    index = built("auto", np.arange(N), unit(N))
    assert index.info.kind == "flat" and not index.due()

    monkeypatch.setattr("clf_serve.index.plan.FLAT_VALUES", int(0.9 * N * DIM))
    assert not index.due()  # about at the limit: no rebuild for every few images
    monkeypatch.setattr("clf_serve.index.plan.FLAT_VALUES", int(0.7 * N * DIM))
    assert index.due()
    assert not index.due(choose(N, DIM, None, "flat"))  # what the user wants


def test_a_rebuild_is_due_when_recall_faded() -> None:
    index = fresh("ivf")
    index._plan = replace(index._plan, target=0.97)
    index._recall = (0.962, 300)
    assert not index.due()
    index._recall = (0.95, 300)
    assert index.due()


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("distinct", [1, 10, N // 20])
def test_any_of_equally_near_vectors_counts_as_found(kind: str, distinct: int) -> None:
    rng = np.random.default_rng(0)
    vectors = unit(distinct)[rng.integers(distinct, size=N)]
    index = built(kind, np.arange(N), vectors)
    plan = choose(N, DIM, None, kind)

    assert (index.info.recall or 0) >= 0.95
    for step in range(3):  # nor does a changed copy look like fading
        index.update([step], [N + step], vectors[:1], 2 + step)
        assert (index.measure() or 0) >= 0.95 and not index.due(plan)


def test_what_is_less_near_than_equal_ones_does_not_count() -> None:
    vectors, ids = np.repeat(unit(2), (400, 400), axis=0), np.arange(800)
    truth = Truth.start(vectors[:1], ids[:1])
    truth.add(ids, vectors)
    scores = vectors @ vectors[0]
    beyond = float(truth.scores[0, -1])

    for found, share in (
        (np.arange(390, 400), 1),
        (np.arange(395, 405), 0.5),
        (np.arange(790, 800), 0),
        (ids[:5], 0.4),
    ):
        assert truth.share(0, 10, found, scores[found], 1e-5, beyond) == pytest.approx(share)
