"""DiffAugment: the discriminator sees real and fake images through the same differentiable augmentation.

Zhao, Liu, Lin, Zhu, Han, "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020, arXiv 2006.10738.
It is milder than the augmentation of the contrastive views (:mod:`clf_hard_sample_gen.views`), and the two must not be
exchanged: strong colours and crops of the views would leak into what the generator makes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clf_hard_sample_gen.views import onto

SHIFT = 1 / 8
"""Largest translation, as a share of the side."""
CUTOUT = 1 / 2
"""Side of the square that is set to 0, as a share of the image's."""
COLUMNS = 7
"""Random numbers of an image: brightness, saturation, contrast, shift down and right, square down and right."""


def diff_augment(x: Tensor, u: Tensor, policy: str) -> Tensor:
    """Augments each image with its own draws.

    Brightness shift in [-0.5, 0.5], saturation times [0, 2] about the mean over channels, contrast times [0.5, 1.5]
    about the mean of the image; a shift by at most an eighth, filled with 0; a square of half the side set to 0.

    Args:
        x: (n, C, S, S) in [-1, 1].
        u: (n, 7) in [0, 1).
        policy: some of ``color``, ``translation`` and ``cutout``, joined by underscores; or ``none``.

    Returns:
        (n, C, S, S), differentiable in x.

    Raises:
        ValueError: the policy has another word, or there are not 7 draws for each image.
    """
    words = policy.split("_")
    if set(words) - {"color", "translation", "cutout", "none"}:
        raise ValueError(f"DiffAugment knows color, translation, cutout and none, not {policy!r}")
    if u.shape != (len(x), COLUMNS):
        raise ValueError(f"{len(x)} images need draws of shape ({len(x)}, {COLUMNS}), got {tuple(u.shape)}")
    u = onto(u, x)
    if "color" in words:
        x = _color(x, *u[:, :3, None, None, None].unbind(1))
    if "translation" in words:
        x = _translate(x, u[:, 3], u[:, 4])
    if "cutout" in words:
        x = _cut(x, u[:, 5], u[:, 6])
    return x


def _color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """The three draws are (n, 1, 1, 1)."""
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def _translate(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """By 0/1 matrices, whose gradient is a sum in a fixed order on every device."""
    side = x.shape[3]
    most = round(side * SHIFT)
    place = torch.arange(side, device=x.device)

    def move(u: Tensor) -> Tensor:
        by = ((2 * most + 1) * u[:, None, None]).floor() - most
        return (place[:, None] - place == by).to(x.dtype)  # (n, S, S): output o shows pixel o - by, or 0

    return move(down)[:, None] @ x @ move(right)[:, None].mT


def _cut(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    side = x.shape[3]
    square = round(side * CUTOUT)
    place = torch.arange(side, device=x.device)

    def hidden(u: Tensor) -> Tensor:
        centre = ((side + 1 - square % 2) * u[:, None]).floor()  # as far as the square's edge on the image's
        first = centre - square // 2
        return (place >= first) & (place < first + square)  # (n, S)

    return x * ~(hidden(down)[:, None, :, None] & hidden(right)[:, None, None, :])
