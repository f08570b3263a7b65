"""Images inside the page, as data URIs."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LARGEST = 112
"""Side in pixels of a thumbnail, at most."""
LARGEST_GRID = 1600
"""Side in pixels of a grid of images, at most."""
GAP = 2
"""White pixels between the images of a grid."""
LARGEST_CELL = 48
"""Side in pixels of an image on a sheet, at most."""
BLOCK = 16
"""Pixels that JPEG treats together: cells of whole blocks do not bleed into their neighbours."""
QUALITIES = (88, 75, 60, 40)
HEAVIEST = 1_200_000
"""Bytes of a sheet that are aimed at: the first quality that stays below is taken."""


@dataclass(frozen=True)
class Sheet:
    """Many small images in one, row by row."""

    uri: str
    columns: int
    rows: int
    cell: int
    """Pixels from one image to the next."""
    side: int
    """Pixels of an image; the rest of its cell repeats its edge."""


def sheet(images: Tensor) -> Sheet:
    """(n, C, S, S) uint8, n >= 1, as one JPEG; images above LARGEST_CELL pixels are reduced to it."""
    n, c, side = images.shape[:3]
    if side > LARGEST_CELL:
        side = LARGEST_CELL
        parts = [
            F.interpolate(part.float(), size=(side, side), mode="bicubic", antialias=True).round().clamp(0, 255)
            for part in torch.split(images, 256)
        ]
        images = torch.cat(parts).to(torch.uint8)
    cell = -(-side // BLOCK) * BLOCK
    columns = math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    edge = torch.arange(cell).clamp(max=side - 1)
    cells = torch.zeros(rows * columns, c, cell, cell, dtype=torch.uint8)
    cells[:n] = images[:, :, edge][:, :, :, edge]
    whole = cells.view(rows, columns, c, cell, cell).permute(0, 3, 1, 4, 2).reshape(rows * cell, columns * cell, c)
    picture = Image.fromarray(whole[:, :, 0].contiguous().numpy() if c == 1 else whole.contiguous().numpy())
    return Sheet(_jpeg(picture), columns, rows, cell, side)


def _jpeg(picture: Image.Image) -> str:
    for quality in QUALITIES:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= HEAVIEST:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


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
