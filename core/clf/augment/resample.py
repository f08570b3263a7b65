"""Crop, antialiased bicubic resize, flip and Gaussian blur: separable, so one linear map along each axis.

The map of an axis is given by its taps: output o is the sum over k of weight[k, o] * input[first[o] + k].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_IN_FULL = 64
"""Largest side whose maps are full matrices for all images at once; above, a row of strips for each image."""
_STRIP = 32
"""Outputs of a strip: a matrix of 224 x 224 holds seven strips of 32 x 36 that are not zero."""


@dataclass(frozen=True)
class Taps:
    """The maps of N lines."""

    first: Tensor
    """(N, S) whole numbers."""
    weight: Tensor
    """(N, K, S)"""

    def rows(self, index: slice) -> Taps:
        return Taps(self.first[index], self.weight[index])


def bicubic_taps(start: Tensor, length: Tensor, size: int, extent: int, mirrored: Tensor | None = None) -> Taps:
    """The taps that resample pixels [start, start + length) of a line of ``extent`` pixels to ``size`` pixels.

    Keys' cubic with a = -1/2, widened by the scale when it shrinks, as Pillow and torch have it. With w(t) for the
    distance t in (widened) pixels: t <= 1: 3/2 t^3 - 5/2 t^2 + 1;  1 < t <= 2: -1/2 t^3 + 5/2 t^2 - 4 t + 2.

    Args:
        start, length: (N,) whole numbers.
        mirrored: (N,) of 0 and 1: which lines are read backwards.

    Returns:
        first and weight; K depends on ``size`` and ``extent`` alone.
    """
    taps = min(extent, math.ceil(4 * max(1.0, extent / size)))
    step = (length / size)[:, None]  # (N, 1) input pixels per output pixel
    out = torch.arange(size, device=start.device, dtype=start.dtype)
    if mirrored is not None:
        m = mirrored[:, None]
        out = out + m * (size - 1 - 2 * out)  # (N, S)
    centre = start[:, None] + (out + 0.5) * step
    width = step.clamp(min=1)
    first = (centre - 2 * width + 0.5).floor().clamp(0, extent - taps)
    k = torch.arange(taps, device=start.device, dtype=start.dtype)
    pixel = first[:, None] + (k[:, None] + 0.5)  # (N, K, S)
    t = (centre[:, None] - pixel).abs_().div_(width[:, None]).clamp_(max=2)
    inner = (1 - t).clamp_(min=0)  # 0 beyond 1, where the second polynomial holds alone
    weight = (2.5 - 0.5 * t).mul_(t).sub_(4).mul_(t).add_(2).addcmul_(inner.square_(), t.mul_(2).sub_(1))
    # a crop does not see beyond its edges; pixel centres are half a pixel or more inside or outside
    middle, half = (start + length / 2)[:, None, None], (length / 2)[:, None, None]
    weight.mul_((half - pixel.sub_(middle).abs_()).clamp_(0, 0.5))
    return Taps(first.long(), weight.div_(weight.sum(1, keepdim=True)))


def gaussian(sigma: Tensor, size: int) -> Tensor:
    """(N, 2 r + 1): blur kernels for images of side ``size``, sigma (N,) in pixels.

    A kernel is 10 % of the side, made odd, at least 3 (SimCLR's data_util.py: radius = (side // 10) // 2).
    """
    radius = max(1, size // 20)
    i = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    weight = torch.exp(-0.5 * (i / sigma[:, None]).square())
    return weight / weight.sum(1, keepdim=True)


def resample(images: Tensor, y: Taps, x: Taps, out: Tensor) -> None:
    """Both maps on (N, C, H, W), clamped to [0, 1], into (N, C, S, S).

    With the taps of :func:`crop_taps` it equals torchvision's resized_crop(interpolation=BICUBIC, antialias=True),
    clamped, and a flip.
    """
    _, _, height, width = images.shape
    if out.shape[2] <= LARGEST_IN_FULL:
        in_full(images.to(out.dtype), as_matrix(y, height), as_matrix(x, width), out)
    else:
        for image, rows, columns, view in zip(images, _strips(y, height), _strips(x, width), out, strict=True):
            in_strips(image, rows, columns, view)
    out.clamp_(0, 1)


def crop_taps(boxes: Tensor, flip: Tensor, size: int, height: int, width: int) -> tuple[Taps, Taps]:
    """Taps along the rows and the columns for boxes (N, 4) and flip (N,) of 0 and 1; the values go from 255 to 1."""
    top, left, h, w = boxes.unbind(1)
    y, x = bicubic_taps(top, h, size, height), bicubic_taps(left, w, size, width, flip)
    return y, Taps(x.first, x.weight / 255)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur with a reflected border; x (N, C, S, S), sigma (N,) in pixels."""
    size = x.shape[3]
    kernel = gaussian(sigma.to(x.dtype), size)  # (N, 2 r + 1)
    r = kernel.shape[1] // 2
    padded = F.pad(x, (r, r, r, r), mode="reflect")
    out = torch.empty_like(x)
    if size <= LARGEST_IN_FULL:
        matrix = _toeplitz(kernel, size)
        in_full(padded, matrix, matrix, out)
        return out.clamp_(0, 1)
    starts = _starts(size)
    for image, matrix, blurred in zip(padded, _toeplitz(kernel, _STRIP), out, strict=True):
        strips = Strips(starts, starts, matrix.expand(len(starts), -1, -1))
        in_strips(image, strips, strips, blurred)
    return out.clamp_(0, 1)  # against rounding


def in_full(x: Tensor, rows: Tensor, columns: Tensor, out: Tensor) -> None:
    """Full matrices for all images: x (N, C, H, W), rows (N, H, S), columns (N, W, S), into (N, C, S, S)."""
    n, c, height, width = x.shape
    half = torch.bmm(x.view(n, c * height, width), columns).view(n, c, height, -1)
    torch.stack([torch.bmm(rows.transpose(1, 2), channel) for channel in half.unbind(1)], dim=1, out=out)


@dataclass(frozen=True)
class Strips:
    """A linear map of a line whose matrix is narrow about its diagonal, cut into J strips of B outputs.

    Strip j: output[to[j] : to[j] + B] = input[come[j] : come[j] + K] @ matrix[j], matrix (J, K, B).
    """

    to: list[int]
    come: list[int]
    matrix: Tensor


def in_strips(x: Tensor, rows: Strips, columns: Strips, out: Tensor) -> None:
    """Both maps on one image (C, H, W), into (C, S, S)."""
    c = len(x)
    _, k, b = rows.matrix.shape
    top, bottom = min(rows.come), max(rows.come) + k
    x = x[:, top:bottom].to(out.dtype).reshape(c * (bottom - top), -1)
    half = out.new_empty(c, bottom - top, out.shape[2])
    lines = half.view(len(x), -1)
    width = columns.matrix.shape[1]
    for to, come, matrix in zip(columns.to, columns.come, columns.matrix, strict=True):
        torch.mm(x[:, come : come + width], matrix, out=lines[:, to : to + b])
    for to, come, matrix in zip(rows.to, rows.come, rows.matrix, strict=True):
        part = half[:, come - top : come - top + k]
        torch.bmm(matrix.T.expand(c, b, k), part, out=out[:, to : to + b])


def as_matrix(taps: Taps, extent: int) -> Tensor:
    """(N, extent, S): taps as full matrices."""
    n, k, size = taps.weight.shape
    at = taps.first[:, None] + torch.arange(k, device=taps.first.device)[:, None]
    return taps.weight.new_zeros(n, extent, size).scatter_(1, at, taps.weight)


def _strips(taps: Taps, extent: int) -> list[Strips]:
    """The taps of each line as strips."""
    n, k, size = taps.weight.shape
    to = _starts(size)
    inputs = min(extent, math.ceil((_STRIP - 1) * max(1.0, extent / size)) + k + 1)
    outputs = [slice(start, start + _STRIP) for start in to]
    first = torch.stack([taps.first[:, o] for o in outputs], 1)  # (N, J, B)
    weight = torch.stack([taps.weight[:, :, o] for o in outputs], 1)  # (N, J, K, B)
    come = first.amin(2).clamp_(max=extent - inputs)  # (N, J)
    at = first.sub_(come[:, :, None])[:, :, None] + torch.arange(k)[:, None]  # (N, J, K, B)
    matrix = weight.new_zeros(n, len(to), inputs, _STRIP).scatter_(2, at, weight)
    return [Strips(to, line, m) for line, m in zip(come.tolist(), matrix, strict=True)]


def _toeplitz(kernel: Tensor, size: int) -> Tensor:
    """(N, 2 r + 1) -> (N, size + 2 r, size): the symmetric kernel around each of ``size`` pixels."""
    return F.pad(kernel, (size - 1, size - 1)).unfold(1, size, 1).flip(2)


def _starts(size: int) -> list[int]:
    """Where strips start: one after the other, the last one flush with the end."""
    return [min(start, size - _STRIP) for start in range(0, size, _STRIP)]
