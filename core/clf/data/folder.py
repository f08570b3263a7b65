"""A folder of image files: flat and unlabelled, one folder a class, or ``train`` and ``test`` with class folders.

Each file is decoded once, in threads, to a *canvas* a little larger than a view, from which views are cropped, and to
a *clean* image, exactly what :func:`clf.images.prepare` gives. Large sets go to a memory-mapped cache instead of RAM,
and what that has no room for is decoded whenever it is drawn: the pixels are the same in all three.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from clf import images
from clf.config import DataSection
from clf.data import cache
from clf.data.canvases import CANVASES, CLEAN, Store, Table, name_keys
from clf.data.decode import Workers, decode, file_states
from clf.data.listing import ENCODING, Names, list_folder
from clf.data.source import (
    DataSource,
    Images,
    Progress,
    Skipped,
    Split,
    held_out_note,
    limit_rows,
    read_options,
    required_root,
    stratified,
    take,
)
from clf.errors import ConfigError, DataError, ImageError

DEFAULT_SIZE = 96
_FORMAT = 4  # of the cache
_TEST_FOLDERS = ("test", "val", "valid", "validation")
_OPTIONS: dict[str, Any] = {
    "class_folders": True,
    "cache_dir": "",
    "cache_above_mib": 2048,
    "cache_limit_gib": 50.0,
}

Index: TypeAlias = NDArray[np.int64]


def load(section: DataSection, seed: int, progress: Progress | None) -> DataSource:
    """The folder ``data.root``; views are of 96 pixels unless ``data.image_size`` says otherwise.

    Folders are classes when every image lies in an immediate subfolder and there are two or more of them. Of ``train``
    beside ``test`` or ``val`` (so looked for) the second is the test split. Files that cannot be read are skipped and
    listed. ``data.options``: ``class_folders: false`` ignores the classes; canvases of more than ``cache_above_mib``
    MiB are kept in files below ``cache_dir`` (default: clf in the user's cache folder), where all sets together take
    ``cache_limit_gib`` GiB at most and the disk keeps 2 GiB free.

    Raises:
        ConfigError: ``data.root`` is not set, or an unknown or impossible option.
        DataError: the folder is missing, is a file, holds a folder that cannot be read, or holds no readable image;
            the cache cannot be written.
    """
    options = read_options(section, _OPTIONS)
    for name in ("cache_above_mib", "cache_limit_gib"):
        if not 0 <= options[name] < math.inf:
            raise ConfigError(f"data.options.{name} must be 0 or more, got {options[name]}")
    root = required_root(section, "the folder of images")
    try:
        if not images.is_folder(root):
            raise DataError(f"data.root {root} {'is a file, not a folder' if root.exists() else 'does not exist'}")
        found = _find(root, section, use_classes=options["class_folders"])
    except ImageError as error:
        raise DataError(f"data.root: {error}") from error
    keep = limit_rows(len(found.train), section.limit, seed)
    if keep is not None:
        found = replace(found, train=found.train[keep.numpy()])
    size = section.image_size or DEFAULT_SIZE
    wanted = found.names.rows(found.rows)
    workers = Workers(section.workers)
    if 3 * len(wanted) * (canvas_size(size) ** 2 + size**2) <= options["cache_above_mib"] * 2**20:
        pixels = _resident(root, wanted, size, workers, progress)
    else:
        pixels = _cached(root, wanted, size, workers, progress, options)
    return _source(section.name, root, size, found, wanted, pixels)


def canvas_size(image_size: int) -> int:
    """Side of the training canvas: a view is at least 7/8 of it, as in the usual central crop of 224 from 256."""
    return math.ceil(image_size * 8 / 7)


@dataclass(frozen=True)
class _Found:
    """The files of a set and how they are divided."""

    names: Names
    train: Index
    test: Index
    classes: tuple[str, ...] | None = None
    labels: NDArray[np.int32] | None = None
    note: str = "none"

    @property
    def rows(self) -> Index:
        """Those of both splits, training first."""
        return np.concatenate([self.train, self.test])


@dataclass(frozen=True)
class _Pixels:
    """What became of the wanted files."""

    kept: Index
    """Positions among the wanted files of those that could be read."""
    images: Images
    """(len(kept), 3, canvas, canvas)."""
    clean: Images
    sha256: Callable[[int], bytes]
    """Of the contents of a kept file, by its position among the wanted files."""
    reasons: dict[int, str]
    """Why others were skipped, by position among the wanted files, rising."""
    notes: list[str]


def _find(root: Path, section: DataSection, use_classes: bool) -> _Found:
    if images.is_folder(root / "train"):
        for name in _TEST_FOLDERS:
            if images.is_folder(root / name):
                return _divided(root, name, use_classes)
    listing = list_folder(root)
    everything, nothing = np.arange(len(listing)), np.arange(0)
    if listing.labels is None or not use_classes:
        return _Found(listing.names, everything, nothing)
    train, test = stratified(torch.from_numpy(listing.labels), section.test_fraction)
    note = held_out_note(section.test_fraction) if len(test) else "none"
    return _Found(listing.names, train.numpy(), test.numpy(), listing.classes, listing.labels, note)


def _divided(root: Path, test_folder: str, use_classes: bool) -> _Found:
    """``train`` beside a test folder; without classes in both there is nothing to test, and the latter is left out."""
    listing = list_folder(root, "train", test_folder)
    in_train = np.fromiter((name.startswith("train/") for name in listing.names), bool, len(listing))
    train, test = in_train.nonzero()[0], (~in_train).nonzero()[0]
    if listing.labels is None or not use_classes:
        return _Found(listing.names, train, test[:0])
    return _Found(listing.names, train, test, listing.classes, listing.labels, f"test split: folder {test_folder}")


def _resident(root: Path, names: Names, size: int, workers: Workers, progress: Progress | None) -> _Pixels:
    """All images in memory."""
    n = len(names)
    canvases, clean = (np.empty((n, 3, side, side), np.uint8) for side in (canvas_size(size), size))

    def read(chunk: Sequence[int]) -> list[bytes | str]:
        """The checksum of each file, or why it cannot be used."""
        found: list[bytes | str] = []
        for i in chunk:
            path = root / names[i]
            try:
                picture = decode(path)
            except ImageError as error:
                found.append(str(error).removeprefix(f"{path} "))
                continue
            picture.canvas(canvases[i])
            picture.clean(clean[i])
            found.append(picture.sha256)
        return found

    found: list[bytes | str] = []
    for part in workers.over(read, n):
        for each in part:
            found.append(each)
            if progress is not None:
                progress(len(found), n)
    sums = {i: each for i, each in enumerate(found) if isinstance(each, bytes)}
    for new, old in enumerate(sums):
        if new != old:  # moved up in place: no second copy of a large array
            canvases[new], clean[new] = canvases[old], clean[old]
    return _Pixels(
        kept=np.array(list(sums), np.int64),
        images=torch.from_numpy(canvases[: len(sums)]),
        clean=torch.from_numpy(clean[: len(sums)]),
        sha256=sums.__getitem__,
        reasons={i: each for i, each in enumerate(found) if isinstance(each, str)},
        notes=[],
    )


def _cached(
    root: Path, names: Names, size: int, workers: Workers, progress: Progress | None, options: dict[str, Any]
) -> _Pixels:
    """Images in the cache, as far as it has room for them."""
    folder, sides = _cache_folder(options["cache_dir"]), (canvas_size(size), size)
    about = f"{_FORMAT} {sides} {PIL.__version__} {torch.__version__} {root.resolve()}"
    key = hashlib.sha256(about.encode(*ENCODING)).hexdigest()[:32]
    row_bytes, limit = [3 * side * side for side in sides], int(options["cache_limit_gib"] * 2**30)
    try:
        states = file_states(root, names, workers)
        place = cache.take_place(folder, key, name_keys(names), states, row_bytes, limit)
        store = Store(place, root, names, states, sides, workers)
    except OSError as error:
        raise cache.cache_error(folder, error) from error
    store.fill(progress)
    reasons = store.skipped()
    kept = np.setdiff1d(np.arange(len(names)), np.fromiter(reasons, np.int64))
    stored, withheld = int(store.stored[kept].sum()), store.withheld
    notes = []
    if withheld:
        notes.append(
            f"{withheld:,} of {len(kept):,} images have changed since another process, which still runs, put them into "
            "the cache; they are decoded anew each time they are drawn, which is slower and changes nothing else"
        )
    if stored + withheld < len(kept):
        bound = f"the free space of {folder}" if place.short_of_disk else "data.options.cache_limit_gib"
        notes.append(
            f"{stored:,} of {len(kept):,} images are in the cache, as many as {bound} allows; the others are decoded "
            "anew each time they are drawn, which is slower and changes nothing else"
        )
    canvases, clean = (Table(store, kind, side, kept) for kind, side in zip((CANVASES, CLEAN), sides, strict=True))
    return _Pixels(kept, canvases, clean, store.sha256, reasons, notes)


def _source(name: str, root: Path, size: int, found: _Found, wanted: Names, pixels: _Pixels) -> DataSource:
    digest = hashlib.sha256()
    for i in pixels.kept.tolist():
        digest.update(f"{wanted[i]}\0{pixels.sha256(i).hex()}\n".encode("utf-8", "surrogateescape"))
    skipped = [Skipped(wanted[i], reason) for i, reason in pixels.reasons.items()]
    border = len(found.train)
    splits = []
    for first, last in ((0, border), (border, len(wanted))):
        rows = ((pixels.kept >= first) & (pixels.kept < last)).nonzero()[0]
        if last > first and not len(rows):
            example = next(item for i, item in zip(pixels.reasons, skipped, strict=True) if first <= i < last)
            raise DataError(
                f"none of the {last - first} images in {root} can be read, e.g. {example.path} {example.reason}"
            )
        splits.append(_split(found, wanted, pixels, rows))
    return DataSource(
        name=name,
        image_size=size,
        channels=3,
        train=splits[0],
        test=splits[1] if len(found.test) else None,
        class_names=found.classes,
        skipped=skipped,
        fingerprint=digest.hexdigest(),
        split_note=found.note,
        notes=pixels.notes,
    )


def _split(found: _Found, wanted: Names, pixels: _Pixels, rows: Index) -> Split:
    """The kept files of one split; they stand one after the other."""
    kept = pixels.kept[rows]
    labels = None if found.labels is None else torch.from_numpy(found.labels[found.rows[kept]].astype(np.int64))
    if isinstance(pixels.images, Tensor) and len(rows):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        return Split(pixels.images[part], pixels.clean[part], labels, wanted.rows(kept))
    index = torch.from_numpy(rows)
    return Split(take(pixels.images, index), take(pixels.clean, index), labels, wanted.rows(kept))


def _cache_folder(chosen: str) -> Path:
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clf" / "canvases"
