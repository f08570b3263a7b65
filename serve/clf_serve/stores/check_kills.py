"""The check of what is left when a process that writes is killed."""

from __future__ import annotations

import subprocess
from itertools import islice

from clf.checks import Check, Failed
from clf_serve.elsewhere import another_process, class_at, place_of
from clf_serve.stores.bench import ABOUT, DIM, Bench, by_id, differs, rows
from clf_serve.stores.vector_store import VectorStore

_PATIENCE = 60.0  # seconds that the other process may take for its first writes
_PROGRAM = "import sys; from clf_serve.stores.check_kills import write; write(*sys.argv[1:])"


def _killed_writer(bench: Bench) -> str:
    place, told = place_of(bench.store), []
    for writes in (1, 12):
        url = bench.url()
        bench.shut(bench.open(url, write=True, create=ABOUT))
        acknowledged = _kill_after(writes, place, url)
        _left(bench, url, acknowledged)
        told.append(str(acknowledged))
    return f"killed after {' and '.join(told)} writes"


def _kill_after(writes: int, place: str, url: str) -> int:
    """How many rows the other process said that it had written, one at a time, before it was killed."""
    with another_process(_PROGRAM, place, url, patience=_PATIENCE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        lines = list(islice(child.stdout, writes))
        child.kill()
        lines += [line for line in child.stdout if line.endswith("\n")]  # what it had said before it died
        if len(lines) < writes:
            said = child.stderr.read().strip().splitlines()[-1:]
            raise Failed(f"another process wrote {len(lines)} rows and then failed: {' '.join(said) or 'no word'}")
    return len(lines)


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
    store: type[VectorStore] = class_at(place)
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
