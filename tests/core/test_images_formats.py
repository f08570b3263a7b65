"""Kinds of files that are rare: deep colours by hand, wrong names, truncated ones, and files that cost too much."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from clf.errors import ImageError
from clf.images import Limits, decode, prepare


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(levels: list[list[int]], colour: int, key: bytes = b"") -> bytes:
    """A PNG of one row with 16 bits a channel, which Pillow cannot write.

    Args:
        colour: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA.
        key: the colour that is transparent.
    """
    row = b"\0" + np.array(levels, ">u2").tobytes()
    header = struct.pack(">IIBBBBB", len(levels), 1, 16, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"tRNS", key) if key else b"", chunk(b"IDAT", zlib.compress(row))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def row(data: bytes) -> list[list[int]]:
    return [[int(level) for level in pixel] for pixel in np.asarray(decode(data))[0]]


def test_16_bit_colours_keep_their_upper_byte() -> None:
    assert row(png([[0, 255, 256], [32767, 32768, 65535]], 2)) == [[0, 0, 1], [127, 128, 255]]
    clear, half, full = [0, 0, 0, 0], [0, 0, 0, 32768], [65535, 0, 32768, 65535]
    assert row(png([clear, half, full], 6)) == [[255] * 3, [127] * 3, [255, 0, 128]]


def test_16_bit_greys_with_transparency() -> None:
    assert row(png([[0, 0], [32768, 65535], [65535, 65535]], 4)) == [[255] * 3, [128] * 3, [255] * 3]
    assert row(png([[0], [32768], [32769]], 0, key=struct.pack(">H", 32768))) == [[0] * 3, [255] * 3, [128] * 3]


@pytest.mark.parametrize(("order", "mark"), [("<", b"II*\0"), (">", b"MM\0*")])
def test_tiffs_of_16_bit_greys_in_either_order_of_bytes(order: str, mark: bytes) -> None:
    """By hand: four pixels in a row, one strip of data behind the directory."""
    levels = np.array([0, 257, 32768, 65535], f"{order}u2").tobytes()
    tags = [(256, 4), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 8)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    data = mark + struct.pack(f"{order}I", 16) + levels + directory
    assert [pixel[0] for pixel in row(data)] == [0, 1, 128, 255]


def test_the_inks_of_a_jpeg_without_adobes_marker_are_inverted_too() -> None:
    """As browsers have it; libjpeg itself leaves it to the reader."""
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    at = data.index(b"\xff\xee")
    plain = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]
    assert b"Adobe" in data and b"Adobe" not in plain
    assert np.abs(np.asarray(decode(plain)).astype(int) - [255, 0, 0]).max() <= 4


def test_an_animation_whose_first_frame_fills_a_part_of_it() -> None:
    frame = Image.new("P", (4, 4), 1)
    frame.putpalette([0, 0, 255, 255, 0, 0])
    frame.putpixel((3, 3), 0)  # the background
    data = bytearray(encoded(frame, "GIF"))
    data[6:10] = struct.pack("<HH", 8, 6)  # the screen; the frame stays in its upper left corner
    found = np.asarray(decode(bytes(data)))
    assert found.shape == (6, 8, 3)
    red = (found == [255, 0, 0]).all(axis=-1)
    assert red[:4, :4].sum() == 15 and red.sum() == 15


def test_the_first_picture_of_an_mpo_and_of_a_tiff_with_pages() -> None:
    for kind in ("MPO", "TIFF"):
        red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
        data = encoded(red, kind, save_all=True, append_images=[blue])
        assert np.abs(np.asarray(decode(data)).astype(int) - [255, 0, 0]).max() <= 2


def test_a_files_name_says_nothing_of_its_format(tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").resize((20, 20))
    for name, kind in (("a.jpg", "PNG"), ("b.png", "WEBP"), ("c.webp", "BMP"), ("d", "GIF")):
        data = encoded(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(prepare(tmp_path / name, 16), prepare(data, 16))


KINDS = ["PPM", "JPEG2000", "MPO", *(["AVIF"] if features.check("avif") else [])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_other_formats_truncated(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    data = encoded(noise, kind)
    decode(data)
    with pytest.raises(ImageError, match=r"^the image is "):
        decode(data[: int(len(data) * share)])


def huge() -> dict[str, bytes]:
    """Small whole files whose headers are made to promise 60,000 x 60,000 pixels (WebP: 16,383 x 16,383)."""
    small = Image.new("L", (16, 16))
    sides = {"JPEG": (">HH", b"\xff\xc0", 5), "BMP": ("<ii", b"BM", 18), "JPEG2000": (">II", b"ihdr", 4)}
    files = {}
    for kind, (form, mark, offset) in sides.items():
        data = bytearray(encoded(small, kind))
        at = data.index(mark) + offset
        data[at : at + struct.calcsize(form)] = struct.pack(form, 60_000, 60_000)
        files[kind] = bytes(data)
    gif, webp = bytearray(encoded(small.convert("P"), "GIF")), bytearray(encoded(small, "WEBP"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    webp[26:30] = struct.pack("<HH", 16_383, 16_383)
    tiff = encoded(small, "TIFF")
    for tag in (256, 257):
        entry = next(e for kind in (3, 4) if (e := struct.pack("<HHI", tag, kind, 1)) in tiff)
        at = tiff.index(entry)
        tiff = tiff[:at] + struct.pack("<HHII", tag, 4, 1, 60_000) + tiff[at + 12 :]
    return {**files, "GIF": bytes(gif), "WEBP": bytes(webp), "TIFF": tiff, "PPM": b"P6 60000 60000 255\n"}


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "JPEG2000", "GIF", "WEBP", "TIFF", "PPM"])
def test_every_format_is_refused_by_its_header(kind: str) -> None:
    side = 16_383 if kind == "WEBP" else 60_000
    with pytest.raises(ImageError, match=f"has {side} x {side} pixels, more than the limit of 64 million"):
        decode(huge()[kind])


PROGRAM = """
import sys
from pathlib import Path
from clf.errors import ImageError
from clf.images import decode, Limits
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))
data = sys.stdin.buffer.read()
before = peak()
try:
    decode(data, Limits(max_pixels=int(sys.argv[1])))
