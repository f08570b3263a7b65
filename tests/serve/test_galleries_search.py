"""Searches in a gallery over HTTP against brute force: queries of every kind, filters, ranges, pages, folding."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_helpers import error
from gallery_api import TOP, WRITABLE, Live, live, png, truth
from numpy.typing import NDArray
from serve_helpers import DIM, until

from clf_serve.background import Background
from clf_serve.call import Call
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery
from clf_serve.limits import ServeLimits
from clf_serve.lookups import Lookups
from clf_serve.metrics import Metrics
from clf_serve.problems import Problem

N = 24
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def server(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Twenty-four images with ids from 1, and a copy of the first under another key; ``fold`` groups by threes."""
    with live(engine, tmp_path_factory.mktemp("search") / "gallery") as server:
        for start in (0, 12):
            images = [
                {"key": f"k{i}", "image": text(png(i)), "metadata": {"i": i, "odd": i % 2, "name": f"n{i}"}}
                for i in range(start, start + 12)
            ]
            server.put(*images)
        server.put({"key": "copy", "image": text(png(0)), "metadata": {"copy": True}})
        yield server


@pytest.fixture(scope="module")
def bank(engine: Engine) -> NDArray[np.float64]:
    """(N + 1, D): row i has the id i + 1."""
    return truth(engine, *(png(i) for i in range(N)), png(0)).astype(np.float64)


def text(blob: bytes) -> str:
    return base64.b64encode(blob).decode()


def ids(found: dict[str, Any]) -> list[int]:
    return [hit["id"] for hit in found["hits"]]


def brute(bank: NDArray[np.float64], query: NDArray[Any], keep: Any = None) -> list[int]:
    """Ids, best first, equal scores by id; the last digits of a score are not the same in float32."""
    kept = [row for row in range(len(bank)) if keep is None or keep(row + 1)]
    return [row + 1 for row in sorted(kept, key=lambda row: (-round(float(bank[row] @ query), 6), row))]


def test_every_form_gives_the_hits_of_the_old_search(server: Live, engine: Engine) -> None:
    blob = png(40)
    vector = truth(engine, blob)[0]
    old = server.client.post("/search?k=7", content=blob, headers=PNG).json()["hits"]
    post = server.client.post
    replies: list[httpx.Response] = [
        post(f"{TOP}/search?k=7", content=blob, headers=PNG),
        post(f"{TOP}/search", files={"image": blob}, data={"k": "7"}),
        post(f"{TOP}/search", json={"image": text(blob), "k": 7}),
        post(f"{TOP}/search", json={"image": {"image": text(blob)}, "k": 7}),
        post(f"{TOP}/search", json={"like": [text(blob)], "k": 7}),
        post(f"{TOP}/search", json={"like": [{"image": text(blob), "weight": 3}], "k": 7.0}),
        post(f"{TOP}/search", json={"vector": vector.astype(float).tolist(), "k": 7, "exact": True}),
    ]
    for reply in replies[:-1]:
        assert [(hit["id"], hit["score"], hit["uri"]) for hit in reply.json()["hits"]] == [
            (hit["id"], hit["score"], hit["uri"]) for hit in old
        ]
        assert "search;dur=" in reply.headers["server-timing"]
    assert ids(replies[-1].json()) == [hit["id"] for hit in old]


def test_the_answer_tells_all_about_the_search(server: Live, bank: NDArray[np.float64]) -> None:
    found = server.search({"id": 3, "k": 4, "include": ["vector"]})
    assert (found["gallery"], found["model"], found["images"], found["matching"]) == ("gallery", "tiny", 25, 25)
    assert found["index"]["recall"] == 1.0 and found["next"] == 4
    background = Background.among(bank.astype(np.float32))
    for hit in found["hits"]:
        np.testing.assert_allclose(hit["vector"], bank[hit["id"] - 1], atol=1e-6)
        assert hit["percentile"] == pytest.approx(background.percentile(hit["score"]), abs=0.02)
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True) and found["hits"][0]["folded"] == []
    assert "vector" not in server.search({"id": 3, "k": 1})["hits"][0]


