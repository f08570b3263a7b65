"""Connections that notice a machine which is gone: what is asked of the kernel."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from clf.reachable import noticing

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these settings are Linux's")
assert sys.platform == "linux"


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
        server.accept()[0] as theirs,
    ):
        yield ours, theirs


def asks(connection: socket.socket) -> tuple[bool, int]:
    """Whether the kernel asks silent peers, and after how many milliseconds it gives up one that owes an answer."""
    alive = connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return bool(alive), connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


def test_connections_opened_inside_are_watched_and_no_others() -> None:
    with connected() as before:
        with noticing(30):
            inside = connected()
            ours, theirs = inside.__enter__()
        with connected() as after:
            assert [asks(each) for each in (ours, theirs)] == [(True, 30_000)] * 2
            assert [asks(each) for each in (*before, *after)] == [(False, 0)] * 4
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
        ours.sendall(b"and still they work")
        assert theirs.recv(100) == b"and still they work"
        inside.__exit__(None, None, None)


def test_other_sockets_are_left_alone() -> None:
    """Those of other kinds, those that listen, and whether one waits: which Python decides by a global default."""
    with noticing(30):
        pair = socket.socketpair()
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server = socket.create_server(("127.0.0.1", 0))
        waiting = socket.create_connection(server.getsockname())
        socket.setdefaulttimeout(5)
    socket.setdefaulttimeout(None)
    assert asks(server) == (False, 0)
    assert datagrams.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    assert asks(waiting) == (True, 30_000)
    assert os.get_blocking(waiting.fileno())
    for each in (*pair, datagrams, server, waiting):
        each.close()
