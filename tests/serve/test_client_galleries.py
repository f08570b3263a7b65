"""The client's galleries, blocking and under asyncio, against a live server."""

from __future__ import annotations

import asyncio
import inspect
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_helpers import LIMITS
from gallery_api import TOP, WRITABLE, Live, live, png, truth
from PIL import Image
from serve_helpers import DIM, encoded, picture, write_pictures

from clf.errors import ImageError
from clf_serve.client.client import (
    AsyncClient,
    BusyServerError,
    Client,
    ClientError,
    RefusedError,
    RefusedImageError,
    UnexpectedReplyError,
    Weighted,
    WrongKeyError,
)
from clf_serve.client.gallery import AsyncRemoteGallery, RemoteGallery
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity


class Both:
    """One gallery through both clients: every call goes through both, which must agree."""

    def __init__(self, url: str, name: str = "gallery", **options: Any) -> None:
        self._url, self._name, self._options = url, name, options

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            def blocking() -> Any:
                with Client(self._url, **self._options) as client:
                    found = getattr(client.gallery(self._name), name)(*args, **kwargs)
                    return list(found) if name == "items" else found

            async def awaited() -> Any:
                async with AsyncClient(self._url, **self._options) as client:
                    found = getattr(client.gallery(self._name), name)(*args, **kwargs)
                    return [each async for each in found] if name == "items" else await found

            one, other = outcome(blocking), outcome(lambda: asyncio.run(awaited()))
            assert type(one) is type(other), (one, other)
            if isinstance(one, Exception):
                assert str(one) == str(other)
                raise one
            np.testing.assert_equal(one, other)
            return one

        return call


def outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        return error


@pytest.fixture
def server(engine: Engine, tmp_path: Path) -> Iterator[Live]:
    with live(engine, tmp_path / "gallery", WRITABLE) as server:
        yield server


@pytest.fixture
def client(server: Live) -> Iterator[Client]:
    with Client(str(server.client.base_url)) as client:
        yield client


@pytest.fixture
def both(server: Live) -> Both:
    return Both(str(server.client.base_url))


def test_images_of_every_kind_are_kept_and_found(client: Client, both: Both, engine: Engine, tmp_path: Path) -> None:
    gallery = client.gallery("gallery")
    [path] = write_pictures(tmp_path, 1, first=3)
    kinds: list[Any] = [path, png(4), Image.open(io.BytesIO(png(5))), np.asarray(picture(6)), io.BytesIO(png(7))]

    stored = gallery.upsert(kinds, keys=[f"k{i}" for i in range(5)], metadata=[{"i": i} for i in range(5)])
    assert [(row.key, row.created) for row in stored] == [(f"k{i}", True) for i in range(5)]
    for i, row in enumerate(stored):
        np.testing.assert_array_equal(both.vector(row.id), truth(engine, png(3 + i))[0])
        [hit] = both.search(png(3 + i), k=1)
        assert (hit.id, hit.metadata, hit.width) == (row.id, {"i": i}, 48)
        assert hit.score == pytest.approx(1, abs=1e-6) and 0 < hit.percentile < 1
        assert Image.open(io.BytesIO(both.thumbnail(row.id))).size == (48, 40)
    assert both.info()["images"] == 5 and both.get(stored[0].id).key == "k0"
    [facts] = client.galleries()
    assert (facts["id"], facts["images"]) == ("gallery", 5)


def test_many_images_go_out_in_requests_that_the_server_takes(client: Client, both: Both) -> None:
    blobs = [png(seed) for seed in range(45)]  # more than two requests hold
    first = [row._replace(created=False) for row in client.gallery("gallery").upsert(iter(blobs))]
    assert both.upsert(blobs) == first and len({row.id for row in first}) == 45
    assert [image.id for image in both.items()] == sorted(row.id for row in first)


