"""Images inside the page, as data URIs."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image
from torch import Tensor

LARGEST = 112
"""Side in pixels of a thumbnail, at most."""


def data_uri(image: Tensor) -> str:
    """(C, S, S) uint8 as ``data:image/...``: PNG, which keeps small pixels sharp, or JPEG for reduced photographs."""
    array = image.permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))
    reduced = max(picture.size) > LARGEST
    if reduced:
        picture.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    picture.save(file, "JPEG" if reduced else "PNG", quality=88)
    kind = "jpeg" if reduced else "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def img(image: Tensor, alt: str) -> str:
    """An ``<img>`` element with text for those who do not see it."""
    sharp = ' class="pixels"' if image.shape[-1] < 64 else ""
    return f'<img{sharp} src="{data_uri(image)}" alt="{escape(alt)}" loading="lazy">'
