"""Images and draws that the augmentation's tests share."""

from __future__ import annotations

import torch
from torch import Tensor

from clf.augment import Draws, Recipe

LEVEL = 1 / 255
PLAIN = Recipe(
    size=24, crop_area=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=0, solarize=0
)  # identity but for the resize


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(n: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Random pixels over a gradient, with flat, grey and saturated regions: (n, C, H, W) uint8."""
    x = torch.rand(n, channels, height, width, generator=source(1))
    x = (x + torch.linspace(0, 1, width)) / 2
    x[:, :, :3] = 1.0
    x[:, :, :, :2] = 0.0
    x[:, :, 4:6] = x[:, :1, 4:6]
    return (x * 255).round().to(torch.uint8)


def draws_of(recipe: Recipe, n: int, seed: int = 2) -> Draws:
    return recipe.draw(n, source(seed))
