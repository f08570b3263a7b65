"""Pixels between encoders: another data set brought to a run's format, and pixels as features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clf.data import Images

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue; the exported graph uses the same."""
_AT_ONCE = 1024  # images that are read and converted together
LARGEST_RAW = 32
"""Larger images are averaged down to this side before their pixels serve as features."""


def adapt(images: Images, image_size: int, channels: int) -> Images:
    """Clean images of any set as an encoder of another set takes them.

    Args:
        images: (n, C, H, W) uint8 with C of 1 or 3, a tensor or a table.

    Returns:
        (n, channels, image_size, image_size) uint8. Grey is repeated, colour becomes its luma; another size is
        resampled with antialiased bicubic interpolation, as :func:`clf.images.resize` does for files. Images that are
        of this shape come back as they are, a table unread; of other tables only the result is held in memory.
    """
    if tuple(images.shape[1:]) == (channels, image_size, image_size):
        return images
    n, device = len(images), images.device if isinstance(images, Tensor) else None
    out = torch.empty(n, channels, image_size, image_size, dtype=torch.uint8, device=device)
    for start in range(0, n, _AT_ONCE):
        part = images[start : start + _AT_ONCE]
        if channels == 1 and part.shape[1] == 3:
            weights = torch.tensor(LUMA, device=part.device).view(1, 3, 1, 1)
            part = (part * weights).sum(1, keepdim=True).round().to(torch.uint8)
        if part.shape[-2:] != (image_size, image_size):
            part = _resize(part, image_size)
        out[start : start + _AT_ONCE] = part  # grey is repeated
    return out


def _resize(images: Tensor, size: int) -> Tensor:
    resized = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def raw_pixels(images: Images) -> Tensor:
    """(n, C, S, S) uint8 -> (n, C*S*S) float32 in [0, 1]; images above LARGEST_RAW pixels are averaged down first."""
    if len(images) and images.shape[-1] > LARGEST_RAW:
        parts = [
            F.interpolate(images[i : i + 256].float(), size=(LARGEST_RAW, LARGEST_RAW), mode="area")
            for i in range(0, len(images), 256)
        ]
        return torch.cat(parts).flatten(1) / 255
    return images[:].flatten(1).float() / 255
