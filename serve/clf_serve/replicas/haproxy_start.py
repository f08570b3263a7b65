"""Starts HAProxy for Ray Serve with less than Ray tells it. Run as a script by Ray, in place of ``haproxy``.

Ray (2.60) writes a configuration that listens on all interfaces for statistics (8404) and Prometheus (9101), logs each
request line to the local syslog, and calls every failure 500, which no client repeats. Here these go: nothing listens
but the address that was asked for, nothing is logged, and what the proxy itself has to refuse is a 502, 503 or 504 in
the server's own words. HAProxy ends with its parent, however that ends. Needs only the standard library.

Source of the directives: https://docs.haproxy.org/2.8/configuration.html
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PDEATHSIG = 1  # prctl(2)
_UNWANTED = (["frontend", "prometheus"], ["listen", "stats"])
_GONE = "no replica answers at the moment; try again soon"
_WORDS = {"502": "the replica that had this request is gone; send it again", "503": _GONE, "504": _GONE}
_NAMES = {"502": "Bad Gateway", "503": "Service Unavailable", "504": "Gateway Timeout"}


def body(status: str) -> str:
    """As the server words its refusals, in JSON."""
    error = f'"message": "{_WORDS[status]}", "type": "server_error", "param": null, "code": "no_replica"'
    return f'{{"error": {{{error}}}}}'


def error_file(status: str) -> str:
    """A whole reply, as ``errorfile`` wants it."""
    text = body(status)
    head = f"HTTP/1.1 {status} {_NAMES[status]}\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    return f"{head}Content-Length: {len(text)}\r\nCache-Control: no-store\r\n\r\n{text}"


def lessened(config: str, folder: str) -> str:
    """Ray's configuration without what nobody asked for.

    Args:
        folder: of the replies by :func:`error_file`.
    """
    kept: list[str] = []
    section: list[str] = []
    for line in config.splitlines():
        words = line.split()
        if words and not line[0].isspace():
            section = words
        if section in _UNWANTED or words[:1] == ["log"] or words[:2] == ["option", "httplog"]:
            continue
        if words[:1] == ["errorfile"]:
            line = f"    errorfile {words[1]} {folder}/{words[1]}.http"
        elif section == ["backend", "default_backend"] and words[:2] == ["http-request", "return"]:
            text = body("503").replace("\\", "\\\\").replace('"', '\\"').replace(" ", "\\ ")
            line = f"    http-request return status 503 content-type application/json hdr Retry-After 1 string {text}"
        kept.append(line)
    return "\n".join(kept) + "\n"


def main(real: str, folder: str, arguments: list[str]) -> None:
    """Becomes HAProxy.

    Args:
        real: its path.
        arguments: Ray's, which name the configuration by ``-f``.
    """
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(lessened(path.read_text(encoding="utf-8"), folder), encoding="utf-8")
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)
    os.execv(real, [real, *arguments])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
