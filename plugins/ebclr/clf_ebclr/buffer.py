"""The replay buffer: where chains end in one step is where chains start in a later one (section 3.3)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clf

INITIAL_VISITS = 5
"""Of the augmented images that fill the buffer at first: above K, so they get the least noise (official code)."""

_BYTES = 4
_ROOM = 0.5  # of the free memory; the rest is for the training


class ReplayBuffer(nn.Module):
    """L chains: their images in [-1, 1], roughly, and how often each has been run.

    It is saved with each checkpoint, for a resumed run must find the chains where they were.

    Raises:
        clf.ConfigError: it does not fit into memory.
    """

    images: Tensor
    visits: Tensor
    filled: Tensor

    def __init__(self, length: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.length = length
        self.shape = shape
        free = free_memory()
        if free is not None and length * self.bytes_each > _ROOM * free:
            raise clf.ConfigError(self.too_large("memory", free))
        self.register_buffer("images", torch.zeros(length, *shape))  # (L, C, S, S) float32
        self.register_buffer("visits", torch.zeros(length, dtype=torch.int64))  # (L,)
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    @property
    def bytes_each(self) -> int:
        channels, height, width = self.shape
        return channels * height * width * _BYTES

    def too_large(self, place: str, free: int) -> str:
        """The sentence for a buffer that does not fit."""
        fits = int(_ROOM * free) // self.bytes_each
        channels, height, width = self.shape
        return (
            f"method.buffer_size = {self.length} views of {channels} x {height} x {width} take "
            f"{self.length * self.bytes_each / 1e9:.1f} GB, and {free / 1e9:.1f} GB of {place} are free, of which half "
            f"is for the training: set method.buffer_size={fits} or less, or a smaller data.image_size"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves it, e.g. to a GPU, whose memory is known only now."""
        try:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            free, _ = torch.cuda.mem_get_info()
            raise clf.ConfigError(self.too_large("GPU memory", free)) from None

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Slots of n chains, (n,) int64 on the CPU, no slot twice: two chains of one slot would overwrite each other.

        The official code draws with replacement, the last write winning.
        """
        return torch.randperm(self.length, generator=generator)[:n]

    @torch.no_grad()
    def write(self, slots: Tensor, images: Tensor, visits: Tensor) -> None:
        """Stores images (n, C, S, S) with their numbers of visits (n,) in slots (n,)."""
        slots = slots.to(self.images.device)
        self.images.index_copy_(0, slots, images.to(self.images))
        self.visits.index_copy_(0, slots, visits.to(self.visits))

    def by_age(self, rows: int, columns: int) -> Tensor:
        """Chains from the youngest to the oldest, evenly spaced: (rows, columns, C, S, S) in [0, 1].

        Fewer rows, or columns, where the buffer is too small.
        """
        columns = min(columns, self.length)
        rows = min(rows, self.length // columns)
        order = self.visits.argsort(stable=True)
        chosen = order[torch.linspace(0, self.length - 1, rows * columns).round().long()]
        return ((self.images[chosen].float() + 1) / 2).clamp(0, 1).view(rows, columns, *self.shape)


def free_memory() -> int | None:
    """Bytes that this machine can still give, None where that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
