"""Connections that notice when the machine at their other end can no longer be reached.

A process that ends closes its connections, and its peers are told. A machine that loses its power or its network
tells nobody: who only waits to receive would wait for ever, and who sends would try again for a quarter of an hour
(Linux, tcp_retries2). The kernel can ask instead (TCP keep-alive, RFC 1122 4.2.3.6; TCP_USER_TIMEOUT, RFC 5482). It is
the other kernel that answers, so a peer that computes for long is not taken for dead. Gloo has no such setting.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OPEN = Path("/proc/self/fd")


@contextmanager
def noticing(seconds: int) -> Iterator[None]:
    """TCP connections that are opened while entered fail once the other machine has been silent for so long.

    Only on Linux; elsewhere nothing is changed.
    """
    before = set(_sockets().values())
    yield
    for number, name in _sockets().items():
        if name not in before:
            with suppress(OSError):  # closed meanwhile, or not connected
                _ask(number, seconds)


def _sockets() -> dict[int, str]:
    """The name of each open socket, by descriptor; numbers are given again, names are not."""
    found = {}
    for entry in _OPEN.iterdir() if sys.platform == "linux" else ():
        with suppress(OSError):
            name = str(entry.readlink())
            if name.startswith("socket:"):
                found[int(entry.name)] = name
    return found


def _ask(number: int, seconds: int) -> None:
    """Asks after a third of the time without news, then every sixth; unanswered data count as well."""
    if sys.platform != "linux":
        return
    blocking = os.get_blocking(number)
    with socket.socket(fileno=os.dup(number)) as connection:
        os.set_blocking(number, blocking)  # which a default timeout of Python's changes
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
            return
        connection.getpeername()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, seconds // 3))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 6))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * seconds)
