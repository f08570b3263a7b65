"""What the doctor needs to know about the machine."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from clf import compiling


@dataclass(frozen=True)
class Machine:
    device: str
    """``cpu``, ``cuda:0``, ..., and what it is called."""
    kind: str
    cores: int
    """Logical ones that this process may use."""
    threads: int
    """Of torch, as configured."""
    torch: str
    bf16: bool
    """Whether the device computes in bfloat16 rather than imitating it."""
    compile_obstacle: str | None
    """Why torch.compile cannot work here; None when nothing is known to be in its way."""
    memory: int | None
    """Bytes that the device, or this machine, has."""


def describe(device: torch.device) -> Machine:
    """The facts of the machine that this process runs on."""
    cuda = device.type == "cuda"
    return Machine(
        device=f"{device} ({torch.cuda.get_device_name(device) if cuda else processor()})",
        kind=device.type,
        cores=cores(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        bf16=torch.cuda.is_bf16_supported(including_emulation=False) if cuda else _cpu_bf16(device),
        compile_obstacle=compiling.obstacle(device),
        memory=torch.cuda.get_device_properties(device).total_memory if cuda else _ram(),
    )


def peak_memory(device: torch.device) -> int | None:
    """Bytes in use at the highest so far: of tensors on a GPU, else of this process; None where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The name of this machine's CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_bf16(device: torch.device) -> bool:
    if device.type != "cpu":
        return False
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def _ram() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
