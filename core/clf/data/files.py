"""Positioned reads and writes of a few open files, from several threads."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from weakref import finalize


class Files:
    """Files of a folder, which are there already; they are closed when this object is gone."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._handles = {name: os.open(folder / name, os.O_RDWR | getattr(os, "O_BINARY", 0)) for name in names}
        for handle in self._handles.values():
            finalize(self, os.close, handle)

    def write(self, name: str, data: bytes | memoryview, offset: int) -> None:
        """Writes all of ``data``, or raises OSError."""
        view, handle = memoryview(data).cast("B"), self._handles[name]
        while view:
            with self._at(handle, offset):
                done = os.pwrite(handle, view, offset) if hasattr(os, "pwrite") else os.write(handle, view)
            view, offset = view[done:], offset + done

    def read(self, name: str, size: int, offset: int) -> bytes:
        handle = self._handles[name]
        with self._at(handle, offset):
            return os.pread(handle, size, offset) if hasattr(os, "pread") else os.read(handle, size)

    def map(self, name: str, size: int) -> mmap.mmap:
        return mmap.mmap(self._handles[name], size, access=mmap.ACCESS_READ)

    @contextlib.contextmanager
    def _at(self, handle: int, offset: int) -> Iterator[None]:
        """Where there are no positioned reads and writes (Windows), one thread at a time moves the position."""
        if hasattr(os, "pwrite"):
            yield
            return
        with self._lock:
            os.lseek(handle, offset, os.SEEK_SET)
            yield
