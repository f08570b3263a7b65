"""nt_xent against a naive float64 double loop, published closed forms and a finite-difference gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toy_views import toy

from clf.losses import nt_xent


def naive(a: Tensor, b: Tensor, tau: float) -> list[float]:
    """The loss of each of the 2N anchors, as in equation 1, one pair at a time."""
    rows = [*a.double(), *b.double()]
    n = len(a)
    z = [row / math.sqrt(sum(float(x) ** 2 for x in row)) for row in rows]
    losses = []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        total = sum(math.exp(float(z[i] @ z[k]) / tau) for k in range(2 * n) if k != i)
        losses.append(math.log(total) - float(z[i] @ z[partner]) / tau)
    return losses


@pytest.mark.parametrize(
    ("spread", "tau", "golden"),
    [(0.25, 0.1, 0.0007100314), (0.25, 0.5, 0.4868051534), (1.5, 0.1, 0.3738930294), (1.5, 0.5, 0.8667987449)],
)
def test_golden_values(spread: float, tau: float, golden: float) -> None:
    assert nt_xent(*toy(spread), tau).item() == pytest.approx(golden, abs=1e-9)


def test_gradient_with_respect_to_the_unnormalised_row() -> None:
    a, b = toy(0.25)
    a = a.requires_grad_()
    nt_xent(a, b, 0.5).backward()
    assert a.grad is not None
    expected = torch.tensor(
        [-0.0282946975, 0.0099851311, 0.0415395018, 0.0277792683, -0.0152597296], dtype=torch.float64
    )
    torch.testing.assert_close(a.grad[0], expected, atol=1e-9, rtol=0)
    assert float(a.grad.norm()) == pytest.approx(0.1140163529, abs=1e-9)


def test_gradient_against_finite_differences() -> None:
    a, b = toy(1.5)
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, 0.3), (a.requires_grad_(), b.requires_grad_()))


@given(n=st.integers(1, 6), e=st.integers(2, 5), tau=st.floats(0.05, 5), seed=st.integers(0, 1000))
def test_equals_the_double_loop(n: int, e: int, tau: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, e, generator=g, dtype=torch.float64).unbind()
    expected = sum(naive(a, b, tau)) / (2 * n)
    assert nt_xent(a, b, tau).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_symmetries() -> None:
    a, b = toy(1.5)
    loss = nt_xent(a, b, 0.5)
    order = torch.tensor([2, 0, 3, 1])
    scale = torch.tensor([0.1, 3.0, 20.0, 1.0], dtype=torch.float64)[:, None]
    rotation = torch.linalg.qr(torch.sin(torch.arange(25, dtype=torch.float64)).reshape(5, 5))[0]
    for changed in (nt_xent(b, a, 0.5), nt_xent(a[order], b[order], 0.5), nt_xent(a * scale, b, 0.5)):
        torch.testing.assert_close(changed, loss)
    torch.testing.assert_close(nt_xent(a @ rotation, b @ rotation, 0.5), loss)


@pytest.mark.parametrize("n", [1, 2, 256])
def test_all_equal_embeddings_give_the_log_of_the_number_of_candidates(n: int) -> None:
    x = torch.ones(n, 3)
    assert nt_xent(x, x, 0.1).item() == pytest.approx(math.log(2 * n - 1) if n > 1 else 0, abs=1e-5)


def test_orthogonal_images_have_the_closed_form() -> None:
    x = torch.eye(6, dtype=torch.float64)
    assert nt_xent(x, x, 0.5).item() == pytest.approx(math.log(1 + 10 * math.exp(-2)), abs=1e-12)


def test_the_diagonal_gives_no_gradient_and_low_temperature_does_not_overflow() -> None:
    a, b = toy(0.25)
    assert torch.isfinite(nt_xent(a.float(), b.float(), 0.001))


def test_half_precision_is_computed_in_float32() -> None:
    a, b = toy(0.25)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(a.float(), b.float(), 0.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.4868051534, abs=1e-6)


def test_ranks_average_to_one_process_by_slicing() -> None:
    """Two ranks with the gather of one process: the mean of the local losses is the loss of all rows."""
    a, b = toy(1.5)
    parts = []
    for rank in range(2):
        rows = slice(2 * rank, 2 * rank + 2)
        gathered = iter([torch.nn.functional.normalize(a, dim=1), torch.nn.functional.normalize(b, dim=1)])
        parts.append(nt_xent(a[rows], b[rows], 0.5, gather=lambda _, all_rows=gathered: next(all_rows), rank=rank))
    torch.testing.assert_close(sum(parts) / 2, nt_xent(a, b, 0.5))


def test_bad_arguments_are_refused() -> None:
    a, b = toy(0.25)
    with pytest.raises(ValueError, match="positive"):
        nt_xent(a, b, 0.0)
    with pytest.raises(ValueError, match="shape"):
        nt_xent(a, b[:2], 0.5)
