"""The recipe as one graph of fixed shapes, for torch.compile and for GPUs: every image goes through every operation.

What an image does not draw has parameters that change nothing. No value leaves the device, no shape depends on a draw,
and all parameters arrive in one table, so the graph is compiled once and has few kernels.

The jitter's four operations in any order are two stages with the hue between them, for it is the dearest; a stage is
blend, blend, contrast, blend, blend, and brightness, saturation and contrast each take what their place in the order
asks for.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from clf.augment.colour import luma, solarize, turn_hue
from clf.augment.recipe import BRIGHTNESS, CONTRAST, HUE, SATURATION, Draws, Recipe, crop_boxes
from clf.augment.resample import Taps, as_matrix, crop_taps, gaussian

_BLENDS = 8  # two stages, before and after the contrast, two each
_TABLE = [4, 1, _BLENDS, _BLENDS, 1, 1, 2, 1, 1, 1, 1]
"""Columns: box, flip, scale, share, turns, turning, contrast, grayscale, sigma, blur, solarize."""

Planes = list[Tensor]


def table(draws: Draws, recipe: Recipe, channels: int, height: int, width: int) -> Tensor:
    """(N, 29) float64 on the CPU: all parameters of the graph."""
    n = len(draws)
    active = torch.tensor(recipe.jitters(channels))
    drawn = active & draws.jitter[:, None]  # (N, 4), by operation
    place = draws.order.argsort(dim=1)  # (N, 4): the round of each operation
    late = (place > place[:, HUE, None]).long()  # which stage
    after = (place > place[:, CONTRAST, None]).long()
    second = torch.stack([place[:, BRIGHTNESS] > place[:, SATURATION], place[:, BRIGHTNESS] < place[:, SATURATION]], 1)
    pair = [BRIGHTNESS, SATURATION]
    blend = 4 * late[:, pair] + 2 * after[:, pair] + second  # (N, 2)
    factor = torch.where(drawn, draws.factors, 1)
    scale = factor.new_ones(n, _BLENDS).scatter_(1, blend, factor[:, pair])
    share = factor.new_zeros(n, _BLENDS).scatter_(1, blend[:, 1:], 1 - factor[:, SATURATION, None])
    contrast = factor.new_ones(n, 2).scatter_(1, late[:, CONTRAST, None], factor[:, CONTRAST, None])
    return torch.cat(
        [
            crop_boxes(draws, height, width, recipe.crop_ratio),
            draws.flip[:, None],
            scale,
            share,
            draws.factors[:, HUE, None],
            drawn[:, HUE, None],
            contrast,
            draws.grayscale[:, None],
            draws.sigma[:, None],
            draws.blur[:, None],
            draws.solarize[:, None],
        ],
        dim=1,
    )


def in_one_graph(images: Tensor, parameters: Tensor, recipe: Recipe) -> Tensor:
    """The views of a batch.

    Args:
        images: (N, C, H, W) with values from 0 to 255 of any dtype.
        parameters: the table, in the dtype of the work and on the same device.

    Returns:
        (N, C, S, S) in [0, 1].
    """
    n, c, height, width = images.shape
    size = recipe.size
    box, flip, scale, share, turns, turning, contrast, grayscale, sigma, blur, inverted = torch.split(
        parameters, _TABLE, 1
    )
    y_taps, x_taps = crop_taps(box, flip[:, 0], size, height, width)
    x = _columns(_rows(images, y_taps), x_taps).clamp(0, 1)
    planes = list(x.flatten(2).unbind(1))  # C of (N, P)
    active = recipe.jitters(c)
    for stage in (0, 1):
        blends = slice(4 * stage, 4 * stage + 4)
        planes = _stage(planes, scale[:, blends], share[:, blends], contrast[:, stage, None], active)
        if active[HUE] and stage == 0:
            turned = turn_hue(planes, turns)
            planes = [torch.where(turning > 0, new, old) for new, old in zip(turned, planes, strict=True)]
    if c == 3 and recipe.grayscale:
        grey = luma(planes)
        planes = [torch.where(grayscale > 0, grey, p) for p in planes]
    x = torch.stack(planes, 1).view(n, c, size, size)
    if recipe.blur:
        x = _blur(x, sigma[:, 0], blur)
    return torch.where(inverted[:, :, None, None] > 0, solarize(x), x) if recipe.solarize else x


def _stage(planes: Planes, scale: Tensor, share: Tensor, contrast: Tensor, active: tuple[bool, ...]) -> Planes:
    """scale and share (N, 4), contrast (N, 1)."""
    blending = active[BRIGHTNESS] or active[SATURATION]
    for i in range(4):
        if i == 2 and active[CONTRAST]:
            grey = luma(planes) if len(planes) == 3 else planes[0]
            shift = grey.mean(1, keepdim=True) * (1 - contrast)
            planes = [_clamp(p * contrast + shift) for p in planes]
        if blending:
            planes = _blend(planes, scale[:, i, None], share[:, i, None])
    return planes


def _blend(planes: Planes, scale: Tensor, share: Tensor) -> Planes:
    """clamp(scale x + share grey(x)), scale and share (N, 1): see colour.blend_."""
    if len(planes) == 1:
        return [_clamp(planes[0] * scale)]
    grey = luma(planes) * share
    return [_clamp(p * scale + grey) for p in planes]


def _clamp(x: Tensor) -> Tensor:
    """To [0, 1]. On a CPU, relu and the comparison are compiled to three instructions, clamp to six."""
    return torch.where(x < 1, x.relu(), 1)


def _rows(x: Tensor, taps: Taps) -> Tensor:
    """(N, C, H, W) -> (N, C, S, W); rows are read whole, wherever they lie."""
    n, c, _, width = x.shape
    image, channel, column = _index(n, 0, x), _index(c, 1, x), _index(width, 3, x)
    return _total(
        x[image, channel, (taps.first + k)[:, None, :, None], column] * taps.weight[:, None, k, :, None]
        for k in range(taps.weight.shape[1])
    )


def _columns(x: Tensor, taps: Taps) -> Tensor:
    """(N, C, H, W) -> (N, C, H, S); a CPU reads scattered values one by one, so there the taps become a matrix."""
    return _columns_by_matrix(x, taps) if x.device.type == "cpu" else _columns_by_taps(x, taps)


def _columns_by_matrix(x: Tensor, taps: Taps) -> Tensor:
    n, c, height, width = x.shape
    return torch.bmm(x.view(n, c * height, width), as_matrix(taps, width)).view(n, c, height, -1)


def _columns_by_taps(x: Tensor, taps: Taps) -> Tensor:
    n, c, height, _ = x.shape
    image, channel, row = _index(n, 0, x), _index(c, 1, x), _index(height, 2, x)
    return _total(
        x[image, channel, row, (taps.first + k)[:, None, None]] * taps.weight[:, None, k, None]
        for k in range(taps.weight.shape[1])
    )


def _blur(x: Tensor, sigma: Tensor, blurred: Tensor) -> Tensor:
    """Gaussian blur of x (N, C, S, S) by sigma (N,) where blurred (N, 1) is 1; elsewhere by a kernel that is one 1."""
    size = x.shape[3]
    kernel = gaussian(sigma, size)  # (N, 2 r + 1)
    r = kernel.shape[1] // 2
    one = (torch.arange(2 * r + 1, device=x.device) == r).to(x.dtype)
    kernel = torch.where(blurred > 0, kernel, one)[:, :, None, None, None]
    x = F.pad(x, (0, 0, r, r), mode="reflect")
    x = _total(x[:, :, k : k + size] * kernel[:, k] for k in range(2 * r + 1))
    x = F.pad(x, (r, r, 0, 0), mode="reflect")
    return _total(x[:, :, :, k : k + size] * kernel[:, k] for k in range(2 * r + 1)).clamp(0, 1)


def _index(extent: int, dim: int, like: Tensor) -> Tensor:
    """0, 1, ... along one of four dimensions."""
    return torch.arange(extent, device=like.device).view([-1 if i == dim else 1 for i in range(4)])


def _total(parts: Iterator[Tensor]) -> Tensor:
    """One after the other, so that no two of many large ones are in memory."""
    total = next(parts)
    for part in parts:
        total = total + part
    return total
