"""Pictures to try a model on: always the same ones, from flat to noisy, so that their embeddings differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FIELDS = (2, 3, 5, 8, 13, 24, 64)


def probe_images(n: int, size: int) -> NDArray[np.uint8]:
    """(n, size, size, 3) uint8: random colours on grids from coarse to fine, some with edges and some without."""
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(n):
        side = min(_FIELDS[i % len(_FIELDS)], size)
        colours = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        smooth = Image.Resampling.NEAREST if i // len(_FIELDS) % 2 else Image.Resampling.BICUBIC
        pictures.append(np.asarray(colours.resize((size, size), smooth)))
    return np.stack(pictures)