def test_ids_are_left_out_of_their_own_hits(server: Live, bank: NDArray[np.float64]) -> None:
    expected = [id_ for id_ in brute(bank, bank[4]) if id_ != 5]
    assert ids(server.search({"id": 5, "k": 50})) == expected
    assert ids(server.client.get(f"{TOP}/search", params={"id": 5, "k": 50}).json()) == expected
    link = server.client.get(f"{TOP}/search", params={"id": 5, "k": 3, "offset": 2, "exact": "true"}).json()
    assert ids(link) == expected[2:5] and link["next"] == 5


def test_queries_are_combined(server: Live, engine: Engine, bank: NDArray[np.float64]) -> None:
    fresh = truth(engine, png(50))[0].astype(np.float64)
    e = np.eye(DIM)
    cases: list[tuple[dict[str, Any], NDArray[Any], set[int]]] = [
        ({"like": [2, 3]}, bank[1] + bank[2], {2, 3}),
        ({"like": [2, {"id": 3, "weight": 2.5}]}, bank[1] + 2.5 * bank[2], {2, 3}),
        ({"id": 2, "unlike": [3]}, bank[1] - 0.5 * bank[2], {2, 3}),
        ({"image": text(png(50)), "unlike": [{"id": 3, "weight": 1}]}, fresh - bank[2], {3}),
        ({"like": [text(png(50)), {"vector": e[0].tolist()}], "unlike": [4]}, fresh + e[0] - 0.5 * bank[3], {4}),
        ({"unlike": [7]}, -0.5 * bank[6], {7}),
    ]
    for body, direction, out in cases:
        expected = brute(bank, direction / np.linalg.norm(direction), lambda id_, out=out: id_ not in out)
        assert ids(server.search({**body, "k": 50})) == expected, body


def test_filters_hold_for_every_hit(server: Live, bank: NDArray[np.float64]) -> None:
    def odd(id_: int) -> bool:
        return id_ <= N and (id_ - 1) % 2 == 1

    found = server.search({"id": 1, "k": 5, "where": {"odd": 1}})
    assert ids(found) == brute(bank, bank[0], odd)[:5] and found["matching"] == 12 and found["next"] == 5
    params = {"id": 1, "k": 50, "where": json.dumps({"odd": 1, "i": {"$gte": 10}})}
    link = server.client.get(f"{TOP}/search", params=params).json()
    assert ids(link) == [id_ for id_ in brute(bank, bank[0], odd) if id_ > 10] and link["next"] is None
    assert server.search({"id": 1, "where": {"odd": 7}})["hits"] == []
    form = server.client.post(f"{TOP}/search", files={"image": png(0)}, data={"where": '{"odd": 1}', "k": "3"})
    assert ids(form.json()) == brute(bank, bank[0], odd)[:3]


def test_pages_hold_every_hit_once(server: Live, bank: NDArray[np.float64]) -> None:
    for more in ({}, {"min_score": 0.6}, {"fold": 0.999999}, {"where": {"odd": 0}, "exact": True}):
        whole = ids(server.search({"id": 2, "k": 50, **more}))
        pages: list[int] = []
        offset: int | None = 0
        while offset is not None:
            page = server.search({"id": 2, "k": 4, "offset": offset, **more})
            pages += ids(page)
            offset = page["next"]
        assert pages == whole and len(whole) > 4, more


def test_the_last_page_is_known_where_the_query_does_not_pass_the_filter(server: Live) -> None:
    """Id 1 is even and so not among the twelve that match: it takes no place away."""
    first = server.search({"id": 1, "k": 11, "where": {"odd": 1}})
    assert (len(first["hits"]), first["matching"], first["next"]) == (11, 12, 11)
    last = server.search({"id": 1, "k": 11, "offset": 11, "where": {"odd": 1}})
    assert (len(last["hits"]), last["next"]) == (1, None)
    assert server.search({"id": 2, "k": 11, "where": {"odd": 1}})["next"] is None


