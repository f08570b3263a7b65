"""What a camera wrote into a photo, as metadata: when it was taken, by which camera, and, only if asked for, where.

Tags: Exif 3.0 (CIPA DC-008), sections 4.6.4 to 4.6.6.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from PIL import ExifTags, Image

NAMES = ("taken", "camera", "latitude", "longitude")
"""The metadata that :func:`photo_facts` may give."""

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "MPO", "AVIF", "HEIF")


def photo_facts(data: bytes, *, places: bool = False) -> dict[str, Any]:
    """``taken`` (ISO 8601, with an offset where the camera knew it), ``camera`` (maker and model).

    Args:
        data: an image file that could be decoded.
        places: ``latitude`` and ``longitude`` too, in degrees, north and east positive.

    Returns:
        What there is; nothing for a file without EXIF, or with a broken one.
    """
    try:
        with Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            exif = image.getexif()
            facts: dict[str, Any] = {"taken": _taken(exif), "camera": _camera(exif)}
            if places:
                gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
                facts["latitude"] = _degrees(gps, ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef, 90)
                facts["longitude"] = _degrees(gps, ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef, 180)
    except Exception:  # parsers meet corrupt bytes with errors of any type; the pixels are none the worse
        return {}
    return {name: value for name, value in facts.items() if value is not None}


def _taken(exif: Image.Exif) -> str | None:
    details = exif.get_ifd(ExifTags.IFD.Exif)
    text = details.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.strptime(text.strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:  # "0000:00:00 00:00:00" of a camera whose clock was never set
        return None
    offset = details.get(ExifTags.Base.OffsetTimeOriginal)
    if isinstance(offset, str):
        try:
            return datetime.fromisoformat(moment.isoformat() + offset.strip("\0 ")).isoformat()
        except ValueError:
            pass
    return moment.isoformat()


def _camera(exif: Image.Exif) -> str | None:
    maker, model = (" ".join(_text(exif.get(tag)).split()) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    if maker and model and not model.casefold().startswith(maker.casefold()):
        return f"{maker} {model}"
    return model or maker or None


def _text(value: object) -> str:
    return "".join(letter for letter in value if letter.isprintable()) if isinstance(value, str) else ""


def _degrees(gps: Mapping[int, Any], tag: int, reference: int, most: float) -> float | None:
    parts: Sequence[Any] | None = gps.get(tag)
    if parts is None or len(parts) != 3:
        return None
    degrees: float = sum(float(part) / 60.0**power for power, part in enumerate(parts))
    if not math.isfinite(degrees) or not 0 <= degrees <= most:
        return None
    sign = -1.0 if str(gps.get(reference, "")).strip("\0 ").upper() in ("S", "W") else 1.0
    return round(sign * degrees, 6)
