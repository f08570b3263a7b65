"""What the checks of an engine share: a small source with some bad files, a model that needs no library, and runs."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clf.checks import Failed
from clf.errors import ModelError
from clf_serve.backends.base import Pixels, Vectors
from clf_serve.bulk.engine import BulkEngine, Options
from clf_serve.bulk.folders import LocalFolder
from clf_serve.bulk.plan import LISTING, PLAN, Settings, Shard
from clf_serve.bulk.running import Bulk, prepare
from clf_serve.bulk.sources import find_source
from clf_serve.bulk.worker import ShardReport, Work
from clf_serve.processes import runs

SIZE, DIM = 8, 12
SHARDS, SHARD, BATCH = 6, 4, 2
BAD = {5: b"no picture", 14: b"", 15: b"\x89PNG\r\n\x1a\n cut"}
"""Files that hold no image, by their numbers."""
TROUBLE = 9
"""The image at which a model fails that is to fail; its shard is the third."""
OPENED = "opened"
PATIENCE = 30.0
"""Seconds that workers may take to end."""


@dataclass(frozen=True)
class OpenBench:
    """Opens a model that is arithmetic alone, and notes in which process.

    Args:
        notes: a folder for that.
        fault: ``refuses``, ``breaks`` or ``dies`` at image :data:`TROUBLE`; ``slow``.
        driver: the process that may not die.
    """

    notes: str
    fault: str = ""
    driver: int = field(default_factory=os.getpid)

    def __call__(self, threads: int | None) -> BenchEncoder:
        (Path(self.notes) / f"{OPENED}-{os.getpid()}-{secrets.token_hex(4)}").touch()
        return BenchEncoder(self)


class BenchEncoder:
    """Mean colours of four fields."""

    image_size, provider, note = SIZE, "cpu", ""

    def __init__(self, opened: OpenBench) -> None:
        self._opened = opened

    def embed(self, pixels: Pixels) -> Vectors:
        if self._opened.fault == "slow":
            time.sleep(0.1)
        elif self._opened.fault and (pixels[:, 0, 0, 0] == TROUBLE).any():
            self._fail()
        half = SIZE // 2
        fields = pixels.reshape(-1, 2, half, 2, half, 3).astype(np.float32).mean(axis=(2, 4)) + 1
        flat: Vectors = fields.reshape(len(pixels), DIM)
        units: Vectors = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        return units

    def _fail(self) -> None:
        if self._opened.fault == "refuses":
            raise ModelError(f"the model takes no image {TROUBLE}")
        if self._opened.fault == "breaks":
            raise ZeroDivisionError(f"a fault at image {TROUBLE}")
        died = Path(self._opened.notes) / "died"
        if os.getpid() != self._opened.driver and not died.exists():
            died.touch()
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    def close(self) -> None:
        pass


@dataclass
class Ran:
    """What came of a run."""

    bulk: Bulk
    reports: list[ShardReport] = field(default_factory=list)
    progress: list[int] = field(default_factory=list)
    error: BaseException | None = None
    printed: str = ""


class Bench:
    """One engine under test.

    Args:
        folder: empty.
        options: that the engine is made with.
    """

    def __init__(self, engine: type[BulkEngine], name: str, folder: Path, options: Options) -> None:
        self.engine, self.name, self.folder, self.options = engine, name, folder, options
        self.source = folder / "source"
        self._first: Ran | None = None
        self._wanted: dict[str, bytes] | None = None
        self.source.mkdir(parents=True)
        for i in range(SHARDS * SHARD - 1):
            Image.new("RGB", (SIZE, SIZE + i), (i, 3 * i, 255 - i)).save(self.source / f"{i:02d}.png")
        for i, data in BAD.items():
            (self.source / f"{i:02d}.png").write_bytes(data)

    def bulk(self, name: str, fault: str = "") -> Bulk:
        """An output of this name, with what is left to be done for it."""
        notes = self.folder / f"{name}-notes"
        notes.mkdir(exist_ok=True)
        settings = Settings("bench", "ab" * 32, DIM, provider="cpu", batch_size=BATCH, shard_size=SHARD, form="npy")
        source = find_source([str(self.source)])
        return prepare(source, str(self.folder / name), settings, OpenBench(str(notes), fault))

    def run(self, bulk: Bulk, shards: Sequence[Shard] | None = None, most: int | None = None) -> Ran:
        """Runs the engine on what is left, or on some shards; closed after ``most`` reports. Raises what it raises."""
        ran = Ran(bulk)
        engine = self.engine(self.options)
        with closing(
            _closable(engine.run(bulk.work, bulk.left if shards is None else shards, ran.progress.append))
        ) as it:
            for report in it:
                ran.reports.append(report)
                if most is not None and len(ran.reports) >= most:
                    break
        return ran

    def fails(self, bulk: Bulk) -> Ran:
        """Runs the engine, which must raise. Raises Failed."""
        ran = Ran(bulk)
        try:
            with closing(_closable(self.engine(self.options).run(bulk.work, bulk.left, ran.progress.append))) as it:
                ran.reports.extend(it)
        except Exception as error:
            ran.error = error
        if ran.error is None:
            raise Failed(
                f"a worker raised an error, and run ended as if all were well after {len(ran.reports)} reports"
            )
        return ran

    def first(self) -> Ran:
        """One run over everything, which several checks look at; its shards in no order, and their file names kept."""
        if self._first is None:
            bulk = self.bulk("first")
            shards = [bulk.left[i] for i in (3, 0, 5, 1, 4, 2)]
            with _standard_output() as printed:
                ran = self.run(bulk, shards)
            ran.printed = printed()
            self._first = ran
        return self._first

    def wanted(self) -> dict[str, bytes]:
        """What every output must hold, made shard by shard in this process."""
        if self._wanted is None:
            bulk = self.bulk("wanted")
            with bulk.work.open(1) as worker:
                for shard in bulk.left:
                    worker.do(shard)
            self._wanted = parts(self.folder / "wanted")
        return self._wanted

    def same(self, name: str, moment: str, *, whole: bool = True, lists: bool = True) -> None:
        """Raises Failed unless an output holds what it must, or a part of that.

        Args:
            lists: of bad files too.
        """
        wanted, found = (
            {file: data for file, data in each.items() if lists or not file.startswith("skipped-")}
            for each in (self.wanted(), parts(self.folder / name))
        )
        if strange := sorted(found.keys() - wanted.keys()):
            raise Failed(f"{moment}: {strange[0]} is in the output and does not belong there")
        if whole and (lost := sorted(wanted.keys() - found.keys())):
            raise Failed(f"{moment}: {lost[0]} is missing, and {len(lost) - 1} files more")
        if wrong := sorted(file for file, data in found.items() if data != wanted[file]):
            raise Failed(f"{moment}: {wrong[0]} has other bytes than the same shard made in one process")

    def opened(self, name: str) -> list[int]:
        """Processes in which the model was opened for an output, once for each time."""
        found = (self.folder / f"{name}-notes").glob(f"{OPENED}-*")
        return sorted(int(path.name.split("-")[1]) for path in found)

    def gone(self, name: str) -> None:
        """Raises Failed unless all processes that worked for an output have ended, but this one."""
        end = time.monotonic() + PATIENCE
        others = set(self.opened(name)) - {os.getpid()}
        while alive := [pid for pid in others if runs(pid)]:
            if time.monotonic() > end:
                raise Failed(f"process {alive[0]} still runs {PATIENCE:g} s after run was closed")
            time.sleep(0.1)


def parts(folder: Path) -> dict[str, bytes]:
    """Files of an output, without plan and listing, whose content is not the engine's, and without what workers that
    were killed have left half written: the next run removes that."""
    names = LocalFolder(str(folder)).names() - {PLAN, LISTING}
    return {name: (folder / name).read_bytes() for name in sorted(names)}


def work_of(bulk: Bulk, fault: str) -> Work:
    """The same, with a model of another kind."""
    assert isinstance(bulk.work.encoder, OpenBench)
    return replace(bulk.work, encoder=replace(bulk.work.encoder, fault=fault))


def _closable(reports: Any) -> Any:
    """Raises Failed: it is no generator, so that nobody could end it early."""
    if not callable(getattr(reports, "close", None)):
        raise Failed(f"run gave a {type(reports).__name__}, which has no close; write it as a generator")
    return reports


@contextmanager
def _standard_output() -> Iterator[Callable[[], str]]:
    """What is written to the standard output of the process within; asked for afterwards."""
    sys.stdout.flush()
    kept = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        text: list[str] = []
        try:
            yield lambda: "".join(text)
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            text.append(file.read().decode(errors="replace"))
