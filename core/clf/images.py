"""Image files: find, decode and bring to one size. Needs Pillow and numpy only, so training and serving share it.

``prepare`` is *the* preprocessing ``shorter-side-bicubic-center-crop-v1`` of a model's manifest: evaluation, export,
``clf embed``, the HTTP API and the UI all call it, so the same file gives the same pixels everywhere.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from clf.errors import ImageError

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".pnm"}
    | {".ppm", ".tif", ".tiff", ".webp"}
)
"""File name endings that :func:`find_images` looks for, in lower case."""

# Formats of pixels only: Pillow would hand others (EPS, PDF) to external programs. HEIF needs a Pillow plugin.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "AVIF", "JPEG2000", "DIB", "HEIF")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Limits:
    """What a single image may cost, checked before any pixel is decoded."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000


DEFAULT_LIMITS = Limits()


def decode(source: Path | bytes, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """The image as a person sees it: upright, mode RGB, 8 bits a channel; the first frame of an animation.

    EXIF orientation is applied. Transparency (alpha channel, transparent palette entry or colour key) is composited
    on white. CMYK, YCbCr, palette, grey and 1-bit images are converted by Pillow. 16-bit greys are divided by 257,
    32-bit ones too if they fit 16 bits; other integers are stretched from their own range to 0..255. Floats in
    [0, 1] are multiplied by 255, in [0, 255] rounded, others stretched; not-a-number is 0. Colour profiles are
    ignored. Thread-safe.

    Args:
        source: a file, or a file's bytes.
        limits: bytes of the file, and pixels as its header states them.

    Raises:
        ImageError: the file is missing, empty, too large, truncated, corrupt or not an image, or there is no memory for
            it (then the cause is a MemoryError); names the file.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    data = _checked(source, name, limits.max_bytes) if isinstance(source, bytes) else read(source, limits)
    try:
        image = _open(data)
        if image is None:
            raise ImageError(f"{name} is not an image of a known format")
        width, height = image.size
        if width * height > limits.max_pixels:
            raise ImageError(
                f"{name} has {width} x {height} pixels, more than the limit of {limits.max_pixels / 1e6:g} million"
            )
        image.load()  # Pillow decodes late; whatever is wrong with the pixels is found out here
        return _rgb(_upright(image))
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _grey((np.asarray(image).astype(np.uint32) + 128) // 257)
    if image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        fits = values.min() >= 0 and values.max() <= 0xFFFF
        return _grey((values + 128) // 257 if fits else _stretch(values.astype(np.float64)))
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


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
