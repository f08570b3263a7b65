"""Hand-worked values of the label-free diagnostics."""

import math

import pytest
import torch

from clf.diagnostics import alignment, diagnose, feature_std, mean_cosine, rank_me, uniformity, verdict


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rank_me_of_orthogonal_features_is_their_number(scale: float) -> None:
    assert rank_me(scale * torch.eye(16)) == pytest.approx(16, rel=1e-4)
    assert rank_me(scale * torch.eye(16).repeat(5, 1)) == pytest.approx(16, rel=1e-4)


def test_rank_me_of_equal_features_is_one() -> None:
    assert rank_me(torch.ones(20, 8)) == pytest.approx(1, abs=1e-3)
    assert rank_me(torch.zeros(20, 8)) == pytest.approx(1, abs=1e-3)


def test_rank_me_of_two_known_singular_values() -> None:
    p = torch.tensor([3 / 4, 1 / 4])
    entropy = -(p * p.log()).sum()
    features = torch.tensor([[3.0, 0, 0], [0, 1.0, 0]])
    assert rank_me(features) == pytest.approx(float(entropy.exp()), rel=1e-4)


def test_rank_me_equals_the_definition_with_an_svd() -> None:
    for shape in ((50, 12), (12, 50)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        sigma = torch.linalg.svdvals(x)
        p = sigma / sigma.sum() + 1e-7
        assert rank_me(x) == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-9)


def test_alignment_by_hand() -> None:
    a, b = torch.tensor([[2.0, 0], [0, 3.0]]), torch.tensor([[5.0, 0], [1.0, 0]])
    assert alignment(a, b) == pytest.approx((0 + 2) / 2)  # equal, orthogonal
    assert alignment(a, -a) == pytest.approx(4)
    assert alignment(a, -a, alpha=1) == pytest.approx(2)


def test_uniformity_by_hand() -> None:
    assert uniformity(torch.tensor([[1.0, 0], [-3.0, 0]])) == pytest.approx(-8)  # one pair at distance 2
    assert uniformity(torch.eye(5)) == pytest.approx(-4)  # all squared distances are 2
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-9)
    mixed = torch.tensor([[1.0, 0], [0, 1.0], [-1.0, 0]])  # squared distances 2, 2, 4
    assert uniformity(mixed) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))


def test_uniformity_over_several_chunks_equals_pdist() -> None:
    x = torch.randn(2100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.nn.functional.normalize(x)
    assert uniformity(x) == pytest.approx(float(torch.pdist(z).square().mul(-2).exp().mean().log()), rel=1e-9)


def test_uniformity_needs_a_pair() -> None:
    with pytest.raises(ValueError, match="two rows"):
        uniformity(torch.ones(1, 3))


def test_feature_std_by_hand() -> None:
    assert feature_std(torch.ones(9, 4)) == pytest.approx(0, abs=1e-9)
    assert feature_std(torch.tensor([[1.0, 0], [-1.0, 0], [0, 7.0], [0, -1.0]])) == pytest.approx(1 / math.sqrt(2))
    sphere = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert feature_std(sphere) == pytest.approx(1 / math.sqrt(64), rel=0.01)


def test_mean_cosine_leaves_out_the_pairs_of_a_row_with_itself() -> None:
    assert mean_cosine(torch.eye(4)) == pytest.approx(0, abs=1e-12)
    assert mean_cosine(torch.tensor([[1.0, 0], [0, 1.0], [1.0, 0]])) == pytest.approx(1 / 3)


def test_a_healthy_representation_gets_no_verdict() -> None:
    found = diagnose(torch.randn(300, 32, generator=torch.Generator().manual_seed(0)))
    assert verdict(found) is None
    assert (found.images, found.dim, found.alignment) == (300, 32, None)


def test_equal_features_are_called_collapsed() -> None:
    g = torch.Generator().manual_seed(0)
    sentence = verdict(diagnose(torch.ones(300, 32) + 1e-3 * torch.randn(300, 32, generator=g)))
    assert sentence is not None
    assert sentence.startswith("Collapsed")


@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_features_of_zeros_are_called_collapsed_with_their_true_figures(scale: float) -> None:
    """1e-30 is below what a direction is taken from."""
    found = diagnose(scale * torch.randn(300, 32, generator=torch.Generator().manual_seed(0)))
    assert found.uniformity == pytest.approx(0, abs=1e-9)
    assert found.mean_cosine == pytest.approx(0, abs=1e-9)
    assert found.feature_std == pytest.approx(0, abs=1e-9)
    sentence = str(verdict(found))
    assert sentence.startswith("Collapsed: all images have nearly the same features (mean cosine ")


def test_some_features_of_zeros_count_as_points_in_the_middle() -> None:
    """Squared distances 0 between the zeros, 1 between a zero and a direction; cosines 0."""
    some = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    assert uniformity(some) == pytest.approx(math.log((1 + 2 * math.exp(-2)) / 3))
    assert mean_cosine(some) == pytest.approx(0, abs=1e-12)


def test_one_axis_of_very_many_is_not_called_a_complete_collapse() -> None:
    """The least standard deviation that varied directions have: 1 / D."""
    axis = torch.zeros(16, 4096)
    axis[:, 0] = torch.tensor([1.0, -1.0]).repeat(8)
    found = diagnose(axis)
    assert found.feature_std == pytest.approx(1 / 4096)
    assert str(verdict(found)).startswith("Partly collapsed")


def test_features_on_a_line_are_called_partly_collapsed() -> None:
    g = torch.Generator().manual_seed(0)
    line = torch.randn(300, 1, generator=g) * torch.randn(1, 256, generator=g)
    sentence = verdict(diagnose(line))
    assert sentence is not None
    assert "1.0 of 256 dimensions" in sentence


def test_features_that_are_not_finite_are_called_diverged() -> None:
    for bad in (math.nan, math.inf):
        features = torch.randn(20, 4)
        features[3, 1] = bad
        assert "not finite" in str(verdict(diagnose(features)))


def test_views_add_the_alignment() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert diagnose(x, (x, x)).alignment == pytest.approx(0, abs=1e-12)
