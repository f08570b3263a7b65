"""What is drawn for a view: the recipe's probabilities and ranges, the table of random numbers, the crop boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

_CROP_TRIES = 10  # of torchvision's RandomResizedCrop, before it falls back to a central crop
_COLUMNS = [_CROP_TRIES, _CROP_TRIES, 2, 4, 4, 1, 1, 1, 1, 1, 1]  # of the table of random numbers, see Recipe.draw
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class Recipe:
    """How one view is drawn from an image; every probability and range is applied to each image on its own.

    Raises:
        ValueError: a probability, a strength or a range is impossible.
    """

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
    """Probability of inverting all values of one half and above."""
    shared_by: int = 1
    """So many consecutive images of the training set share one draw, a new one each epoch; 1: each has its own. Some
    released codes augment whole tensors with one draw, and their figures can only be compared at their granularity."""

    def __post_init__(self) -> None:
        for name in ("crop_area", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (float(low), float(high)))  # a list from YAML becomes a tuple
            _require(0 < low <= high < math.inf, f"{name} must be two rising numbers above 0, got {low, high}")
        _require(self.shared_by >= 1, f"shared_by is a number of images, 1 or more, got {self.shared_by}")
        _require(self.size >= 2, f"size must be 2 pixels or more, got {self.size}")
        _require(self.crop_area[1] <= 1, f"crop_area is a share of the image, at most 1, got {self.crop_area}")
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            p = getattr(self, name)
            _require(0 <= p <= 1, f"{name} is a probability, got {p}")
        for name in ("brightness", "contrast", "saturation", "hue"):
            strength = getattr(self, name)
            _require(0 <= strength < math.inf, f"{name} is a strength of 0 or more, got {strength}")
        _require(self.hue <= 0.5, f"hue is a shift in turns, at most 0.5, got {self.hue}")

    def with_overrides(self, overrides: Mapping[str, Any]) -> Recipe:
        """This recipe with some fields replaced; a value of None keeps the recipe's own.

        Raises:
            ValueError: a name that is no field, or a value the field does not take.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        unknown = given.keys() - {field.name for field in fields(self)}
        _require(not unknown, f"a recipe has no {', '.join(sorted(unknown))}")
        return replace(self, **given)

    def draw(self, n: int, generator: torch.Generator) -> Draws:
        """The random numbers for views of ``n`` images. ``generator`` is a CPU generator.

        One table, one row an image: the first rows are the same whatever ``n`` is.
        """
        u = torch.rand(n, sum(_COLUMNS), generator=generator, dtype=torch.float64)
        area, ratio, place, order, factors, flip, jitter, grayscale, blur, sigma, solarize = torch.split(
            u, _COLUMNS, dim=1
        )
        low, high = self.crop_ratio
        strengths = (self.brightness, self.contrast, self.saturation)
        least = torch.tensor([*(max(0.0, 1 - s) for s in strengths), -self.hue], dtype=torch.float64)
        most = torch.tensor([*(1 + s for s in strengths), self.hue], dtype=torch.float64)
        return Draws(
            crop_area=_between(*self.crop_area, area),
            crop_ratio=_between(math.log(low), math.log(high), ratio).exp(),
            crop_place=place,
            flip=flip[:, 0] < self.flip,
            jitter=jitter[:, 0] < self.jitter,
            order=order.argsort(dim=1),
            factors=least + (most - least) * factors,
            grayscale=grayscale[:, 0] < self.grayscale,
            blur=blur[:, 0] < self.blur,
            sigma=_between(*self.blur_sigma, sigma[:, 0]),
            solarize=solarize[:, 0] < self.solarize,
        )

    def jitters(self, channels: int) -> tuple[bool, ...]:
        """Which of brightness, contrast, saturation and hue change an image of 1 or 3 channels."""
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        return tuple(self.jitter > 0 and s > 0 and (channels == 3 or i < SATURATION) for i, s in enumerate(strengths))


@dataclass(frozen=True)
class Draws:
    """The random numbers of N views: CPU tensors, one row an image. They do not depend on the size of the images."""

    crop_area: Tensor
    """(N, 10) candidate shares of the area; the first candidate that fits the image is taken."""
    crop_ratio: Tensor
    """(N, 10) candidate ratios width / height."""
    crop_place: Tensor
    """(N, 2) in [0, 1): top and left edge among the possible ones."""
    flip: Tensor
    jitter: Tensor
    order: Tensor
    """(N, 4) a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    factors: Tensor
    """(N, 4) strength of each of the four, in that numbering."""
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor
    """(N,) in pixels."""
    solarize: Tensor

    def __len__(self) -> int:
        return len(self.flip)

    def rows(self, index: slice | Tensor) -> Draws:
        """The draws of some of the images."""
        return Draws(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @staticmethod
    def joined(parts: Sequence[Draws]) -> Draws:
        """The draws of one batch after the other."""
        return Draws(
            **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Draws)}
        )


def simclr_recipe(image_size: int, channels: int = 3) -> Recipe:
    """SimCLR's augmentation (arXiv 2002.05709, appendix A; B.9 for small images).

    Up to 64 pixels the CIFAR variant, colour strength 0.5 without blur; above, the ImageNet variant, strength 1 with
    blur. One-channel images keep brightness and contrast; there is no colour to change.
    """
    small, grey = image_size <= 64, channels == 1
    strength = 0.5 if small else 1.0
    return Recipe(
        size=image_size,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.0 if grey else 0.8 * strength,
        hue=0.0 if grey else 0.2 * strength,
        grayscale=0.0 if grey else 0.2,
        blur=0.0 if small else 0.5,
    )


def crop_boxes(draws: Draws, height: int, width: int, ratio_range: tuple[float, float]) -> Tensor:
    """(N, 4) whole pixels: top, left, height, width of each crop, as torchvision's RandomResizedCrop finds them.

    The first of ten candidates that fits the image is taken; if none does, the largest central crop whose ratio is in
    ``ratio_range``.
    """
    area = draws.crop_area * (height * width)  # (N, 10)
    w = (area * draws.crop_ratio).sqrt().round().long()
    h = (area / draws.crop_ratio).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)  # (N, 1)
    w, h, found = (x.gather(1, first)[:, 0] for x in (w, h, fits))
    low, high = ratio_range
    w = torch.where(found, w, min(width, round(height * high)))
    h = torch.where(found, h, min(height, round(width / low)))
    place = torch.where(found[:, None], draws.crop_place, 0.5)
    top = (place[:, 0] * (height - h + found)).long()
    left = (place[:, 1] * (width - w + found)).long()
    return torch.stack([top, left, h, w], dim=1)


def _between(low: float, high: float, u: Tensor) -> Tensor:
    return u * (high - low) + low


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
