"""The colour operations, with torchvision's semantics for the same parameters; x is (N, C, P), P pixels.

They are written without comparisons: on the CPU a mask costs twenty times an addition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision rounds it
_LEAST_CHROMA = 1e-12  # instead of 0, so that grey has a hue


def luma(planes: Sequence[Tensor]) -> Tensor:
    """Grey of red, green and blue, each of the same shape."""
    r, g, b = planes
    return (r * LUMA[0]).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])


def mean_luma(x: Tensor) -> Tensor:
    """(N, C, P) -> (N, 1): mean grey of each image."""
    mean = x.mean(2)  # (N, C); grey is linear, so the mean grey is the grey of the means
    return mean if x.shape[1] == 1 else mean.mul_(x.new_tensor(LUMA)).sum(1, keepdim=True)


def blend_(x: Tensor, scale: Tensor, share: Tensor | None = None, offset: Tensor | None = None) -> None:
    """x <- clamp(scale x + share grey(x) + offset), in place; the three are (N, 1).

    Brightness by f is (f, 0, 0), saturation (f, 1 - f, 0), contrast (f, 0, (1 - f) mean grey), and (1, 0, 0) changes
    nothing: images with different operations go through one pass.
    """
    added = None if offset is None else offset[:, :, None]  # (N, 1, 1)
    if share is not None:
        weights = share[:, :, None] * x.new_tensor(LUMA)  # (N, 1, 3)
        added = torch.bmm(weights, x) if added is None else torch.baddbmm(added, weights, x)  # (N, 1, P)
    x.mul_(scale[:, :, None])
    if added is not None:
        x.add_(added)
    x.clamp_(0, 1)


def turn_hue(
    planes: Sequence[Tensor], turns: Tensor, out: Sequence[Tensor | None] = (None, None, None)
) -> list[Tensor]:
    """Rotation of the hue in HSV; value and saturation stay.

    With hue h in sixths of a turn, and red, green and blue measured from the least of them in units of the chroma:
    |h - 3| = 2 + red - green - blue, and h < 3 where green > blue. Back again, red = clamp(|h - 3| - 1, 0, 1),
    green = clamp(2 - |h - 2|, 0, 1), blue = clamp(2 - |h - 4|, 0, 1).

    Args:
        planes: red, green, blue, each (N, P) in [0, 1].
        turns: (N, 1) in [-0.5, 0.5].
        out: where the result goes; it may be ``planes``.
    """
    r, g, b = planes
    high = torch.maximum(torch.maximum(g, b), r)
    low = torch.minimum(torch.minimum(g, b), r)
    chroma = high.sub_(low).clamp_(min=_LEAST_CHROMA)
    distance = (r - g).sub_(b - low).div_(chroma).add_(2)  # |h - 3|, between 0 and 3
    h = (turns + 1.5) - torch.copysign(distance, g - b).mul_(1 / 6)  # in turns, above 0
    h = h.frac_()
    # 6 chroma |h - centre|, held between chroma and 2 chroma, is that far above or below the ends
    up, down = torch.sub(low, chroma), torch.add(low, chroma, alpha=2)
    return [
        torch.addcmul(end, (h - centre).abs_().clamp_(1 / 6, 1 / 3), chroma, value=slope, out=plane).clamp_(0, 1)
        for end, centre, slope, plane in zip((up, down, down), (1 / 2, 1 / 3, 2 / 3), (6, -6, -6), out, strict=True)
    ]


def solarize(x: Tensor) -> Tensor:
    """All values of one half and above inverted."""
    return torch.minimum(x, 1 - x)