def test_a_folder_is_kept_without_its_bad_files(client: Client, both: Both, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    good = write_pictures(photos / "a", 11) + write_pictures(photos / "b", 3, first=30)
    (photos / "a" / "0003a.png").write_bytes(b"no image, but the server has to find that out")
    (photos / "b" / "0031a.png").write_bytes(b"")

    def about(path: Path) -> dict[str, Any]:
        return {"folder": path.parent.name}

    assert all(row.created for row in client.gallery("gallery").upsert_folder(photos).stored)
    stored, paths, skipped = both.upsert_folder(photos, metadata=about, progress=False)
    assert paths == good and [row.key for row in stored] == [str(path) for path in good]
    assert [path.name for path, _ in skipped] == ["0003a.png", "0031a.png"]
    assert [image.uri for image in both.items({"folder": "b"})] == [str(path) for path in good[11:]]
    with pytest.raises(ImageError, match=r"0003a\.png|0031a\.png"):
        client.gallery("gallery").upsert_folder(photos, on_error="raise")
    with pytest.raises(ClientError, match="'skip' or 'raise'"):
        both.upsert_folder(photos, on_error="ignore")


def test_vectors_are_kept(client: Client, both: Both) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, DIM))
    stored = client.gallery("gallery").upsert_vectors(vectors, keys=[str(i) for i in range(50)])
    assert len(stored) == 50
    for i in (0, 20, 49):
        assert both.search(vector=vectors[i], k=1)[0].id == stored[i].id
    assert both.get(stored[7].id).sha256 == "" and both.thumbnail(stored[7].id) is None
    with pytest.raises(ClientError, match=r"shape \(n, D\)"):
        both.upsert_vectors([1.0, 2.0])
    with pytest.raises(ClientError, match="as many as the images"):
        both.upsert_vectors(vectors, keys=["a"])
    with pytest.raises(ClientError, match="as many as the images"):  # they may be shifted against each other
        both.upsert_vectors(vectors, keys=[str(i) for i in range(51)])
    with pytest.raises(ClientError, match="as many as the images"):
        both.upsert([png(1)], metadata=[{}, {}])
    assert both.info()["images"] == 50
    with pytest.raises(RefusedError, match="12 finite numbers"):
        both.upsert_vectors([[1.0]])


def test_searches_say_all_that_the_server_understands(client: Client, both: Both) -> None:
    gallery = client.gallery("gallery")
    ids = [row.id for row in gallery.upsert([png(i) for i in range(12)], metadata=[{"odd": i % 2} for i in range(12)])]
    gallery.upsert(png(0), keys=["copy"])

    whole = [hit.id for hit in both.search(id=ids[0], k=50)]
    assert len(whole) == 12
    assert [hit.id for hit in both.search(id=ids[0], k=4, offset=3, exact=True)] == whole[3:7]
    assert {hit.metadata["odd"] for hit in both.search(png(1), where={"odd": 1})} == {1}
    assert all(hit.score >= 0.9 for hit in both.search(png(1), min_score=0.9))
    [first, *_] = both.search(png(0), fold=0.99999)
    assert first.folded == (13,)
    mixed = both.search(like=[ids[1], Weighted(png(2), 2.0)], unlike=[both.vector(ids[3])], k=50)
    assert ids[1] not in [hit.id for hit in mixed] and len(mixed) == 12
    assert mixed != both.search(like=[ids[1], png(2)], unlike=[both.vector(ids[3])], k=50)
    number = np.int64(ids[1])
    assert both.search(id=number) == both.search(id=ids[1])
    row = both.vector(ids[3]).tolist()
    assert both.search(like=[number, Weighted(row, 2.0)]) == both.search(
        like=[ids[1], Weighted(both.vector(ids[3]), 2.0)]
    )
    for wrong in ({}, {"id": 1, "vector": [1.0] * DIM}):
        with pytest.raises(ClientError, match="search takes one of"):
            both.search(**wrong)
    with pytest.raises(RefusedImageError, match=r"like\[1\]"):
        both.search(like=[1, b"no image, but long enough to be looked at"])
    with pytest.raises(RefusedError, match="no such fact"):
        both.search(id=1, where={"@no": 1})


