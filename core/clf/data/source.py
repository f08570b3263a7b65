"""What a data source returns, and what all sources share: options, hold-out, limit, clean images, fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clf import images
from clf.config import DataSection
from clf.data.listing import Names
from clf.errors import ConfigError, DataError, did_you_mean
from clf.random import generator

Progress: TypeAlias = Callable[[int, int], None]
"""Called as ``progress(done, total)`` while a source is read."""


class ImageTable(Protocol):
    """uint8 images that need not be in memory: those asked for come as a tensor. A uint8 tensor is such a table."""

    @property
    def shape(self) -> Sequence[int]:
        """(n, C, H, W)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        """(m, C, H, W) uint8 for a slice or for (m,) int64 row numbers. Safe to call from several threads."""
        ...


Images: TypeAlias = Tensor | ImageTable


class Rows:
    """Some rows of a table, as a table: nothing is read before it is asked for."""

    def __init__(self, table: ImageTable, index: Tensor) -> None:
        self._table = table
        self._index = index

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._index), *self._table.shape[1:])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return self._table[self._index[rows]]


def take(images: Images, index: Tensor) -> Images:
    """Some of the images: of a tensor a tensor, of a table a table."""
    return images[index] if isinstance(images, Tensor) else Rows(images, index)


@dataclass(frozen=True)
class Split:
    """Images of one split, in two forms, and what is known of them."""

    images: Images
    """(n, C, H, W) uint8 canvases that views are cropped from."""
    clean: Images
    """(n, C, S, S) uint8 as evaluation and serving see them; S is the image size."""
    labels: Tensor | None = None
    """(n,) int64; -1 where unknown (STL-10's unlabelled part)."""
    names: Sequence[str] | None = None
    """Relative path or id of each image."""

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor) -> Split:
        """Some of the images."""
        clean = take(self.clean, index)
        return Split(
            images=clean if self.images is self.clean else take(self.images, index),
            clean=clean,
            labels=None if self.labels is None else self.labels[index],
            names=None if self.names is None else _names(self.names, index),
        )

    def labelled(self) -> Split | None:
        """The images whose label is known; None when there are none."""
        if self.labels is None:
            return None
        known = self.labels >= 0
        if not known.any():
            return None
        return self if bool(known.all()) else self.rows(known.nonzero()[:, 0])


@dataclass(frozen=True)
class Skipped:
    """A file that could not be read."""

    path: str
    reason: str


@dataclass(frozen=True)
class DataSource:
    """A data set, ready for training and evaluation."""

    name: str
    image_size: int
    channels: int
    train: Split
    test: Split | None = None
    class_names: tuple[str, ...] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    fingerprint: str = ""
    """SHA-256 over the source's images and labels; for folders over names and files' contents."""
    split_note: str = "none"
    """The protocol in words: where the test split comes from."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the person who trains, for instance that a cache is too small."""


class Source(Protocol):
    """A function that reads a data set. ``seed`` may change which images ``data.limit`` takes, never the test split."""

    def __call__(self, section: DataSection, seed: int, progress: Progress | None) -> DataSource: ...


def from_arrays(
    section: DataSection,
    seed: int,
    train: tuple[NDArray[np.uint8], NDArray[np.int64] | None],
    test: tuple[NDArray[np.uint8], NDArray[np.int64] | None] | None = None,
    *,
    class_names: Iterable[str] | None = None,
    image_size: int | None = None,
    split_note: str = "official test split",
) -> DataSource:
    """A source from images in memory; what a dataset plugin calls.

    Args:
        train, test: images (n, C, H, W) uint8 and labels (n,) int64, -1 where unknown, or None. Without ``test``,
            ``data.test_fraction`` of labelled images is held out.
        image_size: the source's own choice, where ``data.image_size`` is not set; default: the shorter side.

    Raises:
        DataError: no images, arrays of another shape or type, or labels of one class only.
    """
    name = section.name
    for part in (train, test or train):
        _check_arrays(name, *part)
    _check(name, train[1])
    fingerprint = _fingerprint(train, test)
    size = section.image_size or image_size or min(train[0].shape[2:])
    full = _split(train, size, names=[str(i) for i in range(len(train[0]))])
    if test is None:
        split, held_out, split_note = hold_out(full, section.test_fraction)
    else:
        split, held_out = full, _split(test, size, names=None)
    rows = limit_rows(len(split), section.limit, seed)
    return DataSource(
        name=name,
        image_size=size,
        channels=train[0].shape[1],
        train=split if rows is None else split.rows(rows),
        test=held_out,
        class_names=None if class_names is None else tuple(class_names),
        fingerprint=fingerprint,
        split_note=split_note,
    )


