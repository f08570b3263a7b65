"""A gallery whose writer is killed at any moment: a writer that says what it does, and what must hold afterwards.

The writer is a process of its own. It prints each operation before it begins and again when the gallery has
acknowledged it. After SIGKILL every acknowledged operation must be there, the one in work wholly or not at all, each
vector exactly once, and search must agree with brute force. Run as a program, this module is that writer.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clf_serve.gallery import Entry, Gallery, Identity
from clf_serve.gallery.store import Moved
from clf_serve.index import plan

DIM = 16
MODEL = Identity("killed", "0" * 64, DIM)
_KEYS = [f"/photos/{number:03d}.jpg" for number in range(240)]
_KINDS = ("flat", "hnsw", "ivf")
_FIELDS = {"size": 1, "mtime_ns": 1}


class Mark(NamedTuple):
    """What is known of an entry: whose vector it has, and its metadata."""

    origin: str
    step: int
    note: int


State = dict[str, Mark]
Operation = dict[str, Any]


def vector(mark: Mark) -> NDArray[np.float32]:
    """(DIM,) of unit length, the same for the same origin and step in every process."""
    drawn = np.random.default_rng([mark.step, int(Path(mark.origin).stem)]).normal(size=DIM).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def after(state: Mapping[str, Mark], operation: Operation) -> State:
    """The state when the operation is done."""
    new, step = dict(state), operation["step"]
    match operation["do"]:
        case "upsert":
            new |= {key: Mark(key, step, 0) for key in operation["keys"]}
        case "delete":
            for key in operation["keys"]:
                del new[key]
        case "relocate":
            for old, to in operation["pairs"]:
                new[to] = new.pop(old)
        case "note":
            for key in operation["keys"]:
                new[key] = new[key]._replace(note=step)
    return new


def operations(state: Mapping[str, Mark], seed: int, step: int) -> Iterator[Operation]:
    """Random ones without end, each possible after those before it."""
    draw = random.Random(seed)
    now = dict(state)
    while True:
        step += 1
        do = draw.choices(("upsert", "delete", "relocate", "note", "save", "optimize"), (8, 3, 2, 2, 2, 1))[0]
        here = sorted(now)
        operation: Operation = {"do": do, "step": step}
        if do == "upsert" or len(here) < 40:
            operation |= {"do": "upsert", "keys": draw.sample(_KEYS, draw.randint(1, 40))}
        elif do in ("delete", "note"):
            operation["keys"] = draw.sample(here, draw.randint(1, 12))
        elif do == "relocate":
            free = sorted(set(_KEYS) - set(here))
            if not free:
                continue
            number = draw.randint(1, min(6, len(free)))
            operation["pairs"] = list(zip(draw.sample(here, number), draw.sample(free, number), strict=True))
        elif do == "optimize":
            operation["kind"] = draw.choice(_KINDS)
        now = after(now, operation)
        yield operation


def carry_out(gallery: Gallery, operation: Operation) -> None:
    do, step = operation["do"], operation["step"]
    if do == "upsert":
        marks = {key: Mark(key, step, 0) for key in operation["keys"]}
        gallery.upsert([entry(key, mark) for key, mark in marks.items()])
    elif do == "save":
        gallery.save_index()
    elif do == "optimize":
        gallery.optimize(operation["kind"])
    else:
        known = gallery.listing()
        if do == "delete":
            gallery.delete([known[key].id for key in operation["keys"]])
        elif do == "note":
            gallery.set_metadata({known[key].id: {"note": step} for key in operation["keys"]})
        else:
            pairs = [(known[old].id, to) for old, to in operation["pairs"]]
            gallery.relocate([Moved(id=id_, key=to, uri=to, folder="", **_FIELDS) for id_, to in pairs])


def entry(key: str, mark: Mark) -> Entry:
    return Entry(key=key, uri=key, vector=vector(mark), thumbnail=b"jpeg", metadata={"note": mark.note}, **_FIELDS)


def write_until_killed(folder: Path, seed: int, step: int, state: Mapping[str, Mark]) -> None:
    """What the writer's process does. Graphs and lists are built of the few entries there are, too."""
    plan._LEAST_FOR_LISTS = 40
    with Gallery.open_or_create(folder, MODEL, folder.parent) as gallery:
        for operation in operations(state, seed, step):
            print("begin", json.dumps(operation), flush=True)
            carry_out(gallery, operation)
            print("done", flush=True)


