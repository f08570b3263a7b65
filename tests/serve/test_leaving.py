"""What a proxy needs of a server that ends: time to hear of it, and replies that are whole or not there at all."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

from running import free_port, running
from serve_helpers import encoded, picture

from clf_serve.http.whole import Together


class Recorder(asyncio.Transport):
    """Keeps what is handed over, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.closed = False

    def writelines(self, list_of_data: Any) -> None:
        self.calls.append(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0


def test_what_is_written_in_one_turn_leaves_together() -> None:
    async def turns() -> None:
        below = Recorder()
        above = Together(below)
        above.write(b"head")
        above.writelines([b"", b"body"])
        assert (below.calls, above.get_write_buffer_size()) == ([], 8)
        await asyncio.sleep(0)
        assert (below.calls, above.get_write_buffer_size()) == ([b"headbody"], 0)
        above.write(b"next")
        await asyncio.sleep(0)
        assert below.calls == [b"headbody", b"next"]

    asyncio.run(turns())


def test_much_is_not_held_back_and_an_end_leaves_nothing_behind() -> None:
    async def turns() -> None:
        below = Recorder()
        above = Together(below)
        above.write(bytes(2**16))
        assert below.calls == []
        above.write(b"more")
        assert [len(call) for call in below.calls] == [2**16 + 4]
        above.write(b"last")
        above.close()
        assert below.calls[1:] == [b"last"] and below.closed
        above.write(b"late")  # nobody is there
        await asyncio.sleep(0)
        assert len(below.calls) == 2
        gone = Recorder()
        cut = Together(gone)
        cut.write(b"half")
        cut.abort()
        await asyncio.sleep(0)
        assert (gone.calls, gone.closed) == ([], True)

    asyncio.run(turns())


def test_a_reply_arrives_in_one_piece(model: Path) -> None:
    """A proxy that has got the head cannot ask another server any more when the body does not come."""
    body = encoded(picture(1))
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with running(model) as server, socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for _ in range(50):
            connection.sendall(head.encode() + body)
            reply = connection.recv(2**16)
            told, _, vector = reply.partition(b"\r\n\r\n")
            assert told.startswith(b"HTTP/1.1 200")
            assert f"content-length: {len(vector)}".encode() in told.lower()


def test_a_server_that_leaves_says_so_and_goes_on_answering(model: Path) -> None:
    body = encoded(picture(1))
    with running(model, "--drain", "3600", port=free_port()) as server:
        before = server.embed(body)
        server.process.send_signal(signal.SIGTERM)
        reply = server.client.get("/health/ready")
        while reply.status_code == 200:
            reply = server.client.get("/health/ready")
        assert reply.status_code == 503 and "shutting down" in reply.text
        assert server.client.get("/v2/health/ready").status_code == 503
        assert server.client.get("/health/live").status_code == 200
        assert server.embed(body) == before
        with socket.create_connection(("127.0.0.1", server.port), timeout=30):  # new connections are taken too
            pass
        server.process.send_signal(signal.SIGTERM)  # whoever cannot wait says it again
        assert server.process.wait(60) == 0


def test_a_server_that_leaves_is_gone_when_its_time_is_up(model: Path) -> None:
    with running(model, "--drain", "0.5") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
