"""Images as a hostile world sends them, made by code: what a server must refuse, and oddities it must read rightly.

Each has its outcome: 200 with, where it is known by other means, the picture that it must look like; 422 for what is no
usable image; 413 for what is too large for a server that was started with ``--max-mib 3``.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageSequence, PngImagePlugin
from serve_helpers import encoded, picture

ORIENTATION = 0x0112
_STORED = {  # how a camera of each EXIF orientation stores an upright picture: the inverse of what a viewer does
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Sample:
    name: str
    data: bytes
    status: int = 422
    looks: Image.Image | None = None
    """RGB, where the right answer is known without the code under test."""


@cache
def corpus() -> tuple[Sample, ...]:
    """All of them, the same at each call and in each process."""
    groups = (
        _truncated,
        _bombs,
        _not_images,
        _png_damage,
        _jpeg_damage,
        _other_damage,
        _too_large,
        _odd,
        _exif,
        _stuck_on,
    )
    samples = tuple(sample for group in groups for sample in group())
    assert len({sample.name for sample in samples}) == len(samples)
    return samples


def bad() -> list[Sample]:
    return [sample for sample in corpus() if sample.status != 200]


def good() -> list[Sample]:
    return [sample for sample in corpus() if sample.status == 200]


def _photo(seed: int = 1, width: int = 160, height: int = 120) -> Image.Image:
    """With noise, so that every part of its file matters."""
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return Image.fromarray((np.asarray(picture(seed, width, height)) + noise).clip(0, 255).astype(np.uint8))


def _truncated() -> Iterator[Sample]:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"):
        whole = encoded(_photo(), kind)
        for percent in (3, 30, 60, 90):
            if (kind, percent) in {("AVIF", 90), ("JPEG2000", 60), ("JPEG2000", 90)}:
                continue  # these decoders take what there is for the picture; see _odd
            yield Sample(f"{kind.lower()}, {percent} % of it", whole[: len(whole) * percent // 100])


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, body: bytes | None = None) -> bytes:
    """A PNG whose header says what one likes; by default its pixels are black and complete."""
    if body is None:
        body = zlib.compress(bytes(height * (1 + width * {0: 1, 2: 3, 3: 1}[colour] * depth // 8)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _bombs() -> Iterator[Sample]:
    """More than 64 million pixels each, by headers of a few bytes."""
    yield Sample("png that says 50000 x 50000", png(50_000, 50_000, body=zlib.compress(bytes(1000))))
    yield Sample("png that says 2^31 - 1 squared", png(2**31 - 1, 2**31 - 1, body=b""))
    yield Sample("png of 81 million bits, all there", encoded(Image.new("1", (9000, 9000))))
    screen = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, 65535, 65535, 0)
    yield Sample("gif that says 65535 x 65535", screen + frame + b"\x02\x02\x4c\x01\x00;")
    small = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    yield Sample("gif of one pixel with a frame of 65535 x 65535", small + frame + b"\x02\x02\x4c\x01\x00;")
    yield Sample("tiff that says 2^20 squared", tiff(2**20, 2**20))
    yield Sample("tiff of 2^31 x 2^31 in tiles", tiff(2**31, 2**31, (0x142, 4, 1, 2**31), (0x143, 4, 1, 2**31)))
    size = struct.pack("<I", (16383 << 14 | 16383) & 0xFFFFFFFF)
    yield Sample("webp that says 16384 x 16384, lossless", _riff(b"VP8L", b"\x2f" + size + bytes(20)))
    canvas = b"\x02\0\0\0" + (2**24 - 1).to_bytes(3, "little") * 2
    yield Sample("webp with a canvas of 2^24 squared", _riff(b"VP8X", canvas))
    yield Sample("bmp that says 100000 x 100000", _bmp(100_000, 100_000))
    yield Sample("ppm that says 100000 x 100000", b"P6 100000 100000 255\n" + bytes(100))
    yield Sample("jpeg that says 65500 x 65500", _resized_jpeg(65_500, 65_500))
    whole = encoded(_photo(), "JPEG2000", no_jp2=True)
    at = whole.index(b"\xff\x51") + 6
    yield Sample("jpeg 2000 that says 2^31 squared", whole[:at] + struct.pack(">II", 2**31, 2**31) + whole[at + 8 :])


def tiff(width: int, height: int, *more: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A little-endian TIFF of one directory at byte 8. Entries: (tag, type, count, value)."""
    entries = [(0x100, 4, 1, width), (0x101, 4, 1, height), (0x102, 3, 1, 8), (0x103, 3, 1, 1), (0x106, 3, 1, 1)]
    entries += [(0x111, 4, 1, 200), (0x115, 3, 1, 1), (0x116, 4, 1, height), (0x117, 4, 1, min(width * height, 2**31))]
    merged = {entry[0]: entry for entry in (*entries, *more)}
    body = struct.pack("<H", len(merged)) + b"".join(struct.pack("<HHII", *merged[tag]) for tag in sorted(merged))
    return (b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", following)).ljust(200, b"\0") + bytes(64)


def _riff(kind: bytes, body: bytes) -> bytes:
    body += b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 1000, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(900)


def _resized_jpeg(width: int, height: int) -> bytes:
    """A JPEG of few bytes whose frame header says another size."""
    whole = encoded(_photo(), "JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def _not_images() -> Iterator[Sample]:
    noise = random.Random(0)
    yield Sample("nothing", b"")
    yield Sample("one zero byte", b"\0")
    yield Sample("a million zeros", bytes(2**20))
    yield Sample("text", b"This is no picture but a sentence.\n" * 20)
    yield Sample("html", b"<!doctype html><html><body><img src=x.jpg></body></html>")
    yield Sample("json", b'{"image": "aGVsbG8="}')
    yield Sample("svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><g/></svg>')
    yield Sample("xml that multiplies", b'<!DOCTYPE a [<!ENTITY b "' + b"&c;" * 99 + b'">]><svg>&b;</svg>')
    yield Sample("pdf", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF")
    yield Sample("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run showpage\n%%EOF\n")
    yield Sample("wmf", b"\xd7\xcd\xc6\x9a" + bytes(80))
    yield Sample("zip", _zip())
    yield Sample("elf", b"\x7fELF\x02\x01\x01" + bytes(200))
    yield Sample("shell", b"#!/bin/sh\nid\n")
    yield Sample("noise", noise.randbytes(5000))
    yield Sample("magic of jpeg, then noise", b"\xff\xd8\xff\xe0" + noise.randbytes(3000))
    yield Sample("magic of png, then noise", b"\x89PNG\r\n\x1a\n" + noise.randbytes(3000))
    yield Sample("magic of webp, then noise", b"RIFF\xff\xff\xff\x7fWEBPVP8 " + noise.randbytes(3000))
    yield Sample("magic of avif, then noise", b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + noise.randbytes(3000))
    yield Sample("avif boxes within boxes", b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + b"\0\0\x0f\xffmeta" * 500)
    yield Sample("magic of jpeg 2000, then noise", b"\0\0\0\x0cjP  \r\n\x87\n" + noise.randbytes(3000))
    yield Sample("code stream of jpeg 2000, then noise", b"\xff\x4f\xff\x51" + noise.randbytes(3000))
    yield Sample("magic of tiff, then noise", b"II*\0" + noise.randbytes(3000))
    yield Sample("magic of bmp, then zeros", b"BM" + bytes(60))


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.jpg", encoded(_photo(), "JPEG"))
    return buffer.getvalue()


def _png_damage() -> Iterator[Sample]:
    bomb = zlib.compress(bytes(16 * 2**20))
    black = Image.new("RGB", (9, 9))
    whole = encoded(_photo())
    at = whole.index(b"IDAT") + 40
    yield Sample("png of no width", png(0, 9))
    yield Sample("png with too few pixels", png(100, 100, body=zlib.compress(bytes(10))))
    yield Sample("png whose pixels are no deflate", png(9, 9, body=b"no deflate at all"))
    yield Sample("png with one byte of pixels changed", whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    yield Sample("png that unpacks to far more than it needs", png(9, 9, body=bomb), 200, black)
    yield Sample("png with a text that unpacks to 16 MiB", png(9, 9, chunk(b"zTXt", b"a\0\0" + bomb)))
    yield Sample("png with a profile that unpacks to 16 MiB", png(9, 9, chunk(b"iCCP", b"a\0\0" + bomb)))
    texts = [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 1))) for _ in range(100)]
    yield Sample("png with 100 texts of a MiB each", png(9, 9, *texts))
    yield Sample("png with a chunk of 2^31 bytes", png(9, 9)[:33] + b"\x7f\xff\xff\xfftEXt" + bytes(99))
    yield Sample("png with a chunk of 2^32 - 1 bytes", png(9, 9)[:33] + b"\xff\xff\xff\xffIDAT" + bytes(99))
    yield Sample("png with 20000 empty chunks", png(9, 9, chunk(b"prVt", b"") * 20_000), 200, black)
    yield Sample("png with a broken profile", png(9, 9, chunk(b"iCCP", b"a\0\0" + zlib.compress(b"no"))), 200, black)
    yield Sample("png of an unknown colour type", png(9, 9, colour=5, body=zlib.compress(bytes(999))))


def _jpeg_damage() -> Iterator[Sample]:
    whole = encoded(_photo(), "JPEG")
    tables = whole.index(b"\xff\xc4")
    yield Sample("jpeg of its first two bytes", whole[:2])
    yield Sample("jpeg without a picture", b"\xff\xd8\xff\xd9")
    yield Sample("jpeg of 65500 x 3 with the data of another", _resized_jpeg(65_500, 3), 200)  # libjpeg fills it up
    yield Sample("jpeg of no height", _resized_jpeg(160, 0))
    yield Sample("jpeg whose header says three times its height", _resized_jpeg(160, 360), 200)
    yield Sample("jpeg with broken Huffman tables", whole[: tables + 5] + b"\xff" * 30 + whole[tables + 35 :])
    yield Sample("jpeg without quantisation tables", whole.replace(b"\xff\xdb", b"\xff\xfe"))
    yield Sample("jpeg with a segment of no length", whole[:2] + b"\xff\xe1\0\0" + whole[2:], 200, _seen(whole))
    yield Sample("jpeg of 64 million pixels in 5000 scans", _scans(8000, 8000, 5000))
    yield Sample("jpeg of start marks only", b"\xff\xd8" * 5000)


def _scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose scans refine nothing: 11 bytes each, and each goes over all the pixels."""

    def segment(mark: int, body: bytes) -> bytes:
        return bytes([0xFF, mark]) + struct.pack(">H", len(body) + 2) + body

    frame = segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    codes = b"".join(segment(0xC4, bytes([table, 1, *[0] * 16])) for table in (0x00, 0x10))
    scan = segment(0xDA, b"\1\1\0\1\x3f\0") + b"\0"
    first = segment(0xDA, b"\1\1\0\0\0\1") + b"\0"
    tables = segment(0xDB, b"\0" + b"\1" * 64) + frame + codes
    return b"\xff\xd8" + tables + first + scan * scans + b"\xff\xd9"


def _other_damage() -> Iterator[Sample]:
    yield Sample("gif without a frame", b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b";")
    yield Sample("gif of its first six bytes", b"GIF89a")
    yield Sample("gif whose pixels are noise", encoded(_photo(), "GIF")[:800] + random.Random(1).randbytes(4000))
    yield Sample("tiff whose directory has no pixels", tiff(9, 9, (0x111, 4, 0, 0), (0x117, 4, 0, 0)))
    yield Sample("tiff of 65535 channels", tiff(9, 9, (0x115, 3, 1, 65535)))
    yield Sample("tiff with an unknown compression", tiff(9, 9, (0x103, 3, 1, 999)))
    yield Sample("tiff whose directory lies beyond its end", b"II*\0\xff\xff\xff\x7f" + bytes(90))
    black = Image.new("RGB", (8, 8))
    yield Sample("tiff whose directories go in a circle", tiff(8, 8, following=8), 200, black)
    yield Sample("tiff that is its own sub-directory", tiff(8, 8, (0x8769, 4, 1, 8), (0x14A, 4, 1, 8)), 200, black)
    yield Sample("webp within a webp", _riff(b"VP8 ", encoded(_photo(), "WEBP")))
    yield Sample("webp without a picture", _riff(b"EXIF", bytes(20)))
    yield Sample("bmp with its pixels beyond its end", _bmp(200, 200))
    yield Sample("ppm with words for numbers", b"P3 2 2 255\n1 2 three 4\n")


def _too_large() -> Iterator[Sample]:
    yield Sample("bmp of 4 MiB", encoded(Image.new("RGB", (1200, 1200)), "BMP"), 413)
    yield Sample("4 MiB of noise", random.Random(2).randbytes(4 * 2**20), 413)


def _odd() -> Iterator[Sample]:
    """Unusual, and right."""
    rng = np.random.default_rng(0)
    first, second = picture(21, 50, 50), picture(22, 50, 50)
    for kind in ("GIF", "WEBP", "PNG", "AVIF", "TIFF"):
        data = encoded(first, kind, save_all=True, append_images=[second], lossless=True)
        yield Sample(f"{kind.lower()} of two frames", data, 200, _seen(data))
    for width, height in ((1, 1), (1, 60_000), (60_000, 1), (2, 3), (3000, 2)):
        thin = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        yield Sample(f"png of {width} x {height}", encoded(thin), 200, thin)
    clear = picture(23).convert("RGBA")
    clear.putalpha(90)
    on_white = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    yield Sample("png with alpha", encoded(clear), 200, on_white)
    palette = Image.new("P", (40, 30), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50, 9, 9, 9])
    palette.paste(2, (0, 0, 20, 30))
    half = Image.new("RGB", (40, 30), (200, 100, 50))
    half.paste((255, 255, 255), (0, 0, 20, 30))
    yield Sample("png of a palette with a clear colour", encoded(palette, transparency=2), 200, half)
    bits = picture(24).convert("1")
    yield Sample("png of bits", encoded(bits), 200, bits.convert("RGB"))
    deep = rng.integers(0, 256, (30, 40), dtype=np.uint16)
    grey = Image.fromarray(deep.astype(np.uint8)).convert("RGB")
    yield Sample("png of 16 bits", encoded(Image.fromarray(deep * 257)), 200, grey)
    yield Sample("tiff of 16 bits", encoded(Image.fromarray(deep * 257), "TIFF"), 200, grey)
    data = encoded(picture(25).convert("CMYK"), "JPEG")
    yield Sample("jpeg of cyan, magenta, yellow and black", data, 200, _seen(data))
    for name, options in (
        ("progressive", {"progressive": True}),
        ("grey", {}),
        ("with a long comment", {"comment": b"x" * 65000}),
    ):
        source = _photo(26).convert("L") if name == "grey" else _photo(26)
        data = encoded(source, "JPEG", **options)
        yield Sample(f"jpeg, {name}", data, 200, _seen(data))
    lossless: dict[str, dict[str, object]] = {"WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}, "PPM": {}}
    for kind, options in lossless.items():
        yield Sample(f"{kind.lower()} of a photograph", encoded(_photo(27), kind, **options), 200, _photo(27))
    plain = b"P3\n# a comment\n2 1 255\n255 0 0 0 0 255\n"
    yield Sample("ppm in words", plain, 200, Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)))
    upside_down = bytearray(encoded(_photo(28), "BMP"))
    upside_down[22:26] = struct.pack("<i", -120)
    yield Sample(
        "bmp from top to bottom", bytes(upside_down), 200, _photo(28).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    )


def _seen(data: bytes) -> Image.Image:
    """The first frame as Pillow itself opens it."""
    return next(iter(ImageSequence.Iterator(Image.open(io.BytesIO(data))))).convert("RGB")


def _exif() -> Iterator[Sample]:
    upright = picture(31, 90, 60)
    for orientation, turn in _STORED.items():
        stored = upright if turn is None else upright.transpose(turn)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        for kind in ("PNG", "TIFF", "WEBP"):
            data = encoded(stored, kind, exif=exif, lossless=True)
            yield Sample(f"{kind.lower()} of orientation {orientation}", data, 200, upright)
        jpeg = encoded(stored, "JPEG", exif=exif)
        yield Sample(f"jpeg of orientation {orientation}", jpeg, 200, _turned_back(jpeg, orientation))
    for orientation in (0, 9, 65535):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        yield Sample(f"png of orientation {orientation}", encoded(upright, exif=exif), 200, upright)
    whole = encoded(upright, "JPEG")
    broken: dict[str, bytes] = {
        "noise": random.Random(3).randbytes(400),
        "half": b"Exif\0\0MM\0*\0\0",
        "a circle": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0",
    }
    for name, block in broken.items():
        segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
        yield Sample(f"jpeg with {name} for EXIF", whole[:2] + segment + whole[2:], 200, _seen(whole))
    yield Sample("jpeg with a broken profile", encoded(upright, "JPEG", icc_profile=b"no profile"), 200, _seen(whole))


def _turned_back(jpeg: bytes, orientation: int) -> Image.Image:
    """The pixels of the file, turned by hand: numpy's axes rather than Pillow's names."""
    x = np.asarray(Image.open(io.BytesIO(jpeg)))
    turns: dict[int, Callable[[], np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]] = {
        1: lambda: x,
        2: lambda: x[:, ::-1],
        3: lambda: x[::-1, ::-1],
        4: lambda: x[::-1],
        5: lambda: x.swapaxes(0, 1),
        6: lambda: x.swapaxes(0, 1)[:, ::-1],
        7: lambda: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda: x.swapaxes(0, 1)[::-1],
    }
    return Image.fromarray(np.ascontiguousarray(turns[orientation]()))


def _stuck_on() -> Iterator[Sample]:
    """Files that are two things at once: a picture if that is what comes first."""
    whole, looks = encoded(_photo(41), "JPEG"), _seen(encoded(_photo(41), "JPEG"))
    yield Sample("jpeg with a zip behind it", whole + _zip(), 200, looks)
    yield Sample("jpeg with html behind it", whole + b"<script>alert(1)</script>", 200, looks)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "<?php system($_GET['c']); ?>")
    yield Sample("png with a program for a text", encoded(_photo(42), pnginfo=notes), 200, _photo(42))
    yield Sample("script that starts like a gif", b"GIF89a/*" + bytes(40) + b"*/=1;alert(1)")
    yield Sample("html with a jpeg behind it", b"<html>" + whole)
    yield Sample("pdf with a jpeg behind it", b"%PDF-1.4\n" + whole)
    yield Sample("jpeg with a line before it", b"\r\n" + whole)
