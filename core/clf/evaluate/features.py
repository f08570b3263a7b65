"""Features of clean images: one frozen encoder, one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clf.data import Images


@torch.no_grad()
def encode(encoder: nn.Module, images: Images, batch_size: int = 256, device: str | torch.device = "cpu") -> Tensor:
    """The encoder's features in evaluation mode. The mode of every submodule is restored, also after an error.

    Args:
        encoder: (N, C, S, S) in [0, 1] -> (N, D), on ``device`` already.
        images: (n, C, S, S) uint8, a tensor on any device or a table.
        batch_size: images in one forward pass.

    Returns:
        (n, D) float32 on the CPU.

    Raises:
        ValueError: there are no images, or they are not uint8 (n, C, S, S).
    """
    n, first = len(images), images[:1]
    if first.dtype != torch.uint8 or first.ndim != 4 or not n:
        raise ValueError(f"uint8 images (n, C, S, S) are needed, got {first.dtype} {tuple(images.shape)}")
    dtype = next((p.dtype for p in encoder.parameters() if p.is_floating_point()), torch.float32)
    with evaluation_mode(encoder):
        parts = [
            encoder(images[i : i + batch_size].to(device).to(dtype) / 255).float().cpu()
            for i in range(0, n, batch_size)
        ]
    return torch.cat(parts)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode inside the block, each back in its own mode behind it."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training
