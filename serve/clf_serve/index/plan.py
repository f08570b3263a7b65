"""Which structure a gallery of a given size gets, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("auto", "flat", "hnsw", "ivf")
TARGET = 0.98
RECALL_K = 10

FLAT_VALUES = 10_000_000
"""Numbers compared in about 4 ms by one core that reads 10 GB/s: exact search below this many."""
GRAPH_VALUES = 100_000_000
"""Up to here a graph is built in a minute or two; beyond, inverted lists are smaller and quicker to build."""
GRAPH_DIM = 256
"""A graph pays for vectors of fewer dimensions, of which 4-bit codes tell too little. From here on inverted lists reach
the same recall; of 100,000 x 512 they were built in a twentieth of the time and searched in a quarter of it."""
LINKS = 32
_LEAST_FOR_LISTS = 1000
_BITS = {"fp32": 32, "sq8": 8, "sq6": 6, "sq4": 4}
_GRAPH_BYTES = 4 * 2 * LINKS + 16  # links of the lowest level, and what the upper ones and the offsets come to


@dataclass(frozen=True)
class Plan:
    kind: str
    """flat (every vector is compared), hnsw (a graph) or ivf (inverted lists)."""
    codes: str
    """How vectors are kept in memory: fp32, or sq8, sq6, sq4 (that many bits a number)."""
    lists: int
    """Of ivf; else 0."""
    bytes: int
    """Estimate of what it takes in memory."""
    target: float
    """Recall@10 to tune for."""
    why: str
    """One sentence for people."""
    name: str = "auto"
    memory: int | None = None
    """What it was chosen by."""


def choose(n: int, dim: int, memory: int | None = None, name: str = "auto", target: float = TARGET) -> Plan:
    """The structure for n vectors.

    Args:
        memory: bytes that the index may take; None: no limit, yet no more than is of use.
        name: ``auto``, or the kind that the user wants.

    Raises:
        ValueError: an unknown name, or a target outside (0, 1].
    """
    if name not in KINDS:
        raise ValueError(f"unknown kind of index {name!r}; choose from {', '.join(KINDS)}")
    if not 0 < target <= 1:
        raise ValueError(f"the recall to reach must be above 0 and at most 1, got {target}")
    kind, codes, why = _decide(n, dim, math.inf if memory is None else memory, name)
    size, why = size_of(kind, codes, n, dim), f"{n:,} vectors of {dim} dimensions: {why}"
    if memory is not None and size > memory:
        why += f"; it takes about {size / 2**20:,.0f} MiB, more than the {memory / 2**20:,.0f} MiB allowed"
    return Plan(kind, codes, lists_for(n) if kind == "ivf" else 0, size, target, why, name, memory)


def _decide(n: int, dim: int, room: float, name: str) -> tuple[str, str, str]:
    """Kind, codes, and why."""
    if name == "flat":
        return "flat", "fp32", "chosen by name"
    if name == "auto" and n * dim <= FLAT_VALUES and size_of("flat", "fp32", n, dim) <= room:
        return "flat", "fp32", "few enough to compare each in about 4 ms or less"
    if n < _LEAST_FOR_LISTS:
        return "flat", "fp32", "too few for anything but comparing each"
    small = n * dim <= GRAPH_VALUES and dim < GRAPH_DIM
    if name == "hnsw" or (name == "auto" and small and size_of("hnsw", "sq8", n, dim) <= room):
        why = "chosen by name" if name == "hnsw" else "too many to compare each, and few enough for a graph"
        if size_of("hnsw", "fp32", n, dim) <= room < math.inf:
            return "hnsw", "fp32", f"{why}; whole vectors fit into the budget"
        return "hnsw", "sq8", f"{why}; 8 bits a number, as results are scored again exactly"
    codes = "sq8" if dim % 8 else "sq6" if size_of("ivf", "sq6", n, dim) <= room else "sq4"
    why = "the budget is too small for a graph" if small else "too many to compare each; built sooner than a graph"
    held = f"4-bit product codes in lists, and {codes[2:]} bits a number to refine"
    return "ivf", codes, f"{'chosen by name' if name == 'ivf' else why}; {held}"


def lists_for(n: int) -> int:
    """A power of two near the square root of n, with at least 39 vectors a list."""
    return max(1, min(int(2 ** round(math.log2(max(n, 1)) / 2)), n // 39))


def subquantizers(dim: int) -> int:
    """Of four dimensions each where that divides, so that a vector takes dim / 8 bytes."""
    return next(dim // width for width in (4, 2, 1) if dim % width == 0)


def size_of(kind: str, codes: str, n: int, dim: int) -> int:
    """Bytes in memory, about."""
    each = 8 + dim * _BITS[codes] / 8
    if kind == "hnsw":
        each += _GRAPH_BYTES
    if kind == "ivf":
        each += 8 + subquantizers(dim) / 2 + 16 * subquantizers(dim) / 2 * lists_for(n) / max(n, 1)
    return int(n * each)
