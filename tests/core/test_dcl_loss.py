"""DCL and DCLW against golden values, a naive float64 double loop, closed forms and their identities with NT-Xent."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rank_threads import on_ranks
from torch import Tensor
from toy_views import toy

from clf.losses import attraction_weights, dcl, decouple, decouple_views, nt_xent

TEMPERATURES = st.sampled_from([0.01, 0.05, 0.1, 0.5, 1.0, 10.0])


def random_views(n: int, e: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, e, generator=g, dtype=torch.float64).unbind()
    return a, b


def loop(a: Tensor, b: Tensor, tau: float, sigma: float = math.inf, keep_positive: bool = False) -> list[float]:
    """The loss of each of the 2N anchors, one pair at a time."""
    n = len(a)
    z = [row / math.sqrt(sum(float(x) ** 2 for x in row)) for row in [*a, *b]]

    def s(i: int, j: int) -> float:
        return float(z[i] @ z[j])

    mean = sum(math.exp(s(j, j + n) / sigma) for j in range(n)) / n
    found = []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        w = 2 - math.exp(s(i, partner) / sigma) / mean
        logits = [s(i, k) / tau for k in range(2 * n) if k != i and (keep_positive or k != partner)]
        top = max(logits)
        found.append(top + math.log(sum(math.exp(x - top) for x in logits)) - w * s(i, partner) / tau)
    return found


def gradients(loss: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
    one, other = torch.autograd.grad(loss(x, y), (x, y))
    return one, other


GOLDEN = [
    (0.25, 0.1, -7.7110204203, -7.7089452803),
    (0.25, 0.5, -0.4732439898, -0.4728289618),
    (1.5, 0.1, -2.4862902244, -1.9055193768),
    (1.5, 0.5, 0.2913829137, 0.4075370832),
]


@pytest.mark.parametrize(("spread", "tau", "plain", "weighted"), GOLDEN)
def test_golden_values(spread: float, tau: float, plain: float, weighted: float) -> None:
    a, b = toy(spread)
    assert dcl(a, b, tau).item() == pytest.approx(plain, abs=1e-9)
    assert dcl(a, b, tau, sigma=0.5).item() == pytest.approx(weighted, abs=1e-9)
    assert dcl(a.float(), b.float(), tau).item() == pytest.approx(plain, abs=1e-5)
    assert dcl(a.float(), b.float(), tau, sigma=0.5).item() == pytest.approx(weighted, abs=1e-5)


def test_golden_value_of_each_anchor() -> None:
    first = [-0.2838668227, -0.5471159145, -0.6660293279, -0.3258103188]
    second = [-0.3344606928, -0.5800755287, -0.6588397902, -0.3897535227]
    expected = torch.tensor(first + second, dtype=torch.float64)
    each = decouple_views(*toy(), 0.5)
    torch.testing.assert_close(each.dcl, expected, atol=1e-9, rtol=0)
    assert each.npc_multiplier.mean().item() == pytest.approx(0.3844418153, abs=1e-9)
    assert each.nt_xent.mean().item() == pytest.approx(0.4868051534, abs=1e-9)
    cold = decouple_views(*toy(), 0.1)
    assert cold.npc_multiplier.mean().item() == pytest.approx(0.0007095689, abs=1e-10)


@pytest.mark.parametrize(
    ("spread", "cosines", "weights"),
    [
        (
            0.25,
            [0.9723818598, 0.9732537812, 0.9974251024, 0.9780115827],
            [1.0158522716, 1.0141345755, 0.9653044567, 1.0047086962],
        ),
        (
            1.5,
            [0.481635249, 0.7269953573, 0.973523097, 0.7915632201],
            [1.441862124, 1.088286097, 0.5072404732, 0.9626113058],
        ),
    ],
)
def test_golden_weights(spread: float, cosines: list[float], weights: list[float]) -> None:
    positive = decouple_views(*toy(spread), 0.1).positive
    torch.testing.assert_close(positive, torch.tensor(2 * cosines, dtype=torch.float64), atol=1e-9, rtol=0)
    expected = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(attraction_weights(positive[:4], 0.5), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(attraction_weights(positive, 0.5), expected.repeat(2), atol=1e-9, rtol=0)


def test_golden_gradient_with_respect_to_the_unnormalised_row() -> None:
    gradient, _ = gradients(lambda x, y: dcl(x, y, 0.5), *toy())
    expected = [-0.064532219, 0.0214019793, 0.0936015953, 0.0623681703, -0.0359656879]
    torch.testing.assert_close(gradient[0], torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("sigma", "detach", "norm"), [(None, True, 0.2622474577), (0.5, True, 0.2635758393), (0.5, False, 0.2649252675)]
)
def test_golden_norm_of_the_gradient(sigma: float | None, detach: bool, norm: float) -> None:
    gradient, _ = gradients(lambda x, y: dcl(x, y, 0.5, sigma=sigma, detach_weight=detach), *toy())
    assert gradient.norm().item() == pytest.approx(norm, abs=1e-9)


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_gradient_against_finite_differences(sigma: float | None) -> None:
    """Of what is differentiated: with constant weights the loss is not the function that is written down."""
    a, b = (x.requires_grad_() for x in toy(1.5))
    assert torch.autograd.gradcheck(lambda x, y: dcl(x, y, 0.3, sigma=sigma, detach_weight=False), (a, b))


@given(n=st.integers(2, 6), e=st.integers(2, 5), tau=TEMPERATURES, seed=st.integers(0, 1000))
def test_equals_the_double_loop(n: int, e: int, tau: float, seed: int) -> None:
    a, b = random_views(n, e, seed)
    each = decouple_views(a, b, tau)
    expected = torch.tensor(loop(a, b, tau), dtype=torch.float64)
    torch.testing.assert_close(each.dcl, expected, atol=1e-10, rtol=1e-10)
    weighted = sum(loop(a, b, tau, sigma=0.5)) / (2 * n)
    assert dcl(a, b, tau, sigma=0.5).item() == pytest.approx(weighted, rel=1e-9, abs=1e-9)


@given(n=st.integers(2, 6), e=st.integers(2, 5), tau=TEMPERATURES, seed=st.integers(0, 1000))
def test_the_positive_put_back_gives_nt_xent(n: int, e: int, tau: float, seed: int) -> None:
    """Identities 1 to 5, for each anchor, against NT-Xent written down on its own."""
    a, b = random_views(n, e, seed)
    each = decouple_views(a, b, tau)
    plain = torch.tensor(loop(a, b, tau, keep_positive=True), dtype=torch.float64)
    torch.testing.assert_close(each.nt_xent, plain, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(each.npc_multiplier, -torch.expm1(-plain), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(each.nt_xent - each.dcl, -F.logsigmoid(each.dcl), atol=1e-10, rtol=1e-10)
    measurable = (plain > 1e-3) & (plain < 30)
    back = torch.log(torch.expm1(plain))
    torch.testing.assert_close(each.dcl[measurable], back[measurable], atol=1e-9, rtol=1e-9)
    assert bool((each.dcl[measurable] < plain[measurable]).all())
    assert nt_xent(a, b, tau).item() == pytest.approx(each.nt_xent.mean().item(), rel=1e-10, abs=1e-10)


@given(n=st.integers(2, 6), e=st.integers(2, 5), tau=TEMPERATURES, seed=st.integers(0, 1000))
def test_the_gradient_of_nt_xent_is_that_of_dcl_times_the_multiplier(n: int, e: int, tau: float, seed: int) -> None:
    a, b = random_views(n, e, seed)

    def multiplied(x: Tensor, y: Tensor) -> Tensor:
        each = decouple_views(x, y, tau)
        return (each.npc_multiplier.detach() * each.dcl).mean()

    expected = gradients(lambda x, y: nt_xent(x, y, tau), a, b)
    for other in (multiplied, lambda x, y: decouple_views(x, y, tau).nt_xent.mean()):
        for mine, its in zip(gradients(other, a, b), expected, strict=True):
            torch.testing.assert_close(mine, its, atol=1e-10, rtol=1e-8)


def test_finite_differences_of_both_losses_have_the_ratio_of_the_multiplier() -> None:
    """Central differences of the double loops, anchor by anchor, in every entry of both views."""
    a, b = toy(1.5)
    step, tau = 1e-6, 0.5
    q = decouple_views(a, b, tau).npc_multiplier
    for x in (a, b):
        for at in [(0, 0), (1, 3), (2, 4), (3, 1)]:
            slopes = []
            for keep in (True, False):
                sides = []
                for sign in (1, -1):
                    x[at] += sign * step
                    sides.append(torch.tensor(loop(a, b, tau, keep_positive=keep), dtype=torch.float64))
                    x[at] -= sign * step
                slopes.append((sides[0] - sides[1]) / (2 * step))
            with_positive, without = slopes
            assert float(without.abs().max()) > 1e-2
            torch.testing.assert_close(with_positive, q * without, atol=1e-8, rtol=0)


@pytest.mark.parametrize("decoupled", [True, False])
def test_gradients_of_one_anchor_are_those_of_the_paper(decoupled: bool) -> None:
    """-dL/dz of anchor, positive and negatives; on the sphere, because the loss normalises its input."""
    tau, i = 0.5, 1
    a, b = (F.normalize(x, dim=1) for x in toy(1.5))
    each = decouple_views(a, b, tau)
    q = 1.0 if decoupled else each.npc_multiplier[i].item()

    def anchor(x: Tensor, y: Tensor) -> Tensor:
        found = decouple_views(x, y, tau)
        return (found.dcl if decoupled else found.nt_xent)[i]

    others = torch.tensor([j for j in range(4) if j != i])
    negatives = torch.cat([a[others], b[others]])
    p = torch.softmax(negatives @ a[i] / tau, dim=0)
    expected_a, expected_b = torch.zeros_like(a), torch.zeros_like(b)
    expected_a[i] = b[i] - p @ negatives
    expected_b[i] = a[i]
    expected_a[others] = -p[:3, None] * a[i]
    expected_b[others] = -p[3:, None] * a[i]
    for z, found, pull in zip((a, b), gradients(anchor, a, b), (expected_a, expected_b), strict=True):
        tangent = pull - (pull * z).sum(1, keepdim=True) * z
        torch.testing.assert_close(-found, q / tau * tangent, atol=1e-12, rtol=0)


@given(
    n=st.integers(2, 8),
    e=st.integers(2, 5),
    sigma=st.sampled_from([0.01, 0.1, 0.5, 1.0, 10.0]),
    seed=st.integers(0, 1000),
)
def test_weights_are_one_on_average_and_fall_with_similarity(n: int, e: int, sigma: float, seed: int) -> None:
    positive = F.cosine_similarity(*random_views(n, e, seed))
    w = attraction_weights(positive, sigma)
    assert w.mean().item() == pytest.approx(1, abs=1e-10)
    assert 2 - n - 1e-9 <= w.min().item() and w.max().item() <= 2
    order = positive.argsort()
    assert bool((w[order].diff() <= 0).all())


def test_extreme_weights() -> None:
    positive = torch.tensor([0.3, 0.9, -0.5], dtype=torch.float64)
    expected = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(attraction_weights(positive, 1e-4), expected)  # the closest pair has 2 - N
    torch.testing.assert_close(attraction_weights(positive, 1e9), torch.ones_like(positive))
    equal = torch.full((7,), 0.4, dtype=torch.float64)
    torch.testing.assert_close(attraction_weights(equal, 0.5), torch.ones_like(equal))
    a, b = toy(1.5)
    torch.testing.assert_close(dcl(a, b, 0.5, sigma=1e9), dcl(a, b, 0.5))


def test_weights_are_constants_to_the_gradient_unless_asked() -> None:
    positive = torch.tensor([0.3, 0.9], requires_grad=True)
    assert not attraction_weights(positive, 0.5).requires_grad
    assert attraction_weights(positive, 0.5, detach=False).requires_grad


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_symmetries(sigma: float | None) -> None:
    a, b = toy(1.5)
    loss = dcl(a, b, 0.5, sigma=sigma)
    order = torch.tensor([2, 0, 3, 1])
    scale = torch.tensor([0.1, 3.0, 20.0, 1.0], dtype=torch.float64)[:, None]
    rotation = torch.linalg.qr(torch.sin(torch.arange(25, dtype=torch.float64)).reshape(5, 5))[0]
    for x, y in ((b, a), (a[order], b[order]), (a * scale, b), (a, b * scale), (a @ rotation, b @ rotation)):
        torch.testing.assert_close(dcl(x, y, 0.5, sigma=sigma), loss)


@pytest.mark.parametrize("n", [2, 3, 256])
def test_equal_embeddings_count_the_terms_of_the_denominator(n: int) -> None:
    x = torch.ones(n, 3, dtype=torch.float64)
    assert dcl(x, x, 0.1).exp().item() == pytest.approx(2 * (n - 1), rel=1e-12)


@pytest.mark.parametrize(("tau", "value"), [(0.1, -3.766), (0.5, 4.234)])
def test_orthogonal_images_have_the_closed_form(tau: float, value: float) -> None:
    x = torch.eye(256, dtype=torch.float64)
    loss = dcl(x, x, tau).item()
    assert loss == pytest.approx(math.log(510) - 1 / tau, abs=1e-9)
    assert loss == pytest.approx(value, abs=1e-3)


def test_figures_beside_the_loss() -> None:
    a, b = (F.normalize(x, dim=1) for x in toy(1.5))
    each = decouple_views(a, b, 0.5)
    z = torch.cat([a, b])
    for i in range(8):
        cosines = torch.stack([z[i] @ z[k] for k in range(8) if k % 4 != i % 4])
        torch.testing.assert_close(each.negative[i], cosines.mean())
        torch.testing.assert_close(each.hardest[i], cosines.max())
    assert not each.negative.requires_grad and not each.hardest.requires_grad


def test_what_is_excluded_is_removed_and_not_made_small() -> None:
    """Anchor and positive coincide, the other image is opposite: any finite mask would outweigh the negatives."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert dcl(x, x, 0.005).item() == pytest.approx(math.log(2) - 400, abs=1e-9)
    gradient = gradients(lambda a, b: dcl(a, b, 0.005), x, x)
    assert all(bool(torch.isfinite(each).all()) for each in gradient)


