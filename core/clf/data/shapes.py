"""``shapes``: an embedded, procedural data set, so that everything can be tried without files or network.

Sixteen classes: four outlines (disc, square, triangle, cross) times four fills (plain, striped, checked, dotted), in
random tilt (up to 22.5 degrees), size, place and colours on a two-colour ramp with noise. A pixel says little about
the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from clf.config import DataSection
from clf.data.source import DataSource, Progress, from_arrays, read_options
from clf.errors import ConfigError
from clf.random import derive_seed

SIZE = 48
_CHUNK = 512
_RAMP = 0.5  # in colours that are drawn again, how far the background's second goes from its first to a random one
_LEAST_CONTRAST = 0.5  # Euclidean distance of RGB colours in [0, 1] between any two that touch
_NOISE = 0.05  # standard deviation, of values in [0, 1]
_PERIOD = 9.0  # of a fill, in pixels of an object of middle size
_TURN = np.pi / 8  # either way
_RADIUS = (15.0, 21.0)  # of an object, in pixels

Array: TypeAlias = NDArray[np.float32]
Field: TypeAlias = Callable[[Array, Array], Array]


def load(section: DataSection, seed: int, progress: Progress | None) -> DataSource:
    """6,000 training and 1,000 test images in equal classes; ``data.options``: train_images, test_images.

    The images are the same for every seed of a run.

    Raises:
        ConfigError: an unknown option, or fewer images than classes.
    """
    options = read_options(section, {"train_images": 6000, "test_images": 1000})
    for key, n in options.items():
        if n < len(CLASSES):
            raise ConfigError(f"data.options.{key} must be at least {len(CLASSES)}, one image a class, got {n}")
    return from_arrays(
        section,
        seed,
        draw_images(options["train_images"], derive_seed(0, "shapes", "train")),
        draw_images(options["test_images"], derive_seed(0, "shapes", "test")),
        class_names=CLASSES,
        split_note="own test split",
    )


def draw_images(n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """``n`` images (n, 3, 48, 48) and their classes (n,), as even as n allows, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % len(CLASSES))
    images = np.empty((n, 3, SIZE, SIZE), np.uint8)
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = _draw(labels[part], rng)
    return images, labels.astype(np.int64)


def _draw(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    n = len(labels)

    def uniform(low: float, high: float) -> Array:
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    x, y = axis[None, None, :], axis[None, :, None]  # pixels from the centre
    angle = uniform(0, 2 * np.pi)
    ramp = 0.5 + (x * np.cos(angle) + y * np.sin(angle)) / SIZE  # (n, S, S)
    paper, other, ink, second = _colours(n, rng)
    background = paper + (other - paper) * ramp[:, None]  # (n, 3, S, S)

    radius, reach = uniform(*_RADIUS), 5.0
    dx, dy = x - uniform(-reach, reach), y - uniform(-reach, reach)
    turn = uniform(-_TURN, _TURN)
    u = (dx * np.cos(turn) + dy * np.sin(turn)) / radius  # pose, size and place taken away
    v = (dy * np.cos(turn) - dx * np.sin(turn)) / radius
    inside, mark = np.empty((2, n, SIZE, SIZE), np.float32)
    for label, (outline, fill) in enumerate(CLASSES.values()):
        rows = labels == label
        inside[rows] = -outline(u[rows], v[rows])
        mark[rows] = fill(u[rows], v[rows])
    # One pixel of transition at each edge instead of a jagged one.
    cover = np.clip(0.5 + inside * radius, 0, 1)[:, None]
    share = np.clip(0.5 + mark * radius, 0, 1)[:, None]

    image = background + (ink + (second - ink) * share - background) * cover
    image += rng.standard_normal(image.shape, np.float32) * np.float32(_NOISE)
    pixels: NDArray[np.uint8] = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return pixels


def _colours(n: int, rng: np.random.Generator) -> tuple[Array, ...]:
    """Two colours of the background, two of the object, (n, 3, 1, 1) each; those that touch stand out.

    Four random colours are taken as they are where they stand out. Else all four are drawn again until they do, and in
    these the background's second is moved towards its first. The images, and what was measured on them, rest on this.
    """
    colours = rng.random((n, 4, 3)).astype(np.float32)
    while True:
        paper, other, ink, second = colours.transpose(1, 0, 2)
        pairs = ((paper, ink), (other, ink), (ink, second))
        gap = np.min([np.linalg.norm(a - b, axis=1) for a, b in pairs], axis=0)
        close = np.flatnonzero(gap < _LEAST_CONTRAST)
        if not len(close):
            break
        colours[close] = rng.random((len(close), 4, 3))
        colours[close, 1] = colours[close, 0] + _RAMP * (colours[close, 1] - colours[close, 0])
    return tuple(colours[:, i, :, None, None] for i in range(4))


def _disc(u: Array, v: Array) -> Array:
    return np.hypot(u, v) - np.float32(0.9)


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.8)


def _triangle(u: Array, v: Array) -> Array:
    """Equilateral, its corners at distance 1.1."""
    step = 2 * np.pi / 3
    sector = np.mod(np.arctan2(v, u), step) - step / 2
    distance: Array = np.hypot(u, v) * np.cos(sector) - np.float32(1.1 / 2)
    return distance


def _cross(u: Array, v: Array) -> Array:
    a, b = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return np.maximum(a - np.float32(1.0), b - np.float32(0.38))


_WAVE = np.float32(2 * np.pi * np.mean(_RADIUS) / _PERIOD)  # radians per unit of an object


def _plain(u: Array, v: Array) -> Array:
    return np.full_like(u, -1)


def _striped(u: Array, v: Array) -> Array:
    distance: Array = np.sin(_WAVE * u) / _WAVE
    return distance


def _checked(u: Array, v: Array) -> Array:
    distance: Array = np.sin(_WAVE * 0.75 * u) * np.sin(_WAVE * 0.75 * v) / _WAVE
    return distance


def _dotted(u: Array, v: Array) -> Array:
    distance: Array = (np.cos(_WAVE * u) + np.cos(_WAVE * v) - np.float32(0.9)) / _WAVE
    return distance


_OUTLINES: dict[str, Field] = {"disc": _disc, "square": _square, "triangle": _triangle, "cross": _cross}
"""Signed distance to the outline, negative inside, in units of the object's radius."""
_FILLS: dict[str, Field] = {"plain": _plain, "striped": _striped, "checked": _checked, "dotted": _dotted}
"""Positive where the second colour is, roughly a distance near the edge, in the same units."""

CLASSES: dict[str, tuple[Field, Field]] = {
    f"{fill} {outline}": (_OUTLINES[outline], _FILLS[fill]) for outline in _OUTLINES for fill in _FILLS
}