def test_a_range_has_all_that_are_near_and_no_other(server: Live, bank: NDArray[np.float64]) -> None:
    scores = bank @ bank[9]
    for least in (0.8, 0.9, 0.999, 1.0, -1.0):
        found = server.search({"id": 10, "k": 50, "min_score": least})
        expected = [id_ for id_ in brute(bank, bank[9]) if scores[id_ - 1] >= least and id_ != 10]
        assert ids(found) == expected, least
        assert all(hit["score"] >= least for hit in found["hits"])


def test_near_duplicates_are_folded(server: Live) -> None:
    plain = server.search({"image": text(png(0)), "k": 3})
    assert ids(plain)[:2] == [1, 25]
    folded = server.search({"image": text(png(0)), "k": 3, "fold": 0.9999})
    assert ids(folded) == [1, ids(plain)[2], ids(server.search({"image": text(png(0)), "k": 4}))[3]]
    assert [hit["folded"] for hit in folded["hits"]] == [[25], [], []]
    assert server.search({"image": text(png(0)), "k": 3, "fold": True})["hits"][0]["folded"][0] == 25
    everything = server.search({"image": text(png(0)), "k": 3, "fold": 0.01})
    assert len(everything["hits"]) == 1 and everything["next"] is None
    assert len(everything["hits"][0]["folded"]) == 24


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 400, "one_query", None),
        ({"id": 1, "vector": [1.0] * DIM}, 400, "one_query", None),
        ({"like": []}, 400, "one_query", "like"),
        ({"like": 1}, 400, "invalid_input", "like"),
        ({"like": [1] * 101}, 413, "too_many_queries", "like"),
        ({"like": ["a cat"]}, 400, "invalid_base64", "like[0]"),
        ({"like": [text(b"x" * 40)]}, 422, "invalid_image", "like[0]"),
        ({"like": [text(png(1))] * 21}, 413, "too_many_images", "like"),
        ({"like": [1, 1.5]}, 400, "invalid_id", "like[1]"),
        ({"like": [{}]}, 400, "one_query", "like[0]"),
        ({"like": [{"id": 1, "vector": []}]}, 400, "one_query", "like[0]"),
        ({"like": [{"id": 1, "weight": 0}]}, 400, "invalid_weight", "like[0].weight"),
        ({"like": [{"id": 1, "weight": -1}]}, 400, "invalid_weight", "like[0].weight"),
        ({"like": [{"id": 1, "wieght": 1}]}, 400, "unknown_field", "like[0].wieght"),
        ({"like": [1], "unlike": [{"id": 1, "weight": 1}]}, 400, "no_direction", "like"),
        ({"id": 999}, 404, "unknown_id", "id"),
        ({"like": [1, {"id": 999}]}, 404, "unknown_id", "like[1].id"),
        ({"id": 1, "k": 0}, 400, "invalid_k", "k"),
        ({"id": 1, "k": 51}, 400, "invalid_k", "k"),
        ({"id": 1, "offset": -1}, 400, "invalid_offset", "offset"),
        ({"id": 1, "offset": 10_000}, 400, "invalid_offset", "offset"),
        ({"id": 1, "min_score": 1.1}, 400, "invalid_min_score", "min_score"),
        ({"id": 1, "min_score": True}, 400, "invalid_min_score", "min_score"),
        ({"id": 1, "exact": 1}, 400, "invalid_exact", "exact"),
        ({"id": 1, "fold": 0}, 400, "invalid_fold", "fold"),
        ({"id": 1, "fold": "yes"}, 400, "invalid_fold", "fold"),
        ({"id": 1, "include": ["payload"]}, 400, "invalid_include", "include"),
        ({"id": 1, "where": {"i": {"$near": 1}}}, 400, "invalid_filter", "where"),
        ({"id": 1, "filter": {"i": 1}}, 400, "unknown_field", "filter"),
        ({"vector": [1.0]}, 400, "invalid_vector", "vector"),
    ],
)
def test_a_bad_search_is_refused_with_the_place(
    server: Live, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    found = error(server.client.post(f"{TOP}/search", json=body), status, code)
    assert found["param"] == param


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "one_query"),
        ("id=x", "invalid_id"),
        ("id=1&k=x", "invalid_k"),
        ("id=1&exact=maybe", "invalid_exact"),
        ("id=1&min_score=nan", "invalid_min_score"),
        ("id=1&where=%7B", "invalid_filter"),
        ("id=1&fold=2", "invalid_fold"),
        ("id=1&include=score", "invalid_include"),
        ("id=1&wher=%7B%7D", "unknown_field"),
    ],
)
def test_a_bad_link_is_refused(server: Live, query: str, code: str) -> None:
    error(server.client.get(f"{TOP}/search?{query}"), 400, code)


