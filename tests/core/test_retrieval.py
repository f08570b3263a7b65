"""Retrieval against scikit-learn, naive loops and cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clf.evaluate import retrieval as module
from clf.evaluate.results import Retrieval
from clf.evaluate.retrieval import retrieval


def drawn(n: int, m: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 6, generator=g)
    bank_y, y = torch.randint(0, classes, (n,), generator=g), torch.randint(0, classes, (m,), generator=g)
    noise = torch.randn(n + m, 6, generator=g)
    return (centres[bank_y] + noise[:n]) * 3, bank_y, centres[y] + noise[n:], y


def naive(bank: Tensor, bank_y: Tensor, queries: Tensor, y: Tensor) -> Retrieval:
    """The definitions, one query after the other; of equal cosines the wrong answers come first."""
    unit = torch.nn.functional.normalize
    cosines = unit(queries, dim=1) @ unit(bank, dim=1).T
    average, recall, precision = 0.0, dict.fromkeys(["1", "5", "10"], 0.0), dict.fromkeys(["1", "5", "10"], 0.0)
    for row, label in zip(cosines.tolist(), y.tolist(), strict=True):
        right = [int(other) == label for other in bank_y]
        ranking = sorted(range(len(bank)), key=lambda i: (-row[i], right[i]))
        answers = [right[i] for i in ranking]
        found = [sum(answers[: i + 1]) / (i + 1) for i, hit in enumerate(answers) if hit]
        average += sum(found) / len(found) if found else 0.0
        for k in recall:
            recall[k] += any(answers[: int(k)])
            precision[k] += sum(answers[: int(k)]) / min(int(k), len(bank))
    m = len(queries)
    means = [{k: total / m for k, total in each.items()} for each in (recall, precision)]
    return Retrieval(
        mean_average_precision=average / m, recall=means[0], precision=means[1], queries=m, searched=len(bank)
    )


def test_it_equals_the_naive_loop_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    data = drawn(90, 50, 4, seed=0)
    ours, expected = retrieval(*data), naive(*data)
    assert ours.mean_average_precision == pytest.approx(expected.mean_average_precision, rel=1e-12)
    assert ours.recall == pytest.approx(expected.recall)
    assert ours.precision == pytest.approx(expected.precision)
    assert (ours.queries, ours.searched) == (50, 90)


def test_mean_average_precision_is_scikit_learns() -> None:
    from sklearn.metrics import average_precision_score

    bank, bank_y, queries, y = drawn(120, 40, 3, seed=1)
    unit = torch.nn.functional.normalize
    cosines = unit(queries, dim=1) @ unit(bank, dim=1).T
    each = [
        average_precision_score((bank_y == label).numpy(), row.numpy()) for row, label in zip(cosines, y, strict=True)
    ]
    found = retrieval(bank, bank_y, queries, y).mean_average_precision
    assert found == pytest.approx(sum(each) / len(each), rel=1e-9)


def test_a_ranking_by_hand() -> None:
    angles = torch.tensor([0.0, 0.3, 0.6, 0.9])  # from the query: right, wrong, right, wrong
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = retrieval(bank, torch.tensor([7, 2, 7, 2]), torch.tensor([[5.0, 0.0]]), torch.tensor([7]))
    assert found.mean_average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found.recall == {"1": 1.0, "5": 1.0, "10": 1.0}
    assert found.precision == {"1": 1.0, "5": 0.5, "10": 0.5}  # there are four images to find


def test_features_that_are_all_the_same_earn_nothing_in_any_order() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    for order in ([0, 1, 2, 3], [1, 3, 0, 2], [2, 0, 3, 1]):
        found = retrieval(torch.ones(4, 3), labels[order], torch.ones(1, 3), torch.tensor([0]))
        assert found.mean_average_precision == pytest.approx((1 / 3 + 2 / 4) / 2)
        assert found.recall["1"] == 0.0


def test_a_query_of_a_class_that_is_not_there_counts_as_zero() -> None:
    bank, bank_y = torch.eye(2), torch.tensor([0, 1])
    found = retrieval(bank, bank_y, torch.eye(2), torch.tensor([0, 5]))
    assert found.mean_average_precision == 0.5
    assert found.recall == {"1": 0.5, "5": 0.5, "10": 0.5}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 25), st.integers(1, 12), st.integers(1, 4), st.integers(0, 10_000))
def test_ties_are_settled_the_same_way_always(n: int, m: int, classes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    bank, queries = torch.eye(3)[torch.randint(0, 3, (n,), generator=g)], torch.eye(3)[torch.arange(m) % 3]
    bank_y, y = torch.randint(0, classes, (n,), generator=g), torch.randint(0, classes, (m,), generator=g)
    ours, expected = retrieval(bank, bank_y, queries, y), naive(bank, bank_y, queries, y)
    assert ours.mean_average_precision == pytest.approx(expected.mean_average_precision)
    assert ours.recall == pytest.approx(expected.recall)
    assert ours.precision == pytest.approx(expected.precision)
