"""Checks of what a store finds, and of the gallery that is built on it."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from clf.checks import Check, Failed
from clf.errors import GalleryError
from clf_serve.gallery.facts import Identity
from clf_serve.gallery.filters import Where
from clf_serve.gallery.store import Entry, Moved
from clf_serve.stores.bench import DIM, MODEL, Bench, expect, nearest, refusal, rows, run_all, units
from clf_serve.stores.matching import lets_through
from clf_serve.stores.store_gallery import StoreGallery

_PATIENCE = 60.0  # seconds that a write may take


def _search(bench: Bench) -> str:
    table = rows(400)
    _, handle = bench.new(table)
    for query in units(10, 99):
        for k in (1, 10, 400, 1000):
            nearest(handle, table, query, k)
            nearest(handle, table, query, k, exact=False)
    changed = [replace(row, vector=vector) for row, vector in zip(table[:100], units(100, 5), strict=True)]
    handle.write(changed, [row.id for row in table[300:]], {}, at=1)
    table = [*changed, *table[100:300]]
    shared, asked = 0, 0
    for query in units(10, 98):
        nearest(handle, table, query, 10)
        nearest(handle, table, query, 500)
        best = sorted(table, key=lambda row: -float(row.vector @ query))[:10]
        found = {int(id_) for id_ in handle.search(query, 10, None, exact=False)}
        shared += len(found & {row.id for row in best})
        asked += len(found)
    if shared * 2 < asked:
        raise Failed(f"of {asked} ids that search gave with exact=False {shared} are among the 10 best")
    return f"400 rows, 20 queries; recall@10 where it may be approximate {shared / 100:.2f}"


def _allowed(bench: Bench) -> None:
    table = rows(300)
    _, handle = bench.new(table)
    random = np.random.default_rng(1)
    for n in (0, 1, 5, 150, 300):
        ids = np.sort(random.choice(300, n, replace=False) + 1).astype(np.int64)
        for allowed in (ids, np.append(ids, [5000, 2**62])):
            for query in units(3, n + 10):
                for exact in (True, False):
                    nearest(handle, table, query, 10, allowed, exact=exact)


def _ties(bench: Bench) -> None:
    gallery = bench.gallery(bench.url(), create=True)
    one, other = units(2)
    ids = gallery.upsert([_entry(i, one if i % 3 else other) for i in range(90)])
    equal = [id_ for i, id_ in enumerate(ids) if i % 3]
    for k, offset in ((10, 0), (7, 25), (60, 0)):
        found = [hit.id for hit in gallery.search(one, k, offset=offset, exact=True)]
        if found != sorted(equal)[offset : offset + k]:
            raise Failed(
                f"of 60 equal vectors the {k} after the first {offset} are {found[:5]}..., not those of least id"
            )
    if len({hit.score for hit in gallery.search(one, 60, exact=True)}) != 1:
        raise Failed("equal vectors have different scores: the store gave back other numbers than were written")


def _another_model(bench: Bench) -> None:
    url = bench.url()
    gallery = bench.gallery(url, create=True)
    gallery.upsert([_entry(1, units(1)[0])])
    for model, what in (
        (Identity("tiny", "cd" * 32, DIM), "another model"),
        (Identity("tiny", "ab" * 32, DIM + 1), "a model of another dimension"),
    ):
        with refusal(GalleryError, f"opening the gallery with {what}"):
            bench.gallery(url, model=model)
        with refusal(GalleryError, f"making the gallery again with {what}"):
            bench.gallery(url, create=True, model=model)
    with refusal(ValueError, "writing a vector of another dimension"):
        gallery.upsert([_entry(2, units(1, dim=DIM + 1)[0])])
    if (found := bench.gallery(url).model) != MODEL:
        raise Failed(f"the gallery says that it is of model {found}, and it is of {MODEL}")


def _reopening(bench: Bench) -> None:
    table = rows(50)
    url, handle = bench.new(table)
    handle.write([], [50], {"uuid": "two"}, at=1)
    bench.shut(handle)
    for write in (False, True):
        again = bench.open(url, write=write)
        expect(again, table[:-1], "opened again")
        state = again.state()
        if state.generation != 2 or state.about.get("uuid") != "two":
            raise Failed(f"opened again it has generation {state.generation}, which was 2, or has forgotten a name")
        nearest(again, table[:-1], table[0].vector, 5)


def _two_handles(bench: Bench) -> None:
    table = rows(20)
    url, writer = bench.new(table)
    reader, other = bench.open(url), bench.open(url, write=True)
    expect(reader, table, "by a handle that was opened after the write")
    query = units(1, 5)[0]
    for generation, each in ((1, writer), (2, other), (3, writer)):
        new = replace(rows(1, first=100 + generation)[0], vector=query)
        each.write([new], [generation], {}, at=generation)
        table = [row for row in table if row.id != generation] + [new]
        for handle in (reader, writer, other):
            expect(handle, table, "by a handle that was open before another one wrote")
            nearest(handle, table, query, generation)


def _threads(bench: Bench) -> str:
    url = bench.url()
    gallery, reader = bench.gallery(url, create=True), bench.gallery(url)
    ids = gallery.upsert([_entry(i, vector) for i, vector in enumerate(units(60))])
    targets = dict(zip(ids, units(60), strict=True))
    errors: list[BaseException] = []
    searches = 0
    end = threading.Event()

    def look(own: StoreGallery, seed: int) -> None:
        nonlocal searches
        random = np.random.default_rng(seed)
        try:
            for id_ in random.choice(ids, 25).tolist():
                hits = own.search(targets[id_], 5, exact=True)
                if not hits or hits[0].id != id_ or abs(hits[0].score - 1) > 1e-5:
                    raise Failed(f"a search for the vector of image {id_} found {[hit.id for hit in hits]} first")
                if own.items([id_])[0].key != f"k{ids.index(id_)}":
                    raise Failed(f"image {id_} was read with another's key while others were searched for")
                searches += 1
        except BaseException as error:
            errors.append(error)

    def write() -> None:
        try:
            for i in range(1000):
                if end.is_set():
                    return
                fresh = gallery.upsert([_entry(100 + i % 7, vector) for vector in units(1, 1000 + i)])
                if i % 3 == 0:
                    gallery.delete(fresh)
        except BaseException as error:
            errors.append(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        run_all([partial(look, own, n) for n, own in enumerate((reader, reader, gallery, reader))])
    finally:
        end.set()
        writer.join(_PATIENCE)
    if errors:
        raise errors[0]
    if writer.is_alive():
        raise Failed(f"a write by one thread beside searches by others had not come back after {_PATIENCE:g} s")
    return f"{searches} searches by 4 threads beside a writer"


def _history(bench: Bench) -> str:
    """Against a table in memory."""
    random = np.random.default_rng(4)
    url = bench.url()
    gallery, reader = bench.gallery(url, create=True), bench.gallery(url)
    pool, table = units(40), dict[str, Any]()
    for step in range(60):
        what = ("upsert", "upsert", "delete", "relocate", "describe")[int(random.integers(5))]
        keys = list(dict.fromkeys(f"k{n}" for n in random.integers(0, 30, 6)))
        there = [key for key in keys if key in table]
        if what == "upsert":
            new = [replace(_entry(0, pool[random.integers(40)]), key=key, metadata={"step": step}) for key in keys]
            for entry, id_ in zip(new, gallery.upsert(new), strict=True):
                if table.get(entry.key, (id_,))[0] != id_:
                    raise Failed(f"an image that was replaced has got the id {id_} for {table[entry.key][0]}")
                table[entry.key] = (id_, entry.vector, entry.metadata)
        elif what == "delete":
            gallery.delete([table.pop(key)[0] for key in there])
        elif what == "relocate":
            turned = [*there[1:], *there[:1]]
            gallery.relocate([Moved(table[a][0], b, b, 1, 1) for a, b in zip(there, turned, strict=True)])
            table |= dict(zip(turned, [table[key] for key in there], strict=True))
        else:
            gallery.set_metadata({table[key][0]: {"step": -step} for key in there})
            table |= {key: (*table[key][:2], {"step": -step}) for key in there}
        for each in (gallery, reader):
            _agrees(each, table, pool[step % 40], step)
    return "60 changes through the gallery"


def _agrees(gallery: StoreGallery, table: dict[str, Any], query: Any, step: int) -> None:
    found = {item.key: (item.id, item.metadata) for item in gallery.page(limit=1000)}
    if found != {key: (id_, metadata) for key, (id_, _, metadata) in table.items()}:
        raise Failed(f"after change {step} the gallery lists {len(found)} images and there are {len(table)}, or others")
    where = Where.parse({"step": {"$gte": 20}})
    for condition in (None, where):
        scores = {
            id_: float(vector.astype(np.float64) @ query.astype(np.float64))
            for id_, vector, metadata in table.values()
            if condition is None or metadata["step"] >= 20
        }
        wanted = sorted(scores, key=lambda id_: (-round(scores[id_], 9), id_))[:8]
        hits = gallery.search(query, 8, where=condition, exact=True)
        if [hit.id for hit in hits] != wanted:
            filtered = " with a filter" if condition else ""
            raise Failed(f"after change {step} a search{filtered} found {[hit.id for hit in hits]}, not {wanted}")
    passing = [item.id for item in gallery.page(limit=1000) if lets_through(where, item)]
    if gallery.ids(where).tolist() != passing:
        raise Failed(f"after change {step} the filter {where} lets other images through than it should")


def _entry(number: int, vector: Any) -> Entry:
    return Entry(f"k{number}", f"photos/{number}.jpg", vector, b"jpeg %d" % number, metadata={"n": number})


_ROWS = ("round trip", "replacement", "delete", "scan")

CHECKS = (
    Check(
        "search",
        "The best 1, 10, 400 and 1,000 of 400 rows are compared with comparing all, before and after changes.",
        "A gallery would not find its own images.",
        "Order by inner product with the query, the greatest first, and follow "
        "every write; with exact=True miss nothing, with exact=False set approximate = True on the class.",
        _search,
        ("round trip", "replacement", "delete"),
    ),
    Check(
        "allowed",
        "Searches among 0, 1, 5, 150 and all ids find the best of those, and nothing else.",
        "Filters, and pages that leave images out, are searches among ids.",
        "Filter before the k best are picked, not after; ignore ids that are not there; an empty array allows nothing.",
        _allowed,
        ("search",),
    ),
    Check(
        "ties",
        "Sixty equal vectors have one score, and come in the order of their ids.",
        "Pages of results would repeat images and leave others out.",
        "Give vectors back bit for bit, and k ids whenever there are as many.",
        _ties,
        ("search",),
    ),
    Check(
        "another model",
        "A gallery is opened, and made once more, with a model of another digest or dimension.",
        "Vectors of two models in one gallery make every search wrong, and nothing shows it.",
        "Keep the texts given to open as create, and leave them as they are where the gallery is there.",
        _another_model,
        ("create", "round trip"),
    ),
    Check(
        "reopening",
        "A gallery is closed and opened again.",
        "What was acknowledged must be there tomorrow.",
        "Keep rows, texts and generation where they outlive the handle, before write returns.",
        _reopening,
        ("delete", "search"),
    ),
    Check(
        "two handles",
        "What one handle writes is read and found by others that were open before.",
        "A server would not show what clf index adds, nor its own uploads.",
        "Ask the place itself in each call, or notice by its generation that what is kept in memory is old.",
        _two_handles,
        ("delete", "search", "generation"),
    ),
    Check(
        "threads",
        "Four threads search two galleries while a fifth writes.",
        "A server does just that; errors and mixed-up answers would be rare and hard to find.",
        "Keep nothing of a call in the object, or leave the class attribute concurrent False: then calls take turns.",
        _threads,
        (*_ROWS, "search", "two handles", "conflict"),
    ),
    Check(
        "history",
        "Sixty random changes through the gallery are compared with a table in memory, with searches and filters.",
        "The parts must work together, too.",
        "Look at which change it was: the other checks are of one kind of change each.",
        _history,
        (*_ROWS, "odd values", "search", "allowed", "two handles", "all or none", "conflict"),
    ),
)
