"""The small pictures of a gallery."""

from __future__ import annotations

import io

from PIL import Image

THUMBNAIL = 256
"""Longest side of a thumbnail in pixels."""


def thumbnail(picture: Image.Image) -> bytes:
    """A small JPEG of a decoded picture, which is shrunk in place."""
    picture.thumbnail((THUMBNAIL, THUMBNAIL))  # never enlarges
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
