"""k-NN, linear probe and feature extraction, against naive loops and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clf.evaluate.features import encode
from clf.evaluate.few_shot import few_shot
from clf.evaluate.knn import knn_accuracy, knn_predict, nearest
from clf.evaluate.linear import STRENGTHS, fit, linear_probe, objective
from clf.evaluate.retrieval import retrieval


def naive_knn(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float) -> list[int]:
    """The definition, in float64, one pair at a time."""
    predicted = []
    for q in queries.double():
        cosines = [float(q @ b / (q.norm() * b.norm())) for b in bank.double()]
        neighbours = sorted(range(len(bank)), key=lambda i: (-cosines[i], i))[:k]
        votes: dict[int, float] = {}
        for i in neighbours:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + math.exp(cosines[i] / temperature)
        predicted.append(min(votes, key=lambda label: (-votes[label], label)))
    return predicted


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.1), (20, 0.07), (40, 0.5), (400, 1.0)])
def test_knn_equals_the_naive_double_loop(k: int, temperature: float) -> None:
    g = torch.Generator().manual_seed(k)
    bank, queries = torch.randn(60, 7, generator=g) * 3, torch.randn(300, 7, generator=g)  # more than one chunk
    labels = torch.randint(0, 5, (60,), generator=g)
    assert knn_predict(bank, labels, queries, k, temperature).tolist() == naive_knn(
        bank, labels, queries, k, temperature
    )


def test_knn_votes_are_weighted_by_similarity() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    query, labels = torch.tensor([[1.0, 0.5]]), torch.tensor([1, 0, 0])
    # cosines 0.894 and twice 0.447: exp(8.94) against 2 exp(4.47); at T = 10 two distant votes win over a near one
    assert knn_predict(bank, labels, query, 3, 0.1).tolist() == [1]
    assert knn_predict(bank, labels, query, 3, 10.0).tolist() == [0]


def test_knn_accuracy_counts_right_answers() -> None:
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    queries = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0.9, 1.0], [1.0, 0.1, 0]])
    assert knn_accuracy(bank, labels, queries, torch.tensor([0, 1, 2, 2]), k=1) == 0.75


def test_ties_go_to_the_first_bank_rows_and_the_lowest_class() -> None:
    bank = torch.ones(50, 4)
    scores, rows = nearest(bank, torch.ones(3, 4), 7)
    assert rows.tolist() == [list(range(7))] * 3
    assert torch.allclose(scores, torch.ones(3, 7))
    labels = torch.tensor([2, 1] * 25)
    assert knn_predict(bank, labels, torch.ones(2, 4), 2).tolist() == [1, 1]


def test_a_shared_last_place_does_not_displace_a_nearer_neighbour() -> None:
    bank = torch.tensor([[0.0, 1], [0, 1], [1, 0], [0, 1]])
    scores, rows = nearest(bank, torch.tensor([[1.0, 1e-3]]), 2)
    assert rows.tolist() == [[2, 0]]
    assert scores[0, 0] > scores[0, 1]


def test_a_small_temperature_does_not_overflow() -> None:
    bank, labels = torch.eye(4), torch.tensor([3, 1, 2, 0])
    assert knn_predict(bank, labels, torch.eye(4), 4, temperature=1e-3).tolist() == [3, 1, 2, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 10_000))
def test_nearest_is_the_head_of_a_stable_sort(n: int, k: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    bank = torch.randint(-1, 2, (n, 2), generator=g).double()  # few directions: many ties
    queries = torch.randint(-1, 2, (5, 2), generator=g).double()
    cosines = nn.functional.normalize(queries) @ nn.functional.normalize(bank).T
    expected = cosines.sort(dim=1, descending=True, stable=True)
    scores, rows = nearest(bank, queries, k)
    assert rows.tolist() == expected.indices[:, :k].tolist()
    assert torch.equal(scores, expected.values[:, :k])


@pytest.mark.parametrize(
    ("bank", "queries", "k"),
    [((0, 3), (2, 3), 1), ((2, 3), (0, 3), 1), ((2, 3), (2, 4), 1), ((2, 3), (2, 3), 0)],
)
def test_nearest_refuses_what_makes_no_sense(bank: tuple[int, int], queries: tuple[int, int], k: int) -> None:
    with pytest.raises(ValueError, match=r"needed|at least 1"):
        nearest(torch.ones(bank), torch.ones(queries), k)


def test_knn_refuses_wrong_labels_and_temperature() -> None:
    x = torch.eye(3)
    with pytest.raises(ValueError, match="one label"):
        knn_predict(x, torch.zeros(2, dtype=torch.int64), x, 1)
    with pytest.raises(ValueError, match="positive"):
        knn_predict(x, torch.zeros(3, dtype=torch.int64), x, 1, temperature=0)
    with pytest.raises(ValueError, match="one label"):
        knn_accuracy(x, torch.zeros(3, dtype=torch.int64), x, torch.zeros(1, dtype=torch.int64), 1)


def clusters(n: int, classes: int, width: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    y = torch.randint(0, classes, (n,), generator=g)
    return centres[y] + spread * torch.randn(n, width, generator=g, dtype=torch.float64), y


@pytest.mark.parametrize("strength", [1e-1, 1e-3])
def test_the_linear_probe_reaches_scikit_learns_objective(strength: float) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = clusters(300, 4, 12, 2.0, seed=0)
    x = x * torch.linspace(0.1, 20, 12) + 5  # columns of very different scale
    ours = fit(x, y, 4, strength)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    theirs = LogisticRegression(C=1 / (len(x) * strength), tol=1e-8, max_iter=5000).fit(z.numpy(), y.numpy())
    weight, bias = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
    best = float(objective(z, y, weight, bias, strength))
    assert float(objective(z, y, ours.weight, ours.bias, strength)) == pytest.approx(best, rel=1e-7)
    assert torch.allclose(ours.weight, weight, atol=1e-3)
    assert np.array_equal(ours.logits(x).argmax(1).numpy(), theirs.predict(z.numpy()))


def test_objective_of_a_zero_classifier_is_log_of_the_classes() -> None:
    x, y = torch.randn(10, 3), torch.arange(10) % 5
    assert float(objective(x, y, torch.zeros(5, 3), torch.zeros(5), 1.0)) == pytest.approx(math.log(5))


def test_the_linear_probe_separates_what_is_separable_and_repeats() -> None:
    bank, bank_y = clusters(400, 3, 6, 0.05, seed=1)
    test, test_y = clusters(100, 3, 6, 0.05, seed=2)
    first = linear_probe(bank.float(), bank_y, test.float(), test_y, seed=3)
    assert first.accuracy == 1.0
    assert first.held_out_accuracy == 1.0
    assert first.strength == STRENGTHS[0]  # of equals the strongest
    assert torch.equal(first.predicted, test_y)
    assert linear_probe(bank.float(), bank_y, test.float(), test_y, seed=3) == first


def test_the_strength_is_not_chosen_on_the_test_split() -> None:
    bank, bank_y = clusters(120, 3, 30, 3.0, seed=4)
    test, test_y = clusters(50, 3, 30, 3.0, seed=5)
    chosen = linear_probe(bank, bank_y, test, test_y).strength
    assert linear_probe(bank, bank_y, test, (test_y + 1) % 3).strength == chosen


def test_a_noisy_problem_takes_more_regularisation_than_a_clean_one() -> None:
    noisy, noisy_y = clusters(150, 2, 100, 8.0, seed=6)
    test, test_y = clusters(50, 2, 100, 8.0, seed=7)
    assert linear_probe(noisy, noisy_y, test, test_y).strength >= 1e-2


def test_labels_need_not_be_contiguous_and_unknown_classes_count_as_wrong() -> None:
    bank, y = clusters(200, 2, 5, 0.01, seed=8)
    test, test_y = clusters(40, 2, 5, 0.01, seed=9)
    names = torch.tensor([7, 300])
    queries = names[test_y]
    queries[:10] = 5
    assert linear_probe(bank, names[y], test, queries).accuracy == 0.75


def test_constant_columns_and_single_image_classes_are_harmless() -> None:
    x, y = clusters(60, 3, 5, 0.1, seed=10)
    x = torch.cat([x.float(), torch.full((60, 2), 0.3)], dim=1)
    assert torch.isfinite(fit(x, y, 3, 1e-3).weight).all()
    lonely = linear_probe(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3))
    assert lonely.held_out_accuracy is None
    assert lonely.accuracy == 1.0


def test_a_linear_probe_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(torch.eye(3), torch.zeros(3, dtype=torch.int64), torch.eye(3), torch.zeros(3, dtype=torch.int64))


class Flat(nn.Module):
    """Features = pixels, and a record of what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.drop(self.norm(x)).flatten(1)


