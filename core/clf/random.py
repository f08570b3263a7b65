"""Counter-based random numbers: a draw is a function of (seed, purpose, counters), never of what was drawn before.

So prefetching, the number of workers, the number of ranks and a resume cannot change a run, and no generator state is
ever saved.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from the run's seed and a purpose such as ``("augment", view, step)``."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose. Draws on the CPU are the same whatever the training device is."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
