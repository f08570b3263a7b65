"""Recipes and batched augmentation (to be completed)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How one view is drawn from an image; every probability and range is applied to each image on its own."""

    size: int
    """Side of the square view in pixels."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image area (random resized crop)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width / height, drawn log-uniformly."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of colour jitter; its four operations come in a random order."""
    brightness: float = 0.8
    """Factor drawn from [max(0, 1 - b), 1 + b]."""
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    """Shift drawn from [-h, h], in turns; at most 0.5."""
    grayscale: float = 0.2
    """Probability of losing all colour."""
    blur: float = 0.0
    """Probability of a Gaussian blur; its kernel is 10 % of the side, made odd."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels."""
    solarize: float = 0.0
    """Probability of inverting all values above one half."""


def simclr_recipe(image_size: int, channels: int = 3) -> Recipe:
    raise NotImplementedError
