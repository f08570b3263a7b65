"""A gallery from a folder to PostgreSQL and back: the same, bit for bit, also where the server is killed meanwhile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_helpers import Run, one_error
from copies import MODEL, entry, made
from copying_helpers import bend_a_vector, everything, next_id, small_parts
from postgres_helpers import Postgres

from clf.errors import GalleryError
from clf_serve.copying import Steps, copy, diff
from clf_serve.gallery import Gallery
from clf_serve.stores import open_gallery

pytest.importorskip("psycopg")

from clf_serve.stores.postgres import lines

N = 120
ODD: list[dict[str, object]] = [
    {"key": "/A.jpg"},
    {"key": "/a.jpg"},
    {"key": "/e\u0301.jpg", "uri": "\N{GRINNING FACE}", "folder": "x/\u0338y"},
    {"key": "/\u00e9.jpg ", "metadata": {"\\u0000": "\\", "quote'\"": "%s;--", "big": 1e300, "least": -(2**63)}},
    {"key": "/" + "k" * 8_000, "metadata": {"deep": [[{"a": [None, True, 0.1, -0.0, 5e-324]}]]}},
    {"key": "/t.jpg", "thumbnail": bytes(range(256)) * 4_000, "sha256": "", "size": 2**62, "mtime_ns": -1},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = made(tmp_path / "g", N)
    bend_a_vector(folder)
    with Gallery(folder, write=True) as gallery:
        odd = [replace(entry(1_000 + i), **changes) for i, changes in enumerate(ODD)]  # type: ignore[arg-type]
        gallery.upsert(odd, ids=[10**6, 10**6 + 1, 10**9, 2**40, 2**53 + 1, 2**62])
        gallery.delete([2**62])
        gallery.upsert(odd[-1:], ids=[2**61])
    return folder


def test_there_and_back_is_the_same_gallery(
    postgres: Postgres, folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, 25)
    first, second, before = postgres.url(), postgres.url(), everything(folder)

    code, out, _ = run("gallery", "copy", folder, first, "--json")

    found = json.loads(out)
    assert code == 0 and found["images"] == found["compared"]["rows"] == N + len(ODD) and found["different"] == 0
    assert found["compared"]["bytes"] == sum(len(vector) + len(jpeg) for _, vector, jpeg in before)
    assert found["searches"] == 32
    copy(first, second)
    copy(second, tmp_path / "back")
    for place in (first, second, tmp_path / "back"):
        assert everything(place) == before
        assert diff(folder, place).same and diff(place, folder).same
        assert next_id(place) == 2**62 + 1
    assert not diff(folder, first).same  # which has got another image
    assert "is left as it is" in one_error(run("gallery", "copy", folder, first))


def test_an_index_that_may_miss_neighbours_is_searched_exactly(postgres: Postgres, tmp_path: Path) -> None:
    url, folder = postgres.url(), made(tmp_path / "g", 400)
    copy(folder, url)
    with open_gallery(url, write=True) as gallery:
        assert gallery.optimize("hnsw").kind == "hnsw"
    assert diff(folder, url).searches == 32
    assert copy(url, tmp_path / "back").images == 400 and diff(folder, tmp_path / "back").same


def test_what_others_write_meanwhile_is_copied_too(
    postgres: Postgres, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, 25)
    url = postgres.url()
    copy(folder, url)
    with open_gallery(url, write=True) as gallery:
        ids = gallery.ids().tolist()
        calls = iter(range(100))

        def write(done: int) -> None:
            if next(calls) == 2:
                gallery.delete(ids[:2])
                gallery.upsert([entry(5), entry(2_000)])

        report = copy(url, tmp_path / "new", Steps(progress=write))
    assert report.caught_up >= 2 and everything(tmp_path / "new") == everything(url)


def test_a_server_that_dies_in_the_middle_costs_no_more_than_a_part(
    postgres: Postgres, folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, 25)
    monkeypatch.setattr(lines, "_PAUSES", (0.0, 0.1))
    url, rows = postgres.url("copy"), [0]

    def power_fails(done: int) -> None:
        rows[0] += done
        if rows[0] == 75:
            postgres.kill()

    try:
        with pytest.raises(GalleryError, match=r"cannot be reached to .*: .*refused"):
            copy(folder, url, Steps(progress=power_fails))
    finally:
        postgres.start()
    said = one_error(run("gallery", "info", url))
    assert "is not whole yet" in said and f"to go on: clf gallery copy {folder}" in said
    report = copy(folder, url)
    assert report.resumed == 75 and everything(url) == everything(folder)
    postgres.kill()
    postgres.start()
    with open_gallery(url) as gallery:
        assert gallery.model == MODEL
    assert diff(folder, url).same
