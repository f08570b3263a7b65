"""Image files: find, decode and bring to one size. Needs Pillow and numpy only, so training and serving share it.

``prepare`` is *the* preprocessing ``shorter-side-bicubic-center-crop-v1`` of a model's manifest: evaluation, export,
``clf embed``, the HTTP API and the UI all call it, so the same file gives the same pixels everywhere.
``prepare_fast`` is another one, which a server may be told to use instead and which says so by its own name.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from clf.colours import to_rgb
from clf.errors import ImageError

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".pnm"}
    | {".ppm", ".tif", ".tiff", ".webp"}
)
"""File name endings that :func:`find_images` looks for, in lower case."""

FAST_PREPROCESSING = "dct-scaled-1.5x-shorter-side-bicubic-center-crop-v1"
"""Name of what :func:`prepare_fast` does."""

# Formats of pixels only: Pillow would hand others (EPS, PDF) to external programs. HEIF needs a Pillow plugin.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "AVIF", "JPEG2000", "DIB", "HEIF")
_DCT_MARGIN = 1.5
_MOST_WORK = 20
"""Images of the largest size that the scans of one JPEG may go over in all. A progressive one of four inks has 18."""
_ORIENTATION = 0x0112
_MOST_SCANS = 100
"""Of a progressive JPEG, which has about ten. Each goes over all pixels, however few its bytes: a file of 1 MiB with a
hundred thousand of them would keep a decoder busy for many minutes."""
_MOST_MARKS = 10_000
"""Of a JPEG; 64 MiB are a thousand segments of full length. Pillow reads them one by one in Python, half a second for a
MiB of empty ones."""
_MARK = re.compile(rb"\xff[^\0\x01\xd0-\xd8\xff]")  # of JPEG, but those that stand within a scan or alone
_END, _SCAN = 0xD9, 0xDA
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Limits:
    """What a single image may cost, checked before any pixel is decoded."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000


DEFAULT_LIMITS = Limits()


def decode(source: Path | bytes, limits: Limits = DEFAULT_LIMITS, *, name: str = "the image") -> Image.Image:
    """The image as a person sees it: upright, mode RGB, 8 bits a channel; the first frame of an animation.

    EXIF orientation is applied. Transparency (alpha channel, transparent palette entry or colour key) is composited
    on white. CMYK, YCbCr, palette, grey and 1-bit images are converted by Pillow, which takes the inks of a JPEG to be
    stored inverted, as Adobe does and browsers expect. 16-bit greys are divided by 257, 32-bit ones too if they fit 16
    bits; other integers are stretched from their own range to 0..255. Of 16-bit colours Pillow keeps the upper byte.
    Floats in [0, 1] are multiplied by 255, in [0, 255] rounded, others stretched; not-a-number is 0. Colour profiles
    are ignored. Thread-safe.

    Args:
        source: a file, or a file's bytes.
        limits: bytes of the file, and pixels as its header states them. All scans of a progressive JPEG together
            may go over 20 times as many, so that no small file keeps a processor busy for hours.
        name: what errors call an image that came as bytes.

    Raises:
        ImageError: the file is missing, empty, too large, truncated, corrupt or not an image, or there is no memory for
            it (then the cause is a MemoryError); names the file.
    """
    return _decoded(source, limits, name=name)[0]


def _decoded(
    source: Path | bytes, limits: Limits, least: int | None = None, *, name: str = "the image"
) -> tuple[Image.Image, _Box]:
    """:func:`decode` and the central square; a JPEG may come out smaller, its shorter side no less than ``least``."""
    name = name if isinstance(source, bytes) else str(source)
    data = _checked(source, name, limits.max_bytes) if isinstance(source, bytes) else read(source, limits)
    try:
        scans = _scans(data, name) if data.startswith(b"\xff\xd8\xff") else 0
        image = _open(data)
        if image is None:
            raise ImageError(f"{name} is not an image of a known format")
        _check_size(image, scans, name, limits.max_pixels)
        stored = image.size
        drafted = None if least is None else image.draft(None, (least, least))  # None for all but JPEG
        shown = stored if drafted is None else drafted[1][2:]
        image.load()  # Pillow decodes late; whatever is wrong with the pixels is found out here
        turn = _orientation(image)
        upright = image.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else image
        return to_rgb(upright), _central_square(upright.size, stored, shown, turn)
    except ImageError:
        raise
    except MemoryError as error:  # says nothing of the file
        raise ImageError(f"{name} cannot be decoded for lack of memory") from error
    except Exception as error:  # decoders meet corrupt bytes with errors of any type
        raise ImageError(f"{name} is truncated or corrupt ({_reason(error)})") from error