def test_pages_metadata_and_deletes(client: Client, both: Both) -> None:
    gallery = client.gallery("gallery")
    ids = [row.id for row in gallery.upsert([png(i) for i in range(7)])]
    page = both.page(limit=3)
    assert ([image.id for image in page.images], page.next) == (ids[:3], ids[2])
    assert both.page(after=ids[5]).next is None
    assert both.set_metadata(ids[0], {"a": 1, "b": None}).metadata == {"a": 1}
    assert both.page(where={"a": 1}).images == [both.get(ids[0])]
    assert both.set_metadata(ids[0], None).metadata == {}
    with pytest.raises(RefusedError, match="7 images match and 3 were expected"):
        both.delete_where({}, confirm=3)
    assert gallery.delete(ids[:2]) == 2 and both.delete(ids[:2]) == 0
    assert gallery.delete_where({"@id": {"$gte": ids[4]}}, confirm=3) == 3
    assert [image.id for image in gallery.items()] == ids[2:4]
    assert both.get(ids[0]) is None and both.vector(ids[0]) is None and both.thumbnail(ids[0]) is None


def test_refusals_are_told_apart(client: Client, both: Both, server: Live, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(RefusedImageError, match=r"images\[1\]: ") as caught:
        both.upsert([png(1), b"no image, but long enough to be looked at"])
    assert caught.value.index == 1
    with pytest.raises(RefusedError, match="'no' is not here") as unknown:
        Both(str(server.client.base_url), "no").info()
    assert unknown.value.code == "gallery_not_found"
    with pytest.raises(ClientError, match="as many as the images"):
        both.upsert([png(1), png(2)], keys=["a"])
    with live(engine, tmp_path / "g2" / "gallery", LIMITS) as reads:
        for call in (lambda g: g.upsert(png(1)), lambda g: g.delete([1]), lambda g: g.set_metadata(1, {})):
            with pytest.raises(WrongKeyError) as refused:
                call(Both(str(reads.client.base_url)))
            assert refused.value.code == "gallery_read_only"


@pytest.mark.slow
def test_a_gallery_that_is_being_written_to_is_tried_again(server: Live, engine: Engine) -> None:
    url = str(server.client.base_url)
    with Gallery(server.folder, Identity.of(engine.manifest), write=True):
        with pytest.raises(BusyServerError, match="another process") as caught:
            Both(url, attempts=1).delete([1])
        assert (caught.value.status, caught.value.code) == (409, "gallery_busy")

    answers = itertools.chain([409], itertools.repeat(200))

    def handle(request: httpx.Request) -> httpx.Response:
        if next(answers) == 409:
            return httpx.Response(409, json={"error": {"message": "busy", "code": "gallery_busy"}})
        return httpx.Response(200, json={"deleted": 3})

    with Client("http://x", transport=httpx.MockTransport(handle)) as client:
        assert client.gallery("g").delete([1]) == 3


@pytest.mark.parametrize("reply", [{}, {"images": 1}, {"images": [{}], "next": None}, {"images": [], "next": "x"}])
def test_an_answer_that_is_none_is_an_error(reply: Any) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": [{"id": "x", "dim": 2}]} if "models" in request.url.path else reply)

    both = Both("http://x", transport=httpx.MockTransport(handle))
    for call in (
        lambda: both.page(),
        lambda: both.get(1),
        lambda: both.search(id=1),
        lambda: both.delete([1]),
        lambda: both.upsert(encoded(picture(1))),
        lambda: both.set_metadata(1, {}),
    ):
        with pytest.raises(UnexpectedReplyError, match="the server's answer"):
            call()


def test_both_galleries_have_the_same_calls() -> None:
    names = [{name for name in vars(kind) if not name.startswith("_")} for kind in (RemoteGallery, AsyncRemoteGallery)]
    assert names[0] == names[1] and len(names[0]) > 10
    for name in names[0]:
        blocking, awaited = (getattr(kind, name) for kind in (RemoteGallery, AsyncRemoteGallery))
        one, other = inspect.signature(blocking), inspect.signature(awaited)
        assert one.parameters == other.parameters, name
        if name == "items":
            assert inspect.isasyncgenfunction(awaited)
        else:
            assert inspect.iscoroutinefunction(awaited) and one.return_annotation == other.return_annotation


def test_a_gallery_of_any_name_is_asked_for(engine: Engine, tmp_path: Path) -> None:
    with live(engine, tmp_path / "the cats & dogs ü") as server, Client(str(server.client.base_url)) as client:
        [facts] = client.galleries()
        gallery = client.gallery(facts["id"])
        gallery.upsert(png(1))
        [image] = gallery.items()
        assert image.thumbnail is not None
        assert server.client.get(image.thumbnail).content == gallery.thumbnail(image.id)
        assert TOP not in image.thumbnail
