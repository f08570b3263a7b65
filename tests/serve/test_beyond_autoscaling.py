"""``clf serve --engine ray --max-replicas``: replicas come under load and go after it, and no request is lost."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from serve_helpers import until
from test_ray_serve import load, replicas

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None or not sys.platform.startswith("linux"),
        reason="Ray is not installed, or there is no HAProxy ingress on this system",
    ),
]


def test_replicas_come_under_load_and_go_again_without_a_lost_request(tmp_path: Path, model: Path) -> None:
    words = ("--max-replicas", 2, "--target-requests", 2, "--threads", 1)
    with replicas(tmp_path, model, *words) as server:
        assert len(server.pids()) == 1
        with load(server.client.base_url, clients=6) as busy:
            until(lambda: len(server.pids()) == 2, 120)
            until(lambda: len(server.requests()) == 2 and min(server.requests().values()) > 50, 60)
        assert set(busy.statuses) == {200}
        with load(server.client.base_url, clients=1) as calm:  # half of what one replica is for
            until(lambda: len(server.pids()) == 1, 180)
            answered = calm.statuses[200]
            until(lambda: calm.statuses[200] > answered + 20, 60)
        assert set(calm.statuses) == {200} and len(busy.vectors | calm.vectors) == 1
