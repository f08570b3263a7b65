"""Ranks as threads of one process: what a rank gathers comes from the others, with gradient, as under torchrun."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Gather = Callable[[Tensor], Tensor]


def on_ranks(count: int, work: Callable[[int, Gather], T]) -> list[T]:
    """``work(rank, gather)`` on so many ranks, and what each returned.

    The tensors of all ranks are in one graph: the gradient of the sum of the local losses over ``count`` is what the
    engine's gather and averaging make of them.
    """
    barrier = Barrier(count, timeout=60)
    parts: list[Tensor] = [torch.empty(0)] * count

    def run(rank: int) -> T:
        def gather(x: Tensor) -> Tensor:
            parts[rank] = x
            barrier.wait()
            gathered = torch.cat(parts)
            barrier.wait()  # nobody writes before all have read
            return gathered

        try:
            return work(rank, gather)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, rank) for rank in range(count)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda each: isinstance(each, BrokenBarrierError)):
            raise error
        return [future.result() for future in futures]
