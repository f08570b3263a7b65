"""Data sets that are larger than memory: images that come from a table when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clf.config import DataSection
from clf.data.source import DataSource, Images, ImageTable, Split, clean_images, hold_out, limit_rows
from clf.errors import DataError


class Resized:
    """A table whose images are brought to a square when they are asked for."""

    def __init__(self, table: ImageTable, size: int) -> None:
        self._table = table
        self._size = size

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self._table.shape[:2], self._size, self._size)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return torch.from_numpy(clean_images(self._table[rows].numpy(), self._size))


def from_table(
    section: DataSection,
    seed: int,
    train: tuple[ImageTable, NDArray[np.int64] | None],
    test: tuple[ImageTable, NDArray[np.int64] | None] | None = None,
    *,
    fingerprint: str,
    names: Sequence[str] | None = None,
    class_names: Iterable[str] | None = None,
    image_size: int | None = None,
    split_note: str = "official test split",
) -> DataSource:
    """A source whose images stay where they are, such as an array that :func:`numpy.memmap` maps; none is read here.

    Args:
        train, test: tables of images (n, C, H, W) and labels (n,) int64, -1 where unknown, or None. Without ``test``,
            ``data.test_fraction`` of labelled images is held out.
        fingerprint: identifies images and labels, for instance a SHA-256 over the files' contents. A run is resumed
            only on data of the same one.
        names: of the training images.
        image_size: the source's own choice, where ``data.image_size`` is not set; default: the shorter side.

    Raises:
        DataError: no images, or another number of labels than of images.
    """
    size = section.image_size or image_size or min(train[0].shape[2:])
    full = _split(section.name, train, size, names)
    if test is None:
        split, held_out, split_note = hold_out(full, section.test_fraction)
    else:
        split, held_out = full, _split(section.name, test, size, None)
    rows = limit_rows(len(split), section.limit, seed)
    return DataSource(
        name=section.name,
        image_size=size,
        channels=full.clean.shape[1],
        train=split if rows is None else split.rows(rows),
        test=held_out,
        class_names=None if class_names is None else tuple(class_names),
        fingerprint=fingerprint,
        split_note=split_note,
    )


def _split(
    name: str, part: tuple[ImageTable, NDArray[np.int64] | None], size: int, names: Sequence[str] | None
) -> Split:
    images, labels = part
    if len(images) == 0:
        raise DataError(f"data source {name!r} holds no images")
    if labels is not None and len(labels) != len(images):
        raise DataError(f"data source {name!r} has {len(labels)} labels for {len(images)} images")
    clean: Images = images if tuple(images.shape[2:]) == (size, size) else Resized(images, size)
    return Split(images, clean, None if labels is None else torch.from_numpy(np.asarray(labels, np.int64)), names)
