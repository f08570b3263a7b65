"""Small web servers in threads, for what goes out to others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any


class Silent:
    """For a handler that writes no log."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(handler: Callable[..., Any]) -> Iterator[str]:
    """The address, ``http://127.0.0.1:PORT``, of a server that answers with ``handler``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
