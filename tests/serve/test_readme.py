"""What serve/README.md shows works."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from serve_helpers import Server, picture, until

README = Path(__file__).parents[2] / "serve" / "README.md"


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs curl and bash")
def test_every_curl_example_works(serve: Callable[..., Server], model: Path, gallery: Path, tmp_path: Path) -> None:
    examples = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 8
    picture(1).save(tmp_path / "photo.jpg")
    picture(2).save(tmp_path / "other.png")
    server = serve(model, "--gallery", gallery, "--no-ui")
    with httpx.Client(base_url=server.base, trust_env=False) as client:
        until(lambda: client.get("/health/ready").status_code == 200)

    for example in examples:
        command = example.replace("http://127.0.0.1:8000", server.base).replace("curl ", "curl -fsS --noproxy '*' ")
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, (example, done.stderr)


def test_the_table_of_endpoints_is_complete() -> None:
    from clf_serve.http.api import routes

    text = README.read_text(encoding="utf-8")
    service = type("Nothing", (), {"limits": type("L", (), {"timeout": 1.0})})()
    paths = {re.sub(r"\{.*?\}", "ID", route.path) for route in routes(service).routes}  # type: ignore[attr-defined]
    protocol = {path for path in paths if path.startswith("/v2")}  # its specification lists them
    assert len(protocol) > 5 and "`/v2/...`" in text
    for path in paths - protocol:
        assert f"{path}`" in text, path
