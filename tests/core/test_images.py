"""Every kind of image file becomes upright 8-bit RGB, or an ImageError that names the file."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from clf import images
from clf.errors import ImageError
from clf.images import DEFAULT_LIMITS, Limits, decode, find_images, is_folder, prepare, resize


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source: Path | bytes) -> np.ndarray:
    image = decode(source)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def quadrants(width: int = 32, height: int = 48) -> Image.Image:
    """Red, green / blue, white: every orientation of it differs."""
    a = np.zeros((height, width, 3), np.uint8)
    a[: height // 2, : width // 2] = 255, 0, 0
    a[: height // 2, width // 2 :] = 0, 255, 0
    a[height // 2 :, : width // 2] = 0, 0, 255
    a[height // 2 :, width // 2 :] = 255
    return Image.fromarray(a)


# How a camera stores an upright picture under each EXIF orientation (EXIF 2.32, table 6).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_undone(kind: str, orientation: int) -> None:
    upright = np.asarray(quadrants())
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    found = pixels(encoded(stored, kind, exif=exif, **options))
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() <= (80 if kind == "JPEG" else 0)  # JPEG rings at the edges
    assert np.abs(found - upright).mean() < 1.5


def test_an_unknown_orientation_changes_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    assert np.array_equal(pixels(encoded(quadrants(), "PNG", exif=exif)), np.asarray(quadrants()))


def test_a_broken_exif_block_is_no_reason_to_refuse_an_image() -> None:
    data = encoded(quadrants(), "PNG")
    junk = b"eXIf" + b"not a TIFF header at all"
    chunk = (len(junk) - 4).to_bytes(4, "big") + junk + zlib.crc32(junk).to_bytes(4, "big")
    assert np.array_equal(pixels(data[:33] + chunk + data[33:]), np.asarray(quadrants()))


def test_transparency_is_composited_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :3] = 200, 100, 0
    rgba[0, :, 3] = 0, 51, 255  # 51 / 255 = one fifth
    expected = [[255, 255, 255], [244, 224, 204], [200, 100, 0]]
    assert pixels(encoded(Image.fromarray(rgba), "PNG"))[0].tolist() == expected
    grey = np.array([[[10, 0], [10, 255]]], np.uint8)
    assert pixels(encoded(Image.fromarray(grey), "PNG"))[0].tolist() == [[255] * 3, [10] * 3]


def test_transparent_palette_entries_and_colour_keys_are_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette, "PNG", transparency=0))[0].tolist() == [[255] * 3, [0, 0, 255]]
    assert pixels(encoded(palette, "PNG", transparency=b"\x00\xff"))[0].tolist() == [[255] * 3, [0, 0, 255]]
    assert pixels(encoded(palette, "GIF", transparency=1))[0].tolist() == [[255, 0, 0], [255] * 3]
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert pixels(encoded(rgb, "PNG", transparency=(1, 2, 3)))[0].tolist() == [[255] * 3, [4, 5, 6]]
    grey = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert pixels(encoded(grey, "PNG", transparency=7))[0].tolist() == [[255] * 3, [8] * 3]


def test_palette_grey_and_one_bit_images() -> None:
    palette = quadrants().quantize(8)
    assert np.abs(pixels(encoded(palette, "PNG")) - np.asarray(quadrants())).max() <= 2
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(pixels(encoded(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, 2))
    bits = Image.fromarray(np.eye(8, dtype=np.uint8) * 255).convert("1")
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(pixels(encoded(bits, kind))[..., 0], np.eye(8, dtype=int) * 255)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_shows_its_colours(kind: str) -> None:
    """A JPEG of Pillow carries Adobe's marker with inverted values, as Photoshop writes them."""
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow give red
    data = encoded(ink, kind, **({"quality": 100} if kind == "JPEG" else {}))
    assert (b"Adobe" in data) == (kind == "JPEG")
    assert np.abs(pixels(data) - [255, 0, 0]).max() <= 4


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        assert pixels(encoded(Image.fromarray(levels), kind))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    big_endian = b"P5 2 1 65535\n" + bytes([0x80, 0x00, 0xFF, 0xFF])
    assert pixels(big_endian)[0, :, 0].tolist() == [128, 255]


