"""The replay buffer: where chains end in one step is where chains start in a later one (section 3.3)."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clf

INITIAL_VISITS = 5
"""Of the augmented images that fill the buffer at first: above K, so they get the least noise (official code)."""

_ROOM = 0.5  # of the free memory; the rest is for the training


class ReplayBuffer(nn.Module):
    """L chains: their images in [-1, 1], roughly, and how often each has been run.

    It is saved with each checkpoint, for a resumed run must find the chains where they were. It takes memory from the
    first training step on, or as much as a checkpoint has: evaluation and export are not refused for want of it, nor
    for data that have grown since.
    """

    images: Tensor
    visits: Tensor

    def __init__(self, length: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.length = length
        self.shape = shape
        self.register_buffer("images", torch.zeros(0, *shape))  # (L, C, S, S) float32
        self.register_buffer("visits", torch.zeros(0, dtype=torch.int64))  # (L,)

    @property
    def filled(self) -> bool:
        """Whether there are chains."""
        return len(self.images) > 0

    @property
    def bytes_each(self) -> int:
        channels, height, width = self.shape
        return channels * height * width * self.images.element_size()

    def make_room(self) -> None:
        """Takes the memory of L chains.

        Raises:
            clf.ConfigError: they do not fit.
        """
        device = self.images.device
        free = free_memory() if device.type == "cpu" else None
        if free is not None and self.length * self.bytes_each > _ROOM * free:
            raise clf.ConfigError(self.too_large("memory", free))
        try:
            self._resize(self.length)
        except torch.OutOfMemoryError:
            free, _ = torch.cuda.mem_get_info(device)
            raise clf.ConfigError(self.too_large("GPU memory", free)) from None

    def _resize(self, length: int) -> None:
        self.images = self.images.new_zeros(length, *self.shape)
        self.visits = self.visits.new_zeros(length)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Takes what a checkpoint has: nothing before the first step, later its L, whatever the data say now."""
        self._resize(len(state_dict.get(f"{prefix}visits", self.visits)))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def too_large(self, place: str, free: int) -> str:
        """The sentence for a buffer that does not fit."""
        fits = int(_ROOM * free) // self.bytes_each
        channels, height, width = self.shape
        return (
            f"method.buffer_size = {self.length} views of {channels} x {height} x {width} take "
            f"{self.length * self.bytes_each / 1e9:.1f} GB, and {free / 1e9:.1f} GB of {place} are free, of which half "
            f"is for the training: set method.buffer_size={fits} or less, or a smaller data.image_size"
        )

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Slots of n chains, (n,) int64 on the CPU, no slot twice: two chains of one slot would overwrite each other.

        The official code draws with replacement, the last write winning.
        """
        return torch.randperm(len(self.images), generator=generator)[:n]

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
        length = len(self.images)
        columns = min(columns, length)
        rows = min(rows, length // columns)
        order = self.visits.argsort(stable=True)
        chosen = order[torch.linspace(0, length - 1, rows * columns).round().long()]
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
