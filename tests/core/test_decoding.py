"""Fast decoding: the same picture at a fraction of the work, and a true account of what it changes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from clf import images
from clf.decoding import SAMPLES, compare_decoding, compare_decoding_in, spread
from clf.errors import ImageError
from clf.images import FAST_PREPROCESSING, prepare, prepare_fast

TURNS = {
    1: [],
    2: ["FLIP_LEFT_RIGHT"],
    3: ["ROTATE_180"],
    4: ["FLIP_TOP_BOTTOM"],
    5: ["TRANSPOSE"],
    6: ["ROTATE_90"],
    7: ["TRANSVERSE"],
    8: ["ROTATE_270"],
}
"""How a camera that was held so stores an upright picture."""


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured blobs with soft edges, six to a side."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return file.getvalue()


def means(pixels: np.ndarray) -> np.ndarray:
    """An encoder: mean colours of 4 x 4 fields, of unit length."""
    n, size = pixels.shape[:2]
    fields = pixels.reshape(n, 4, size // 4, 4, size // 4, 3).mean(axis=(2, 4), dtype=np.float32).reshape(n, -1)
    return fields / np.linalg.norm(fields, axis=1, keepdims=True)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("sides", [(257, 391), (401, 263), (199, 199)])
def test_a_large_jpeg_gives_nearly_the_same_pixels_whichever_way_it_is_turned(
    turn: int, sides: tuple[int, int]
) -> None:
    """None of these sides is a multiple of 8: where what the decoder rounds up shifts the picture, the mean error is
    between 1.7 and 6.5 levels."""
    stored = photo(*sides)
    for name in TURNS[turn]:
        stored = stored.transpose(Image.Transpose[name])
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(stored, exif=exif)
    exact, fast = prepare(data, 16), prepare_fast(data, 16)
    assert fast.shape == (16, 16, 3) and fast.dtype == np.uint8 and not np.array_equal(exact, fast)
    error = np.abs(exact.astype(int) - fast)
    assert error.mean() < 0.9 and error.max() <= 6


def test_no_side_falls_below_one_and_a_half_times_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    real = images.to_rgb
    monkeypatch.setattr(images, "to_rgb", lambda image: seen.append(image.size) or real(image))
    for sides in ((2400, 1800), (1000, 800), (500, 400), (191, 300), (150, 96), (95, 300), (40, 40)):
        prepare_fast(encoded(photo(*sides)), 32)
    assert seen == [(300, 225), (125, 100), (63, 50), (96, 150), (75, 48), (95, 300), (40, 40)]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_and_small_jpegs_give_the_very_same_pixels(kind: str) -> None:
    data = encoded(photo(300, 200), kind)
    np.testing.assert_array_equal(prepare_fast(data, 16), prepare(data, 16))
    small = encoded(photo(60, 47))
    np.testing.assert_array_equal(prepare_fast(small, 16), prepare(small, 16))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_ink_jpegs_and_mpos_are_decoded_fast_too(mode: str) -> None:
    data = encoded(photo(301, 203).convert(mode))
    error = np.abs(prepare(data, 16).astype(int) - prepare_fast(data, 16))
    assert 0 < error.mean() < 1.5
    pair = encoded(photo(301, 203), "MPO", save_all=True, append_images=[photo(301, 203, 1)])
    error = np.abs(prepare(pair, 16).astype(int) - prepare_fast(pair, 16))
    assert 0 < error.mean() < 1.5


def test_what_cannot_be_decoded_is_the_same_error() -> None:
    data = encoded(photo(300, 200))
    for bad in (b"", b"no image", data[: len(data) // 2]):
        with pytest.raises(ImageError) as exact:
            prepare(bad, 16)
        with pytest.raises(ImageError, match=r"^the image is ") as fast:
            prepare_fast(bad, 16)
        assert str(fast.value).split("(")[0] == str(exact.value).split("(")[0]


def test_the_loss_is_that_of_the_files(tmp_path: Path) -> None:
    sharp = photo(256, 256).filter(ImageFilter.SHARPEN)
    (tmp_path / "a.jpg").write_bytes(encoded(sharp))
    (tmp_path / "b.png").write_bytes(encoded(sharp, "PNG"))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "c.jpg").write_bytes(encoded(photo(30, 30)))
    found = compare_decoding_in(means, 16, tmp_path)
    ours, theirs = means(np.stack([prepare(tmp_path / "a.jpg", 16), prepare_fast(tmp_path / "a.jpg", 16)]))
    assert (found.files, found.scaled) == (3, 1)
    assert found.min_cosine == found.mean_cosine == pytest.approx(float(ours @ theirs), abs=1e-6)
    assert found.min_cosine > 0.999 and found.speed_ratio > 0


def test_files_that_all_stay_as_they_are_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(encoded(photo(300, 300), "PNG"))
    found = compare_decoding(means, 16, [tmp_path / "c.png"])
    assert (found.files, found.scaled, found.mean_cosine) == (1, 0, 1)
    assert found.min_cosine == pytest.approx(1)


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no images to measure fast decoding on"):
        compare_decoding_in(means, 16, tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match="none of the 1 files to measure fast decoding on"):
        compare_decoding_in(means, 16, tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        compare_decoding_in(means, 16, tmp_path / "nowhere")


def test_samples_are_spread_over_all_files() -> None:
    paths = [Path(str(i)) for i in range(1000)]
    taken = spread(paths)
    assert len(taken) == SAMPLES == len(set(taken)) and (taken[0], taken[-1]) == (paths[0], paths[-1])
    assert spread(paths[:5]) == paths[:5]


def test_the_fast_way_has_a_name_of_its_own() -> None:
    from clf.manifest import Manifest

    assert Manifest.model_fields["preprocessing"].default != FAST_PREPROCESSING
