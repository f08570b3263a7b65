"""The engine's augmentation once more, differentiable in the image: gradients pass from a view to the generator.

Same recipe, same random numbers, same equations as :class:`clf.Augment`, with one exception: the hue turns as a linear
rotation of the chroma plane (YIQ), whose gradient exists everywhere, instead of in HSV. Everything is a matrix product
or an elementwise operation, so its gradient is the same from run to run on every device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import clf

CONTRAST, SATURATION, HUE = 1, 2, 3
"""Numbers of three of the jitter's operations in a recipe's draws; brightness is 0."""
LUMA = (0.2989, 0.587, 0.114)
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
_ROUNDS = 4
_COLUMNS = [4, 1, _ROUNDS, _ROUNDS, _ROUNDS, _ROUNDS, 9, 1, 1, 1, 1]
"""Of the table: box, flip, scale, share of grey, share of the mean, hue or not, its matrix, grayscale, sigma, blur,
solarize."""


def augment(x: Tensor, recipe: clf.Recipe, generator: torch.Generator, rows: slice, n: int) -> Tensor:
    """Views of images, with gradient.

    Args:
        x: (n local, C, S, S) in [0, 1], rows ``rows`` of the n images of all ranks.
        generator: a CPU generator; draws for all n are taken from it.

    Returns:
        (n local, C, S', S') in [0, 1], S' the recipe's size.
    """
    side, channels = x.shape[3], x.shape[1]
    drawn = table(recipe, generator, rows, n, side, channels)  # (n local, 31) on the CPU
    used = torch.split((drawn != 0).any(0), _COLUMNS)
    with torch.autocast(x.device.type, enabled=False):  # pixels need more than 8 bits of mantissa
        box, flip, scale, grey, mean, hue, matrix, grayscale, sigma, blur, solarize = torch.split(
            onto(drawn, x), _COLUMNS, 1
        )
        x = resample(
            x,
            line(box[:, 0], box[:, 2], side, recipe.size),
            line(box[:, 1], box[:, 3], side, recipe.size, flip[:, 0]),
        )
        if recipe.jitter:
            for i in range(_ROUNDS):
                x = _blend(x, scale[:, i], grey[:, i], mean[:, i])
                if used[5][i]:
                    x = torch.where(_column(hue[:, i]) > 0, turn(x, matrix.view(-1, 3, 3)), x)
        if channels == 3 and recipe.grayscale:
            x = torch.where(_column(grayscale[:, 0]) > 0, _grey(x).expand_as(x), x)
        if recipe.blur:
            kernel = blur_line(sigma[:, 0], recipe.size)
            x = torch.where(_column(blur[:, 0]) > 0, (kernel[:, None] @ x @ kernel[:, None].mT).clamp(0, 1), x)
        if recipe.solarize:
            x = torch.where(_column(solarize[:, 0]) > 0, torch.minimum(x, 1 - x), x)
    return x


def table(recipe: clf.Recipe, generator: torch.Generator, rows: slice, n: int, side: int, channels: int) -> Tensor:
    """(rows, 31) float64 on the CPU: all that is drawn for some of n images, so that one transfer carries it.

    In each of four rounds an image gets the operation of its order, or parameters that change nothing.
    """
    draws = recipe.draw(-(-n // recipe.shared_by), generator).rows(torch.arange(n)[rows] // recipe.shared_by)
    on = torch.tensor(recipe.jitters(channels)) & draws.jitter[:, None]  # (rows, 4), by operation
    active, factor = on.gather(1, draws.order), draws.factors.gather(1, draws.order)  # (rows, 4), by round
    hue = active & (draws.order == HUE)
    scale = torch.where(active & ~hue, factor, 1)
    columns = [
        crop_boxes(draws.crop_area, draws.crop_ratio, draws.crop_place, side, recipe.crop_ratio),
        draws.flip[:, None],
        scale,
        (1 - scale) * (draws.order == SATURATION),
        (1 - scale) * (draws.order == CONTRAST),
        hue,
        hue_matrix(draws.factors[:, HUE]).flatten(1),
        *(each[:, None] for each in (draws.grayscale, draws.sigma, draws.blur, draws.solarize)),
    ]
    return torch.cat([column.double() for column in columns], 1)


def onto(values: Tensor, like: Tensor) -> Tensor:
    """A CPU tensor with the device and dtype of another; the host does not wait for the transfer."""
    values = values.to(like.dtype)
    return (values.pin_memory() if like.is_cuda else values).to(like.device, non_blocking=True)


def crop_boxes(area: Tensor, ratio: Tensor, place: Tensor, side: int, ratios: tuple[float, float]) -> Tensor:
    """(n, 4) whole pixels: top, left, height and width of each crop of an image of side S, as the engine finds them.

    The first of ten candidates that fits is taken; if none does, the largest central crop with a ratio in ``ratios``.
    """
    w = (area * side**2 * ratio).sqrt().round().long()  # (n, 10)
    h = (area * side**2 / ratio).sqrt().round().long()
    fits = (w > 0) & (w <= side) & (h > 0) & (h <= side)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    w, h, found = (each.gather(1, first)[:, 0] for each in (w, h, fits))
    w = torch.where(found, w, min(side, round(side * ratios[1])))
    h = torch.where(found, h, min(side, round(side / ratios[0])))
    place = torch.where(found[:, None], place, 0.5)
    top, left = (place[:, 0] * (side - h + found)).long(), (place[:, 1] * (side - w + found)).long()
    return torch.stack([top, left, h, w], 1)


def line(start: Tensor, length: Tensor, side: int, size: int, mirrored: Tensor | None = None) -> Tensor:
    """(n, size, side): matrices that resample pixels [start, start + length) of a line, by Keys' cubic, a = -1/2.

    It is widened by the scale where the line shrinks, and cut off at the crop's edges, as in the engine.

    Args:
        start, length: (n,) whole numbers.
        mirrored: (n,) of 0 and 1: which lines are read backwards.
    """
    out = torch.arange(size, device=start.device, dtype=start.dtype).expand(len(start), size)
    if mirrored is not None:
        out = out + mirrored[:, None] * (size - 1 - 2 * out)  # (n, size)
    step = (length / size)[:, None, None]
    pixel = torch.arange(side, device=start.device, dtype=start.dtype) + 0.5
    t = (start[:, None, None] + (out[:, :, None] + 0.5) * step - pixel).abs() / step.clamp(min=1)  # (n, size, side)
    inner = ((1.5 * t - 2.5) * t) * t + 1
    outer = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weight = torch.where(t <= 1, inner, torch.where(t <= 2, outer, 0))
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])
    weight = weight * inside[:, None]
    return weight / weight.sum(2, keepdim=True)


def resample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(n, C, S, S) by the matrices of its rows and columns, (n, S', S) each -> (n, C, S', S') in [0, 1]."""
    return (rows[:, None] @ x @ columns[:, None].mT).clamp(0, 1)


