"""What a method is built and stepped with, made by hand: a linear backbone, data, a batch, the engine's context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import clf
from clf.random import generator


@dataclass
class FakeContext:
    """One rank of a step; with ``gather`` of :func:`rank_threads.on_ranks` there are more."""

    step: int = 0
    rank: int = 0
    world_size: int = 1
    collect: Callable[[Tensor], Tensor] = lambda x: x
    logged: dict[str, float | Tensor] = field(default_factory=dict)

    epoch: int = 0
    progress: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def generator(self, name: str) -> torch.Generator:
        return generator(0, name, self.step)

    def device_generator(self, name: str) -> torch.Generator:
        return self.generator(name)

    def images(self, index: Tensor) -> Tensor:
        raise AssertionError("a method that is tested with these batches looks at no other images")

    def gather(self, x: Tensor) -> Tensor:
        return self.collect(x)

    def minimize(self, group: str, loss: Tensor) -> None:
        raise AssertionError("a method that is tested with this context has one optimizer")

    def log(self, **metrics: float | Tensor) -> None:
        self.logged.update(metrics)


def backbone(size: int = 4, dim: int = 6, *, norm: bool = False, seed: int = 0) -> clf.Backbone:
    """Three channels of ``size`` x ``size`` pixels -> ``dim`` features, in float64; with one batch norm if asked."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, dim, size), *([nn.BatchNorm2d(dim)] if norm else []), nn.Flatten()]
    return clf.Backbone(nn.Sequential(*layers), "tiny", 3, size)


def data(**changes: Any) -> clf.DataSpec:
    values = {"name": "made", "n_images": 64, "image_size": 4, "channels": 3, "batch_size": 4}
    return clf.DataSpec(**{**values, "steps_per_epoch": 16.0, "epochs": 2, **changes})


def batch(n: int = 4, seed: int = 0, *, size: int = 4, views: int = 2) -> clf.Batch:
    """``n`` images in float64; images with neighbouring numbers in ``index``."""
    g = torch.Generator().manual_seed(seed)
    made = torch.rand(views, n, 3, size, size, generator=g, dtype=torch.float64)
    index = (torch.arange(n) + n * seed) % 64
    images = torch.zeros(n, 3, size, size, dtype=torch.uint8)
    return clf.Batch(tuple(made), index, images, lambda *_: tuple(made))


def rows_of(whole: clf.Batch, rank: int, count: int) -> clf.Batch:
    """The part of a batch that one of ``count`` ranks has."""
    n = len(whole) // count
    mine = slice(rank * n, (rank + 1) * n)
    return clf.Batch(tuple(view[mine] for view in whole.views), whole.index[mine], whole.images[mine], whole.augment)
