"""Two views that any loss can be worked out for by hand."""

from __future__ import annotations

import torch
from torch import Tensor


def toy(spread: float = 0.25) -> tuple[Tensor, Tensor]:
    """Four images in five dimensions, without random numbers.

    a = sin(1 + 1.7 i + 0.9 d) and b = a + spread cos(0.5 + 0.8 i + 1.3 d).
    """
    i = torch.arange(4, dtype=torch.float64)[:, None]
    d = torch.arange(5, dtype=torch.float64)[None, :]
    a = torch.sin(1.0 + 1.7 * i + 0.9 * d)
    b = a + spread * torch.cos(0.5 + 0.8 * i + 1.3 * d)
    return a, b