def blur_line(sigma: Tensor, size: int) -> Tensor:
    """(n, size, size): Gaussian blur of a line with reflected ends; its kernel is 10 % of the size, made odd."""
    r = max(1, size // 20)
    i = torch.arange(-r, r + 1, device=sigma.device, dtype=sigma.dtype)
    weight = torch.exp(-0.5 * (i / sigma[:, None]).square())
    weight = weight / weight.sum(1, keepdim=True)  # (n, 2 r + 1)
    at = torch.arange(size, device=sigma.device)[:, None] + torch.arange(-r, r + 1, device=sigma.device)
    at = (size - 1) - ((size - 1) - at.abs()).abs()  # reflected at both ends
    taps = F.one_hot(at, size).to(sigma.dtype)  # (size, 2 r + 1, size)
    return torch.einsum("nk,okp->nop", weight, taps)


def hue_matrix(turns: Tensor) -> Tensor:
    """(n, 3, 3): rotations of the chroma plane by so many turns (n,); the luma stays."""
    to = torch.tensor(YIQ, dtype=torch.float64)
    angle = -2 * math.pi * turns.double()  # from red through yellow to green, as hue is counted
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = [torch.stack(row, 1) for row in ((one, zero, zero), (zero, c, -s), (zero, s, c))]
    matrix: Tensor = torch.linalg.inv(to) @ torch.stack(rows, 1) @ to
    return matrix


def turn(x: Tensor, matrix: Tensor) -> Tensor:
    """The colours of x (n, 3, S, S) by matrices (n, 3, 3)."""
    return (matrix @ x.flatten(2)).view_as(x).clamp(0, 1)


def _blend(x: Tensor, scale: Tensor, grey: Tensor, mean: Tensor) -> Tensor:
    """clamp(scale x + grey grey(x) + mean mean(grey(x))), the three (n,): brightness, saturation or contrast."""
    luma = _grey(x) if x.shape[1] == 3 else x
    added = luma.mean((1, 2, 3), keepdim=True) * _column(mean)
    if x.shape[1] == 3:
        added = added + luma * _column(grey)
    return (x * _column(scale) + added).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    """(n, 3, S, S) -> (n, 1, S, S)"""
    r, g, b = x.unbind(1)
    return (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b)[:, None]


def _column(values: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1)"""
    return values[:, None, None, None]
