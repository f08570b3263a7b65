"""Importing a plugin in a process of its own and writing down everything that the import did.

The process has clf and torch imported and nothing else done, so that what is seen is the plugin's. It ends as soon as
it has told; a plugin that ends it, or never comes back, hurts nobody.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from clf import plugins, public
from clf.errors import ClfError
from clf.testing import sources
from clf.testing.traces import Events, Recorder, Snapshot

LIMIT = 60.0
"""Seconds that an import may take before it is ended."""
OUTPUT_LIMIT = 1 << 26
"""Bytes of a file that the process may write."""
BASIS = "clf.verify.child"
"""Imported before the clock starts, with all that is public; with it comes what trains, torch and timm."""


@dataclass(frozen=True)
class Found:
    """What one import did."""

    error: str = ""
    """Why the plugin could not be loaded; empty when it could."""
    deeds: tuple[str, ...] = ()
    """What it did besides, each in words with the place in its code."""
    cpu_seconds: float = 0.0
    """Of the processor, beyond clf and torch."""
    slept: float = 0.0
    """Seconds in ``time.sleep``."""
    brought: tuple[str, ...] = field(default=())
    """Packages that it was the first to import, the one with most modules first."""


def probe(name_or_path: str, folder: Path) -> Found:
    """Loads a plugin, its hooks included, in a fresh process."""
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload([BASIS])  # the server of clf verify, which has run nothing
    pipe, theirs = context.Pipe(duplex=False)
    output = folder / "import-output"
    arguments = (name_or_path, str(output), dict(os.environ), theirs)
    process = context.Process(target=_work, args=arguments, daemon=True)
    process.start()
    theirs.close()
    try:
        import_module(BASIS)  # which this process needs too, while the other one imports it
        return _hear(pipe, process)
    finally:
        process.kill()
        process.join()
        pipe.close()


def _hear(pipe: Connection, process: Any) -> Found:
    try:
        pipe.recv()  # it is ready: the clock starts
        if not pipe.poll(LIMIT):
            return Found(f"it has not come back after {LIMIT:.0f} s")
        found: Found = pipe.recv()
        return found
    except EOFError:
        process.join()
        code = process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return Found(f"it ended the Python process, with {how}")


def _work(name_or_path: str, output: str, environment: dict[str, str], pipe: Connection) -> None:
    import_module(BASIS)
    for module in public.MODULES:
        import_module(f"clf.{module}")
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = True
    _limit_files()
    written = os.open(output, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, written), (2, written)):
        os.dup2(target, descriptor)
    files = sources.source_files(name_or_path)
    events = Events({str(file.resolve()) for file in files} | {str(file) for file in files})
    pipe.send("ready")
    sys.stdout = sys.stderr = Recorder(events)
    found = _load(name_or_path, events, written)
    pipe.send(found)
    os._exit(0)  # whatever the plugin has left running


def _load(name_or_path: str, events: Events, written: int) -> Found:
    before = Snapshot.taken()
    modules = set(sys.modules)
    error = ""
    with events.recorded():
        started = time.process_time()
        try:
            plugins.load_plugin(name_or_path)
        except ClfError as failure:
            error = str(failure)
        except KeyboardInterrupt:
            error = "it raised KeyboardInterrupt, which only the person at the terminal may cause"
        except BaseException as failure:
            error = f"it raised {type(failure).__name__}: {failure}"
        seconds = time.process_time() - started
    deeds = [*events.told(), *before.changes(Snapshot.taken(), events)]
    size = os.fstat(written).st_size
    if size:
        text = os.pread(written, 200, 0).decode("utf-8", "replace")
        deeds.append(f"writes {size} bytes to the output of the process: {_short(text)}")
    return Found(error, tuple(deeds), seconds, events.slept, _brought(set(sys.modules) - modules))


def _limit_files() -> None:
    """A plugin that prints without end past Python's streams fills no disk."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_LIMIT, OUTPUT_LIMIT))


def _brought(modules: set[str]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for name in modules:
        top = name.partition(".")[0]
        counts[top] = counts.get(top, 0) + 1
    ordered = sorted(counts, key=lambda top: (-counts[top], top))
    return tuple(f"{top} ({counts[top]} modules)" for top in ordered if counts[top] > 1)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else f"{line[:80]}...")
