"""clf embed from a web server that refuses images, all of them, or credentials."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from bulk_helpers import on_the_web
from command_helpers import Run, one_error
from serve_helpers import write_pictures

pytest.importorskip("aiohttp")


def test_images_that_the_web_refuses_are_listed(run: Run, model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 6)
    out, statuses = tmp_path / "out", {"/p/0002.png": 403, "/p/0005.png": 410}
    with on_the_web(tmp_path, statuses) as web:
        code, text, _ = run("embed", model, f"{web}/p", "-o", out, "--shard-size", 5, "--json")  # the last is a shard

    facts = json.loads(text)
    assert (code, facts["embedded"], facts["skipped_total"], facts["shards"]) == (0, 4, 2, 2)
    assert [each["path"] for each in facts["skipped"]] == ["0002.png", "0005.png"]
    first, last = (each["reason"] for each in facts["skipped"])
    assert first.startswith(f"{web}/p/0002.png cannot be read: 403") and "cannot be read: 410" in last


def test_a_source_that_refuses_everything_is_told_and_can_be_gone_on_with(
    run: Run, model: Path, tmp_path: Path
) -> None:
    paths = write_pictures(tmp_path / "p", 5)
    out, statuses = tmp_path / "out", {f"/p/{path.name}": 403 for path in paths}
    with on_the_web(tmp_path, statuses) as web:
        words = ("embed", model, f"{web}/p", "-o", out, "--shard-size", 2)
        said = one_error(run(*words))
        assert f"{web}/p refused 2 of 2 images, and now refuses all; see to the credentials and rights" in said
        assert f"{web}/p/0001.png cannot be read: 403" in said
        assert not list(out.glob("part-*"))
        statuses.clear()
        assert "5 images" in run(*words)[1]


class Expiring(dict[str, int]):
    """Statuses of a server that refuses all images after the first few."""

    def __init__(self, few: int) -> None:
        super().__init__()
        self.left: float = few

    def get(self, path: str, default: Any = None) -> Any:
        if path.endswith(".png"):
            self.left -= 1
        return 403 if self.left < 0 else default


def test_credentials_that_expire_end_it_and_lose_nothing(run: Run, model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 40)
    out, server = tmp_path / "out", Expiring(12)
    with on_the_web(tmp_path, server) as web:
        words = ("embed", model, f"{web}/p", "-o", out, "--shard-size", 5, "--json")
        said = one_error(run(*words))
        assert "images, and now refuses all; see to the credentials and rights" in said
        server.left = math.inf
        facts = json.loads(run(*words)[1])
    assert (facts["embedded"], facts["skipped_total"]) == (40, 0) and facts["made"] <= 35


@pytest.mark.parametrize("status", [401, 429, 503])
def test_what_another_time_or_a_password_would_mend_ends_it(run: Run, model: Path, tmp_path: Path, status: int) -> None:
    write_pictures(tmp_path / "p", 3)
    with on_the_web(tmp_path, {"/p/0001.png": status}) as web:
        said = one_error(run("embed", model, f"{web}/p", "-o", tmp_path / "out"))
    assert f"{web}/p/0001.png cannot be read: {status}" in said
    assert not list((tmp_path / "out").glob("skipped-*"))
