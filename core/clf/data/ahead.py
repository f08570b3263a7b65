"""Batches read before they are asked for: what comes next is known, so threads fetch it while the device computes."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from clf.data.source import Images

DEPTH = 4
"""Batches that are read ahead, if they are not large."""
MOST_BYTES = 512 * 2**20
"""Of the batches that are read ahead, but always one batch."""
_THREADS = 2  # each reads a batch of its own; decoding has threads of its own


class ReadAhead:
    """Raw images of batches, by position. Any position may be asked for; those behind it are then read ahead.

    Args:
        source: what the images are read from.
        rows: the row numbers of the batch at a position; called in other threads.
        count: how many these are.
        device: where images go. Those for a GPU are copied by a stream of their own.
    """

    def __init__(self, source: Images, rows: Callable[[int], Tensor], count: int, device: torch.device) -> None:
        self._source = source
        self._rows = rows
        self._depth = max(1, min(DEPTH, MOST_BYTES // (count * math.prod(source.shape[1:]))))
        self._staging = _Staging(device) if device.type == "cuda" else None
        enter = None
        if device.type == "cuda":  # each thread has a present device of its own, where pinned memory is registered
            enter = partial(torch.cuda.set_device, torch.cuda.current_device() if device.index is None else device)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="clf-ahead", initializer=enter)
        self._running: dict[int, Future[tuple[Tensor, Tensor, torch.cuda.Event | None]]] = {}

    def get(self, position: int) -> tuple[Tensor, Tensor]:
        """Row numbers (N,) on the CPU, and images (N, C, H, W): on the GPU if that is the device, else on the CPU.

        Raises:
            Exception: whatever reading this very batch raised.
        """
        wanted = range(position, position + 1 + self._depth)
        for other in self._running.keys() - set(wanted):
            self._running.pop(other).cancel()
        for each in wanted:
            if each not in self._running:
                self._running[each] = self._pool.submit(_read, self._source, self._rows, each, self._staging)
        index, images, copied = self._running.pop(position).result()
        if copied is not None:
            here = torch.cuda.current_stream(images.device)
            here.wait_event(copied)
            images.record_stream(here)  # its memory came from the copying stream and must outlive its use in this one
        return index, images

    def close(self) -> None:
        """Ends the threads; what they are reading is finished first."""
        self._running.clear()
        self._pool.shutdown(cancel_futures=True)


class _Staging:
    """Pinned memory through which images go to a GPU while it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._free: queue.SimpleQueue[tuple[Tensor, torch.cuda.Event]] = queue.SimpleQueue()

    def upload(self, images: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """The images on the GPU, there when the event has happened."""
        try:
            buffer, copied = self._free.get_nowait()
            copied.synchronize()  # the last copy out of this buffer
            fits = buffer.shape == images.shape
        except queue.Empty:
            fits = False
        if not fits:
            buffer = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
        buffer.copy_(images)
        with torch.cuda.stream(self._stream):
            on_device = buffer.to(self._device, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        self._free.put((buffer, copied))
        return on_device, copied


def _read(
    source: Images, rows: Callable[[int], Tensor], position: int, staging: _Staging | None
) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
    """A function and no method, so that a running thread does not keep the reader alive."""
    index = rows(position)
    images = source[index]
    if staging is None:
        return index, images, None
    return index, *staging.upload(images)
