"""Any image of Pillow's as 8-bit RGB: palettes, inks, transparency, 16 and 32 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, as :func:`clf.images.decode` says; transparency on white."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return _grey(np.where(values == image.info.get("transparency"), 255, (values + 128) // 257))
    if image.mode == "I":
        wide = np.asarray(image).astype(np.int64)
        fits = wide.min() >= 0 and wide.max() <= 0xFFFF
        return _grey((wide + 128) // 257 if fits else _stretch(wide.astype(np.float64)))
    if image.mode == "F":
        return _grey(_float_levels(np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)))
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        if image.mode in ("La", "RGBa"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _float_levels(values: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        return _stretch(values)
    return values * 255 if high <= 1 else values


def _stretch(values: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = values.min(), values.max()
    levels: NDArray[np.float64] = (values - low) / max(high - low, np.finfo(np.float64).tiny) * 255
    return levels


def _grey(levels: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(np.rint(levels).astype(np.uint8)).convert("RGB")
