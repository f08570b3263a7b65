"""Checks of what a store keeps: rows written, replaced, removed and read again."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from clf.checks import Check, Failed
from clf_serve.stores.bench import ABOUT, DIM, Bench, by_id, differs, expect, refusal, rows, run_all, units
from clf_serve.stores.bench import row as one_row
from clf_serve.stores.vector_store import ConflictError, NoGalleryError, Row, VectorStore


def _create(bench: Bench) -> None:
    url = bench.url()
    with refusal(NoGalleryError, "open, where there is no gallery,"):
        bench.open(url)
    handle = bench.open(url, write=True, create=ABOUT)
    state = handle.state()
    if (state.generation, state.images) != (0, 0):
        raise Failed(
            f"a new gallery has generation {state.generation} and {state.images} images, and must have 0 and 0"
        )
    lost = [name for name, text in ABOUT.items() if state.about.get(name) != text]
    if lost:
        raise Failed(f"{lost[0]!r} of what is remembered came back as {state.about.get(lost[0])!r}")
    expect(handle, [], "in a new gallery")
    if len(list(handle.search(units(1)[0], 10, None, exact=True))):
        raise Failed("search found something in an empty gallery")
    again = bench.open(url, write=True, create={**ABOUT, "uuid": "two"})
    if again.state().about.get("uuid") != "one":
        raise Failed("open with create put a new gallery in the place of the one that was there")


def _round_trip(bench: Bench) -> str:
    table = rows(100)
    _, handle = bench.new(table)
    expect(handle, table, "after a write")
    for row in handle.read([row.id for row in table], vectors=False, thumbnails=False):
        if difference := differs(table[row.id - 1], row, large=False):
            raise Failed(difference)
    handle.write([], [], {"model_path": "/somewhere", "uuid": "two"}, at=1)
    about = handle.state().about
    if dict(about) | {"model_path": "/somewhere", "uuid": "two"} != dict(about) or about.get("dim") != str(DIM):
        raise Failed(f"what is remembered was not changed by name: {dict(about)}")
    expect(handle, table, "after a write of nothing but names")
    return f"{len(table)} rows"


def odd_rows() -> list[Row]:
    """Texts that differ only to the letter, and values at the edge of what there may be."""
    keys = ["a", "A", "a ", " a", "ä", unicodedata.normalize("NFD", "ä"), "ß", "ss", "a'b", 'a"b', "a\\b", "a%b", "a_b"]
    keys += [
        "a/b",
        "a?b#c",
        "\n",
        "\t",
        "\N{GRINNING FACE}",
        "\u202eabc",
        "\ud7ff",
        "\U0010ffff",
        "{}",
        "null",
        "1",
        "x" * 8192,
    ]
    values: list[Any] = [
        2**63 - 1,
        -(2**63),
        1e300,
        5e-324,
        0.1,
        True,
        None,
        "",
        "é☃",
        [],
        {},
        [[1, {"a": None}]],
        "y" * 250_000,
    ]
    ids = [1, 2**31, 2**53 + 1, 2**63 - 1]
    ids += range(10, 10 + len(keys) - len(ids))
    found = []
    for i, (id_, key, vector) in enumerate(zip(ids, keys, units(len(keys)), strict=True)):
        metadata = {"value": values[i % len(values)], "a.b": 1, 'ü "quoted"': key[:10]}
        jpeg = b"" if i % 3 == 0 else bytes(range(256)) * (1 + 1000 * (i % 3 - 1))
        found.append(one_row(id_, key, metadata, vector, jpeg))
    return found


def _odd_values(bench: Bench) -> str:
    table = odd_rows()
    url, handle = bench.new(table)
    expect(handle, table, "with odd keys and values")
    if found := dict(handle.find(["b", "NULL", "Ä", "x" * 8191, "%", "_"])):
        raise Failed(f"find took {next(iter(found))!r:.40} for a key that is there")
    bench.shut(handle)
    expect(bench.open(url), table, "with odd keys and values, opened again")
    return f"{len(table)} keys"


def _replacement(bench: Bench) -> None:
    table = rows(20)
    _, handle = bench.new(table)
    table[4] = one_row(5, "/elsewhere.jpg", {"n": -1}, units(1, 77)[0], b"another")
    handle.write([table[4]], [], {}, at=1)
    expect(handle, table, "after a row was replaced")
    if "/photos/5.jpg" in handle.find(["/photos/5.jpg"]):
        raise Failed("the key that a replaced row had before is still found")
    one, other = table[0], table[1]
    table[0], table[1] = replace(one, key=other.key), replace(other, key=one.key)
    handle.write(table[:2], [], {}, at=2)
    expect(handle, table, "after two rows took each other's keys")
    heir = replace(table[9], id=900)
    handle.write([heir], [table[9].id], {}, at=3)
    table[9] = heir
    expect(handle, table, "after a new row took the key of one that was removed in the same write")
    found = list(handle.search(table[4].vector, 1, None, exact=True))
    if found != [5]:
        raise Failed(f"search for the new vector of row 5 found {found}")


def _delete(bench: Bench) -> None:
    table = rows(30)
    _, handle = bench.new(table)
    handle.write([], [row.id for row in table[:10]], {}, at=1)
    expect(handle, table[10:], "after 10 of 30 rows were removed")
    if handle.read([1, 2, 3], vectors=True, thumbnails=True) or dict(handle.find([table[0].key])):
        raise Failed("a removed row is still read or found by its key")
    found = set(handle.search(table[0].vector, 30, None, exact=True))
    if found != {row.id for row in table[10:]}:
        raise Failed(
            f"search gave {len(found)} ids after 10 of 30 rows were removed, {len(found & set(range(1, 11)))} of "
            "them removed ones"
        )
    handle.write([table[0]], [], {}, at=2)
    expect(handle, [table[0], *table[10:]], "after a removed row was written again")


def _unknown(bench: Bench) -> None:
    table = rows(5)
    _, handle = bench.new(table)
    if found := list(handle.read([99, 2**62], vectors=True, thumbnails=True)):
        raise Failed(f"read gave {len(found)} rows for ids that are not there")
    there = by_id(handle.read([99, 3], vectors=True, thumbnails=True), "read")
    if list(there) != [3]:
        raise Failed(f"read of one id that is there and one that is not gave {sorted(there)}")
    if dict(handle.find(["/nowhere.jpg"])) or dict(handle.find([])):
        raise Failed("find gave something for a key that is not there")
    handle.write([], [99, 2**62], {}, at=1)
    expect(handle, table, "after ids that are not there were removed")


def _scan(bench: Bench) -> None:
    table = rows(57)
    for place, row in enumerate(table):
        table[place] = replace(row, id=row.id * row.id * 1_000_003)
    _, handle = bench.new()
    mixed = [table[i] for i in np.random.default_rng(0).permutation(len(table))]
    for part in range(0, len(mixed), 10):
        handle.write(mixed[part : part + 10], [], {}, at=part // 10)
    for limit in (1, 7, 1000):
        ids: list[int] = []
        while found := list(handle.scan(ids[-1] if ids else 0, limit, vectors=False, thumbnails=False)):
            ids += [row.id for row in found]
            if len(found) > limit or len(ids) > len(table):
                raise Failed(f"scan gave {len(found)} rows where {limit} were asked for, or went round in a circle")
        if ids != sorted(row.id for row in table):
            raise Failed(f"scan by pages of {limit} gave {len(ids)} of {len(table)} ids, or not by rising id")


class _Torn(Sequence[Row]):
    """Rows of which one cannot be read."""

    def __init__(self, table: Sequence[Row], at: int) -> None:
        self._rows, self._at = table, at

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, int) and place >= len(self._rows):
            raise IndexError(place)
        if isinstance(place, slice) or not 0 <= place < self._at:
            raise ValueError("this row cannot be read")
        return self._rows[place]


def _all_or_none(bench: Bench) -> None:
    table = rows(10)
    url, handle = bench.new(table)
    other = bench.open(url)
    for at in (0, 1, 7):
        try:
            handle.write(_Torn(rows(12, first=5, seed=9), at), [1, 2], {"uuid": "torn"}, at=1)
        except Exception:
            pass
        else:
            raise Failed(f"write was given rows of which the one at {at} cannot be read, and reported success")
        for each, whose in ((handle, "its own handle"), (other, "another handle")):
            moment = f"after a write that failed at its row {at}, by {whose}"
            expect(each, table, moment)
            state = each.state()
            if state.generation != 1 or state.about.get("uuid") != "one":
                raise Failed(f"{moment}: the generation is {state.generation} and must be 1, or names were changed")
    handle.write([], [1], {}, at=1)
    expect(other, table[1:], "after the next write")


def _conflict(bench: Bench) -> str:
    table = rows(3)
    url, handle = bench.new(table)
    for at in (0, 5):
        with refusal(ConflictError, f"write with at={at}, where the generation is 1,"):
            handle.write(rows(1, first=50), [1], {"uuid": "late"}, at=at)
        expect(handle, table, "after a write of another generation was refused")
        if handle.state().about.get("uuid") != "one":
            raise Failed("a write that was refused changed what is remembered")
    written: list[int] = []
    errors: list[Exception] = []

    def work(own: VectorStore, first: int) -> None:
        try:
            for row in rows(8, first=first):
                _insist(own, row)
                written.append(row.id)
        except Exception as error:
            errors.append(error)

    run_all([partial(work, bench.open(url, write=True), 100 * n) for n in (1, 2, 3)])
    if errors:
        raise errors[0]
    state = handle.state()
    if (state.generation, state.images) != (1 + len(written), 3 + len(written)) or len(written) != 24:
        raise Failed(f"three handles wrote {len(written)} rows: generation {state.generation}, {state.images} images")
    return "three handles, 24 writes"


def _insist(handle: VectorStore, row: Row) -> None:
    for _ in range(1000):
        try:
            handle.write([row], [], {}, at=handle.state().generation)
        except ConflictError:
            continue
        return
    raise Failed("write raised ConflictError a thousand times in a row, with the generation read just before")


def _generation(bench: Bench) -> None:
    url, handle = bench.new()
    other = bench.open(url)
    writes: list[tuple[list[Row], list[int], dict[str, str]]] = [
        (rows(3), [], {}),
        ([], [1], {}),
        ([], [], {"uuid": "two"}),
        (rows(1, first=2), [], {}),
        ([], [77], {}),
    ]
    for before, (put, gone, about) in enumerate(writes):
        handle.write(put, gone, about, at=before)
        handle.scan(0, 10, vectors=True, thumbnails=True)
        handle.search(units(1)[0], 3, None, exact=True)
        for each, whose in ((handle, "its own handle"), (other, "another handle")):
            if (now := each.state().generation) != before + 1:
                raise Failed(f"after write {before + 1} the generation is {now}, by {whose}, and must be {before + 1}")


CHECKS = (
    Check(
        "create",
        "A gallery that is not there is refused, made once, and left as it is by a second try to make it.",
        "A misspelled URL would quietly become an empty gallery, or clf index would empty the one that is there.",
        "In open, raise clf_serve.stores.NoGalleryError where there is none and create is None; with create make one "
        "of generation 0 that remembers those texts, unless one is there.",
        _create,
    ),
    Check(
        "round trip",
        "A hundred rows are written and read again by read, scan and find.",
        "What a gallery shows and finds is what the store gives back.",
        "Keep id, key, facts, vector (float32, every bit) and thumbnail of each Row, and the texts of about by name.",
        _round_trip,
        ("create",),
    ),
    Check(
        "odd values",
        "Keys that differ in case, accents or blanks, long ones, large numbers, empty and binary thumbnails come back.",
        "Keys are paths of files: taken for equal, one photo would replace another.",
        "Compare keys letter by letter (no case folding, trimming or Unicode normalisation), and use types that hold "
        "64-bit ids, 8,192 characters of key, 256 KiB of facts and MiB of thumbnail.",
        _odd_values,
        ("round trip",),
    ),
    Check(
        "replacement",
        "Rows are replaced by id, take each other's keys, and inherit that of a removed one.",
        "Images that are embedded again, renamed or swapped would be there twice, or be lost.",
        "In write, first remove delete and the ids of put, and only then add put.",
        _replacement,
        ("round trip",),
    ),
    Check(
        "delete",
        "Ten of thirty rows are removed, and not found by any way.",
        "Deleted images would go on being found.",
        "Remove the row from whatever read, scan, find, search and state look at, its index included.",
        _delete,
        ("round trip",),
    ),
    Check(
        "unknown ids",
        "Ids and keys that are not there are read, found and removed.",
        "Others delete images while a page is looked at: that is no error.",
        "Leave out of read and find what is not there, and ignore it in delete.",
        _unknown,
        ("round trip",),
    ),
    Check(
        "scan",
        "Rows written in any order are read by rising id, in pages of 1, 7 and 1,000.",
        "Listings, duplicates and exports go through a gallery so: they would miss images, or never end.",
        "ORDER BY id, from the first id greater than after, up to limit.",
        _scan,
        ("round trip",),
    ),
    Check(
        "all or none",
        "A write fails in its middle: nothing of it is there, and the next one works.",
        "A request that is answered with an error would have left half of its images.",
        "Put the whole write into one transaction that is rolled back whatever is raised; or read all of put before "
        "anything is changed.",
        _all_or_none,
        ("round trip",),
    ),
    Check(
        "conflict",
        "A write worked out from another generation is refused, and three handles that write at a time lose nothing.",
        "Two processes would give the same id to two images, or undo each other's work.",
        "In the write's transaction compare the generation with at and raise clf_serve.stores.ConflictError; two "
        "writers must not both see the same generation (UPDATE ... WHERE generation = at, or lock it first).",
        _conflict,
        ("round trip", "generation"),
    ),
    Check(
        "generation",
        "It rises by one with each write, for every handle, and with nothing else.",
        "What is remembered is thrown away when it rises: filters would go on finding what was there before.",
        "Keep it with the rows and raise it in the transaction of each write, also one that only removes or renames.",
        _generation,
        ("create",),
    ),
)
