"""Linear probes on a share of the labels, against scikit-learn and by what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from clf.evaluate.few_labels import draw, few_labels, too_few_labels
from clf.evaluate.linear import STRENGTHS, Rotated, fit, minimise, objective, principal_axes, probe, rotated


def drawn(n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, 12, generator=g, dtype=torch.float64)  # more columns than directions: correlated
    centres = torch.randn(3, 8, generator=g, dtype=torch.float64)
    y = torch.arange(n + m) % 3
    x = (centres[y] + 1.5 * torch.randn(n + m, 8, generator=g, dtype=torch.float64)) @ mixing + 7
    return x[:n], y[:n], x[n:], y[n:]


@pytest.fixture(scope="module")
def data() -> tuple[Rotated, Tensor, Tensor]:
    bank, bank_y, queries, y = drawn(300, 120)
    return rotated(bank, queries), bank_y, y


def test_it_is_mean_and_deviation_of_probes_on_the_subsets(data: tuple[Rotated, Tensor, Tensor]) -> None:
    features, bank_y, y = data
    found = few_labels(features, bank_y, y, 0.1, seed=4, repeats=4)
    each = [probe(features, bank_y, y, 4, draw(bank_y, 0.1, 4, repeat)).accuracy for repeat in range(4)]
    assert found.accuracy == pytest.approx(np.mean(each))
    assert found.std == pytest.approx(np.std(each, ddof=1))
    assert (found.share, found.images, found.repeats) == (0.1, 30, 4)
    assert len(set(each)) > 1
    assert found == few_labels(features, bank_y, y, 0.1, seed=4, repeats=4)


def test_a_probe_on_a_subset_predicts_as_scikit_learn_does(data: tuple[Rotated, Tensor, Tensor]) -> None:
    from sklearn.linear_model import LogisticRegression

    features, bank_y, y = data
    bank, _, queries, _ = drawn(300, 120)
    rows = draw(bank_y, 0.2, 0, 0)
    found = probe(features, bank_y, y, 0, rows)
    z, asked = ((each - bank.mean(0)) / bank.std(0, correction=0) for each in (bank, queries))
    theirs = LogisticRegression(C=1 / (len(rows) * found.strength), tol=1e-10, max_iter=20_000)
    theirs.fit(z[rows].numpy(), bank_y[rows].numpy())
    assert np.array_equal(found.predicted.numpy(), theirs.predict(asked.numpy()))


def test_labels_outside_the_subset_do_not_matter(data: tuple[Rotated, Tensor, Tensor]) -> None:
    features, bank_y, y = data
    rows = draw(bank_y, 0.1, 0, 0)
    other = (bank_y + 1) % 3
    other[rows] = bank_y[rows]
    assert probe(features, other, y, 0, rows) == probe(features, bank_y, y, 0, rows)


def test_the_test_labels_choose_nothing(data: tuple[Rotated, Tensor, Tensor]) -> None:
    features, bank_y, y = data
    rows = draw(bank_y, 0.1, 0, 0)
    ours, other = probe(features, bank_y, y, 0, rows), probe(features, bank_y, y.flip(0), 0, rows)
    assert (ours.strength, ours.held_out_accuracy) == (other.strength, other.held_out_accuracy)
    assert torch.equal(ours.predicted, other.predicted)
    assert ours.accuracy != other.accuracy


def test_a_subset_has_the_same_share_of_each_class() -> None:
    labels = torch.tensor([4] * 200 + [1] * 100 + [9] * 31)
    rows = draw(labels, 0.1, seed=0, repeat=0)
    assert torch.bincount(labels[rows])[[4, 1, 9]].tolist() == [20, 10, 3]
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.equal(rows, draw(labels, 0.1, 0, 0))
    for other in (draw(labels, 0.1, 0, 1), draw(labels, 0.1, 1, 0)):
        assert not torch.equal(rows, other)


def test_too_few_images_are_told_in_a_sentence(data: tuple[Rotated, Tensor, Tensor]) -> None:
    features, bank_y, y = data
    assert too_few_labels(bank_y, 0.1) is None
    assert "smallest class has 100 training images" in str(too_few_labels(bank_y, 0.01))
    with pytest.raises(ValueError, match="1% of the labels is left out"):
        few_labels(features, bank_y, y, 0.01, seed=0)


def test_principal_axes_are_uncorrelated_and_keep_lengths() -> None:
    bank, _, queries, _ = drawn(200, 50)
    features, axes = rotated(bank, queries), principal_axes(bank)
    covariance = features.bank.T @ features.bank / len(bank)
    assert torch.allclose(covariance, torch.diag(axes.variances), atol=1e-9)
    standardised = (queries - axes.mean) / axes.scale
    assert torch.allclose(axes.rotate(queries).norm(dim=1), standardised.norm(dim=1))
    weight, bias = torch.randn(3, 12, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    assert torch.allclose(features.logits(weight, bias), axes.rotate(queries) @ weight.T + bias)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_neither_the_scale_of_the_axes_nor_the_start_moves_the_minimum(strength: float) -> None:
    bank, y, queries, _ = drawn(90, 5)
    features = rotated(bank, queries)
    found = minimise(features.bank, y, features.axes.variances, 3, strength)
    start = (torch.ones(3, 12, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    other = minimise(features.bank, y, torch.ones(12, dtype=torch.float64), 3, strength, start, max_iter=3000)
    values = [float(objective(features.bank, y, *each, strength)) for each in (found, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_few_images_of_many_columns_have_few_axes_and_the_same_minimum() -> None:
    from sklearn.linear_model import LogisticRegression

    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(40, 200, generator=g, dtype=torch.float64) * torch.logspace(-2, 1, 200) + 3, torch.arange(40) % 3
    axes = principal_axes(x)
    assert axes.vectors.shape == (200, 40)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    for strength in (1.0, 1e-2, 1e-4):
        ours = fit(x, y, 3, strength)
        theirs = LogisticRegression(C=1 / (len(x) * strength), tol=1e-10, max_iter=20_000).fit(z.numpy(), y.numpy())
        weight, bias = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
        best = float(objective(z, y, weight, bias, strength))
        assert float(objective(z, y, ours.weight, ours.bias, strength)) == pytest.approx(best, abs=1e-7)
