"""``--address``: a Ray cluster that somebody else has started embeds and serves, and goes on running."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bulk_helpers import embedded, tree, write_tar
from command_helpers import one_error
from running import free_port, running
from serve_helpers import PROGRAM, encoded, picture, until

from clf_serve import ray_start
from clf_serve.engine import Engine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None or not sys.platform.startswith("linux"),
        reason="Ray is not installed, or it has no /tmp for the short paths of its sockets",
    ),
]
PHOTO = encoded(picture(3))
CPUS = (os.cpu_count() or 1) + 1
"""That the cluster says it has; one that is started for the command would have as many as there are."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a head node, as ``ray start`` makes one."""
    port = free_port()
    words = ["start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", f"--num-cpus={CPUS}"]
    words += ["--include-dashboard=false", "--object-store-memory=100000000"]
    with ray_start.own_folder() as folder, (folder / "log").open("wb") as log:  # its processes end with it
        head = subprocess.Popen(
            [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words, f"--temp-dir={folder}/r"],
            stdout=log,
            stderr=log,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", ray_start.MARK: str(folder)},
        )
        until(lambda: b"Ray runtime started" in (folder / "log").read_bytes() or head.poll() is not None, 120)
        assert head.poll() is None, (folder / "log").read_text()
        yield f"127.0.0.1:{port}"
        assert head.poll() is None, (folder / "log").read_text()  # whoever joined it has left it running
    head.wait(30)


def clf(*words: object) -> tuple[int, str, str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr


def test_it_embeds_the_same_bytes(cluster: str, model: Path, tmp_path: Path) -> None:
    pictures = [(f"{i:03d}.png", encoded(picture(i)) if i != 4 else b"bad") for i in range(10)]
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", pictures)
    source = str(tmp_path / "{a,b}.tar")
    words = ("--shard-size", 4, "--batch-size", 2, "--format", "npy", "--provider", "cpu", "--json")

    def work(*more: object) -> tuple[int, str, str]:
        return clf("embed", model, source, "-o", tmp_path / "out", "--engine", "ray", *words, *more)

    code, text, said = work("--address", cluster)
    facts = json.loads(text)

    assert (code, said, facts["embedded"], facts["made"], facts["engine"]) == (0, "", 18, 20, "ray")
    embedded(model, source, tmp_path / "local")
    assert tree(tmp_path / "out") == tree(tmp_path / "local")
    too_many = work("--restart", "--address", cluster, "--workers", CPUS + 1)
    assert f"{CPUS + 1} workers are more than the {CPUS} CPUs of the Ray cluster" in one_error(too_many)


def test_it_serves_once_at_a_time_and_again_afterwards(
    cluster: str, model: Path, engine: Engine, tmp_path: Path
) -> None:
    words = (model, "--engine", "ray", "--address", cluster)
    (tmp_path / "photo.png").write_bytes(PHOTO)
    wanted = engine.embed_files([tmp_path / "photo.png"])[0].tobytes()
    for _ in range(2):
        with running(*words) as server:
            assert server.embed(PHOTO) == [wanted]
            second = clf("serve", *words, "--no-ui", "--port", free_port())
            assert f"another clf serve runs in the Ray cluster {cluster}; end it first" in one_error(second)
            assert server.embed(PHOTO) == [wanted]
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(120) == 0


def test_where_no_cluster_is_a_mistake_is_told_of_at_once(model: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    told = one_error(clf("serve", model, "--engine", "ray", "--address", nowhere, "--no-ui", "--port", free_port()))
    assert f"no Ray cluster answers at {nowhere}: Connection refused; give the address that ray start" in told
