"""Chunked encoding: loss and gradient of the whole batch, batch norm as stated, memory that does not grow."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clf import checkpoint, losses, training
from clf.chunking import in_chunks
from clf.config import Config


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(144, 5),
    ).double()


@pytest.mark.parametrize("size", [1, 3, 8, 13])
def test_loss_and_gradient_are_those_of_the_whole_batch(network: nn.Module, size: int) -> None:
    x = torch.randn(26, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def measured(forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
        a, b = forward(x).chunk(2)
        loss = losses.nt_xent(a, b, 0.2)
        return [loss, *torch.autograd.grad(loss, [x, *network.parameters()])]

    for whole, chunked in zip(measured(network), measured(lambda x: in_chunks(network, x, size)), strict=True):
        assert (whole - chunked).norm() <= 1e-12 * whole.norm()


def test_rows_keep_their_order(network: nn.Module) -> None:
    x = torch.randn(11, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(in_chunks(network, x, 4), network(x), rtol=1e-12)


def test_dropout_draws_the_same_in_the_recomputation() -> None:
    w = torch.ones(6, requires_grad=True)

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x * w, 0.5)

    torch.manual_seed(1)
    y = in_chunks(Masked(), torch.ones(8, 6), 2)
    y.sum().backward()
    assert torch.equal(w.grad, y.detach().sum(0))
    assert 0 < (y == 0).sum() < y.numel()


def test_batch_norm_sees_each_chunk_once() -> None:
    torch.manual_seed(0)
    chunked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    one_by_one = copy.deepcopy(chunked)
    x = torch.randn(16, 3, 8, 8)
    in_chunks(chunked, x, 4).square().mean().backward()
    with torch.no_grad():
        for i in range(4):
            one_by_one(x[i::4])  # the rows that in_chunks puts together
    for name, value in chunked.state_dict().items():
        assert torch.equal(value, one_by_one.state_dict()[name]), name
    assert chunked[1].num_batches_tracked == 4
    assert chunked[1].momentum == 0.1


def test_a_gradient_with_respect_to_the_images_can_be_differentiated_again(network: nn.Module) -> None:
    x = torch.randn(9, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def penalty(forward: Callable[[Tensor], Tensor]) -> Tensor:
        (slope,) = torch.autograd.grad(forward(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), network[0].weight)[0]

    assert torch.allclose(penalty(lambda x: in_chunks(network, x, 4)), penalty(network), rtol=1e-10)


class PeakBytes(TorchDispatchMode):
    """The most bytes alive at one time of all tensors made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def test_activations_do_not_grow_with_the_batch() -> None:
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def activations(n: int, chunked: bool) -> float:
        x = torch.randn(n, 3, 16, 16)
        with PeakBytes() as memory:
            z = in_chunks(network, x, 8) if chunked else network(x)
            z.square().sum().backward()
        return memory.peak - x.nbytes  # a chunked batch holds a copy of the images, in chunks

    assert activations(128, chunked=False) > 7 * activations(16, chunked=False)
    assert activations(128, chunked=True) < 1.3 * activations(16, chunked=True)


WITHOUT_BATCH_NORM = {"backbone.name": "test_vit", "method.layers": 1, "train.precision": "fp64", "train.epochs": 1}


@pytest.mark.slow
def test_a_chunked_run_is_the_run_in_one_piece(tiny: Callable[..., Config], tmp_path: Path) -> None:
    def weights(name: str, changes: dict[str, Any]) -> dict[str, Tensor]:
        config = tiny(tmp_path, {**WITHOUT_BATCH_NORM, "run.name": name, "train.batch_size": 32, **changes})
        run = training.train(config, callbacks=[])
        state, _ = checkpoint.load_newest(run.checkpoints)
        return dict(state["method"])

    whole, chunked = weights("whole", {}), weights("chunked", {"train.chunk_size": 10})
    for name, value in whole.items():
        assert (value - chunked[name]).norm() <= 1e-10 * value.norm() + 1e-14, name


@pytest.mark.filterwarnings("ignore")  # of the compiler's own modules
def test_the_recomputation_needs_no_second_compilation() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    network.compile(backend="eager", dynamic=False)
    for _ in range(2):
        in_chunks(network, torch.randn(12, 3, 6, 6), 4).square().mean().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()
