"""The checks of what an engine does when something goes wrong."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

from clf.checks import Check, Failed, Skipped
from clf.errors import ClfError, ModelError
from clf_serve.bulk.bench import TROUBLE, Bench, work_of
from clf_serve.bulk.engine import BulkEngine, Options
from clf_serve.elsewhere import another_process, class_at, place_of

_PATIENCE = 180.0  # seconds that the other process may take for its first report, and for its end
_PROGRAM = "import sys; from clf_serve.bulk.check_failures import drive; drive(*sys.argv[1:])"


def _refusal(bench: Bench) -> str:
    ran = bench.fails(bench.bulk("refusal", "refuses"))
    assert ran.error is not None
    if f"takes no image {TROUBLE}" not in str(ran.error):
        raise Failed(f"a worker said 'the model takes no image {TROUBLE}', and run raised {_told(ran.error)}")
    if not isinstance(ran.error, ClfError):
        raise Failed(f"a worker raised ModelError, and run {_told(ran.error)}, which is no ClfError")
    bench.same("refusal", "after a worker had failed", whole=False)
    _goes_on(bench, "refusal")
    kind = "as it was" if type(ran.error) is ModelError else f"as {type(ran.error).__name__}"
    return f"raised {kind}"


def _bug(bench: Bench) -> str:
    ran = bench.fails(bench.bulk("bug", "breaks"))
    assert ran.error is not None
    if f"a fault at image {TROUBLE}" not in str(ran.error):
        raise Failed(f"a worker broke with 'a fault at image {TROUBLE}', and run raised {_told(ran.error)}")
    bench.same("bug", "after a worker had broken", whole=False)
    return type(ran.error).__name__


def _dead_worker(bench: Bench) -> str:
    if set(bench.opened("first")) <= {os.getpid()}:
        raise Skipped("it works in the process that calls it, which cannot die and go on")
    bulk = bench.bulk("dead", "dies")
    try:
        bench.run(bulk)
        outcome = "the shard was made again"
    except ClfError as error:
        outcome = f"told: {error}"[:200]
    except Exception as error:
        raise Failed(f"a worker's process was killed, and run raised {_told(error)}, which is no ClfError") from error
    if not (Path(bulk.work.encoder.notes) / "died").exists():  # type: ignore[attr-defined]
        raise Skipped("no worker's process could be killed")
    bench.same("dead", "after a worker's process was killed", whole=False)
    _goes_on(bench, "dead")
    return outcome


def _closed_early(bench: Bench) -> str:
    bulk = bench.bulk("closed", "slow")
    ran = bench.run(bulk, most=1)
    if len(ran.reports) != 1:
        raise Failed("run was closed after its first report, and had given none")
    bench.gone("closed")
    bench.same("closed", "after run was closed early", whole=False)
    if ran.reports[0].shard in {shard.number for shard in bench.bulk("closed").left}:
        raise Failed(f"shard {ran.reports[0].shard} was reported before run was closed, and is not done")
    left = len(bench.bulk("closed").left)
    _goes_on(bench, "closed")
    return f"{left} of {len(bulk.left)} shards were left"


def _interrupted(bench: Bench) -> str:
    return _stopped(bench, "interrupted", signal.SIGINT)


def _killed(bench: Bench) -> str:
    return _stopped(bench, "killed", getattr(signal, "SIGKILL", signal.SIGTERM))


def _stopped(bench: Bench, name: str, number: int) -> str:
    """Another process runs the engine and gets a signal after its first report; then this one goes on."""
    place = place_of(bench.engine)
    bulk = bench.bulk(name, "slow")
    job = bench.folder / f"{name}.pickle"
    job.write_bytes(pickle.dumps((bulk.work, bulk.left, bench.options)))
    with another_process(_PROGRAM, place, str(job), patience=_PATIENCE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        child.send_signal(number)
        try:
            child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"signal {number} did not end it in {_PATIENCE:g} s") from None
    if not line.strip().isdecimal():
        raise Failed(f"another process ran it and gave no report: {line.strip()[:200] or 'no word'}")
    bench.same(name, f"after signal {number}", whole=False)
    bench.gone(name)
    left = bench.bulk(name).left
    if int(line) in {shard.number for shard in left}:
        raise Failed(f"shard {int(line)} was reported before signal {number}, and is not done")
    _goes_on(bench, name)
    return f"{len(left)} of {len(bulk.left)} shards were left"


def drive(place: str, job: str) -> None:
    """In the process that gets a signal: runs the engine and prints the number of each shard that is reported."""
    kind: type[BulkEngine] = class_at(place)
    options: Options
    work, shards, options = pickle.loads(Path(job).read_bytes())
    try:
        for report in kind(options).run(work, shards, lambda done: None):
            print(report.shard, flush=True)
    except KeyboardInterrupt:
        sys.exit(130)


def _goes_on(bench: Bench, name: str) -> None:
    """What is left is done by a model that does not fail, and the output is whole. Raises Failed."""
    bulk = bench.bulk(name)
    shards = {shard.number for shard in bulk.left}
    engine = bench.engine(bench.options)
    reports = [report.shard for report in engine.run(work_of(bulk, ""), bulk.left, lambda done: None)]
    if sorted(reports) != sorted(shards):
        raise Failed(f"run again, it reported shards {sorted(reports)} of {sorted(shards)}")
    bench.same(name, "run again to the end")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__} ({' '.join(str(error).split())[:200]})"


CHECKS: tuple[Check[Bench], ...] = (
    Check(
        "refusal",
        "The model raises an error of clf's at one image; afterwards a sound one goes on.",
        "The user has to learn what is wrong: a disk that is full, a model that does not fit the memory.",
        "Carry what a worker raises to the process that called run, and raise it there as it is.",
        _refusal,
        ("same bytes", "bad files"),
    ),
    Check(
        "bug",
        "The model raises an error that nobody expects.",
        "An error that is swallowed, or that an engine's own hides, cannot be mended.",
        "Carry it over with its text; a PluginError that holds the text will do.",
        _bug,
        ("same bytes", "bad files"),
    ),
    Check(
        "dead worker",
        "A worker's process kills itself in the middle of a shard, once.",
        "Machines of a cluster are taken away at any time.",
        "Give the shard to another worker, or raise an error that names the cause; never wait for ever.",
        _dead_worker,
        ("same bytes", "bad files"),
    ),
    Check(
        "closed early",
        "The caller closes run after its first report; later the rest is done.",
        "An error of the caller's, or Ctrl-C, must not leave processes that go on working unseen.",
        "End the workers in a finally clause of the generator.",
        _closed_early,
        ("same bytes", "bad files"),
    ),
    Check(
        "interrupted",
        "Another process runs it and gets SIGINT after its first report; later the rest is done.",
        "Ctrl-C is how people stop; what is done must be kept, and nothing half done be left.",
        "Let KeyboardInterrupt through, and end the workers on its way.",
        _interrupted,
        ("closed early",),
    ),
    Check(
        "killed",
        "Another process runs it and is killed with no warning after its first report; later the rest is done.",
        "Machines lose power in the middle of days of work.",
        "Keep nothing that the work needs but in the output; tie workers' lives to their driver's.",
        _killed,
        ("closed early",),
    ),
)