def test_encode_scales_batches_and_restores_each_mode() -> None:
    encoder = Flat()
    encoder.norm.eval()  # a frozen part of a training module
    images = torch.arange(5 * 3 * 2 * 2, dtype=torch.uint8).view(5, 3, 2, 2) * 4
    features = encode(encoder, images, batch_size=2)
    assert encoder.seen == [2, 2, 1]
    assert torch.allclose(features, images.flatten(1) / 255 / math.sqrt(1 + 1e-5), atol=1e-7)
    assert not features.requires_grad
    assert (encoder.training, encoder.norm.training, encoder.drop.training) == (True, False, True)
    assert torch.equal(encoder.norm.running_mean, torch.zeros(3))


def test_encode_restores_the_mode_after_an_error() -> None:
    encoder = Flat()
    with pytest.raises(RuntimeError, match="running_mean"):
        encode(encoder, torch.zeros(2, 4, 2, 2, dtype=torch.uint8))
    assert encoder.training
    assert encoder.drop.training


def test_encode_follows_the_encoders_type_and_returns_float32() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    features = encode(encoder, torch.full((2, 1, 2, 2), 255, dtype=torch.uint8))
    assert features.dtype == torch.float32
    assert torch.allclose(features, encoder(torch.ones(2, 1, 2, 2, dtype=torch.float64)).float())


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4, 4), torch.zeros(0, 3, 4, 4, dtype=torch.uint8)])
def test_encode_refuses_floats_and_nothing(images: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode(nn.Flatten(), images)


def test_the_search_goes_on_while_nothing_better_than_the_commonest_class_is_found() -> None:
    def drawn(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        y = (torch.rand(n, generator=g) < 0.1).long()
        common = torch.randn(n, 1, generator=g)
        x = common + 0.3 * torch.randn(n, 20, generator=g)
        x[:, 0] = common[:, 0]
        x[:, 1] = x[:, 0] + 0.02 * (2 * y - 1) + 0.005 * torch.randn(n, generator=g)
        return x, y  # the class is in the small difference of two columns, which a strong penalty hides

    queries, y = drawn(500, 1)
    found = linear_probe(*drawn(1500, 0), queries, y)
    assert found.strength == STRENGTHS[-1]
    assert found.accuracy > 0.95 > float((y == 0).double().mean())


def test_features_that_are_not_finite_count_as_zero() -> None:
    broken, labels = torch.full((20, 4), math.nan), torch.arange(20) % 2
    scores, rows = nearest(broken, broken[:3], 5)
    assert scores.unique().tolist() == [0.0]
    assert rows.tolist() == [list(range(5))] * 3
    assert linear_probe(broken, labels, broken[:6], labels[:6]).accuracy == 0.5
    found = retrieval(broken, labels, broken[:6], labels[:6])
    assert found.recall["1"] == 0.0
    assert found == retrieval(torch.zeros(20, 4), labels, torch.zeros(6, 4), labels[:6])
    assert few_shot(broken, labels, broken, labels, 1, 0, episodes=3).accuracy == 0.5