def hold_out(split: Split, fraction: float) -> tuple[Split, Split | None, str]:
    """Training split, test split and the protocol in words."""
    if split.labels is None or fraction == 0:
        return split, None, "none"
    train, test = stratified(split.labels, fraction)
    if len(test) == 0:
        return split, None, "none"
    return split.rows(train), split.rows(test), held_out_note(fraction)


def held_out_note(fraction: float) -> str:
    return f"{fraction:.0%} held out, stratified"


def stratified(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and to test on, both rising: of each class the share ``fraction``, rounded.

    A class of two images or more has at least one on either side; a single image is trained on, and so are images whose
    label is unknown, -1. The same labels give
    the same split whatever the run's seed is, so that runs of several seeds can be compared.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    values, counts = torch.unique(labels, return_counts=True)  # rising
    by_class = torch.split(labels.argsort(stable=True), counts.tolist())
    for label, rows in zip(values.tolist(), by_class, strict=True):
        if label < 0:
            continue
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1) if fraction > 0 else 0
        shuffled = rows[torch.randperm(len(rows), generator=generator(0, "hold out", label))]
        held[shuffled[:count]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def limit_rows(n: int, limit: int | None, seed: int) -> Tensor | None:
    """The ``limit`` row numbers to keep, rising; None to keep all n."""
    if limit is None or limit >= n:
        return None
    return torch.randperm(n, generator=generator(seed, "limit"))[:limit].sort().values


def read_options(section: DataSection, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``data.options`` over the source's defaults, each of its default's type.

    Raises:
        ConfigError: an unknown option, or a value of another type.
    """
    for key, value in section.options.items():
        if key not in defaults:
            offer = f"it knows {', '.join(sorted(defaults))}" if defaults else "it has none"
            hint = did_you_mean(key, defaults)
            raise ConfigError(f"data.options.{key} is unknown to data source {section.name!r}; {offer}.{hint}")
        kind = type(defaults[key])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ConfigError(f"data.options.{key} must be of type {kind.__name__}, got {value!r}")
    return {**defaults, **section.options}


def required_root(section: DataSection, what: str) -> Path:
    """``data.root`` as a path.

    Raises:
        ConfigError: it is not set.
    """
    if not section.root:
        raise ConfigError(f"data source {section.name!r} needs data.root, {what}")
    return Path(section.root).expanduser()


def clean_images(array: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(n, C, H, W) -> (n, C, size, size) by :func:`clf.images.resize`, as serving does it."""
    if array.shape[2:] == (size, size):
        return array
    out = np.empty((*array.shape[:2], size, size), np.uint8)
    for i, image in enumerate(array):
        picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        out[i] = np.atleast_3d(images.resize(picture, size)).transpose(2, 0, 1)
    return out


def _names(names: Sequence[str], index: Tensor) -> Sequence[str]:
    return names.rows(index.numpy()) if isinstance(names, Names) else [names[i] for i in index.tolist()]


def _split(part: tuple[NDArray[np.uint8], NDArray[np.int64] | None], size: int, names: list[str] | None) -> Split:
    array, labels = part
    array = np.ascontiguousarray(array)
    canvases = torch.from_numpy(array)
    clean = clean_images(array, size)
    return Split(
        images=canvases,
        clean=canvases if clean is array else torch.from_numpy(clean),
        labels=None if labels is None else torch.from_numpy(np.asarray(labels, np.int64)),
        names=names,
    )


def _check_arrays(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] not in (1, 3):
        raise DataError(
            f"data source {name!r} gives images as {images.dtype} {images.shape}; they must be uint8 (n, 1 or 3, H, W)"
        )
    if len(images) == 0:
        raise DataError(f"data source {name!r} holds no images")
    if labels is not None and (np.ndim(labels) != 1 or np.asarray(labels).dtype.kind not in "iub"):
        raise DataError(
            f"data source {name!r} gives labels as {np.asarray(labels).dtype} {np.shape(labels)}; they must be whole "
            "numbers (n,), the places of their names in class_names"
        )
    if labels is not None and len(labels) != len(images):
        raise DataError(f"data source {name!r} has {len(labels)} labels for {len(images)} images")


def _check(name: str, labels: NDArray[np.int64] | None) -> None:
    if labels is None or not len(labels):
        return
    known = labels[labels >= 0]
    if not len(known) or known.min() == known.max():
        some = "labels" if len(known) == len(labels) else "labels that are not negative, which means unknown,"
        raise DataError(
            f"all {len(known)} {some} of data source {name!r} are the same; labels are optional: leave them out"
        )


def _fingerprint(*parts: tuple[NDArray[np.uint8], NDArray[np.int64] | None] | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for array in part or ():
            if array is not None:
                digest.update(f"{array.dtype} {array.shape};".encode())
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