def test_low_temperatures_neither_overflow_nor_lose_the_gradient() -> None:
    a, b = toy(1.5)
    for tau in (0.01, 0.001):
        expected = dcl(a, b, tau).item()
        assert dcl(a.float(), b.float(), tau).item() == pytest.approx(expected, rel=1e-4)
        x = a.float().requires_grad_()
        (gradient,) = torch.autograd.grad(dcl(x, b.float(), tau, sigma=0.5), x)
        assert bool(torch.isfinite(gradient).all()) and bool(gradient.any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    a, b = (x.float() for x in toy(1.5))
    plain = [dcl(a, b, 0.05, sigma=sigma) for sigma in (None, 0.5)]
    with torch.autocast("cpu", dtype=dtype):
        mixed = [dcl(a, b, 0.05, sigma=sigma) for sigma in (None, 0.5)]
        rounded = dcl(a.to(dtype), b.to(dtype), 0.05, sigma=0.5)
    assert [x.dtype for x in [*mixed, rounded]] == 3 * [torch.float32]
    assert [x.item() for x in mixed] == [x.item() for x in plain]
    assert rounded.item() == dcl(a.to(dtype).float(), b.to(dtype).float(), 0.05, sigma=0.5).item()


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("sigma", [None, 0.5])
@pytest.mark.parametrize("detach", [True, False])
def test_several_ranks_equal_one_process(ranks: int, sigma: float | None, detach: bool) -> None:
    """Value and gradient, with two images on each rank."""
    a, b = random_views(2 * ranks, 5, seed=ranks)

    def split(x: Tensor, y: Tensor) -> Tensor:
        def local(rank: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
            rows = slice(2 * rank, 2 * rank + 2)
            return dcl(x[rows], y[rows], 0.5, gather=gather, rank=rank, sigma=sigma, detach_weight=detach)

        return torch.stack(on_ranks(ranks, local)).mean()

    def whole(x: Tensor, y: Tensor) -> Tensor:
        return dcl(x, y, 0.5, sigma=sigma, detach_weight=detach)

    torch.testing.assert_close(split(a, b), whole(a, b), atol=1e-12, rtol=0)
    for mine, its in zip(gradients(split, a, b), gradients(whole, a, b), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-12, rtol=0)


def test_golden_values_of_two_ranks() -> None:
    a, b = toy()

    def local(rank: int, gather: Callable[[Tensor], Tensor]) -> tuple[float, float, float, float]:
        x, y = a[2 * rank : 2 * rank + 2], b[2 * rank : 2 * rank + 2]
        each = decouple_views(x, y, 0.5, gather=gather, rank=rank)
        own = attraction_weights(each.positive, 0.5)
        shared = attraction_weights(each.positive, 0.5, gather=gather)
        return each.loss().item(), dcl(x, y, 0.5).item(), each.loss(own).item(), each.loss(shared).item()

    means = [sum(values) / 2 for values in zip(*on_ranks(2, local), strict=True)]
    gathered, alone, weights_of_one_rank, weights_of_all = means
    assert gathered == pytest.approx(-0.4732439898, abs=1e-9)
    assert alone == pytest.approx(-1.2877822291, abs=1e-9)
    assert weights_of_one_rank == pytest.approx(-0.4730551910, abs=1e-9)
    assert weights_of_all == pytest.approx(-0.4728289618, abs=1e-9)


def test_one_image_on_each_of_two_ranks_is_enough() -> None:
    a, b = toy()
    parts = on_ranks(2, lambda rank, gather: dcl(a[rank : rank + 1], b[rank : rank + 1], 0.5, gather=gather, rank=rank))
    torch.testing.assert_close(torch.stack(parts).mean(), dcl(a[:2], b[:2], 0.5))


def test_negatives_that_all_anchors_share() -> None:
    """Without excluded rows every candidate is a negative, as with a queue."""
    a, b = toy()
    queue = torch.cos(torch.arange(30, dtype=torch.float64)).reshape(6, 5)
    each = decouple(a, b, queue, 0.2)
    za, zb, zq = (F.normalize(x, dim=1) for x in (a, b, queue))
    expected = [
        math.log(sum(math.exp(float(x @ k) / 0.2) for k in zq)) - float(x @ y) / 0.2
        for x, y in zip(za, zb, strict=True)
    ]
    torch.testing.assert_close(each.dcl, torch.tensor(expected, dtype=torch.float64))


def test_bad_arguments_are_refused() -> None:
    a, b = toy()
    with pytest.raises(ValueError, match="at least two images"):
        dcl(a[:1], b[:1], 0.5)
    with pytest.raises(ValueError, match="temperature must be positive"):
        dcl(a, b, 0.0)
    with pytest.raises(ValueError, match="shape"):
        dcl(a, b[:2], 0.5)
    with pytest.raises(ValueError, match="sigma must be positive"):
        dcl(a, b, 0.5, sigma=0.0)
