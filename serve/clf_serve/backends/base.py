"""What a backend is: a graph at work on one device, batches of pixels in, rows out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
Vectors: TypeAlias = NDArray[np.float32]
JSON: TypeAlias = "str | int | float | bool | Sequence[JSON] | Mapping[str, JSON] | None"

INPUT, OUTPUT = "images", "embeddings"
_NO_MEMORY = re.compile(r"(failed to|cannot) allocate memory|out of memory|alloc_failed|bad[ _]alloc", re.I)


@dataclass(frozen=True)
class Graph:
    """An ONNX graph in memory, checked against its manifest; what is opened is what was checked."""

    path: Path
    """Where it was read, for messages; never read again."""
    data: bytes
    sha256: str
    image_size: int
    dim: int
    quantised: bool = False
    """Whether it computes in 8-bit integers, so that other libraries may round to other ones."""
    by_batch: bool = False
    """Whether it scales its numbers by all that is in a batch, so that images have to be embedded one by one."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, 3)


class Port(NamedTuple):
    """An input or output of a graph."""

    name: str
    kind: str
    """``tensor(uint8)``, ``tensor(float)``, ..."""
    shape: list[int | str | None]


class DeviceMemoryError(MemoryError):
    """A batch does not fit the memory that the device has left. Smaller ones may."""


class Backend(Protocol):
    """One graph on one device. :meth:`run` may be called by any number of threads at a time."""

    runtime: str
    """Name and version of the library, for people."""
    threads: int
    notes: list[str]
    """What the person who started it should know: sentences without a full stop."""

    @property
    def provider(self) -> Literal["cpu", "cuda", "openvino"]: ...

    @property
    def device(self) -> Literal["cpu", "cuda"]: ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes worth a try, ascending from 1."""

    @property
    def exact_rows(self) -> bool:
        """Whether a row can be the same to the bit whatever shares its batch; then only sizes that keep it are used."""

    @property
    def pads(self) -> bool:
        """Whether fewer images than a prepared size are padded up to it; else any number may run."""

    @property
    def arithmetic(self) -> str | None:
        """What numbers it computes with; ``None``: with the graph's own."""

    def ports(self) -> tuple[list[Port], list[Port]]:
        """Inputs and outputs of the graph."""

    def settle(self, probe: Pixels) -> None:
        """Chooses by measurement, on images (n, S, S, 3), whatever has to be chosen before sizes are prepared.

        Raises:
            ModelError: the device's results are not those of the graph.
        """

    def prepare(self, size: int, probe: Pixels) -> None:
        """Makes batches of ``size`` ready, with at least as many images to try them on.

        Raises:
            DeviceMemoryError: they do not fit.
        """

    def drop(self, size: int) -> None:
        """Frees what :meth:`prepare` made."""

    def run(self, pixels: Pixels) -> Vectors:
        """Rows (n, D) of n images, n no more than the largest prepared size where batches are padded.

        Raises:
            DeviceMemoryError: the batch does not fit.
        """

    def facts(self) -> dict[str, JSON]:
        """What only this kind of backend knows."""

    def close(self) -> None:
        """Frees the graph when the runs that have begun are done. It cannot be used afterwards."""


@contextmanager
def memory_errors(images: int) -> Iterator[None]:
    """Turns what the libraries raise when memory runs out into DeviceMemoryError, and lets all else through."""
    try:
        yield
    except DeviceMemoryError:
        raise
    except Exception as error:  # their exceptions share no base class
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(f"no memory for a batch of {images}: {first_line(error)}") from error


def closed() -> RuntimeError:
    return RuntimeError("the engine is closed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of a library, none of which has a type for it, means that memory ran out."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def least_cosine(rows: Vectors, others: Vectors) -> float:
    """The least cosine between corresponding rows, (n, D) each; -1 where there are no finite numbers."""
    a, b = rows.astype(np.float64), others.astype(np.float64)
    with np.errstate(all="ignore"):
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(np.nan_to_num(cosines, nan=-1.0).min())