except ImageError as error:
    print(error)
print(peak() - before)
"""


def growth(data: bytes, max_pixels: int) -> list[str]:
    """What a process of its own said of the bytes, and by how many MiB its memory grew at the most."""
    command = [sys.executable, "-c", PROGRAM, str(max_pixels)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode().splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_whole_png_of_169_million_pixels_costs_no_memory() -> None:
    side = 13_000
    squeeze = zlib.compressobj(9)
    body = b"".join(squeeze.compress(bytes(side + 1)) for _ in range(side)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    assert len(bomb) < 170_000
    refused, grown = growth(bomb, 64_000_000)
    assert refused == "the image has 13000 x 13000 pixels, more than the limit of 64 million"
    assert int(grown) < 8
    (grown,) = growth(bomb, 10**9)  # what it would have cost
    assert int(grown) > 150


def scans(count: int) -> bytes:
    """A progressive JPEG with its last scan, which refines nothing that is not there, ``count`` times."""
    data = encoded(Image.radial_gradient("L").resize((64, 64)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    own = scans(1).count(b"\xff\xda")
    decode(scans(100 - own + 1))
    with pytest.raises(ImageError, match="is a JPEG of more than 100 scans, which would take too long"):
        decode(scans(100 - own + 2))
    with pytest.raises(ImageError, match="is a JPEG of more than 20 scans"):  # 20 images of the largest size, here of 1
        decode(scans(20), Limits(max_pixels=64 * 64))
    decode(scans(1), Limits(max_pixels=64 * 64))
    inks = encoded(Image.new("CMYK", (64, 64)), "JPEG", progressive=True)
    decode(inks, Limits(max_pixels=64 * 64))  # which nobody meant ill with


@pytest.mark.parametrize("where", [2, -2])
def test_a_jpeg_of_very_many_segments_is_refused(where: int) -> None:
    data = scans(1)
    decode(data[:where] + b"\xff\xe0\x00\x02" * 1000 + data[where:])
    with pytest.raises(ImageError, match="is a JPEG of more than 10000 segments"):
        decode(data[:where] + b"\xff\xe0\x00\x02" * 10_000 + data[where:])


def test_scans_of_a_thumbnail_do_not_count() -> None:
    data = scans(1)
    segment = b"Exif\0\0" + b"\xff\xda" * 300
    decode(data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
