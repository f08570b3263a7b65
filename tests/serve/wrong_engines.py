"""Engines with one fault each, and the check that has to find it. All else of them is right."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from clf.errors import ModelError, PluginError
from clf_serve.bulk import LocalEngine, Shard, ShardReport, Work

Progress = Callable[[int], None]


class StopsAtOnce(LocalEngine):
    finds = "run"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        if shards:
            raise RuntimeError("no machine is free")
        yield from ()


class Scribbles(LocalEngine):
    """Leaves a file of its own in the output."""

    finds = "same bytes"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        Path(work.output, "engine.log").write_text("begun") if shards else None
        yield from super().run(work, shards, progress)


class Forges(LocalEngine):
    """Writes parts that say something else of the model that made them."""

    finds = "same bytes"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        if shards:
            with work.open() as worker:
                worker.provider = "gpu"
                yield from worker.each(shards, progress)


class LosesReports(LocalEngine):
    finds = "reports"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        for report in super().run(work, shards, progress):
            if report.shard != 5 or len(shards) != 6:
                yield report


class TellsTwice(LocalEngine):
    finds = "reports"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        for report in super().run(work, shards, progress):
            yield from [report] * (2 if len(shards) == 6 else 1)


class CountsTheGood(LocalEngine):
    """Tells of images that were embedded, and not of those that could not be."""

    finds = "progress"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        for report in super().run(work, shards, lambda done: None):
            progress(report.made and report.made - report.skipped)
            yield report


class OpensForEach(LocalEngine):
    finds = "opened once"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        for shard in shards:
            yield from super().run(work, [shard], progress)


class Prints(LocalEngine):
    finds = "standard output"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        os.write(1, b"starting workers ...\n")
        yield from super().run(work, shards, progress)


class OpensForNothing(LocalEngine):
    finds = "nothing to do"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        with work.open() as worker:
            yield from worker.each(shards, progress)


class DoesAll(LocalEngine):
    """Whatever it is given, it does all that is left of the plan."""

    finds = "one shard"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        wanted = {shard.number for shard in shards}
        every = work.plan.shards() if len(shards) == 1 else shards
        for report in super().run(work, every, progress):
            if report.shard in wanted:
                yield report


class CountsShards(LocalEngine):
    """Says that all of a shard was made, whatever was there."""

    finds = "what is there"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        for report in super().run(work, shards, lambda done: None):
            report = replace(report, made=report.images + report.skipped)
            progress(report.made)
            yield report


class DropsBadFiles(LocalEngine):
    """Does away with the list of what could not be used."""

    finds = "bad files"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        yield from super().run(work, shards, progress)
        for path in Path(work.output).glob("skipped-*.jsonl"):
            path.write_text("")


class Swallows(LocalEngine):
    """Goes on where a worker says that it cannot."""

    finds = "refusal"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        try:
            yield from super().run(work, shards, progress)
        except ModelError:
            return


class HidesTheCause(LocalEngine):
    finds = "bug"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        try:
            yield from super().run(work, shards, progress)
        except ZeroDivisionError:
            raise PluginError("a task failed; see the logs of the cluster") from None


class Pool(LocalEngine):
    """Right, in another process."""

    finds = ""
    tells = True
    follows = True

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        if not shards:
            return
        pool = ProcessPoolExecutor(1, get_context("spawn"), _follow if self.follows else None)
        try:
            for shard, done in [(shard, pool.submit(_do, work, shard)) for shard in shards]:
                try:
                    report = done.result()
                except BrokenProcessPool as error:
                    if not self.tells:
                        raise
                    raise PluginError(f"a worker has died while it did shard {shard.number}") from error
                progress(report.made)
                yield report
        finally:
            for process in list(pool._processes.values()):
                process.kill()
            pool.shutdown(cancel_futures=True)


class DiesWithItsPool(Pool):
    """Tells of a dead worker in words of the library's that it uses, which no command knows."""

    finds = "dead worker"
    tells = False


class LeavesOrphans(Pool):
    """Its worker waits for ever when the process that drives it is killed."""

    finds = "killed"
    follows = False


class LeavesItsWorkers(LocalEngine):
    """A process of its own goes on after run has been closed."""

    finds = "closed early"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        reports = super().run(work, shards, progress)
        for number, report in enumerate(reports):
            try:
                yield report
            except GeneratorExit:
                if number == 0:
                    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(40)"])
                    threading.Thread(target=child.wait, daemon=True).start()
                    Path(work.encoder.notes, f"opened-{child.pid}-left").touch()  # type: ignore[attr-defined]
                raise


class IgnoresSignals(LocalEngine):
    finds = "interrupted"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        if threading.current_thread() is threading.main_thread() and "pytest" not in sys.modules:
            signal.signal(signal.SIGINT, lambda *_: Path(work.output, "core").touch())
            for report in itertools.islice(super().run(work, shards, progress), 2):
                yield report
                time.sleep(0.5)
            return
        yield from super().run(work, shards, progress)


class KeepsReportsInMemory(LocalEngine):
    """Says that a shard is done before it is."""

    finds = "killed"

    def run(self, work: Work, shards: Sequence[Shard], progress: Progress) -> Iterator[ShardReport]:
        if "pytest" in sys.modules or "interrupted" in work.output:
            yield from super().run(work, shards, progress)
            return
        yield ShardReport(shards[0].number, 4, 0, "cpu")
        time.sleep(2)
        yield from super().run(work, shards, progress)


_OPEN: dict[str, object] = {}


def _follow() -> None:
    """In the other process: ends it when its parent is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _do(work: Work, shard: Shard) -> ShardReport:
    """In the other process."""
    if work.output not in _OPEN:
        _OPEN[work.output] = work.open(1)
    report: ShardReport = _OPEN[work.output].do(shard)  # type: ignore[attr-defined]
    return report


WRONG = [
    StopsAtOnce,
    Scribbles,
    Forges,
    LosesReports,
    TellsTwice,
    CountsTheGood,
    OpensForEach,
    Prints,
    OpensForNothing,
    DoesAll,
    CountsShards,
    DropsBadFiles,
    Swallows,
    HidesTheCause,
    DiesWithItsPool,
    LeavesOrphans,
    LeavesItsWorkers,
    IgnoresSignals,
    KeepsReportsInMemory,
]
