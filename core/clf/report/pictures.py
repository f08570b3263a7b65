"""Images inside the page, as data URIs."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LARGEST = 112
"""Side in pixels of a thumbnail, at most."""
LARGEST_GRID = 1600
"""Side in pixels of a grid of images, at most."""
GAP = 2
"""White pixels between the images of a grid."""


def data_uri(image: Tensor, largest: int = LARGEST) -> str:
    """(C, H, W) uint8 as ``data:image/...``: PNG, which keeps small pixels sharp, or JPEG for reduced photographs."""
    array = image.permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))
    reduced = max(picture.size) > largest
    if reduced:
        picture.thumbnail((largest, largest))
    file = io.BytesIO()
    picture.save(file, "JPEG" if reduced else "PNG", quality=88)
    kind = "jpeg" if reduced else "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def img(image: Tensor, alt: str) -> str:
    """An ``<img>`` element with text for those who do not see it."""
    sharp = ' class="pixels"' if image.shape[-1] < 64 else ""
    return f'<img{sharp} src="{data_uri(image)}" alt="{escape(alt)}" loading="lazy">'


def grid(images: Tensor, alt: str) -> str:
    """(rows, columns, C, H, W) in [0, 1] as one ``<img>``, small pixels drawn as squares."""
    rows, columns, c, height, width = images.shape
    pixels = (images.detach().float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    sheet = torch.full((c, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255, dtype=torch.uint8)
    for i in range(rows):
        for j in range(columns):
            top, left = i * (height + GAP), j * (width + GAP)
            sheet[:, top : top + height, left : left + width] = pixels[i, j]
    shown = 2 * sheet.shape[2] if width < 64 else sheet.shape[2]
    style = f"width: {shown}px; max-width: 100%; height: auto"
    return f'<img class="pixels" style="{style}" src="{data_uri(sheet, LARGEST_GRID)}" alt="{escape(alt)}">'
