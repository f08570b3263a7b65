"""The classic small sets. MNIST's own files are read directly, gzipped or not; the others through torchvision."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clf.config import DataSection
from clf.data.source import DataSource, Progress, from_arrays, read_options
from clf.errors import ConfigError, DataError, missing_extra

_Part: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64]]

_CLASSES = {  # data.name -> class of torchvision.datasets
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "stl10": "STL10",
}
_PLACE = {  # where torchvision keeps a set below its root
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "stl10": "stl10_binary",
}
_IDX_NAMES = {
    "mnist": [str(digit) for digit in range(10)],
    "fashion_mnist": [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ],
}
_DEFAULT_ROOT = "data"
_BATCHES = 5
"""Files that CIFAR-10's training images come in, of equal size."""


def load(section: DataSection, seed: int, progress: Progress | None) -> DataSource:
    """A set below ``data.root`` (default ``data``) in torchvision's layout, fetched if ``data.download`` is set.

    STL-10 trains on its unlabelled and its training images together; the unlabelled ones have the label -1.
    ``data.options.held_out_batch=5`` tests on CIFAR-10's fifth official training batch and trains on the
    other four; the official test images stay unseen.

    Raises:
        ConfigError: an unknown option, or a batch that there is not.
        DataError: the files are not there or damaged, or the download failed.
        MissingExtraError: torchvision is not installed.
    """
    held_out = _held_out_batch(section)
    root = Path(section.root or _DEFAULT_ROOT).expanduser()
    if section.name in _IDX_NAMES:
        folder = root / _PLACE[section.name]
        if section.download and not _has_idx(folder):
            _torchvision(section, root, train=True)
        train, test = _idx_split(section, folder, "train"), _idx_split(section, folder, "t10k")
        names = _IDX_NAMES[section.name]
    elif section.name == "stl10":
        sets = [_torchvision(section, root, split=split) for split in ("train+unlabeled", "test")]
        train, test = [(np.asarray(s.data), np.asarray(s.labels, np.int64)) for s in sets]
        names = list(sets[0].classes)
    else:
        sets = [_torchvision(section, root, train=flag) for flag in (True, False)]
        train, test = [(np.asarray(s.data).transpose(0, 3, 1, 2), np.asarray(s.targets, np.int64)) for s in sets]
        names = list(sets[0].classes)
    if not held_out:
        return from_arrays(section, seed, train, test, class_names=names)
    train, test = _without_batch(train, held_out)
    note = f"official training batch {held_out} held out"
    return from_arrays(section, seed, train, test, class_names=names, split_note=note)


def _held_out_batch(section: DataSection) -> int:
    """The official training batch to test on, counted from 1; 0 for the official test images."""
    if section.name != "cifar10":
        read_options(section, {})
        return 0
    batch: int = read_options(section, {"held_out_batch": 0})["held_out_batch"]
    if not 0 <= batch <= _BATCHES:
        raise ConfigError(
            f"data.options.held_out_batch must be one of CIFAR-10's training batches, 1 to {_BATCHES}, "
            f"or 0 for the official test images, got {batch}"
        )
    return batch


def _without_batch(train: _Part, batch: int) -> tuple[_Part, _Part]:
    """The images and labels of the other batches, in their order, and those of the batch."""
    size = len(train[0]) // _BATCHES
    held = np.arange(len(train[0])) // size == batch - 1
    images, labels = train
    return (images[~held], labels[~held]), (images[held], labels[held])


def _torchvision(section: DataSection, root: Path, **which: Any) -> Any:
    try:
        from torchvision import datasets
    except ImportError:
        raise missing_extra("torchvision", "train", f"data source {section.name!r}") from None
    try:
        return getattr(datasets, _CLASSES[section.name])(str(root), download=section.download, **which)
    except (RuntimeError, OSError, EOFError) as error:  # not found, damaged, no network
        raise _absent(section, root / _PLACE[section.name], str(error) if section.download else "") from error


def _absent(section: DataSection, place: Path, failure: str = "") -> DataError:
    if failure:
        return DataError(
            f"data source {section.name!r} could not be downloaded ({' '.join(failure.split())}); check the network, "
            f"or put its files into {place}"
        )
    return DataError(
        f"data source {section.name!r} is not complete in {place}; "
        f"set data.download=true to fetch it, or data.root to the folder that holds {_PLACE[section.name]}"
    )


def _has_idx(folder: Path) -> bool:
    kinds = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    return all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in kinds)


def _idx_split(section: DataSection, folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not _has_idx(folder):
        raise _absent(section, folder)
    images = _read_idx(folder / f"{part}-images-idx3-ubyte", dims=3)
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte", dims=1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} {part} images but {len(labels)} labels; one of the files is damaged")
    return images[:, None], labels.astype(np.int64)


def _read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """An idx file of bytes: 0, 0, type 8, number of dimensions, each as big-endian uint32, then the values."""
    zipped = path.with_name(path.name + ".gz")
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress(zipped.read_bytes())
        if data[:4] != bytes([0, 0, 8, dims]):
            raise DataError(f"{path} is not an idx file of bytes with {dims} dimensions")
        shape = np.frombuffer(data, ">u4", dims, offset=4).astype(int)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); fetch it again") from error
