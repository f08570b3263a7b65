"""What a process tree costs, read from /proc: processor time, memory, threads, open files. Linux only."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Vitals:
    """Of a process and all its living descendants."""

    cpu: float
    """Seconds of processor time, user and system, of children that have ended too."""
    rss: int
    """Bytes of memory; what several of them share is counted for each."""
    threads: int
    files: int
    """Open file descriptors."""


def vitals(pid: int) -> Vitals:
    """What the tree of ``pid`` costs now; a process that ends meanwhile is left out."""
    cpu, rss, threads, files = 0.0, 0, 0, 0
    for member in tree(pid):
        try:
            fields = _stat(member)
            cpu += sum(map(int, fields[11:15])) / _TICK  # utime, stime, cutime, cstime: man 5 proc, fields 14 to 17
            threads += int(fields[17])
            rss += int(fields[21]) * _PAGE
            files += len(os.listdir(f"/proc/{member}/fd"))  # noqa: PTH208
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Vitals(cpu, rss, threads, files)


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                children[int(_stat(int(entry.name))[1])].append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [pid]
    for member in found:  # grows while it is read
        found += children[member]
    return found


def _stat(pid: int) -> list[str]:
    """The fields after the program's name, which may hold spaces: the first is the state, field 3 of proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def slope(values: list[float]) -> float:
    """The least-squares rise of ``values`` from first to last, in their own unit; 0 for fewer than two."""
    n = len(values)
    if n < 2:
        return 0.0
    middle, mean = (n - 1) / 2, sum(values) / n
    rise = sum((i - middle) * (value - mean) for i, value in enumerate(values))
    return rise / sum((i - middle) ** 2 for i in range(n)) * (n - 1)
