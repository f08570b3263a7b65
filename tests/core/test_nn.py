"""The shared modules."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from clf.chunking import in_chunks
from clf.errors import ConfigError
from clf.nn import Queue, SplitBatchNorm, mlp, momentum_update, split_batch_norm
from clf.verify.batchnorm import of_all_rows


def test_a_projector_has_norm_and_relu_between_its_linear_layers() -> None:
    kinds = [type(layer) for layer in mlp(8, 6, 4)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    first, *_, last = mlp(8, 6, 4)
    assert first.bias is None and last.bias is not None
    assert mlp(8, 6, 4)(torch.randn(3, 8)).shape == (3, 4)


def test_the_released_code_ends_in_a_norm_without_shift() -> None:
    *_, linear, norm = mlp(8, 6, 4, last_batch_norm=True)
    assert isinstance(norm, nn.BatchNorm1d) and linear.bias is None
    assert norm.weight.requires_grad and not norm.bias.requires_grad and norm.bias.abs().sum() == 0


def test_one_layer_is_a_linear_map() -> None:
    assert [type(layer) for layer in mlp(8, 4)] == [nn.Linear]
    with pytest.raises(ValueError, match="input and an output"):
        mlp(8)


def numbered(start: int, n: int, dim: int = 3) -> Tensor:
    """(n, dim): row i is full of the number start + i."""
    return torch.arange(start, start + n, dtype=torch.float32)[:, None].expand(n, dim)


def test_a_queue_starts_as_random_unit_vectors() -> None:
    queue = Queue(500, 8)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(500))
    assert queue.rows.mean(0).abs().max() < 0.1
    assert len(queue) == 500 and queue.fill == 0 and not list(queue.parameters())


@given(n=st.integers(1, 4), pushes=st.integers(1, 5), steps=st.integers(1, 12))
def test_a_queue_holds_the_last_rows_at_their_places(n: int, pushes: int, steps: int) -> None:
    length = n * pushes
    queue = Queue(length, 3)
    first = queue.rows.clone()
    expected = list(first)
    for t in range(steps):
        places = queue.push(numbered(t * n, n))
        assert places.tolist() == [(t * n + i) % length for i in range(n)]
        for i in range(n):
            expected[(t * n + i) % length] = torch.full((3,), float(t * n + i))
    assert torch.equal(queue.rows, torch.stack(expected))
    assert queue.pointer == steps * n % length
    assert queue.fill == min(1, steps / pushes)


def test_a_queue_refuses_what_would_not_wrap() -> None:
    queue = Queue(6, 3)
    for rows in (torch.ones(4, 3), torch.ones(12, 3), torch.ones(0, 3), torch.ones(2, 5)):
        with pytest.raises(ValueError, match="cannot take rows"):
            queue.push(rows)
    with pytest.raises(ValueError, match="1 or more"):
        Queue(0, 3)


def test_a_loss_of_before_a_push_keeps_the_rows_it_saw() -> None:
    queue = Queue(4, 3)
    q = torch.ones(2, 3, requires_grad=True)
    before = queue.rows
    loss = (q @ before.T).sum()
    queue.push(torch.full((2, 3), 9.0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert q.grad is not None
    torch.testing.assert_close(q.grad, before.sum(0).expand(2, 3))


def test_the_state_of_a_queue_is_in_its_state_dict() -> None:
    queue, other = Queue(6, 3), Queue(6, 3)
    queue.push(numbered(0, 2))
    other.load_state_dict(queue.state_dict())
    queue.push(numbered(2, 2))
    other.push(numbered(2, 2))
    assert all(torch.equal(a, b) for a, b in zip(queue.buffers(), other.buffers(), strict=True))
    assert other.pointer == 4


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999, 1.0])
def test_momentum_updates_have_the_closed_form(momentum: float) -> None:
    """With constant theta_q, t updates give theta_q + m^t (theta_k - theta_q)."""
    online, target = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    start = copy.deepcopy(target)
    for _ in range(5):
        momentum_update(target, online, momentum)
    for k, q, before in zip(target.parameters(), online.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(k, q + momentum**5 * (before - q), rtol=1e-12, atol=1e-12)
    exact = {0.0: online, 1.0: start}.get(momentum)
    if exact is not None:
        assert torch.equal(target.weight, exact.weight)


def test_momentum_updates_leave_buffers_and_gradients_alone() -> None:
    online, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3).requires_grad_(False)
    online(torch.randn(8, 3))
    momentum_update(target, online, 0.5)
    assert target.running_mean is not None and target.running_mean.abs().sum() == 0
    assert target.num_batches_tracked == 0 and not target.weight.requires_grad


def test_momentum_updates_refuse_networks_that_differ() -> None:
    with pytest.raises(ValueError, match="bias"):
        momentum_update(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.9)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        momentum_update(nn.Linear(2, 2), nn.Linear(2, 2), 1.5)


def perturbed(norm: nn.Module) -> nn.Module:
    """Scale, shift and running statistics that are not those of a new norm."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in [*norm.parameters(), *norm.buffers()]:
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=g, dtype=value.dtype))
    return norm


