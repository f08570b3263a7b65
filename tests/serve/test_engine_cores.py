"""How many cores a container leaves, read from folders that look like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clf_serve import cores

V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate"
V1 = "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
SET = "33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"
DISK = "22 1 8:1 / / rw - ext4 /dev/sda1 rw,errors=remount-ro"


def machine(root: Path, mounts: list[str], groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("\n".join([DISK, *mounts]) + "\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "wanted"),
    [
        pytest.param([V2], "0::/\n", {"cpu.max": "150000 100000"}, 1.5, id="v2, docker --cpus 1.5"),
        pytest.param([V2], "0::/\n", {"cpu.max": "max 100000"}, None, id="v2, no limit"),
        pytest.param([V2], "0::/\n", {}, None, id="v2, no file"),
        pytest.param(
            [V2],
            "0::/pod/container\n",
            {"cpu.max": "max 100000", "pod/cpu.max": "200000 100000", "pod/container/cpu.max": "400000 100000"},
            2.0,
            id="v2, the pod allows less than its container",
        ),
        pytest.param([V2], "0::/../../elsewhere\n", {"cpu.max": "50000 100000"}, 0.5, id="v2, outside the namespace"),
        pytest.param(
            [SET, V1.format(top="/")],
            "4:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n",
            {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"},
            3.0,
            id="v1",
        ),
        pytest.param(
            [V1.format(top="/docker/abc")],
            "4:cpu,cpuacct:/docker/abc\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "25000", "cpu,cpuacct/cpu.cfs_period_us": "50000"},
            0.5,
            id="v1, the container's group is mounted",
        ),
        pytest.param(
            [V1.format(top="/")],
            "4:cpu,cpuacct:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            None,
            id="v1, no limit",
        ),
        pytest.param(
            [V1.format(top="/"), V2],
            "4:cpu,cpuacct:/\n0::/\n",
            {
                "cpu.max": "400000 100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "100000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            1.0,
            id="both, the least",
        ),
        pytest.param([V2], "0::/\n", {"cpu.max": "garbage"}, None, id="garbage"),
        pytest.param([V2], "0::/\n", {"cpu.max": "100000 0"}, None, id="period of nothing"),
        pytest.param(["broken line", "- - -"], "::\nx\n", {}, None, id="broken tables"),
    ],
)
def test_the_quota_of_control_groups(
    tmp_path: Path, mounts: list[str], groups: str, files: dict[str, str], wanted: float | None
) -> None:
    assert cores.cpu_quota(machine(tmp_path, mounts, groups, files)) == wanted


def test_a_system_without_these_tables_has_no_quota(tmp_path: Path) -> None:
    assert cores.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "affinity", "wanted"),
    [(None, 8, 8), (2.0, 8, 2), (1.5, 8, 2), (0.25, 8, 1), (16.0, 4, 4), (3.0000000000000004, 8, 3)],
)
def test_the_least_of_quota_and_affinity_counts(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, affinity: int, wanted: int
) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)

    assert cores.usable_cores() == wanted