def kill_one(folder: Path, state: State, seed: int, step: int) -> tuple[list[State], int]:
    """Lets a writer work on the gallery and kills it somewhere.

    Returns:
        The states that are possible now (one, or two where an operation was in work), and the last step.
    """
    draw = random.Random(f"kill {seed}")
    program = [sys.executable, __file__, str(folder), str(seed), str(step)]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(state))
    process.stdin.close()
    wanted, delay = draw.randint(1, 60), draw.choice((0.0, 0.001, 0.003, 0.01, 0.03))
    begun: Operation | None = None
    killer: threading.Timer | None = None
    for seen, line in enumerate(process.stdout, 1):  # until the pipe is closed by the kill
        word, _, text = line.rstrip("\n").partition(" ")
        if word == "begin" and text.endswith("}"):
            begun = json.loads(text)
        elif word == "done" and begun is not None and line.endswith("\n"):
            state, step, begun = after(state, begun), begun["step"], None
        if seen == wanted:
            killer = threading.Timer(delay, process.kill)
            killer.start()
    assert killer is not None, "the writer ended by itself"
    assert process.wait(60) == -9, "the writer ended by itself"
    killer.join()
    process.stdout.close()
    return ([state, after(state, begun)] if begun else [state]), step if begun is None else begun["step"]


def check(folder: Path, possible: list[State], seed: int) -> State:
    """What must hold after a kill; the state that the gallery is in."""
    with Gallery(folder, MODEL) as gallery:
        known = gallery.listing()
        ids = {known[key].id: key for key in known}
        assert len(ids) == len(known) == len(gallery), "two entries share an id"
        state = _which(gallery, possible)
        assert sorted(known) == sorted(state)
        keys = [ids[id_] for id_ in sorted(ids)]
        matrix = np.stack([vector(state[key]) for key in keys]) if keys else np.empty((0, DIM), np.float32)
        assert np.array_equal(gallery.vectors(sorted(ids)), matrix), "a vector is not the acknowledged one"
        draw = np.random.default_rng(seed)
        for number in range(4):
            query = draw.normal(size=DIM).astype(np.float32)
            query /= np.linalg.norm(query)
            _agree(gallery, query, matrix, sorted(ids), exact=bool(number % 2))
        assert all(gallery.thumbnail(id_) for id_ in list(ids)[:3])
    return state


def _which(gallery: Gallery, possible: list[State]) -> State:
    """The possible state that the gallery's entries show."""
    known = gallery.listing()
    notes = {item.key: item.metadata["note"] for item in gallery.items([k.id for k in known.values()])}
    for state in possible:
        if sorted(state) == sorted(known) and all(mark.note == notes[key] for key, mark in state.items()):
            stored = gallery.vectors([known[key].id for key in sorted(state)])
            wanted = [vector(state[key]) for key in sorted(state)]
            if not wanted or np.array_equal(stored, np.stack(wanted)):
                return state
    raise AssertionError("the gallery holds neither what was acknowledged nor that and the operation in work")


def _agree(
    gallery: Gallery, query: NDArray[np.float32], matrix: NDArray[np.float32], ids: list[int], *, exact: bool
) -> None:
    scores = dict(zip(ids, (matrix @ query).tolist(), strict=True))
    best = sorted(scores, key=lambda id_: -scores[id_])
    everything = gallery.search(query, len(ids) + 5, exact=exact)
    assert sorted(hit.id for hit in everything) == ids, "an entry is missing, or there twice"
    hits = gallery.search(query, 10, exact=exact)
    assert [hit.score for hit in hits] == [scores[hit.id] for hit in hits] or np.allclose(
        [hit.score for hit in hits], [scores[hit.id] for hit in hits], atol=1e-5
    )
    if exact or gallery.facts().index.exact:
        assert np.allclose([hit.score for hit in hits], [scores[id_] for id_ in best[:10]], atol=1e-5)


def rounds(folder: Path, number: int, seed: int = 0) -> Iterator[int]:
    """Kills a writer so many times on one gallery; yields how many entries there are after each."""
    state, step = State(), 0
    for kill in range(number):
        possible, step = kill_one(folder, state, seed + kill, step)
        if not (folder / "gallery.sqlite").exists():
            assert possible[0] == {}
            continue
        state = check(folder, possible, kill)
        yield len(state)


if __name__ == "__main__":
    given = {key: Mark(*mark) for key, mark in json.loads(sys.stdin.read()).items()}
    write_until_killed(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), given)
