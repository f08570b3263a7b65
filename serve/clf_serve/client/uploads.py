"""Whatever a caller takes for an image, as the bytes of a file that the server decodes to the same pixels."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clf.errors import ImageError
from clf.images import Limits, read

Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8] | BinaryIO
"""A path, a file's bytes, a Pillow image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, an open file."""

_AS_PNG = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_AS_TIFF = frozenset({"CMYK", "LAB", "I", "F"})  # what PNG cannot hold
_LOADING = [threading.Lock() for _ in range(32)]
_CONVERTED = {
    "La": "LA",
    "RGBa": "RGBA",
    "PA": "RGBA",
    "RGBX": "RGB",
    "HSV": "RGB",
    "YCbCr": "RGB",
    "I;16B": "I;16",
    "I;16L": "I;16",
}


def listed(images: Source | Iterable[Source]) -> Iterable[Source]:
    """The images, where one alone may have been given; an array of four dimensions holds one image a row."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(images, "read"):
        one: Any = images
        return [one]
    if not isinstance(images, Iterable):
        raise ImageError(f"the input is a {type(images).__name__}; give images, or an iterable of them")
    return images


def named(source: Source, place: str) -> str:
    """What to call an image in a message: its path, else its place among the others."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else place


def encode(source: Source, name: str, max_bytes: int) -> bytes:
    """The image as a file: paths, bytes and open files as they are, pixels as PNG or, where PNG cannot, TIFF.

    A Pillow image keeps its EXIF orientation, so one that was just opened is turned upright as its file would be.

    Raises:
        ImageError: it cannot be read, is empty, larger than ``max_bytes``, or no image; names it.
    """
    if isinstance(source, (str, os.PathLike)):
        return read(Path(source), Limits(max_bytes=max_bytes))
    data = _file(source, name, max_bytes)
    if not data:
        raise ImageError(f"{name} is empty")
    if len(data) > max_bytes:
        size, most = len(data) / 2**20, max_bytes / 2**20
        raise ImageError(f"{name} has {size:.1f} MiB, more than the {most:g} MiB that the server takes")
    return data


def _file(source: Any, name: str, max_bytes: int) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, np.ndarray):
        return _saved(_picture(source, name), name)
    if isinstance(source, Image.Image):
        return _saved(source, name)
    if not hasattr(source, "read"):
        raise ImageError(f"{name} is a {type(source).__name__}; give a path, bytes, a Pillow image, an array or a file")
    try:
        data = bytearray()
        while len(data) <= max_bytes:
            piece = source.read(max_bytes + 1 - len(data))
            if not isinstance(piece, bytes):
                raise ImageError(f"{name} is a file opened as text; open it with mode 'rb'")
            if not piece:
                break
            data += piece
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be read: {error}") from error
    return bytes(data)


def _picture(array: NDArray[Any], name: str) -> Image.Image:
    flat = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    shaped = flat.ndim == 2 or (flat.ndim == 3 and flat.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or 0 in array.shape:
        raise ImageError(
            f"{name} is an array of {array.dtype} with shape {array.shape}; give uint8 (H, W), (H, W, 3) or (H, W, 4)"
        )
    return Image.fromarray(np.ascontiguousarray(flat))


def _saved(image: Image.Image, name: str) -> bytes:
    mode = _CONVERTED.get(image.mode, image.mode)
    if mode not in _AS_PNG | _AS_TIFF:
        raise ImageError(f"{name} is a Pillow image of mode {image.mode}; convert it to RGB first")
    buffer = io.BytesIO()
    try:
        with _LOADING[id(image) % len(_LOADING)]:  # Pillow reads late, and a picture may be there more than once
            image.load()
        exif = image.getexif()
        same = image if mode == image.mode else image.convert(mode)
        if mode in _AS_PNG:
            same.save(buffer, "PNG", exif=exif, compress_level=1)
        else:
            same.save(buffer, "TIFF", exif=exif)
    except Exception as error:  # Pillow decodes late: a broken file shows only now, by errors of any type
        raise ImageError(f"{name} is truncated or corrupt ({error or type(error).__name__})") from error
    return buffer.getvalue()
