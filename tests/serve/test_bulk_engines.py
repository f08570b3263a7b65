"""The suite for engines proves itself: the local one conforms, and each wrong engine fails the right check only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Run, one_error
from wrong_engines import WRONG, Pool

from clf.errors import ConfigError, PluginError
from clf_serve.bulk import BulkEngine, LocalEngine, Options, bench, conformance, list_engines, run_checks
from clf_serve.bulk.__main__ import main
from clf_serve.bulk.checks import CHECKS
from clf_serve.bulk.engine import load_engine, make_engine

test_local = conformance("local")

_SLOW = ("closed early", "interrupted", "killed", "dead worker")  # start processes, or wait for them
_QUICK = tuple(check.name for check in CHECKS if check.name not in _SLOW)


@pytest.mark.parametrize("engine", WRONG, ids=lambda engine: engine.__name__)
def test_a_wrong_engine_fails_the_right_check_and_no_other(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PATIENCE", 2.0)
    found = run_checks(engine, only=(engine.finds,) if engine.finds in _SLOW else _QUICK)
    failed = {outcome.check.name: outcome for outcome in found.outcomes if outcome.state == "failed"}
    assert list(failed) == [engine.finds], {name: outcome.text for name, outcome in failed.items()}
    assert not found.conforms
    told = failed[engine.finds].explain()
    assert "Why it matters: " in told and "To mend it: " in told


@pytest.mark.slow
def test_an_engine_of_other_processes_conforms() -> None:
    found = run_checks(Pool, only=("opened once", "dead worker", "killed"))

    assert {outcome.check.name: outcome.text for outcome in found.outcomes if outcome.state != "passed"} == {}
    (dead,) = [outcome for outcome in found.outcomes if outcome.check.name == "dead worker"]
    assert dead.text == "told: a worker has died while it did shard 2"


def test_what_a_killed_worker_leaves_half_written_is_no_fault(tmp_path: Path) -> None:
    for name in (".part-00002.npy~host~27754~f3d608e4.partial", "part-00000.npy", "engine.log", "plan.json"):
        (tmp_path / name).touch()
    assert bench.parts(tmp_path).keys() == {"engine.log", "part-00000.npy"}


def test_every_check_finds_a_wrong_engine() -> None:
    assert {engine.finds for engine in WRONG} == {check.name for check in CHECKS}
    for check in CHECKS:
        assert check.name == check.name.lower()
        assert all(text.endswith((".", ")")) for text in (check.looks_at, check.why, check.remedy)), check.name


def test_what_an_engine_raises_is_told_and_what_needs_it_is_not_run() -> None:
    class Broken(LocalEngine):
        def run(self, *_: Any) -> Any:
            raise SystemExit("no cluster")

    found = run_checks(Broken, only=("progress",))
    states = {outcome.check.name: (outcome.state, outcome.text) for outcome in found.outcomes}
    assert states["run"][0] == "failed" and states["run"][1].startswith("SystemExit: no cluster (test_bulk_engines")
    assert states["progress"][0] == "not run"
    assert json.loads(json.dumps(found.as_dict()))["conforms"] is False
    with pytest.raises(ConfigError, match=r"there is no check 'progres'. Did you mean 'progress'"):
        run_checks(LocalEngine, only=("progres",))


def test_an_engine_comes_by_entry_point(
    install: Callable[..., Path], run: Run, model: Path, photos: Path, tmp_path: Path
) -> None:
    install("clf-mine", entry_points="[clf.engines]\nmine = clf_mine:Mine\n", modules={"clf_mine": _MINE})

    assert [(row.name, row.kind, row.state) for row in list_engines() if row.name == "mine"] == [
        ("mine", "engine", "available")
    ]
    code, out, _ = run("embed", model, photos, "-o", tmp_path / "out", "--engine", "mine", "--workers", 3, "--json")
    assert code == 0 and json.loads(out)["embedded"] == 20
    assert (tmp_path / "out" / "part-00000.parquet").is_file()


_MINE = """
from clf_serve.bulk import LocalEngine, Options
print("imported")
class Mine(LocalEngine):
    def __init__(self, options):
        assert options.workers == 3
        super().__init__(Options())
"""


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise OSError('no license')", "engine 'mine' (clf-mine 1.0) is broken, stage import: OSError: no license"),
        ("Mine = dict", "stage class: clf_mine:Mine is no subclass of clf_serve.bulk.BulkEngine"),
        (
            "from clf_serve.bulk import BulkEngine\nclass Mine(BulkEngine): pass",
            "stage class: Mine does not define run. Tell the authors of clf-mine",
        ),
        (
            "from clf_serve.bulk import LocalEngine\nclass Mine(LocalEngine):\n def run(self, *_): yield 7",
            "engine 'mine' reported 7, which it was not given",
        ),
        (
            "from clf_serve.bulk import LocalEngine\nclass Mine(LocalEngine):\n def run(self, *_): yield from ()",
            "engine 'mine' ended and left 1 of 1 shards undone, shard 0 first",
        ),
        (
            "from clf_serve.bulk import LocalEngine\nclass Mine(LocalEngine):\n def run(self, *_): yield 1 / 0",
            "engine 'mine' failed: ZeroDivisionError: division by zero (clf_mine.py, line 3)",
        ),
        (
            "from clf_serve.bulk import LocalEngine\nclass Mine(LocalEngine):\n def run(self, *_): exit('no')",
            "engine 'mine' failed: SystemExit: no",
        ),
        (
            "from clf_serve.bulk import LocalEngine, ShardReport\n"
            "class Mine(LocalEngine):\n def run(self, *_): yield ShardReport(0, 20, 0, 'cpu')",
            "engine 'mine' says that shard 0 is done, and part-00000.parquet is not in",
        ),
        (
            "from clf_serve.bulk import LocalEngine\nclass Mine(LocalEngine):\n def __init__(self, o): 1 / 0",
            "engine 'mine' cannot be made: ZeroDivisionError",
        ),
    ],
)
def test_a_broken_engine_is_named(
    install: Callable[..., Path], run: Run, model: Path, photos: Path, tmp_path: Path, module: str, said: str
) -> None:
    install("clf-mine", entry_points="[clf.engines]\nmine = clf_mine:Mine\n", modules={"clf_mine": module})

    assert said in one_error(run("embed", model, photos, "-o", tmp_path / "out", "--engine", "mine"))


def test_unknown_engines_and_options_without_use(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"there is no engine 'rya'. Did you mean 'ray'\? Installed: local, ray"):
        load_engine("rya")
    with pytest.raises(ConfigError, match="--engine local works in this process"):
        make_engine(LocalEngine, "local", Options(workers=2))
    said = one_error(run("embed", model, photos, "-o", tmp_path / "out", "--address", "x:1"))
    assert "--workers and --address are for others" in said
    assert not (tmp_path / "out").exists()
    assert issubclass(load_engine("ray"), BulkEngine)


def test_the_suite_from_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["none"]) == 2 and "there is no engine 'none'" in capsys.readouterr().err
    assert main([]) == 2 and "usage: python -m clf_serve.bulk ENGINE" in capsys.readouterr().err
