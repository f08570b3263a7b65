"""The check of what is left when a process that writes is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib import import_module
from typing import IO

from clf.checks import Check, Failed, Skipped
from clf_serve.stores.bench import ABOUT, DIM, Bench, by_id, differs, rows
from clf_serve.stores.vector_store import VectorStore

_PATIENCE = 60.0  # seconds that the other process may take for its first writes
_PROGRAM = "import sys; from clf_serve.stores.check_kills import write; write(*sys.argv[1:])"


def _killed_writer(bench: Bench) -> str:
    place = f"{bench.store.__module__}:{bench.store.__qualname__}"
    if bench.store.__module__ == "__main__" or "<locals>" in place:
        raise Skipped(f"another process cannot import {place}; define the class in a module")
    told = []
    for writes in (1, 12):
        url = bench.url()
        bench.shut(bench.open(url, write=True, create=ABOUT))
        acknowledged = _kill_after(writes, place, url)
        _left(bench, url, acknowledged)
        told.append(str(acknowledged))
    return f"killed after {' and '.join(told)} writes"


def _kill_after(writes: int, place: str, url: str) -> int:
    """How many rows the other process said that it had written, one at a time, before it was killed."""
    path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-c", _PROGRAM, place, url]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        watch = threading.Timer(_PATIENCE, child.kill)
        watch.start()
        try:
            lines = _lines(child.stdout, writes)
            child.kill()
            lines += [line for line in child.stdout if line.endswith("\n")]  # what it had said before it died
            if len(lines) < writes:
                said = child.stderr.read().strip().splitlines()[-1:]
                raise Failed(f"another process wrote {len(lines)} rows and then failed: {' '.join(said) or 'no word'}")
        finally:
            watch.cancel()
            child.kill()
    return len(lines)


def _lines(stream: IO[str], wanted: int) -> list[str]:
    found: list[str] = []
    while len(found) < wanted and (line := stream.readline()):
        found.append(line)
    return found


def _left(bench: Bench, url: str, acknowledged: int) -> None:
    handle = bench.open(url, write=True)
    state = handle.state()
    if state.images not in (acknowledged, acknowledged + 1) or state.generation != state.images:
        raise Failed(
            f"a process said that {acknowledged} rows were written, each by itself, and was killed: there are "
            f"{state.images} of generation {state.generation}"
        )
    wanted = rows(state.images)
    there = by_id(handle.scan(0, state.images + 1, vectors=True, thumbnails=True), "scan")
    for row in wanted:
        if row.id not in there:
            raise Failed(f"row {row.id} of {acknowledged} that were acknowledged is gone after the writer was killed")
        if difference := differs(row, there[row.id]):
            raise Failed(f"after the writer was killed {difference}")
    found = len(list(handle.search(wanted[0].vector, state.images + 1, None, exact=True)))
    if found != state.images:
        raise Failed(f"after the writer was killed search finds {found} of {state.images} rows")
    handle.write(rows(1, first=10_000), [], {}, at=state.generation)


def write(place: str, url: str) -> None:
    """In the process that is killed: writes one row after another and says so."""
    module, _, name = place.partition(":")
    store: type[VectorStore] = import_module(module).__dict__[name]
    handle = store.open(url, write=True)
    assert handle.state().about["dim"] == str(DIM)
    for row in rows(10_000):
        handle.write([row], [], {}, at=row.id - 1)
        print(row.id, flush=True)


CHECKS = (
    Check(
        "killed writer",
        "Another process writes row by row and is killed with no warning, after its first and its twelfth write.",
        "Machines lose power; what was acknowledged has to be there, and the gallery to go on.",
        "Return from write only when the rows are committed and flushed, and keep no lock that outlives the process.",
        _killed_writer,
        ("round trip", "search", "reopening"),
    ),
)
