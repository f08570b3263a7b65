"""Goes on bringing a gallery in line with a folder: whenever something changes in it, or every few seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from clf import images
from clf.errors import ClfError
from clf_serve.sync.scanning import File
from clf_serve.sync.syncing import IndexReport

INTERVAL = 5.0
"""Seconds between two looks at a folder whose file system gives no events."""
SETTLE = 1.0
"""Seconds that a file must have rested before it is taken for complete."""

_RESCAN = 300.0  # seconds; events may be lost, for example while very many files arrive
_REMOTE = ("nfs", "cifs", "smb", "9p", "fuse", "ceph", "gluster", "lustre", "afs", "virtiofs", "vboxsf", "drvfs")

Round = Callable[[], IndexReport]
Tell = Callable[[IndexReport | None, str | None], None]


class Stop:
    """Whether to end, and what is to wake up then."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self._asked = threading.Event()

    def __call__(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        self._asked.set()
        self.wake.set()


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """SIGTERM and Ctrl-C ask to stop; asked again, Ctrl-C interrupts at once."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.ask()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Resting:
    """Tells complete files from those that are being written: size and time of modification rest for a moment.

    A file counts as resting when it was last modified ``seconds`` ago by the clock, or when it was seen with the same
    size and time so long ago: the clock of a file server may be ahead of ours.
    """

    def __init__(self, seconds: float = SETTLE) -> None:
        self.seconds = seconds
        self._seen: dict[str, tuple[int, int, float]] = {}
        self._before: dict[str, tuple[int, int, float]] = {}

    def next_round(self) -> None:
        """Forgets the files that were not asked about since the last call."""
        self._before, self._seen = self._seen, {}

    def __call__(self, file: File) -> bool:
        if time.time() - file.mtime_ns / 1e9 >= self.seconds:
            return True
        now = time.monotonic()
        size, mtime_ns, since = self._before.get(file.key, (-1, -1, now))
        if (size, mtime_ns) != (file.size, file.mtime_ns):
            since = now
        self._seen[file.key] = (file.size, file.mtime_ns, since)
        return now - since >= self.seconds


class Events:
    """Wakes up when something below a folder may have changed.

    Args:
        source: the folder, or one file.
        also: another file that matters, of whatever kind.
        ignored: a folder whose changes are our own.
        interval: look every so many seconds instead; None uses events where the file system gives them.
    """

    def __init__(
        self,
        source: Path,
        stop: Stop,
        *,
        also: Path | None = None,
        ignored: Path | None = None,
        interval: float | None = None,
    ) -> None:
        self._source, self._stop = source, stop
        self._also = os.path.realpath(also) if also is not None else None
        self._ignored = os.path.realpath(ignored) + os.sep if ignored is not None else "\0"
        self.interval = interval
        """Seconds between two looks; None while there are events."""
        self.note: str | None = None
        """Why there are no events, though none were refused."""
        self._watched: tuple[int, int] | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        if interval is None:
            self._begin()

    def close(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def wait(self, seconds: float | None = None) -> None:
        """Until something changes or the time for a look has come, at most ``seconds``."""
        wake = self._stop.wake
        limits = [self.interval or _RESCAN] + ([seconds] if seconds is not None else [])
        wake.wait(min(limits))
        wake.clear()
        if self.interval is None and _identity(self._source) not in (None, self._watched):
            self.close()  # the folder was replaced, and events of the old one are all that would come
            self._begin()

    def _begin(self) -> None:
        self._watched = _identity(self._source)
        kind = _file_system(self._source)
        if kind is not None and kind.startswith(_REMOTE):
            self._poll(f"{kind} gives no events")
            return
        try:
            import watchfiles  # noqa: F401
        except ModuleNotFoundError:
            self._poll("the package 'watchfiles' is not installed: pip install 'clf-vision[serve]'")
            return
        self._end = threading.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(self._end, ready), name="clf-watch", daemon=True)
        self._thread.start()
        ready.wait(60)  # what changes from now on is an event

    def _poll(self, reason: str) -> None:
        self.interval = INTERVAL
        self.note = f"{self._source} is looked at every {INTERVAL:g} s: {reason}"

    def _listen(self, end: threading.Event, ready: threading.Event) -> None:
        from watchfiles import watch

        paths = [str(self._source.resolve())]
        if self._also is not None and not self._also.startswith(paths[0] + os.sep):
            paths.append(self._also)
        options = {"debounce": 400, "rust_timeout": 500, "yield_on_timeout": True, "raise_interrupt": False}
        try:
            for changes in watch(*paths, watch_filter=self._matters, stop_event=end, **options):  # type: ignore[arg-type]
                ready.set()
                if changes:
                    self._stop.wake.set()
        except (OSError, RuntimeError) as error:  # the system's limit of watched folders
            self._poll(" ".join(str(error).split()) or type(error).__name__)
            self._stop.wake.set()
        finally:
            ready.set()

    def _matters(self, change: object, path: str) -> bool:
        if path == self._also:
            return True
        name = os.path.basename(path)  # noqa: PTH119
        if name.startswith(".") or path.startswith(self._ignored):
            return False
        if name[name.rfind(".") :].lower() in images.SUFFIXES:
            return True
        return not os.path.isfile(path)  # noqa: PTH113  # a folder, or something that is gone and may have been one


def follow(once: Round, report: IndexReport, events: Events, stop: Stop, tell: Tell, resting: Resting) -> None:
    """Rounds until ``stop``. Errors are told, each once, and tried again.

    Args:
        once: one round.
        report: of the round before the first of these.
        tell: called after a round that changed or found something, with its report, or with an error.
        resting: what the rounds use.
    """
    trouble: str | None = None
    remarks = _remarks(report)
    pause = resting.seconds if report.resting else None
    while not stop():
        events.wait(pause)
        if stop():
            return
        resting.next_round()
        try:
            report = once()
        except ClfError as error:
            if str(error) != trouble:
                trouble = str(error)
                tell(None, trouble)
            pause = INTERVAL
            continue
        trouble = None
        before, remarks = remarks, _remarks(report)
        if report.changed or remarks - before:
            tell(report, None)
        pause = resting.seconds if report.resting else None


def _remarks(report: IndexReport) -> set[str]:
    """What people should hear of a round, beside what changed; each once."""
    return {reason for _, reason in report.skipped} | {f"{report.kept} kept" if report.kept else ""}


def _identity(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _file_system(path: Path) -> str | None:
    """The type of the file system that holds ``path``, as Linux names it; None where nobody says."""
    if sys.platform != "linux":
        return None
    real, best, kind = os.path.realpath(path), "", None
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            left, _, right = line.partition(" - ")
            mount = left.split()[4].encode().decode("unicode_escape")
            if (real + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
                best, kind = mount, right.split()[0]
    return kind
