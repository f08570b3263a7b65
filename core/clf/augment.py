"""Batched augmentation with draws per image: one code for CPU and GPU, no loop over images.

The order is SimCLR's and BYOL's: crop, resize and flip; colour jitter; grayscale; blur; solarize. Each operation has
torchvision's semantics for the same parameters. Draws come from a CPU generator and are a small table of numbers, so
they are the same on every device, and a rank may draw for all M rows and keep its own.

Crop, antialiased bicubic resize and flip are together one linear map per axis and image, out = Ry X Rx^T, and so is a
Gaussian blur with its reflected border: both are two batched matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

_CROP_TRIES = 10  # of torchvision's RandomResizedCrop, before it falls back to a central crop
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision rounds it


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

    def __post_init__(self) -> None:
        for name in ("crop_area", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (float(low), float(high)))  # a list from YAML becomes a tuple
            _require(0 < low <= high < math.inf, f"{name} must be two rising numbers above 0, got {low, high}")
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
        """The random numbers for views of ``n`` images. ``generator`` is a CPU generator."""

        def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
            return torch.rand(n, *shape, generator=generator, dtype=torch.float64) * (high - low) + low

        def around_one(strength: float) -> Tensor:
            return uniform(low=max(0.0, 1 - strength), high=1 + strength)

        low, high = self.crop_ratio
        return Draws(
            crop_area=uniform(_CROP_TRIES, low=self.crop_area[0], high=self.crop_area[1]),
            crop_ratio=uniform(_CROP_TRIES, low=math.log(low), high=math.log(high)).exp(),
            crop_place=uniform(2),
            flip=uniform() < self.flip,
            jitter=uniform() < self.jitter,
            order=uniform(4).argsort(dim=1),
            factors=torch.stack(
                [
                    around_one(self.brightness),
                    around_one(self.contrast),
                    around_one(self.saturation),
                    uniform(low=-self.hue, high=self.hue),
                ],
                dim=1,
            ),
            grayscale=uniform() < self.grayscale,
            blur=uniform() < self.blur,
            sigma=uniform(low=self.blur_sigma[0], high=self.blur_sigma[1]),
            solarize=uniform() < self.solarize,
        )


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


class Augment:
    """A recipe applied to batches. A row's result depends on its own image and draws only."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @torch.no_grad()
    def __call__(self, images: Tensor, draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """Views of a batch.

        Args:
            images: (N, C, H, W) uint8 of any height and width, C 1 or 3, on any device.
            draws: of :meth:`Recipe.draw`, N rows.

        Returns:
            (N, C, S, S) in [0, 1], on the images' device.

        Raises:
            ValueError: the images are not (N, 1 or 3, H, W) uint8, or the number of draws differs.
        """
        _require(
            images.ndim == 4 and images.shape[1] in (1, 3) and images.dtype == torch.uint8,
            f"images must be (N, 1 or 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}",
        )
        _require(len(draws) == len(images), f"{len(images)} images need as many draws, got {len(draws)}")
        with torch.autocast(images.device.type, enabled=False):  # pixels need more than 8 bits of mantissa
            boxes = crop_boxes(draws, images.shape[2], images.shape[3], self.recipe.crop_ratio)
            x = crop_resize(images, boxes, draws.flip, self.recipe.size, dtype)
            x = self._jitter(x, draws)
            if x.shape[1] == 3:
                x = _on_rows(x, draws.grayscale, lambda part, _: luma(part).expand_as(part))
            x = _on_rows(x, draws.blur, lambda part, rows: gaussian_blur(part, draws.sigma[rows]))
            return _on_rows(x, draws.solarize, lambda part, _: torch.where(part >= 0.5, 1 - part, part))

    def _jitter(self, x: Tensor, draws: Draws) -> Tensor:
        """Colour jitter: in each of four rounds every image gets the operation that its order names.

        For a round the rows are sorted by operation, so that each operation works on one contiguous block in place.
        """
        recipe = self.recipe
        strengths = [recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue]
        if x.shape[1] == 1:
            strengths[2:] = 0, 0
        n = len(draws)
        none = len(strengths)  # an operation of strength 0, or an image without jitter: a block that is left alone
        active = torch.tensor([i if strength > 0 else none for i, strength in enumerate(strengths)])
        rounds = torch.where(draws.jitter[:, None], active[draws.order], none)  # (N, 4)
        if bool((rounds == none).all()):
            return x
        place = torch.arange(n)  # place[i]: which image lies in row i at the moment
        for operations in rounds.unbind(1):
            target = operations.argsort(stable=True)  # target[i]: the image that will lie in row i
            x = _take(x, place.argsort()[target])
            place = target
            counts = torch.bincount(operations, minlength=none + 1).tolist()
            start = 0
            for operation, count in zip(_JITTER, counts[:none], strict=True):
                if count:
                    rows = slice(start, start + count)
                    factor = draws.factors[place[rows], _JITTER.index(operation)]
                    operation(x[rows], factor.to(x.device, x.dtype)[:, None, None, None])
                start += count
        return _take(x, place.argsort())


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


def crop_resize(images: Tensor, boxes: Tensor, flip: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Crop, antialiased bicubic resize and horizontal flip: (N, C, H, W) uint8 -> (N, C, size, size) in [0, 1].

    Equal to torchvision's resized_crop(interpolation=BICUBIC, antialias=True), clamped.
    """
    n, c, height, width = images.shape
    boxes = boxes.to(images.device, dtype, non_blocking=True)  # (N, 4)
    flipped = flip.to(images.device, non_blocking=True)
    rows = _bicubic(boxes[:, 0], boxes[:, 2], size, height)  # (N, S, H)
    columns = _bicubic(boxes[:, 1], boxes[:, 3], size, width, flipped) / 255  # (N, S, W)
    x = images.to(dtype).transpose(1, 2).reshape(n, height, c * width)
    x = torch.bmm(rows, x).view(n, size, c, width).transpose(1, 2).reshape(n, c * size, width)
    return torch.bmm(x, columns.transpose(1, 2)).view(n, c, size, size).clamp_(0, 1)


def _bicubic(start: Tensor, length: Tensor, size: int, extent: int, mirrored: Tensor | None = None) -> Tensor:
    """(N, size, extent): the resampling matrix from pixels [start, start + length) of a line to ``size`` pixels.

    Keys' cubic with a = -1/2, widened by the scale when it shrinks, as Pillow and torch have it. With w(t) for the
    distance t in (widened) pixels: t <= 1: 3/2 t^3 - 5/2 t^2 + 1;  1 < t <= 2: -1/2 t^3 + 5/2 t^2 - 4 t + 2.
    """
    step = (length / size)[:, None]  # (N, 1) input pixels per output pixel
    out = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    centre = start[:, None] + out * step  # (N, S)
    if mirrored is not None:
        centre = torch.where(mirrored[:, None], centre.flip(1), centre)
    pixel = torch.arange(extent, device=start.device, dtype=start.dtype) + 0.5
    t = (centre[:, :, None] - pixel).abs_().div_(step.clamp(min=1)[:, :, None]).clamp_(max=2)  # (N, S, E)
    inner = (1 - t).clamp_(min=0)  # 0 beyond 1, where the second polynomial holds alone
    weight = (2.5 - 0.5 * t).mul_(t).sub_(4).mul_(t).add_(2).addcmul_(inner.square_(), 2 * t - 1)
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])  # (N, E): a crop does not see beyond it
    weight *= inside[:, None]
    return weight.div_(weight.sum(dim=2, keepdim=True))


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur with a reflected border; x (N, C, S, S), sigma (N,) on the CPU, in pixels.

    The kernel is 10 % of the side, made odd, at least 3 (SimCLR's data_util.py: radius = (side // 10) // 2).
    """
    n, c, _, size = x.shape
    radius = max(1, size // 20)
    sigma = sigma.to(x.device, x.dtype, non_blocking=True)[:, None, None]  # (N, 1, 1)
    i = torch.arange(size, device=x.device)
    j = i[:, None]
    weight = x.new_zeros(n, size, size)
    # pixel j is met directly and as its mirror images about the first and the last pixel
    for distance, exists in [(i - j, i >= 0), (i + j, i > 0), (2 * (size - 1) - i - j, i < size - 1)]:
        near = (distance.abs() <= radius) & exists
        weight += torch.exp(-0.5 * (distance / sigma).square()) * near
    weight /= weight.sum(dim=2, keepdim=True)
    x = torch.bmm(x.reshape(n, c * size, size), weight.transpose(1, 2)).view(n, c, size, size)
    x = x.transpose(1, 2).reshape(n, size, c * size)
    return torch.bmm(weight, x).view(n, size, c, size).transpose(1, 2)


def luma(x: Tensor) -> Tensor:
    """Grey of a colour image, (N, 3, S, S) -> (N, 1, S, S); a grey image is its own."""
    if x.shape[1] == 1:
        return x
    grey = x[:, :1] * _LUMA[0]
    return grey.add_(x[:, 1:2], alpha=_LUMA[1]).add_(x[:, 2:], alpha=_LUMA[2])


def adjust_brightness_(x: Tensor, factor: Tensor) -> None:
    """In place, as the three below: x (N, C, S, S) in [0, 1], factor (N, 1, 1, 1)."""
    x.mul_(factor).clamp_(0, 1)


def adjust_contrast_(x: Tensor, factor: Tensor) -> None:
    """Away from or towards the mean grey of each image."""
    mean = luma(x).mean(dim=(1, 2, 3), keepdim=True)
    x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation_(x: Tensor, factor: Tensor) -> None:
    """Away from or towards each pixel's grey."""
    grey = luma(x) * (1 - factor)
    x.mul_(factor).add_(grey).clamp_(0, 1)


def adjust_hue_(x: Tensor, shift: Tensor) -> None:
    """Rotation of the hue in HSV by ``shift`` turns; value and saturation stay."""
    r, g, b = x.unbind(1)  # (N, S, S) each
    low, value = torch.aminmax(x, dim=1)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1)
    blue_most = torch.where(value == g, (b - r).div_(divisor).add_(2), (r - g).div_(divisor).add_(4))
    hue = torch.where(value == r, (g - b).div_(divisor), blue_most)  # in sixths of a turn
    hue += 6 * shift[:, :, :, 0]
    for channel, offset in zip((r, g, b), (5, 3, 1), strict=True):
        # how much of the chroma this channel lacks: a trapezoid over the six sectors
        lack = (hue + offset).remainder_(6).sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(value, chroma, lack, value=-1, out=channel)
    x.clamp_(0, 1)


_JITTER: tuple[Callable[[Tensor, Tensor], None], ...] = (
    adjust_brightness_,
    adjust_contrast_,
    adjust_saturation_,
    adjust_hue_,
)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows.to(x.device, non_blocking=True))


def _on_rows(x: Tensor, mask: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``operation(part, rows)`` on the rows where ``mask`` (a CPU tensor) holds, in place."""
    rows = mask.nonzero()[:, 0]
    if len(rows):
        on_device = rows.to(x.device, non_blocking=True)
        x.index_copy_(0, on_device, operation(x.index_select(0, on_device), rows))
    return x


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
