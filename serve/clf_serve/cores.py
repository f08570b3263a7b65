"""How many cores this process may really use: what the scheduler allows, and what a container's quota pays for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores() -> int:
    """Cores this process may use, at least one.

    The least of the machine's cores, the affinity mask, and the CPU quota of its control groups, rounded up; that is
    what ``docker run --cpus 2`` and the CPU limit of a Kubernetes container set, and what affinity does not show.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota - 1e-9)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that the control groups of this process allow; ``None`` without a limit.

    Version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``) are read; the least of a group and the groups above it
    counts. Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files and
    https://docs.kernel.org/scheduler/sched-bwc.html#management

    Args:
        root: where ``proc`` and what it speaks of are found.
    """
    try:
        mounts = (root / "proc/self/mountinfo").read_text()
        groups = (root / "proc/self/cgroup").read_text()
    except (OSError, UnicodeDecodeError):  # not Linux, or hidden
        return None
    found = []
    for kind, top, mounted in _mounts(mounts):
        for folder in _folders(root / mounted.lstrip("/"), top, _group(groups, kind)):
            found.append(_limit_v2(folder) if kind == "cgroup2" else _limit_v1(folder))
    return min((limit for limit in found if limit is not None), default=None)


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, str]]:
    """Kind, root within the hierarchy and mount point of each hierarchy that may limit CPU time; see proc(5)."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind, options = before.split(), *_first_and_last(after)
        if len(fields) > 4 and (kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(","))):
            yield kind, fields[3], fields[4]


def _first_and_last(text: str) -> tuple[str, str]:
    words = text.split() or [""]
    return words[0], words[-1]


def _group(groups: str, kind: str) -> str:
    """Path of this process's group: ``0::/path`` in version 2, ``4:cpu,cpuacct:/path`` in version 1."""
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (kind == "cgroup2" and number == "0" and not controllers) or "cpu" in controllers.split(","):
            return path
    return "/"


def _folders(mounted: Path, top: str, group: str) -> Iterator[Path]:
    """The group's folder and those above it, as far as they can be seen from here."""
    inside = group.removeprefix(top.rstrip("/")).strip("/")
    folder = mounted / inside
    if ".." not in inside.split("/"):  # else the group lies outside of what this namespace shows
        while folder != mounted:
            yield folder
            folder = folder.parent
    yield mounted


def _limit_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # the top of a hierarchy has no such file
        return None


def _limit_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
