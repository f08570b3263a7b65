"""Networks, images and a context of one process, small enough to work out by hand, for tests of batch curation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clf
from clf.data.stream import Stream
from clf_batch_curation import BatchCuration
from clf_batch_curation.config import BatchCurationConfig
from clf_batch_curation.ranks import pair_ranks

SIZE = 16


class Here:
    """The context of one process."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, source: Tensor, step: int = 0, epoch: int = 0) -> None:
        self.source, self.step, self.epoch = source, step, epoch
        self.logged: dict[str, float] = {}
        self.asked: list[str] = []

    def generator(self, name: str) -> torch.Generator:
        self.asked.append(name)
        return torch.Generator().manual_seed(1000 * self.step + sum(map(ord, name)))

    def gather(self, x: Tensor) -> Tensor:
        return x

    def images(self, index: Tensor) -> Tensor:
        return self.source[index]

    def log(self, **metrics: float | Tensor) -> None:
        self.logged |= {name: float(value) for name, value in metrics.items()}


class ChannelMeans(nn.Module):
    """(N, C, H, W) -> (N, C): the same for an image and its mirror image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) - 0.5


class Small(nn.Module):
    """A network with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.drop(self.norm(self.conv(x)).relu())
        return h.flatten(1)


class Plain(nn.Module):
    """A network whose rows do not see each other in train mode either."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(x).relu()
        return h.flatten(1)


FLIPS = clf.Recipe(size=SIZE, crop_area=(1, 1), crop_ratio=(1, 1), flip=0.5, jitter=0, grayscale=0)


def colours(n: int, seed: int = 0) -> Tensor:
    """(n, 3, SIZE, SIZE) uint8 images whose mean colours point in all directions, with noise on top."""
    generator = torch.Generator().manual_seed(seed)
    means = 128 + 90 * F.normalize(torch.randn(n, 3, generator=generator), dim=1)
    noise = 20 * torch.randn(n, 3, SIZE, SIZE, generator=generator)
    return (means[:, :, None, None] + noise).clamp(0, 255).to(torch.uint8)


def make(
    network: Callable[[], nn.Module] | None = None, n: int = 64, images: int = 256, **settings: Any
) -> BatchCuration:
    """A method that is curated from the start, with a network of its own and no projector if there is none."""
    torch.manual_seed(0)
    config = BatchCurationConfig.model_validate({"start_epoch": 0, "projection_dim": 8, **settings})
    data = clf.DataSpec("made", images, SIZE, 3, n, images / n, 4, "print")
    method = BatchCuration(clf.Backbone((network or ChannelMeans)(), "made", 3, SIZE), config, data)
    if network is None:
        method.projector = nn.Sequential()
    return method


def stream(source: Tensor, n: int = 64, recipe: clf.Recipe = FLIPS) -> Stream:
    return Stream(source, [recipe, recipe], n, seed=0)


def context(here: Here) -> clf.Context:
    return cast(clf.Context, here)


def units(n: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def all_ranks(a: Tensor, b: Tensor) -> Tensor:
    return pair_ranks(a, b, torch.arange(len(a)), a, b)
