"""Sources that are arrays already: a NumPy archive, and scikit-learn's handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clf.config import DataSection
from clf.data.source import DataSource, Progress, clean_images, from_arrays, read_options, required_root
from clf.errors import DataError, missing_extra

_DIGITS_SIZE = 32
_KEYS = "images or train_images; optional: labels or train_labels, test_images, test_labels, class_names"
_USED = ("images", "train_images", "labels", "train_labels", "test_images", "test_labels", "class_names")


def load_npz(section: DataSection, seed: int, progress: Progress | None) -> DataSource:
    """The archive ``data.root``: images (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W), uint8 or floats in [0, 1].

    Keys: ``images`` or ``train_images``, and, all optional, ``labels`` or ``train_labels``, ``test_images``,
    ``test_labels``, ``class_names``. A negative label is an unknown one, unless ``class_names`` has it. Nothing is
    unpickled.

    Raises:
        ConfigError: ``data.root`` is not set, or an unknown option.
        DataError: no such file, not an archive, missing keys, or arrays of other shapes or types.
    """
    read_options(section, {})
    path = required_root(section, "the .npz file")
    arrays = _read_npz(path)
    images = _first(arrays, "train_images", "images")
    if images is None:
        raise DataError(f"{path} holds no images: its keys are {', '.join(arrays) or 'none'}, wanted are {_KEYS}")
    train = to_uint8(images, f"{path}: images")
    labels = _labels(_first(arrays, "train_labels", "labels"), len(train), f"{path}: labels")
    test, test_labels = None, None
    if "test_images" in arrays:
        test = to_uint8(arrays["test_images"], f"{path}: test_images")
        test_labels = _labels(arrays.get("test_labels"), len(test), f"{path}: test_labels")
        if test.shape[1:] != train.shape[1:]:
            raise DataError(f"{path}: test_images are {test.shape[1:]} but the training images are {train.shape[1:]}")
    names = None if "class_names" not in arrays else [str(x) for x in arrays["class_names"].ravel()]
    numbers, test_numbers = None, None
    if labels is not None:
        both = labels if test_labels is None else np.concatenate([labels, test_labels])
        joined, names = number_labels(both, names, str(path))
        numbers = joined[: len(labels)]
        test_numbers = None if test_labels is None else joined[len(labels) :]
    return from_arrays(
        section,
        seed,
        (train, numbers),
        None if test is None else (test, test_numbers),
        class_names=names if numbers is not None else None,
        split_note="test split of the file",
    )


def load_digits(section: DataSection, seed: int, progress: Progress | None) -> DataSource:
    """1,797 handwritten digits of 8 x 8 (UCI, in scikit-learn), enlarged with bicubic interpolation; one channel.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    read_options(section, {})
    try:
        from sklearn import datasets
    except ImportError:
        raise missing_extra("scikit-learn", "train", "data source 'digits'") from None
    bunch = datasets.load_digits()
    small = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]  # 17 grey levels
    size = section.image_size or _DIGITS_SIZE
    labels = bunch.target.astype(np.int64)
    return from_arrays(section, seed, (clean_images(small, size), labels), class_names=map(str, range(10)))


def to_uint8(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Images of any accepted layout as (n, C, H, W) uint8.

    Raises:
        DataError: another shape, type or range.
    """
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
        raise DataError(
            f"{what} have shape {array.shape}; wanted are (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)"
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise DataError(f"{what} are {array.dtype}; wanted is uint8, or floats in [0, 1]")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise DataError(f"{what} are floats from {array.min():g} to {array.max():g}; wanted is uint8, or [0, 1]")
    levels: NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
    return levels


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise DataError(f"data.root {path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        with path.open("rb") as file:  # np.load leaves a file open that it cannot read
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path} is a single array, not an .npz archive with the keys {_KEYS}")
            found = {key: archive[key] for key in archive.files}
    except DataError:
        raise
    except Exception as error:  # the readers of zip, of npy headers and of packed data each have errors of their own
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is not a readable .npz archive of plain arrays: {reason}") from error
    for key in _USED:
        if key in found and not isinstance(found[key], np.ndarray):  # numpy gives the bytes of other files in a zip
            raise DataError(f"{path}: {key} is not an array; write the archive with numpy.savez")
    return found


def _first(arrays: dict[str, NDArray[Any]], *keys: str) -> NDArray[Any] | None:
    return next((arrays[key] for key in keys if key in arrays), None)


def _labels(labels: NDArray[Any] | None, n: int, what: str) -> NDArray[Any] | None:
    if labels is None:
        return None
    if labels.shape not in ((n,), (n, 1)) or labels.dtype.kind not in "iubUS":
        raise DataError(f"{what} are {labels.dtype} of shape {labels.shape}; wanted are {n} whole numbers or names")
    return labels.reshape(n)


def number_labels(labels: NDArray[Any], names: list[str] | None, where: str) -> tuple[NDArray[np.int64], list[str]]:
    """Labels, numbers or names, as 0..K-1 with the K class names; -1 for negative numbers that are no class name.

    Raises:
        DataError: class names are given and a label is none of them.
    """
    values, numbers = np.unique(labels.astype(str) if labels.dtype.kind == "S" else labels, return_inverse=True)
    numeric = labels.dtype.kind in "iu"
    is_known = np.array([not numeric or value >= 0 or str(value) in (names or ()) for value in values], bool)
    known = [str(value) for value in values[is_known]]
    if names is None:
        names, place = known, np.arange(len(known))
    elif numeric and len(known) and int(known[0]) >= 0 and int(known[-1]) < len(names):
        place = np.array([int(value) for value in known])
    else:
        position = {name: i for i, name in enumerate(names)}
        strange = [value for value in known if value not in position]
        if strange:
            raise DataError(f"{where}: label {strange[0]!r} is none of the {len(names)} class_names")
        place = np.array([position[value] for value in known], np.int64)
    places = np.full(len(values), -1, np.int64)
    places[is_known] = place
    return places[numbers], names
