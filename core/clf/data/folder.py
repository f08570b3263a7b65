"""A folder of image files: flat and unlabelled, one folder a class, or ``train`` and ``test`` with class folders.

Each file is decoded once, in threads, to a *canvas* a little larger than a view, from which views are cropped, and to
a *clean* image, exactly what :func:`clf.images.prepare` gives. Large sets go to a memory-mapped cache instead of RAM.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from clf import images
from clf.config import DataSection
from clf.data.source import (
    DataSource,
    Progress,
    Skipped,
    Split,
    held_out_note,
    limit_rows,
    read_options,
    required_root,
    stratified,
)
from clf.errors import DataError, ImageError

DEFAULT_SIZE = 96
_MAX_THREADS = 16
_TEST_FOLDERS = ("test", "val", "valid", "validation")
_OPTIONS: dict[str, Any] = {"class_folders": True, "cache_dir": "", "cache_above_mib": 2048}


@dataclass(frozen=True)
class _Listing:
    """Files below ``root``, with the class of each where folders are classes."""

    root: Path
    paths: list[Path]
    classes: list[str] | None

    def rows(self, index: Sequence[int]) -> _Listing:
        classes = None if self.classes is None else [self.classes[i] for i in index]
        return _Listing(self.root, [self.paths[i] for i in index], classes)


def load(section: DataSection, seed: int, progress: Progress | None) -> DataSource:
    """The folder ``data.root``; views are of 96 pixels unless ``data.image_size`` says otherwise.

    Folders are classes when every image lies in an immediate subfolder and there are two or more of them. Of ``train``
    beside ``test`` or ``val`` (so looked for) the second is the test split. Files that cannot be read are skipped and
    listed. ``data.options``: ``class_folders: false`` ignores the classes; canvases of more than ``cache_above_mib``
    MiB are kept in files below ``cache_dir`` (default: clf in the user's cache folder).

    Raises:
        ConfigError: ``data.root`` is not set, or an unknown option.
        DataError: the folder is missing, is a file, holds a folder that cannot be read, or holds no readable image.
    """
    options = read_options(section, _OPTIONS)
    root = required_root(section, "the folder of images")
    try:
        if not images.is_folder(root):
            raise DataError(f"data.root {root} {'is a file, not a folder' if root.exists() else 'does not exist'}")
        train, test, note = _find(root, section, use_classes=options["class_folders"])
    except ImageError as error:
        raise DataError(f"data.root: {error}") from error
    names = None if train.classes is None else tuple(sorted({*train.classes, *((test and test.classes) or ())}))
    keep = limit_rows(len(train.paths), section.limit, seed)
    if keep is not None:
        train = train.rows(keep.tolist())
    reader = _Reader(section.image_size or DEFAULT_SIZE, options, names, progress)
    first = reader.read(train)
    second = reader.read(test) if test is not None else None
    return DataSource(
        name=section.name,
        image_size=reader.size,
        channels=3,
        train=first,
        test=second,
        class_names=names,
        skipped=reader.skipped,
        fingerprint=reader.digest.hexdigest(),
        split_note=note,
    )


def canvas_size(image_size: int) -> int:
    """Side of the training canvas: a view is at least 7/8 of it, as in the usual central crop of 224 from 256."""
    return math.ceil(image_size * 8 / 7)


def _find(root: Path, section: DataSection, use_classes: bool) -> tuple[_Listing, _Listing | None, str]:
    """Training files, test files and the protocol in words."""
    if images.is_folder(root / "train"):
        for name in _TEST_FOLDERS:
            if images.is_folder(root / name):
                train, test = _listing(root, root / "train"), _listing(root, root / name)
                if not (use_classes and train.classes and test.classes):
                    return _Listing(root, train.paths, None), None, "none"
                return train, test, f"test split: folder {name}"
    everything = _listing(root, root)
    if everything.classes is None or not use_classes:
        return _Listing(root, everything.paths, None), None, "none"
    labels = torch.from_numpy(np.unique(everything.classes, return_inverse=True)[1])
    rows, held_out = stratified(labels, section.test_fraction)
    if len(held_out) == 0:
        return everything, None, "none"
    note = held_out_note(section.test_fraction)
    return everything.rows(rows.tolist()), everything.rows(held_out.tolist()), note


def _listing(root: Path, folder: Path) -> _Listing:
    paths = images.find_images(folder)
    if not paths:
        raise DataError(
            f"{folder} holds no images; files are known by their ending: {' '.join(sorted(images.SUFFIXES))}"
        )
    parts = [path.relative_to(folder).parts for path in paths]
    classes = [part[0] for part in parts]
    labelled = all(len(part) == 2 for part in parts) and len(set(classes)) >= 2
    return _Listing(root, paths, classes if labelled else None)


class _Reader:
    """Decodes listings; collects what was skipped and a digest of all contents."""

    def __init__(
        self, size: int, options: dict[str, Any], class_names: tuple[str, ...] | None, progress: Progress | None
    ):
        self.size = size
        self.canvas = canvas_size(size)
        self.skipped: list[Skipped] = []
        self.digest = hashlib.sha256()
        self._cache = _cache_folder(options["cache_dir"])
        self._ram = options["cache_above_mib"] * 2**20
        self._numbers = {name: i for i, name in enumerate(class_names or ())}
        self._progress = progress

    def read(self, listing: _Listing) -> Split:
        n = len(listing.paths)
        if 3 * n * (self.canvas**2 + self.size**2) <= self._ram:
            canvases, clean = (np.empty((n, 3, side, side), np.uint8) for side in (self.canvas, self.size))
            sums = self._decode(listing, canvases, clean)
        else:
            canvases, clean, sums = self._cached(listing)
        kept = self._account(listing, sums)
        if not kept:
            first = self.skipped[-1]
            raise DataError(f"none of the {n} images in {listing.root} can be read, e.g. {first.path} {first.reason}")
        labels = None
        if listing.classes is not None:
            labels = torch.tensor([self._numbers[listing.classes[i]] for i in kept])
        return Split(
            images=torch.from_numpy(canvases[: len(kept)]),
            clean=torch.from_numpy(clean[: len(kept)]),
            labels=labels,
            names=[_name(listing, i) for i in kept],
        )

    def _account(self, listing: _Listing, sums: list[dict[str, str]]) -> list[int]:
        """Lists the skipped files, adds the others to the digest; returns the rows that were read."""
        kept = []
        for i, entry in enumerate(sums):
            if "skipped" in entry:
                self.skipped.append(Skipped(_name(listing, i), entry["skipped"]))
                continue
            self.digest.update(f"{_name(listing, i)}\0{entry['sha256']}\n".encode())
            kept.append(i)
        return kept

    def _decode(self, listing: _Listing, canvases: NDArray[np.uint8], clean: NDArray[np.uint8]) -> list[dict[str, str]]:
        """Fills the first rows of both arrays with what can be read; for each file its SHA-256 or why not."""

        def one(i: int) -> dict[str, str]:
            path = listing.paths[i]
            try:
                image = images.decode(path)
            except ImageError as error:
                return {"skipped": str(error).removeprefix(f"{path} ")}
            canvases[i] = images.resize(image, self.canvas).transpose(2, 0, 1)
            clean[i] = images.resize(image, self.size).transpose(2, 0, 1)
            with path.open("rb") as file:
                return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}

        n = len(listing.paths)
        sums = []
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
            for done, entry in enumerate(pool.map(one, range(n)), start=1):
                sums.append(entry)
                if self._progress is not None:
                    self._progress(done, n)
        kept = [i for i, entry in enumerate(sums) if "skipped" not in entry]
        for new, old in enumerate(kept):
            if new != old:  # moved up in place: no second copy of a large array
                canvases[new], clean[new] = canvases[old], clean[old]
        return sums

    def _cached(self, listing: _Listing) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[dict[str, str]]]:
        """Both arrays as files, made once for these files in this state and mapped into memory copy-on-write."""
        folder = self._cache / self._key(listing)
        if not folder.is_dir():
            self._fill(listing, folder)
        canvases, clean = (np.load(folder / f"{kind}.npy", mmap_mode="c") for kind in ("canvases", "clean"))
        return canvases, clean, json.loads((folder / "files.json").read_text())

    def _fill(self, listing: _Listing, folder: Path) -> None:
        n = len(listing.paths)
        partial = None
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=self._cache, prefix="partial-"))
            arrays = [
                np.lib.format.open_memmap(partial / f"{kind}.npy", "w+", np.uint8, (n, 3, side, side))
                for kind, side in (("canvases", self.canvas), ("clean", self.size))
            ]
            sums = self._decode(listing, *arrays)
            for array in arrays:
                array.flush()
            (partial / "files.json").write_text(json.dumps(sums))
            if not folder.is_dir():  # another process may have been faster
                partial.rename(folder)
        except OSError as error:
            if not folder.is_dir():
                raise DataError(
                    f"the image cache {self._cache} cannot be written ({error.strerror}); "
                    f"set data.options.cache_dir to a folder with room"
                ) from error
        finally:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)

    def _key(self, listing: _Listing) -> str:
        """Changes with the files, their order, sizes and times, the image size, and Pillow."""
        digest = hashlib.sha256(f"1 {self.size} {self.canvas} {PIL.__version__}".encode())
        for path, stat in _stats(listing.paths):
            digest.update(f"{path}\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:32]


def _stats(paths: Sequence[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    for path in paths:
        try:
            yield path.resolve(), path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _name(listing: _Listing, i: int) -> str:
    return listing.paths[i].relative_to(listing.root).as_posix()


def _cache_folder(chosen: str) -> Path:
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clf" / "canvases"