def formats() -> list[str]:
    """What can be decoded here: formats, then Pillow's codecs."""
    Image.init()
    return [*(name for name in _FORMATS if name in Image.OPEN), *features.get_supported_codecs()]


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """A file's bytes, for those who need them beside the image; :func:`decode` takes them.

    Raises:
        ImageError: the file is missing, no plain file, unreadable, empty or too large.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device would block
            raise ImageError(f"{path} is not a file")
        if found.st_size > limits.max_bytes:
            raise _too_large(str(path), found.st_size, limits.max_bytes)
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{path} does not exist") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error
    return _checked(data, str(path), limits.max_bytes)


def resize(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Shorter side to ``size`` (bicubic, antialiased), then the central square: (size, size, 3) uint8.

    Only the central square is resampled, so that an image of 1 x 60,000,000 pixels costs no more than its square.
    An image of exactly this size comes back unchanged.
    """
    return np.array(square(image, size))


def square(image: Image.Image, size: int) -> Image.Image:
    """What :func:`resize` gives, as an image."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def prepare(source: Path | bytes, size: int, limits: Limits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """A file as an encoder sees it: :func:`decode`, then :func:`resize`; (size, size, 3) uint8, RGB.

    Raises:
        ImageError: as :func:`decode`.
    """
    return resize(decode(source, limits), size)


def prepare_fast(source: Path | bytes, size: int, limits: Limits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """The preprocessing FAST_PREPROCESSING: :func:`prepare`, but a large JPEG is decoded at a half, a quarter or an
    eighth of its sides (from fewer coefficients of each block's DCT), its shorter side never below 1.5 x ``size``.

    The pixels, and so the embeddings, differ a little from those of :func:`prepare`;
    :func:`clf.decoding.compare_decoding` measures how much. All other formats, and JPEGs with a shorter side below
    3 x ``size``, give the same pixels.

    Raises:
        ImageError: as :func:`decode`.
    """
    image, box = _decoded(source, limits, math.ceil(_DCT_MARGIN * size))
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def find_images(folder: Path) -> list[Path]:
    """All files below ``folder`` with an image's suffix, sorted by path. Hidden files and folders are left out.

    Links to folders are followed, each real folder once. The list is whole or there is none: what cannot be listed is
    never taken for empty.

    Raises:
        ImageError: ``folder`` does not exist or is not a folder; it, or a folder below it, cannot be read.
    """
    return sorted(folder / name for name in walk(folder))


def walk(folder: Path) -> Iterator[str]:
    """The same files one by one, as paths relative to ``folder`` with ``/``, in the same order, for very many files.

    Only the names of the folders on the way to the present file are held in memory.

    Raises:
        ImageError: as :func:`find_images`.
    """
    if not is_folder(folder):
        raise ImageError(f"{folder} {'is a file, not a folder' if folder.exists() else 'does not exist'}")
    top = os.fspath(folder)
    real = os.path.realpath(top)
    seen = {real}
    pending = [("", real, *_entries(top))]  # the present folder last: its prefix, real path, names left, subfolders
    while pending:
        prefix, real, names, folders = pending[-1]
        if not names:
            pending.pop()
            continue
        name = names.pop()
        if name not in folders:
            yield prefix + name
            continue
        path = os.path.join(top, prefix + name)  # noqa: PTH118
        below = os.path.realpath(path) if folders[name] else os.path.join(real, name)  # noqa: PTH118
        if below not in seen:
            seen.add(below)
            pending.append((f"{prefix}{name}/", below, *_entries(path)))


def is_folder(path: Path) -> bool:
    """Whether a folder is there, on all versions of Python alike: ``Path.is_dir`` raises on some and guesses on others.

    Raises:
        ImageError: nobody can tell, for example because a folder above it is locked.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except ValueError:  # a name with a null byte
        return False
    except OSError as error:
        if _leads_nowhere(error):
            return False
        raise _unreadable(path, error) from error


def _entries(folder: str) -> tuple[list[str], dict[str, bool]]:
    """Images and subfolders of one folder, last name first, and of the subfolders whether they may be links."""
    names, folders = [], {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if _is_folder_entry(entry):
                    folders[name] = entry.is_symlink() or os.name == "nt"
                elif os.path.splitext(name)[1].lower() not in SUFFIXES:  # noqa: PTH122
                    continue
                names.append(name)
    except FileNotFoundError:  # deleted meanwhile: simply gone
        return [], {}
    except OSError as error:
        raise _unreadable(error.filename or folder, error) from error
    names.sort(reverse=True)
    return names, folders


def _is_folder_entry(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if _leads_nowhere(error):
            return False
        raise


def _leads_nowhere(error: OSError) -> bool:
    """Whether a path names nothing, rather than something that cannot be asked: missing, or links in a circle."""
    return isinstance(error, (FileNotFoundError, NotADirectoryError)) or error.errno == errno.ELOOP


def _unreadable(folder: Path | str, error: OSError) -> ImageError:
    return ImageError(
        f"{folder} cannot be read: {error.strerror or error}; "
        "see to its permissions (chmod u+rx) and its disk, or move it elsewhere"
    )


def _checked(data: bytes, name: str, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise _too_large(name, len(data), max_bytes)
    if not data:
        raise ImageError(f"{name} is empty")
    return data


def _too_large(name: str, size: int, max_bytes: int) -> ImageError:
    return ImageError(f"{name} has {size / 2**20:.1f} MiB, more than the limit of {max_bytes / 2**20:g} MiB")


def _open(data: bytes) -> Image.Image | None:
    """Image.open without its size check, which warns or raises by a global setting before the size can be asked."""
    Image.init()
    for name in _FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None:
            continue
        try:
            accepted = accept(data[:16]) if accept is not None else True
            if not accepted or isinstance(accepted, str):  # a string says why not
                continue
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # what Image.open takes for "not this format"
            continue
    return None


def _scans(data: bytes, name: str) -> int:
    """Scans of the first picture in a JPEG file, counted up to one more than the most. Raises ImageError."""
    at, scans, marks = 0, 0, 0
    while scans <= _MOST_SCANS and (found := _MARK.search(data, at)):
        mark, at = found[0][1], found.end()
        if mark == _END:
            break
        scans += mark == _SCAN
        marks += 1
        if marks > _MOST_MARKS:
            raise ImageError(
                f"{name} is a JPEG of more than {_MOST_MARKS} segments, which no camera writes: save it again"
            )
        at += int.from_bytes(data[at : at + 2])  # the segment's length; what follows a scan's has no marks but these
    return scans


def _check_size(image: Image.Image, scans: int, name: str, max_pixels: int) -> None:
    """By the header alone: nothing has been decoded yet."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{name} has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:g} million")
    most = min(_MOST_SCANS, _MOST_WORK * max_pixels // max(width * height, 1))
    if scans > most:
        raise ImageError(f"{name} is a JPEG of more than {most} scans, which would take too long: save it again")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def _central_square(pixels: tuple[int, int], stored: tuple[int, int], shown: Sequence[float], turn: int) -> _Box:
    """The square that :func:`square` takes of the whole image, in the pixels of one decoded at a fraction of its size.

    A side that the fraction does not divide is rounded up, and the last column or row is in part beyond the picture;
    where it is taken for a whole one, the picture shifts and embeddings differ ten times as much.

    Args:
        pixels: (width, height) of the upright image as decoded.
        stored, shown: (width, height) before it was turned, in the file's pixels, and in decoded ones without excess.
        turn: its EXIF orientation.
    """
    if turn in (5, 6, 7, 8):
        stored, shown = stored[::-1], shown[::-1]
    side = min(stored)
    ends: list[float] = []
    for whole, part, decoded, turned in zip(
        stored, shown, pixels, (turn in (2, 3, 6, 7), turn in (3, 4, 7, 8)), strict=True
    ):
        scale = part / whole
        start = (whole - side) // 2 * scale + (decoded - part if turned else 0)
        ends += [start, min(start + side * scale, decoded)]
    left, right, top, bottom = ends
    return left, top, right, bottom


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
