"""What bulk embedding and replicas share to start a Ray of their own. Real ones: test_bulk_ray, test_ray_serve."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clf.errors import PluginError, ServeError
from clf_serve import ray_start
from clf_serve.processes import runs

_HOLDER = """
import sys
from pathlib import Path
from clf_serve import ray_start

ray_start._PLACE = Path(sys.argv[1])
with ray_start.own_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""
_SLOW = "The current node timed out during startup. This could happen because some of the processes failed"


@contextmanager
def holder(place: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that has a folder of its own, and the folder."""
    words = [sys.executable, "-c", _HOLDER, str(place)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child, Path(child.stdout.readline().strip())
        finally:
            child.kill()


class SlowRay:
    """Its start fails as often as it is told to."""

    def __init__(self, *failures: str) -> None:
        self.failures, self.asked, self.ended = list(failures), list[dict[str, Any]](), 0

    def init(self, **options: Any) -> None:
        self.asked.append(options)
        if self.failures:
            raise RuntimeError(self.failures.pop(0))

    def shutdown(self) -> None:
        self.ended += 1


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ray_start, "_PLACE", tmp_path)
    return tmp_path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc")
def test_a_folder_goes_with_its_block_and_so_do_processes_of_its_cluster(place: Path) -> None:
    with ray_start.own_folder() as folder:
        with ray_start.environment(ray_start.own_settings(folder)):
            agent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        with ray_start.environment(ray_start.own_settings(place / "clf-other")):
            other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        (folder / "r").mkdir()
        assert agent.poll() is None
    assert list(place.iterdir()) == []
    assert "RAY_AUTH_TOKEN" not in os.environ
    with agent, other:
        assert agent.wait(30) < 0
        assert other.poll() is None
        other.kill()


def test_what_killed_commands_have_left_goes_at_the_next_start_and_what_others_have_stays(place: Path) -> None:
    with holder(place) as (dead, left), holder(place) as (_, used):
        dead.kill()
        dead.wait(30)
        (left / "r").mkdir()
        with ray_start.environment(ray_start.own_settings(left)):
            agent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        meaning = (left / "owner").read_bytes()
        for name, text in (("clf-odd", b"no owner of ours"), ("photos", meaning)):
            (place / name).mkdir()
            (place / name / "owner").write_bytes(text)
        (place / "clf-page").mkdir()
        stays = {place / name for name in ("clf-odd", "photos", "clf-page")} | {used}
        assert set(place.iterdir()) == stays | {left}

        with ray_start.own_folder() as folder:
            assert set(place.iterdir()) == stays | {folder}
        with agent:
            assert not sys.platform.startswith("linux") or agent.wait(30) < 0
            agent.kill()
    assert set(place.iterdir()) == stays


def test_folders_of_one_process_stay_apart(place: Path) -> None:
    with ray_start.own_folder() as first:
        with ray_start.own_folder() as second:
            assert set(place.iterdir()) == {first, second}
        assert set(place.iterdir()) == {first}


@pytest.mark.parametrize("kind", [PluginError, ServeError])
def test_a_start_that_takes_too_long_is_tried_again(kind: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SlowRay(_SLOW, _SLOW)
    monkeypatch.setattr(ray_start, "_quiet_ray", lambda library: ray)

    with ray_start.started(kind, "ray.data", place, num_cpus=3) as found:
        assert found is ray and len(ray.asked) == 3 and ray.ended == 2
        assert ray.asked[0] == ray.asked[2] and ray.asked[0]["num_cpus"] == 3 and ray.asked[0]["address"] == "local"
    assert ray.ended == 3

    ray = SlowRay(_SLOW, _SLOW, _SLOW)
    with pytest.raises(kind, match="Ray could not be started: RuntimeError: The current node timed out during startup"):
        ray_start.started(kind, "ray.data", place).__enter__()
    assert len(ray.asked) == 3


def test_what_time_will_not_mend_is_told_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SlowRay("a first line\n\n  no such GPU\n")
    monkeypatch.setattr(ray_start, "_quiet_ray", lambda library: ray)

    with pytest.raises(ServeError, match=r"^Ray could not be started: RuntimeError: no such GPU$"):
        ray_start.started(ServeError, "ray.serve", place).__enter__()
    assert len(ray.asked) == 1


def test_whether_a_process_runs() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert runs(child.pid) and runs(os.getpid())
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has fetched it
        assert not runs(child.pid)
    assert not runs(child.pid) and not runs(2**80)
