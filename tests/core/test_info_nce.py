"""info_nce against a naive float64 loop, golden values, closed forms and the gradient of the paper's formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clf.losses import info_nce, info_nce_logits


def toy() -> tuple[Tensor, Tensor, Tensor]:
    """Two views of four images and a queue of six rows in five dimensions, without random numbers.

    a = sin(1 + 1.7 i + 0.9 d), b = a + 0.25 cos(0.5 + 0.8 i + 1.3 d), queue = cos(0.3 + 0.7 k + 1.1 d).
    """
    i = torch.arange(6, dtype=torch.float64)[:, None]
    d = torch.arange(5, dtype=torch.float64)[None, :]
    a = torch.sin(1.0 + 1.7 * i[:4] + 0.9 * d)
    b = a + 0.25 * torch.cos(0.5 + 0.8 * i[:4] + 1.3 * d)
    return a, b, F.normalize(torch.cos(0.3 + 0.7 * i + 1.1 * d), dim=1)


def naive(q: Tensor, k: Tensor, queue: Tensor, tau: float) -> float:
    """Equation 1 of the paper, one query and one key at a time."""
    total = 0.0
    for query, key in zip(q.tolist(), k.tolist(), strict=True):
        size, key_size = math.hypot(*query), math.hypot(*key)
        positive = sum(x * y for x, y in zip(query, key, strict=True)) / (size * key_size * tau)
        others = [sum(x * y for x, y in zip(query, row, strict=True)) / (size * tau) for row in queue.tolist()]
        total += math.log(math.exp(positive) + sum(map(math.exp, others))) - positive
    return total / len(q)


@pytest.mark.parametrize(
    ("swapped", "tau", "golden"),
    [(False, 0.07, 0.2900524061), (True, 0.07, 0.4419271588), (False, 0.2, 0.5808821270), (True, 0.2, 0.6861587990)],
)
def test_golden_values(swapped: bool, tau: float, golden: float) -> None:
    a, b, queue = toy()
    q, k = (b, a) if swapped else (a, b)
    assert info_nce(q, k, queue, tau).item() == pytest.approx(golden, abs=1e-9)


@given(
    n=st.integers(1, 5),
    length=st.integers(1, 7),
    e=st.integers(2, 5),
    tau=st.floats(0.05, 5),
    seed=st.integers(0, 1000),
)
def test_equals_the_loop(n: int, length: int, e: int, tau: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, n, e, generator=g, dtype=torch.float64).unbind()
    queue = F.normalize(torch.randn(length, e, generator=g, dtype=torch.float64), dim=1)
    assert info_nce(q, k, queue, tau).item() == pytest.approx(naive(q, k, queue, tau), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("length", [1, 7, 65_536])
def test_equal_rows_give_the_log_of_the_number_of_candidates(length: int) -> None:
    row = F.normalize(torch.arange(1, 4, dtype=torch.float64), dim=0)
    q = row.expand(3, 3)
    assert info_nce(q, q, row.expand(length, 3), 0.07).item() == pytest.approx(math.log(length + 1), abs=1e-9)


def test_the_gradient_is_the_weighted_sum_of_keys() -> None:
    """dL/dq = -(1 / tau) ((1 - p) k - sum of p_j k_j), projected onto the sphere, divided by N and by the norm of q."""
    a, b, queue = toy()
    tau, q, k = 0.2, F.normalize(a, dim=1).requires_grad_(), F.normalize(b, dim=1)
    info_nce(q, k, queue, tau).backward()  # type: ignore[no-untyped-call]
    p = info_nce_logits(q.detach(), k, queue, tau).softmax(1)  # (4, 7)
    flow = -((1 - p[:, :1]) * k - p[:, 1:] @ queue) / tau / 4
    flow = flow - (flow * q.detach()).sum(1, keepdim=True) * q.detach()
    assert q.grad is not None
    torch.testing.assert_close(q.grad, flow)


def test_gradient_against_finite_differences() -> None:
    a, b, queue = toy()
    assert torch.autograd.gradcheck(lambda q: info_nce(q, b, queue, 0.3), (a.requires_grad_(),))


def test_the_order_of_the_queue_and_the_norms_do_not_matter() -> None:
    a, b, queue = toy()
    loss = info_nce(a, b, queue, 0.2)
    torch.testing.assert_close(info_nce(3 * a, b / 7, queue.flip(0), 0.2), loss)


def test_other_images_of_the_batch_are_no_negatives() -> None:
    a, b, queue = toy()
    alone = [info_nce(a[i : i + 1], b[i : i + 1], queue, 0.2) for i in range(4)]
    torch.testing.assert_close(torch.stack(alone).mean(), info_nce(a, b, queue, 0.2))


def test_half_precision_is_computed_in_float32_and_low_temperature_does_not_overflow() -> None:
    a, b, queue = (x.float() for x in toy())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(a, b, queue, 0.2)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5808821270, abs=1e-6)
    assert torch.isfinite(info_nce(a, b, queue, 0.001))


def test_bad_arguments_are_refused() -> None:
    a, b, queue = toy()
    with pytest.raises(ValueError, match="temperature must be positive"):
        info_nce(a, b, queue, 0.0)
    for bad in ((a, b[:2], queue), (a, b, queue[:, :3]), (a[0], b[0], queue)):
        with pytest.raises(ValueError, match=r"queue \(K, E\)"):
            info_nce(*bad, 0.2)