def test_32_bit_integers_and_floats() -> None:
    def shown(values: list[float], kind: type) -> list[int]:
        return pixels(encoded(Image.fromarray(np.array([values], kind)), "TIFF"))[0, :, 0].tolist()

    assert shown([0, 32768, 65535], np.int32) == [0, 128, 255]  # fits 16 bits: divided by 257
    assert shown([-100, 0, 100], np.int32) == [0, 128, 255]  # does not: stretched
    assert shown([5_000_000, 5_000_000], np.int32) == [0, 0]  # a range of nothing
    assert shown([0, 0.2, 1], np.float32) == [0, 51, 255]
    assert shown([0, 51.4, 200], np.float32) == [0, 51, 200]
    assert shown([-1, 0, 1], np.float32) == [0, 128, 255]
    assert shown([float("nan"), float("inf"), 1], np.float32) == [0, 0, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels(data) == [255, 0, 0]).all()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_avif() -> None:
    assert np.abs(pixels(encoded(quadrants(), "AVIF", quality=95)) - np.asarray(quadrants())).mean() < 6


def test_lab_colours_are_converted() -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(quadrants(), *profiles, outputMode="LAB")
    assert lab is not None and lab.mode == "LAB"
    assert np.abs(pixels(encoded(lab, "TIFF")) - np.asarray(quadrants())).max() <= 25  # 8-bit Lab is coarse


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_errors_that_name_the_file(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / f"photo.{kind.lower()}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=r"photo\.\w+ is "):
        decode(path)


@settings(deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", ""]), st.data())
def test_damaged_bytes_give_an_image_or_an_image_error(junk: bytes, kind: str, data: st.DataObject) -> None:
    original = bytearray(encoded(quadrants(8, 8), kind)) if kind else bytearray()
    at = data.draw(st.integers(0, len(original)))
    original[at : at + len(junk)] = junk
    try:
        assert decode(bytes(original)).mode == "RGB"
    except ImageError as error:
        assert "the image" in str(error)


def test_what_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    for n in (1, 2, 3):  # fewer bytes than some formats' magic number
        (tmp_path / f"{n}.png").write_bytes(b"tiny"[:n])
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, reason in [
        ("empty.png", "is empty"),
        ("text.png", "is not an image of a known format"),
        *((f"{n}.png", "is not an image of a known format") for n in (1, 2, 3)),
        ("drawing.eps", "is not an image of a known format"),  # Pillow would start Ghostscript
        ("missing.png", "does not exist"),
        (".", "is not a file"),
    ]:
        with pytest.raises(ImageError) as caught:
            decode(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name} {reason}"


def test_the_byte_limit_holds_for_files_and_bytes(tmp_path: Path) -> None:
    data = encoded(quadrants(), "BMP")
    path = tmp_path / "a.bmp"
    path.write_bytes(data)
    decode(path, Limits(max_bytes=len(data)))
    for source in (path, data):
        with pytest.raises(ImageError, match=r"has 0\.0 MiB, more than the limit"):
            decode(source, Limits(max_bytes=len(data) - 1))


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises far more than its 60 bytes hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_001, 10_000, 50_000])  # below, at and above what Pillow warns of and refuses
def test_a_decompression_bomb_is_refused_by_its_header_without_a_warning(side: int) -> None:
    with pytest.raises(ImageError, match=f"has {side} x {side} pixels, more than the limit of 64 million"):
        decode(bomb(side, side))  # any warning would be an error here


def test_a_larger_limit_is_not_undercut_by_pillow() -> None:
    with pytest.raises(ImageError, match="truncated or corrupt"):  # so the header passed
        decode(bomb(10_000, 9_000), Limits(max_pixels=100_000_000))


