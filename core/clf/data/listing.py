"""The files of a folder in little memory: a million names are some tens of megabytes, not half a gigabyte of paths."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from clf import images
from clf.errors import DataError

ENCODING = ("utf-8", "surrogatepass")
"""Takes names of any bytes, and keeps their order."""


class Names(Sequence[str]):
    """Strings in one block of bytes, made one by one when asked for. Equal to any sequence of the same strings."""

    def __init__(self, block: bytes | bytearray, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._block = block
        self._starts = starts
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Names: ...
    def __getitem__(self, i: int | slice) -> str | Names:
        if isinstance(i, slice):
            return Names(self._block, self._starts[i], self._ends[i])
        return self._block[self._starts[i] : self._ends[i]].decode(*ENCODING)

    def rows(self, index: NDArray[np.integer[Any]]) -> Names:
        """Some of the names, in the order of ``index``; the block of bytes is shared."""
        return Names(self._block, self._starts[index], self._ends[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Names({shown}{', ...' if len(self) > 3 else ''}; {len(self):,})"


@dataclass(frozen=True)
class Listing:
    """Image files below a folder, sorted by path."""

    names: Names
    """Relative to the root of the data set, with ``/``."""
    classes: tuple[str, ...] | None
    """Class names in order, where every image lies in an immediate subfolder and there are two or more of these."""
    labels: NDArray[np.int32] | None
    """(n,) position of each file's class in ``classes``."""

    def __len__(self) -> int:
        return len(self.names)


def list_folder(root: Path, *below: str) -> Listing:
    """All images of ``root``, or of some of its subfolders one after the other, as :func:`clf.images.find_images`.

    With subfolders a class is a folder inside one of them, and the classes of all are numbered together; there are
    classes only if each subfolder has them.

    Raises:
        ImageError: as :func:`clf.images.find_images`.
        DataError: the root, or one of the subfolders, holds no images.
    """
    collector = _Collector()
    for name in below or ("",):
        before = len(collector.ends)
        collector.add(root / name, f"{name}/" if name else "")
        if len(collector.ends) == before:
            known = " ".join(sorted(images.SUFFIXES))
            raise DataError(f"{root / name} holds no images; files are known by their ending: {known}")
    return collector.listing()


@dataclass
class _Collector:
    block: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    numbers: dict[str, int] = field(default_factory=dict)
    labelled: bool = True

    def add(self, folder: Path, prefix: str) -> None:
        here: set[int] = set()
        for name in images.walk(folder):
            self.block += (prefix + name).encode(*ENCODING)
            self.ends.append(len(self.block))
            parent, _, rest = name.partition("/")
            if self.labelled and rest and "/" not in rest:
                number = self.numbers.setdefault(parent, len(self.numbers))
                here.add(number)
                self.labels.append(number)
            else:
                self.labelled = False
        self.labelled = self.labelled and len(here) >= 2

    def listing(self) -> Listing:
        ends = np.frombuffer(self.ends, np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        names = Names(self.block, starts, ends)
        if not self.labelled:
            return Listing(names, None, None)
        classes = sorted(self.numbers)
        place = np.empty(len(classes), np.int32)  # from the number by first appearance to the number in order
        place[[self.numbers[name] for name in classes]] = np.arange(len(classes), dtype=np.int32)
        return Listing(names, tuple(classes), place[np.frombuffer(self.labels, np.int32)])
