"""Two hosts on one machine: network namespaces joined by a pair of virtual Ethernet devices (Linux, as root).

Each host has a name, an address and a loopback device of its own, and reaches the other by that pair alone. The file
system is shared, as that of a cluster is.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

TOOLS = ("ip", "unshare", "mount", "hostname")
DEVICE = "eth0"
_ENTER = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'


@dataclass
class Host:
    """One of two hosts."""

    name: str
    address: str
    namespace: str
    hosts_file: Path
    """What /etc/hosts says there."""
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, words: Sequence[str]) -> list[str]:
        """The command that runs words on this host."""
        there = ["unshare", "--uts", "sh", "-c", _ENTER, "sh", str(self.hosts_file), self.name, *words]
        return ["ip", "netns", "exec", self.namespace, *there]

    def start(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a command in a folder. Its output and its errors go, together, to :meth:`said` of that folder.

        It is in a process group of its own; what it leaves behind is killed with the host.
        """
        with (folder / f"{self.name}.txt").open("a", encoding="utf-8") as said:
            process = subprocess.Popen(
                self.command(words),
                cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def said(self, folder: Path) -> str:
        """What commands that were started in a folder have printed so far."""
        return (folder / f"{self.name}.txt").read_text(encoding="utf-8")

    def cut_off(self) -> None:
        """Pulls the cable: whatever the two hosts send each other from now on is lost, and neither is told."""
        _ip("-n", self.namespace, "link", "set", DEVICE, "down")

    def reconnect(self) -> None:
        """Plugs it in again."""
        _ip("-n", self.namespace, "link", "set", DEVICE, "up")

    def kill(self) -> None:
        """Kills every process of this host with SIGKILL."""
        for number in _ip("netns", "pids", self.namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        for process in self._started:
            process.wait(30)

    def sent(self) -> int:
        """Bytes that this host has sent to the other, with the headers of Ethernet, IP and TCP."""
        path = f"/sys/class/net/{DEVICE}/statistics/tx_bytes"
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, "cat", path], capture_output=True, text=True, check=True, timeout=30
        )
        return int(done.stdout)


@contextmanager
def two_hosts(
    folder: Path, names: tuple[str, str] = ("host-a", "host-b"), domain: str = "example"
) -> Iterator[tuple[Host, Host]]:
    """Hosts that know each other by name; with all of their processes they are gone afterwards.

    Args:
        folder: keeps their /etc/hosts.
        domain: both are known by ``NAME.DOMAIN`` too.
    """
    mark = secrets.token_hex(3)
    addresses = {name: f"192.168.77.{number}" for number, name in enumerate(names, 1)}
    table = [f"{address} {name} {name}.{domain}" for name, address in addresses.items()]
    hosts = []
    for name, address in addresses.items():
        file = folder / f"{name}.hosts"
        file.write_text("\n".join(["127.0.0.1 localhost", *table, ""]), encoding="utf-8")
        hosts.append(Host(name, address, f"clf-{mark}-{address[-1]}", file))
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        _join(*hosts)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            with suppress(subprocess.CalledProcessError):
                host.kill()
                _ip("netns", "delete", host.namespace)  # and with the first one the pair of devices


def _join(one: Host, other: Host) -> None:
    ends = ["name", DEVICE, "netns", one.namespace], ["name", DEVICE, "netns", other.namespace]
    _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
    for host in (one, other):
        _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", DEVICE)
        for device in ("lo", DEVICE):
            _ip("-n", host.namespace, "link", "set", device, "up")


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True, timeout=30).stdout


@cache
def why_not() -> str:
    """Why there can be no two hosts here; empty where there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"clf-{secrets.token_hex(3)}-x"
    words = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", "mount --bind /etc/hosts /etc/hosts"]
    try:
        _ip("netns", "add", name)
        subprocess.run(words, capture_output=True, check=True, timeout=30)
        _ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        _ip("link", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"
    finally:
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "delete", name)
    return ""
