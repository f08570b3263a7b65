"""What is the same picture, and what is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from duplicates_helpers import jpeg, scene
from PIL import Image, ImageDraw, ImageEnhance
from serve_helpers import encoded

from clf import images
from clf_serve.duplicates.groups import File, Progress
from clf_serve.duplicates.pictures import NEARBY, code, difference, distances, look, same_pictures, same_shape
from clf_serve.sync.thumbnails import thumbnail


def file(position: int, size: tuple[int, int]) -> File:
    return File(position, str(position), str(position), str(position), *size, 0, 0)


def pictures(*data: bytes) -> list[list[int]]:
    """Which of these image files show one picture."""
    decoded = [images.decode(each) for each in data]
    files = [file(position, picture.size) for position, picture in enumerate(decoded)]
    thumbnails = [thumbnail(picture) for picture in decoded]
    return same_pictures(files, lambda id_: thumbnails[id_], Progress())


def turned(picture: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=90)


SAME: dict[str, Callable[[Image.Image], bytes]] = {
    "quality 40": lambda picture: jpeg(picture, 40),
    "png": encoded,
    "webp": lambda picture: encoded(picture, "WEBP", quality=80),
    "half": lambda picture: jpeg(picture.resize((150, 110))),
    "twice": lambda picture: jpeg(picture.resize((600, 440))),
    "odd size": lambda picture: jpeg(picture.resize((201, 147))),
    "orientation flag": turned,
}
OTHER: dict[str, Callable[[Image.Image], bytes]] = {
    "mirrored": lambda picture: jpeg(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "upside down": lambda picture: jpeg(picture.transpose(Image.Transpose.ROTATE_180)),
    "on its side": lambda picture: jpeg(picture.transpose(Image.Transpose.ROTATE_90)),
    "crop": lambda picture: jpeg(picture.crop((15, 11, 285, 209))),
    "squeezed": lambda picture: jpeg(picture.resize((250, 220))),
    "brighter": lambda picture: jpeg(ImageEnhance.Brightness(picture).enhance(1.3)),
    "grey": lambda picture: jpeg(picture.convert("L")),
}


@pytest.mark.parametrize("name", SAME)
def test_an_encoding_of_the_same_picture_is_the_same(name: str) -> None:
    for seed in range(5):
        assert pictures(jpeg(scene(seed)), SAME[name](scene(seed))) == [[0, 1]], seed


@pytest.mark.parametrize("name", OTHER)
def test_an_edit_is_another_picture(name: str) -> None:
    for seed in range(5):
        assert pictures(jpeg(scene(seed)), OTHER[name](scene(seed))) == [], seed


def test_a_small_thing_on_a_plain_wall_makes_another_picture() -> None:
    wall = Image.new("RGB", (400, 300), (180, 175, 170))
    with_bird = wall.copy()
    ImageDraw.Draw(with_bird).ellipse((200, 90, 220, 110), (20, 20, 30))

    assert pictures(jpeg(wall), jpeg(with_bird)) == []
    assert pictures(jpeg(with_bird), jpeg(with_bird.resize((200, 150)), 60)) == [[0, 1]]


def test_a_slow_fade_is_not_one_picture() -> None:
    fade = [encoded(Image.new("RGB", (64, 48), (90 + 3 * k, 90, 90))) for k in range(20)]

    groups = pictures(*fade)

    for group in groups:  # neighbours look the same; what differs from the first of a group is not in it
        assert max(group) - group[0] <= 5
    assert len(groups) > 2


def test_all_of_many_are_found_and_nothing_else() -> None:
    files = [jpeg(scene(seed)) for seed in range(20)]
    files += [jpeg(scene(seed).resize((150, 110)), 70) for seed in range(10)]

    assert sorted(pictures(*files)) == [[seed, 20 + seed] for seed in range(10)]


def test_what_has_no_thumbnail_is_like_nothing() -> None:
    files = [file(position, (300, 220)) for position in range(4)]
    stored = [thumbnail(scene(1)), b"", b"not a picture", thumbnail(scene(1))]

    assert same_pictures(files, stored.__getitem__, Progress()) == [[0, 3]]


def test_distances_of_codes_by_one_product() -> None:
    codes = np.stack([code(np.asarray(scene(seed).resize((32, 32)))) for seed in range(6)])
    rows, columns = distances(codes)

    expected = -((codes[:, None] - codes[None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(rows @ columns.T, expected, atol=0.05)


def test_a_code_measures_grey_levels() -> None:
    dark, bright = (np.full((32, 32, 3), level, np.uint8) for level in (100, 110))

    assert np.linalg.norm(code(dark) - code(bright)) == pytest.approx(10)
    assert NEARBY < 10 and difference(dark, bright) == pytest.approx(10 / 4) and difference(dark, dark) == 0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((300, 200), (150, 100), True),
        ((300, 200), (75, 50), True),
        ((301, 200), (38, 25), True),
        ((300, 200), (200, 300), False),
        ((300, 200), (300, 210), False),
        ((300, 200), (0, 0), False),
    ],
)
def test_shapes(one: tuple[int, int], other: tuple[int, int], expected: bool) -> None:
    assert same_shape(one, other) is same_shape(other, one) is expected


def test_a_damaged_thumbnail_has_no_look() -> None:
    assert look(b"") is None and look(thumbnail(scene(0))[:200]) is None
