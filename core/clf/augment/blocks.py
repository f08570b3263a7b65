"""The recipe on the CPU: images in blocks that stay in the cache, and only the operations that were drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import torch
from torch import Tensor

from clf.augment.colour import blend_, luma, mean_luma, solarize, turn_hue
from clf.augment.recipe import CONTRAST, HUE, SATURATION, Draws, Recipe, crop_boxes
from clf.augment.resample import crop_taps, gaussian_blur, resample

_BLOCK = 65536
"""Pixels of a block: three channels of 4 bytes are 0.75 MB, while a call still costs less than its work."""
_GROUP = 16
"""Images that are resampled together at least, to build their maps in few calls."""
_NO_HUE, _NOTHING = 4, 5


def in_blocks(images: Tensor, draws: Draws, recipe: Recipe, dtype: torch.dtype, block: int = _BLOCK) -> Tensor:
    """(N, C, H, W) uint8 -> (N, C, S, S) in [0, 1].

    The images are sorted by the round of the jitter in which their hue turns: that operation is the dearest, and its
    images then lie together.
    """
    n, c, height, width = images.shape
    size = recipe.size
    rows = max(1, block // size**2)
    order = None
    if rows > 1:
        order = _hue_round(draws, recipe.jitters(c)).argsort(stable=True)
        draws = draws.rows(order)
    boxes = crop_boxes(draws, height, width, recipe.crop_ratio)
    y_taps, x_taps = crop_taps(boxes.to(dtype), draws.flip.to(dtype), size, height, width)
    jitter = _Jitter(draws, recipe.jitters(c), dtype)
    x = torch.empty(n, c, size, size, dtype=dtype)
    for group in _parts(slice(0, n), rows * max(1, _GROUP // rows)):
        raw = images[group] if order is None else images.index_select(0, order[group])
        resample(raw, y_taps.rows(group), x_taps.rows(group), x[group])
        for part in _parts(group, rows):
            jitter(x[part].flatten(2), part)
            if c == 3:
                _on_rows(x[part], draws.grayscale[part], lambda y, _: luma(y.unbind(1))[:, None].expand_as(y))
            if recipe.blur or recipe.solarize:
                blur_and_solarize_(x[part], draws.rows(part))
    return x if order is None else x.index_select(0, order.argsort())


def blur_and_solarize_(x: Tensor, draws: Draws) -> None:
    """The last two operations on x (N, C, S, S), in place."""
    _on_rows(x, draws.blur, lambda part, rows: gaussian_blur(part, draws.sigma[rows]))
    _on_rows(x, draws.solarize, lambda part, _: solarize(part))


class _Jitter:
    """Colour jitter: in each of four rounds every image gets the operation that its order names."""

    def __init__(self, draws: Draws, active: tuple[bool, ...], dtype: torch.dtype) -> None:
        self.hue_round = _hue_round(draws, active).tolist()
        on = torch.tensor(active)[draws.order] & draws.jitter[:, None]  # (N, 4)
        scale = torch.where(on, draws.factors.gather(1, draws.order), 1)
        share = (1 - scale) * (draws.order == SATURATION)
        mean_share = (1 - scale) * (draws.order == CONTRAST)
        self.has_share, self.has_mean_share = (share != 0).tolist(), (mean_share != 0).tolist()
        self.scale, self.share, self.mean_share = scale.to(dtype), share.to(dtype), mean_share.to(dtype)
        self.turns = draws.factors[:, HUE, None].to(dtype)

    def __call__(self, x: Tensor, part: slice) -> None:
        """x (N, C, P), rows ``part`` of the batch, in place."""
        for step in range(4):
            start = 0
            for hue_round, run in groupby(self.hue_round[part]):
                stop = start + len(list(run))
                rows = slice(part.start + start, part.start + stop)
                if hue_round == step:
                    planes = x[start:stop].unbind(1)
                    turn_hue(planes, self.turns[rows], out=planes)
                elif hue_round != _NOTHING:
                    self._blend(x[start:stop], rows, step)
                start = stop

    def _blend(self, x: Tensor, rows: slice, step: int) -> None:
        column = slice(step, step + 1)
        share = self.share[rows, column] if any(row[step] for row in self.has_share[rows]) else None
        offset = None
        if any(row[step] for row in self.has_mean_share[rows]):
            offset = mean_luma(x).mul_(self.mean_share[rows, column])
        blend_(x, self.scale[rows, column], share, offset)


def _hue_round(draws: Draws, active: tuple[bool, ...]) -> Tensor:
    """(N,) the round in which an image's hue turns, _NO_HUE if in none, _NOTHING without jitter."""
    jitter = draws.jitter & any(active)
    turning = (draws.order == HUE).to(torch.uint8).argmax(dim=1) if active[HUE] else _NO_HUE
    return torch.where(jitter, turning, _NOTHING)


def _parts(whole: slice, rows: int) -> Iterator[slice]:
    for start in range(whole.start, whole.stop, rows):
        yield slice(start, min(start + rows, whole.stop))


def _on_rows(x: Tensor, mask: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    """``operation(part, rows)`` on the rows where ``mask`` holds, in place."""
    rows = mask.nonzero()[:, 0]
    if len(rows):
        x.index_copy_(0, rows, operation(x.index_select(0, rows), rows))