def test_a_form_holds_one_image(server: Live) -> None:
    error(server.client.post(f"{TOP}/search", files=[("a", png(1)), ("b", png(2))]), 400, "one_image")
    error(server.client.post(f"{TOP}/search", files=[("k", (None, "3"))]), 400, "one_image")


def test_a_misspelt_field_of_a_form_is_refused(server: Live) -> None:
    """Without its filter the search would give something else."""
    reply = server.client.post(f"{TOP}/search", files={"image": png(1)}, data={"wher": '{"odd": 1}'})
    assert error(reply, 400, "unknown_field")["param"] == "wher"
    reply = server.client.post(f"{TOP}/search?wher=1", content=png(1), headers=PNG)
    assert error(reply, 400, "unknown_field")["param"] == "wher"
    error(server.client.get(f"{TOP}/images", params={"wher": '{"odd": 1}'}), 400, "unknown_field")


def test_a_filter_in_a_form_is_not_read_when_it_is_too_large(server: Live) -> None:
    text = "[" + "{}," * (2**18 // 2) + "{}]"
    reply = server.client.post(f"{TOP}/search", files={"image": png(1)}, data={"where": text})
    error(reply, 413, "too_many_values")


def test_a_search_that_takes_too_long_is_told_and_holds_up_no_other(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, begun = threading.Event(), threading.Semaphore(0)
    search = Gallery.search

    def slow(self: Gallery, vector: Any, k: int, **more: Any) -> Any:
        if k == 8:  # one more than is asked for tells whether a page follows
            begun.release()
            assert go_on.wait(30)
        return search(self, vector, k, **more)

    monkeypatch.setattr(Gallery, "search", slow)
    limits = replace(WRITABLE, timeout=1.0, queue=3)
    with live(engine, tmp_path / "gallery", limits) as server, ThreadPoolExecutor(4) as pool:
        server.put({"image": text(png(1))})
        hang = [pool.submit(server.client.get, f"{TOP}/search?id=1&k=7") for _ in range(3)]
        assert begun.acquire(timeout=20) and begun.acquire(timeout=20)  # as many as there are threads
        codes = [each.result().json()["error"]["code"] for each in hang]
        assert codes == ["deadline_exceeded"] * 3
        go_on.set()
        until(lambda: server.client.get(f"{TOP}/search?id=1").status_code == 200)
    assert begun.acquire(blocking=False) is False  # the third was not begun after its deadline


def test_more_searches_than_there_is_room_for_are_refused() -> None:
    lookups = Lookups(ServeLimits(queue=2), Metrics())
    go_on = threading.Event()

    async def main() -> None:
        inside = [asyncio.ensure_future(lookups(lambda: go_on.wait(30), Call())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Problem) as caught:
            await lookups(lambda: True, Call())
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
        go_on.set()
        assert await asyncio.gather(*inside) == [True, True]
        late = Call(deadline=time.monotonic() - 1)
        with pytest.raises(Problem) as caught:
            await lookups(lambda: True, late)
        assert caught.value.code == "deadline_exceeded"

    asyncio.run(main())
    lookups.close()


def test_an_empty_gallery_has_no_hits(engine: Engine, tmp_path: Path) -> None:
    with live(engine, tmp_path / "gallery") as server:
        for more in ({}, {"min_score": 0.5}, {"fold": True}, {"exact": True, "where": {"a": 1}}):
            found = server.search({"image": text(png(1)), **more})
            assert (found["hits"], found["next"], found["images"]) == ([], None, 0)
        server.put({"image": text(png(1))})
        [hit] = server.search({"image": text(png(1))})["hits"]
        assert hit["percentile"] is None