def test_pillow_globals_stay_as_they_were() -> None:
    from PIL import ImageFile

    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    decode(encoded(quadrants(), "PNG"))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_threads_decode_the_same_as_one() -> None:
    rng = np.random.default_rng(1)
    files = [encoded(Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)), "JPEG") for _ in range(32)]
    alone = [prepare(data, 24) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: prepare(data, 24), files))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_an_image_of_the_right_size_is_unchanged() -> None:
    a = np.random.default_rng(2).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert np.array_equal(resize(Image.fromarray(a), 24), a)


def test_the_central_square_is_cut_out() -> None:
    a = np.random.default_rng(3).integers(0, 256, (24, 41, 3), dtype=np.uint8)
    assert np.array_equal(resize(Image.fromarray(a), 24), a[:, 8:32])
    tall = a.transpose(1, 0, 2)
    assert np.array_equal(resize(Image.fromarray(tall.copy()), 24), tall[8:32])


def test_resizing_is_pillow_bicubic_of_the_whole_image_then_cropped() -> None:
    a = np.random.default_rng(4).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    whole = np.asarray(Image.fromarray(a).resize((64, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(resize(Image.fromarray(a), 32), whole[:, 16:48])


def test_extreme_shapes_cost_only_their_square() -> None:
    out = resize(Image.new("RGB", (1, 1_000_000), "red"), 64)
    assert out.shape == (64, 64, 3) and (out == [255, 0, 0]).all()


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
def test_prepare_has_one_shape(width: int, height: int, size: int) -> None:
    out = prepare(encoded(Image.new("L", (width, height), 9), "PNG"), size, DEFAULT_LIMITS)
    assert out.shape == (size, size, 3) and out.dtype == np.uint8 and (out == 9).all()


def test_find_images_is_recursive_sorted_and_blind_to_hidden_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/b/c.webp", ".hidden.png", ".cache/x.png", "notes.txt", "a/.x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [str(p.relative_to(tmp_path)) for p in find_images(tmp_path)] == ["a/b/c.webp", "a/z.png", "b.JPG"]
    with pytest.raises(ImageError, match="nowhere does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="is a file, not a folder"):
        find_images(tmp_path / "b.JPG")


@pytest.mark.parametrize("locked", [".", "a", "a/b"])
def test_a_folder_that_cannot_be_read_is_never_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "x.png").touch()
    folder, scandir = str(tmp_path / locked), os.scandir

    def refuse(path: str) -> object:  # root may read everything, so that chmod would not do
        if str(path) == folder:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError) as caught:
        find_images(tmp_path)
    assert str(caught.value).startswith(f"{folder} cannot be read: Permission denied; see to its permissions")


def test_a_folder_below_a_locked_one_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ImageError, match="photos cannot be read: Permission denied"):
        find_images(tmp_path / "photos")


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x.png").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cats").symlink_to(tmp_path / "store", target_is_directory=True)
    assert find_images(tmp_path / "set") == [tmp_path / "set" / "cats" / "x.png"]


def test_a_link_that_leads_nowhere_is_no_folder_but_one_that_cannot_be_followed_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "dangling").symlink_to("absent")
    (tmp_path / "through-a-file").symlink_to("x.png/below")
    assert find_images(tmp_path) == [tmp_path / "x.png"]
    assert not is_folder(tmp_path / "circle") and not is_folder(tmp_path / "x.png" / "below")
    (tmp_path / "cats").symlink_to("x" * 300)  # no name may be as long
    with pytest.raises(ImageError, match=r"cats cannot be read: File name too long"):
        find_images(tmp_path)


def test_want_of_memory_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(data: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "_open", starve)
    with pytest.raises(ImageError, match=r"^the image cannot be decoded for lack of memory$"):
        decode(b"anything")


def test_images_needs_no_torch() -> None:
    code = "import sys, clf.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