NORMS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.BatchNorm1d(3), (12, 3)),
    (nn.BatchNorm1d(3), (12, 3, 5)),
    (nn.BatchNorm2d(3), (12, 3, 4, 2)),
    (nn.BatchNorm3d(3), (12, 3, 2, 2, 2)),
    (nn.BatchNorm2d(3, affine=False), (12, 3, 4, 2)),
    (nn.BatchNorm2d(3, track_running_stats=False), (12, 3, 4, 2)),
    (nn.BatchNorm2d(3, momentum=None), (12, 3, 4, 2)),
    (BatchNormAct2d(3, act_layer=nn.PReLU, inplace=False), (12, 3, 4, 2)),
]


@pytest.mark.parametrize(("norm", "shape"), NORMS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("splits", [2, 3])
def test_split_batch_norm_is_a_batch_norm_of_each_residue_class(
    norm: nn.Module, shape: tuple[int, ...], splits: int
) -> None:
    norm = perturbed(copy.deepcopy(norm).double())
    parts = [copy.deepcopy(norm) for _ in range(splits)]
    split = split_batch_norm(copy.deepcopy(norm), splits)
    assert isinstance(split, SplitBatchNorm) and split.state_dict().keys() == norm.state_dict().keys()
    g = torch.Generator().manual_seed(0)
    for _ in range(2):
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        x += torch.arange(12).view(-1, *[1] * (len(shape) - 1))  # so that no two groups have the same mean
        y = split(x)
        for s, part in enumerate(parts):
            rows = [i for i in range(12) if i % splits == s]
            torch.testing.assert_close(y[rows], part(x[rows]))
    for name, value in split.state_dict().items():
        each = torch.stack([part.state_dict()[name].double() for part in parts])
        torch.testing.assert_close(value.double(), each.mean(0))
    plain = copy.deepcopy(norm).eval()
    plain.load_state_dict(split.state_dict())
    assert torch.equal(split.eval()(x), plain(x))


def test_split_batch_norm_has_the_gradient_of_its_parts() -> None:
    norm = perturbed(nn.BatchNorm2d(2).double())
    split = split_batch_norm(copy.deepcopy(norm), 2)
    x = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    split(ours).pow(3).sum().backward()
    sum(norm(theirs[s::2]).pow(3).sum() for s in range(2)).backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    for a, b in zip(split.parameters(), norm.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_split_batch_norm_keeps_the_order_of_memory() -> None:
    split = split_batch_norm(nn.BatchNorm2d(4), 2)
    x = torch.randn(4, 4, 3, 3).to(memory_format=torch.channels_last)
    assert split(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(split(x), split(x.contiguous()))


def test_one_group_is_plain_batch_norm() -> None:
    norm = nn.BatchNorm2d(4)
    split = split_batch_norm(copy.deepcopy(norm), 1)
    x = torch.randn(5, 4, 3, 3)
    assert torch.equal(split(x), norm(x))
    assert all(torch.equal(a, b) for a, b in zip(split.buffers(), norm.buffers(), strict=True))


def test_all_batch_norms_of_a_network_are_replaced_in_place() -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    names = [name for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)]
    weights = network.state_dict()
    assert split_batch_norm(network, 2) is network
    assert [n for n, part in network.named_modules() if isinstance(part, SplitBatchNorm)] == names != []
    assert network.state_dict().keys() == weights.keys()
    again = copy.deepcopy(network)
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(again(x), network(x))
    first, *_ = names
    copied = again.get_submodule(first)
    assert isinstance(copied, SplitBatchNorm) and copied.splits == 2
    assert not set(again.parameters()) & set(network.parameters())


def test_a_batch_that_does_not_divide_is_refused() -> None:
    split = split_batch_norm(nn.BatchNorm1d(3), 4)
    with pytest.raises(ConfigError, match="cannot divide 6 rows"):
        split(torch.randn(6, 3))
    assert split.eval()(torch.randn(6, 3)).shape == (6, 3)
    with pytest.raises(ConfigError, match="SyncBatchNorm cannot be split"):
        split_batch_norm(nn.SyncBatchNorm(3), 2)
    with pytest.raises(ValueError, match="1 or more"):
        split_batch_norm(nn.BatchNorm1d(3), 0)


def test_recomputation_of_a_chunk_does_not_move_split_statistics_twice() -> None:
    """Two chunks: rows 0, 2, 4, 6 and rows 1, 3, 5, 7, each in two groups."""
    split, by_hand = (split_batch_norm(nn.BatchNorm1d(3), 2) for _ in range(2))
    x = torch.randn(8, 3, requires_grad=True)
    in_chunks(split, x, 4).square().sum().backward()  # type: ignore[no-untyped-call]
    by_hand(x[0::2].detach())
    by_hand(x[1::2].detach())
    assert isinstance(split, SplitBatchNorm) and isinstance(by_hand, SplitBatchNorm)
    torch.testing.assert_close(split.running_var, by_hand.running_var)
    assert split.num_batches_tracked == 2


def test_ranks_share_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    split = SplitBatchNorm(nn.BatchNorm1d(3), 8)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    found = []
    for world_size in (1, 2, 3, 8, 16):
        monkeypatch.setattr("torch.distributed.get_world_size", lambda count=world_size: count)
        found.append(split.splits)
    assert found == [8, 4, 2, 1, 1]


def test_groups_that_cannot_be_shared_out_evenly_are_as_many_as_divide_a_ranks_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seven groups on two ranks of 16 rows: three would leave one over, so there are two."""
    norm = nn.BatchNorm1d(3)
    split = split_batch_norm(copy.deepcopy(norm), 7)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    y = split(x)
    for s in range(2):
        torch.testing.assert_close(y[s::2], norm(x[s::2]))
    with pytest.raises(ConfigError, match="cannot divide 15 rows"):  # 4 of 8 on each rank: only a chunk can do that
        split_batch_norm(nn.BatchNorm1d(3), 8)(torch.randn(15, 3))


def test_batch_statistics_differ_between_groups() -> None:
    """A group of large values does not move the others: what a query must not learn from its key's statistics."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    loud = x.clone()
    loud[0::2] *= 100
    split = split_batch_norm(nn.BatchNorm1d(3), 2)
    torch.testing.assert_close(split(loud)[1::2], F.batch_norm(x[1::2], None, None, training=True))


def test_the_comparison_of_ranks_takes_all_rows_as_one_group() -> None:
    split, norm = split_batch_norm(nn.BatchNorm1d(3), 2), nn.BatchNorm1d(3)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with of_all_rows():
        torch.testing.assert_close(split(x), norm(x))
    assert isinstance(split, SplitBatchNorm) and split.splits == 2
