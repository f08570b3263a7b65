"""From a folder of photos to a search over HTTP, with the gallery in Qdrant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_helpers import Run, one_error
from serve_helpers import Server, encoded, picture, until

pytest.importorskip("qdrant_client", reason="needs qdrant-client")
pytest.importorskip("qdrant_edge", reason="needs qdrant-edge-py, Qdrant's engine")

from qdrant_helpers import Standin, standin

KEY = "s3cret-key"


@pytest.fixture(scope="module")
def qdrant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with standin(tmp_path_factory.mktemp("qdrant"), "--key", KEY) as started:
        yield started


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def done(outcome: tuple[int, str, str]) -> Any:
    assert outcome[0] == 0, outcome
    assert KEY not in outcome[1] + outcome[2]
    return json.loads(outcome[1])


@pytest.mark.slow
def test_index_search_and_serve(
    run: Run, serve: Callable[..., Server], qdrant: Standin, model: Path, photos: Path, tmp_path: Path
) -> None:
    url, folder = qdrant.url("pets", f"?api_key={KEY}"), tmp_path / "folder"
    (tmp_path / "m.csv").write_text("file,label\n0001.png,cat\n0002.png,cat\n0003.png,dog\n")
    told = []
    for place in (url, folder):
        assert done(run("index", model, photos, "-o", place, "--metadata", tmp_path / "m.csv", "--json"))["added"] == 20
        assert done(run("index", model, photos, "-o", place, "--json"))["unchanged"] == 20
        found = [
            done(run("search", place, photos / "0007.png", "-k", "5", "--json")),
            done(run("search", place, "--id", 1, "-k", "3", "--where", '{"label": "cat"}', "--json")),
        ]
        told.append([one["hits"] for one in found])
    assert told[0] == told[1] and told[0][0][0]["uri"].endswith("0007.png")
    facts = done(run("gallery", "info", url, "--json"))
    assert (facts["index"]["kind"], facts["index"]["exact"], facts["images"]) == ("qdrant", False, 20)
    with httpx.Client(base_url=serve(model, "--gallery", url, "--no-ui").base, timeout=60, trust_env=False) as client:
        until(lambda: client.get("/health/ready").status_code == 200, 60)
        hits = client.post("/search", files={"image": encoded(picture(0))}).json()["hits"]
        assert len(hits) and hits == sorted(hits, key=lambda hit: -hit["score"])
        assert done(run("gallery", "delete", url, "--where", '{"label": "cat"}', "--yes", "--json"))["removed"] == 2
        until(lambda: client.get("/v1/galleries").json()["data"][0]["images"] == 18, 60)


def test_errors_on_the_command_line(run: Run, qdrant: Standin, model: Path, photos: Path) -> None:
    url = qdrant.url("none", f"?api_key={KEY}")
    said = one_error(run("search", url, photos / "0001.png"))
    assert "there is no gallery at qdrant://" in said and "api_key=***" in said and KEY not in said
    assert "wants an API key" in one_error(run("index", model, photos, "-o", qdrant.url("none")))
    assert "has no collection of such a name" in one_error(run("gallery", "info", "qdrant://localhost/a%22b"))
    assert "no Qdrant can be reached" in one_error(run("gallery", "info", "qdrant://127.0.0.1:1/pets"))


def test_check_store_makes_its_galleries_there(run: Run, qdrant: Standin, model: Path, photos: Path) -> None:
    code, out, _ = run(
        "gallery", "check-store", "qdrant", "--url", qdrant.url("{name}", f"?api_key={KEY}"), "--only", "create"
    )
    assert code == 0 and "conforms: 1 passed" in out and KEY not in out
