"""The C library's allocator, told to keep freed memory instead of giving it back to the kernel."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT = 1 << 30
_LARGEST_MMAP_THRESHOLD = 32 << 20  # what glibc accepts on 64-bit machines


def keep_freed_memory() -> bool:
    """Keeps up to a gigabyte of freed memory in the process; whether the allocator took the setting.

    A training step on the CPU frees and asks for the same few tensors of some megabytes again and again. By default
    glibc returns them to the kernel each time and gets them back page by page, each page a fault and a clearing.
    Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD))
