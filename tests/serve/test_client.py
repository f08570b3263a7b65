"""The client, blocking and under asyncio, against a live server of ours and against servers that misbehave."""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from serve_helpers import DIM, encoded, picture, served, service_of, until, write_pictures

import clf_serve
from clf.errors import ClfError, ImageError
from clf_serve.client.client import AsyncClient, Client, ClientError, RefusedError, RefusedImageError, WrongKeyError
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.limits import ServeLimits
from clf_serve.sync.indexing import index_images

LIMITS = ServeLimits(max_bytes=200_000, max_images=5)
CALLS = ["embed", "embed_folder", "search", "models", "galleries", "ready"]


class Both:
    """The two clients as one: every call goes through both, which must agree."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._options = options

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            def blocking() -> Any:
                with Client(self._url, **self._options) as client:
                    return getattr(client, name)(*args, **kwargs)

            async def awaited() -> Any:
                async with AsyncClient(self._url, **self._options) as client:
                    return await getattr(client, name)(*args, **kwargs)

            one, other = outcome(blocking), outcome(lambda: asyncio.run(awaited()))
            assert type(one) is type(other), (one, other)
            if isinstance(one, Exception):
                assert str(one) == str(other) and facts(one) == facts(other)
                raise one
            np.testing.assert_equal(one, other)
            return one

        return call


def facts(error: Exception) -> dict[str, Any]:
    """All that an error knows, but for the name of its request: each has its own."""
    return {name: value for name, value in vars(error).items() if name != "request_id"}


def outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        return error


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, engine: Engine, photos: Path) -> Iterator[str]:
    """A server with small limits and the gallery of the twenty photos."""
    folder = tmp_path_factory.mktemp("indexed") / "g"
    with Gallery.open_or_create(folder, Identity.of(engine.manifest), engine.folder) as opened:
        index_images(opened, engine, photos)
    with served(service_of(engine, Gallery(folder), LIMITS)) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        yield str(client.base_url)


def truth(engine: Engine, *blobs: bytes | Path) -> NDArray[np.float32]:
    return engine.embed(np.stack([engine.prepare(blob) for blob in blobs]))


def test_every_kind_of_image_gives_the_vector_of_its_file(live: str, engine: Engine, tmp_path: Path) -> None:
    image = picture(3)
    path = tmp_path / "3.png"
    path.write_bytes(encoded(image))
    kinds: list[Callable[[], Any]] = [
        lambda: path,
        lambda: str(path),
        path.read_bytes,
        lambda: bytearray(path.read_bytes()),
        lambda: io.BytesIO(path.read_bytes()),
        lambda: Image.open(path),
        lambda: image,
        lambda: np.asarray(image),
        lambda: np.asarray(image)[:, ::-1][:, ::-1],
    ]

    for kind in kinds:
        with Client(live) as client:
            np.testing.assert_array_equal(client.embed(kind()), truth(engine, path))
    with path.open("rb") as file, Client(live + "/v1/") as client:
        np.testing.assert_array_equal(client.embed([kind() for kind in kinds] + [file]), truth(engine, *[path] * 10))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "I", "F"])
def test_a_pillow_image_of_any_mode_is_sent_as_it_is(mode: str, engine: Engine) -> None:
    """Compared with Pillow's own lossless file, where it writes one; no server is needed for that."""
    from clf.images import prepare
    from clf_serve.client.uploads import encode

    via = "RGBA" if mode in ("PA", "RGBa") else "RGB"
    image = picture(4).convert("L").convert(mode) if mode in ("I", "F", "LA") else picture(4).convert(via).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "LAB", "I", "F") else "PNG"
    same = image.convert(via) if mode in ("PA", "RGBa", "YCbCr") else image

    np.testing.assert_array_equal(prepare(encode(image, "x", 10**6), 32), prepare(encoded(same, kind), 32))


def test_a_turned_photo_is_upright_however_it_is_given(live: str, engine: Engine, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded(picture(5), "PNG", exif=exif))

    with Client(live) as client:
        vectors = client.embed([path, Image.open(path)])
    np.testing.assert_array_equal(vectors, truth(engine, path, path))
    assert not np.array_equal(vectors[0], truth(engine, encoded(picture(5)))[0])


def test_many_images_keep_their_order_in_requests_that_the_server_takes(live: str, engine: Engine) -> None:
    blobs = [encoded(picture(seed)) for seed in range(13)]
    noise = np.random.default_rng(0).integers(0, 256, (2, 150, 200, 3), dtype=np.uint8)  # 90 kB each as PNG

    both = Both(live, batch_size=100, in_flight=3)
    np.testing.assert_array_equal(both.embed(blobs), truth(engine, *blobs))
    with Client(live) as client:
        np.testing.assert_array_equal(client.embed(iter(blobs)), truth(engine, *blobs))
        np.testing.assert_array_equal(
            client.embed(np.concatenate([noise] * 3)), np.concatenate([engine_of(engine, noise)] * 3)
        )
    assert both.embed([]).shape == (0, DIM)


def engine_of(engine: Engine, arrays: NDArray[np.uint8]) -> NDArray[np.float32]:
    return truth(engine, *(encoded(Image.fromarray(array)) for array in arrays))


def test_an_image_that_is_refused_is_named(live: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image at all, though it is long enough")
    good = encoded(picture(1))

    with pytest.raises(RefusedImageError, match="not an image of a known format") as caught:
        Both(live, in_flight=1).embed([good] * 7 + [bad])
    assert str(caught.value).startswith(f"{bad}: ")
    assert (caught.value.status, caught.value.code, caught.value.index) == (422, "invalid_image", 7)
    assert caught.value.request_id
    assert isinstance(caught.value, ImageError) and isinstance(caught.value, ClientError)
    with pytest.raises(RefusedImageError, match=r"input\[0\]: "):
        Both(live).embed(bad.read_bytes())


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Path("missing.png"), "missing.png does not exist"),
        (b"", r"input\[1\] is empty"),
        (bytes(200_001), r"input\[1\] has 0.2 MiB, more than"),
        (np.zeros((2, 2), np.float32), "array of float32 with shape"),
        (np.zeros((2, 2, 2), np.uint8), "give uint8"),
        (np.zeros((0, 2, 3), np.uint8), "give uint8"),
        (io.StringIO("text"), "mode 'rb'"),
        (None, "is a NoneType"),
        (7, "is a int"),
        (Image.open(io.BytesIO(encoded(picture(1), "BMP")[:200])), "truncated or corrupt"),
    ],
)
def test_what_cannot_be_sent_is_not_sent(live: str, image: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        Both(live).embed([encoded(picture(1)), image])


def test_a_folder_is_embedded_without_its_bad_files(live: str, engine: Engine, tmp_path: Path) -> None:
    good = write_pictures(tmp_path / "a", 11) + write_pictures(tmp_path / "b", 3, first=30)
    (tmp_path / "a" / "0003a.png").write_bytes(b"no image, but the server has to find that out")
    (tmp_path / "a" / "0003b.jpg").write_bytes(good[0].read_bytes()[:80])
    (tmp_path / "b" / "0031a.png").write_bytes(b"")
    (tmp_path / "b" / "notes.txt").write_text("not looked at")

    vectors, paths, skipped = Both(live, in_flight=2).embed_folder(tmp_path)

    assert paths == good
    np.testing.assert_array_equal(vectors, truth(engine, *good))
    assert [path.name for path, _ in skipped] == ["0003a.png", "0003b.jpg", "0031a.png"]
    assert all(str(path) in reason for path, reason in skipped)
    with pytest.raises(ImageError, match=r"0003a\.png"):
        Both(live, in_flight=1).embed_folder(tmp_path, on_error="raise", progress=False)


def test_a_folder_of_nothing_but_bad_files_gives_no_vectors(live: str, tmp_path: Path) -> None:
    for name in "abcdefg":
        (tmp_path / f"{name}.png").write_bytes(b"there are many of these, and each is refused")

    vectors, paths, skipped = Both(live).embed_folder(str(tmp_path))
    assert vectors.shape == (0, DIM) and vectors.dtype == np.float32 and paths == [] and len(skipped) == 7
    with pytest.raises(ImageError, match="does not exist"):
        Both(live).embed_folder(tmp_path / "none")
    with pytest.raises(ClientError, match="'skip' or 'raise'"):
        Both(live).embed_folder(tmp_path, on_error="ignore")


def test_the_bar_shows_on_a_terminal_only(
    live: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(live) as client:
        client.embed_folder(photos)
        assert capsys.readouterr() == ("", "")
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes that for a terminal
        client.embed_folder(photos)
        shown = capsys.readouterr()
        assert shown.out == "" and "20/20" in shown.err
        client.embed_folder(photos, progress=False)
        assert capsys.readouterr() == ("", "")


def test_a_search_by_image_vector_or_id(live: str, engine: Engine, photos: Path) -> None:
    path = sorted(photos.iterdir())[4]
    both = Both(live, model="tiny")

    hits = both.search(path, k=3)
    assert (hits[0].uri, len(hits)) == (str(path), 3)
    assert hits[0].score == pytest.approx(1, abs=1e-6) and hits[0].thumbnail.startswith("/thumbnails/")
    for vector in (truth(engine, path)[0], truth(engine, path)[0].tolist()):
        again = both.search(vector=vector, k=3)
        assert [hit.id for hit in again] == [hit.id for hit in hits]
        np.testing.assert_allclose([hit.score for hit in again], [hit.score for hit in hits], atol=1e-6)
    assert [hit.id for hit in both.search(id=hits[0].id, k=2)] == [hit.id for hit in hits[1:]]
    assert len(both.search(path)) == 10


def test_a_wrong_search_is_told_apart(live: str) -> None:
    both = Both(live)
    for given in ({}, {"id": 1, "vector": [1.0]}, {"vector": ["x"]}, {"vector": [np.nan] * DIM}):
        with pytest.raises(ClientError, match="search"):
            both.search(**given)
    with pytest.raises(RefusedError, match="12 finite numbers") as caught:
        both.search(vector=[1.0])
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_vector", "vector")
    with pytest.raises(RefusedError, match="no image 999") as caught:
        both.search(id=999)
    assert caught.value.status == 404
    with pytest.raises(RefusedImageError, match="the image: "):
        both.search(b"no image, but long enough to be looked at")


def test_models_and_readiness(live: str, engine: Engine) -> None:
    (model,) = Both(live).models()
    assert (model["id"], model["dim"], model["sha256"]) == ("tiny", DIM, engine.manifest.sha256)
    assert Both(live).ready() is True
    assert Both("http://127.0.0.1:9").ready() is False
    with pytest.raises(RefusedError, match="'gpt' is not here") as caught:
        Both(live, model="gpt").embed(encoded(picture(1)))
    assert caught.value.code == "model_not_found"


def test_a_key_is_sent_where_one_is_wanted(engine: Engine) -> None:
    with served(service_of(engine), api_keys=["secret"]) as client:
        url = str(client.base_url)
        until(lambda: client.get("/health/ready").status_code == 200)
        assert Both(url, api_key="secret").embed(encoded(picture(1))).shape == (1, DIM)
        for key in (None, "wrong"):
            with pytest.raises(WrongKeyError) as caught:
                Both(url, api_key=key).models()
            assert caught.value.status == 401


def test_one_client_serves_many_threads_and_tasks(live: str, engine: Engine) -> None:
    blobs = [encoded(picture(seed)) for seed in range(24)]
    expected = truth(engine, *blobs)

    with Client(live) as client, ThreadPoolExecutor(8) as pool:
        np.testing.assert_array_equal(np.concatenate(list(pool.map(client.embed, blobs))), expected)

    async def main() -> NDArray[np.float32]:
        async with AsyncClient(live) as client:
            return np.concatenate(await asyncio.gather(*map(client.embed, blobs)))

    np.testing.assert_array_equal(asyncio.run(main()), expected)


def test_both_clients_have_the_same_calls() -> None:
    for name in CALLS:
        blocking, awaited = (inspect.signature(getattr(kind, name)) for kind in (Client, AsyncClient))
        assert blocking == awaited, name
        assert inspect.iscoroutinefunction(getattr(AsyncClient, name))
    one, other = (inspect.signature(kind.__init__).parameters for kind in (Client, AsyncClient))
    assert list(one) == list(other)
    assert all(one[name].default == other[name].default for name in one)
    public = [{name for name in vars(kind) if not name.startswith("_")} for kind in (Client, AsyncClient)]
    assert public == [{*CALLS, "gallery", "close"}] * 2


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://[::1", "", "/v1"])
def test_a_url_that_is_none_is_told(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ClientError, match="not the URL of a server"):
            kind(url)


@pytest.mark.parametrize("option", ["batch_size", "in_flight", "attempts", "timeout", "deadline"])
def test_options_must_be_positive(option: str) -> None:
    with pytest.raises(ClientError, match="must be positive"):
        Client(**{option: 0})


def test_the_client_needs_no_server_code() -> None:
    program = """if True:
        import sys
        from clf_serve import AsyncClient, Client
        heavy = {"faiss", "fastapi", "starlette", "onnxruntime", "orjson", "gradio", "uvicorn", "typer", "torch"}
        print(sorted(set(sys.modules) & heavy))"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_exists_and_loads_late(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(clf_serve.__all__) == set(clf_serve._EXPORTS)
    for name in clf_serve.__all__:
        assert getattr(clf_serve, name).__name__ == name
    assert dir(clf_serve) == sorted(clf_serve.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clf_serve.nothing  # noqa: B018

    monkeypatch.setitem(sys.modules, "httpx", None)
    for module in ("client.client", "client.exchange", "client.talks"):
        monkeypatch.delitem(sys.modules, f"clf_serve.{module}")
    with pytest.raises(ClfError, match=r"pip install 'clf-vision\[client\]'"):
        clf_serve.Client  # noqa: B018


def test_answers_in_every_form_are_understood(engine: Engine) -> None:
    """Raw float32 of a server that has it; base64 or floats of one that has not."""
    vectors = np.array([[0.6, 0.8], [1.0, 0.0]], "<f4")

    def rows(write: Callable[[Any], Any]) -> httpx.Response:
        data = [{"index": i, "embedding": write(row)} for i, row in enumerate(vectors)]
        return httpx.Response(200, json={"data": data[::-1]})

    answers = [
        httpx.Response(
            200,
            content=vectors.tobytes(),
            headers={"Content-Type": "application/octet-stream", "X-Shape": "2,2", "X-Dtype": "<f4"},
        ),
        rows(lambda row: row.tolist()),
        rows(lambda row: base64.b64encode(row.tobytes()).decode()),
    ]
    for answer in answers:

        def handle(request: httpx.Request, answer: httpx.Response = answer) -> httpx.Response:
            if request.method == "GET":
                return httpx.Response(200, json={"data": [{"id": "x"}]})
            assert request.headers["accept"].startswith("application/octet-stream")
            assert request.url.params["encoding_format"] == "base64"
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

        np.testing.assert_array_equal(
            Both("http://x", transport=httpx.MockTransport(handle)).embed([b"a", b"b"]), vectors
        )


@pytest.mark.parametrize(
    "reply",
    [
        {"content": b"<html>"},
        {"json": []},
        {"json": {}},
        {"json": {"data": 7}},
        {"json": {"data": [{}]}},
        {"json": {"data": []}},
        {"json": {"data": [{"index": 0, "embedding": [1.0]}] * 2}},
        {"json": {"data": [{"index": 0, "embedding": ["x"]}]}},
        {"json": {"data": [{"index": 0, "embedding": "AAA"}]}},
        {"content": bytes(8), "headers": {"Content-Type": "application/octet-stream"}},
        {
            "content": bytes(8),
            "headers": {"Content-Type": "application/octet-stream", "X-Shape": "1,3", "X-Dtype": "<f4"},
        },
        {
            "content": bytes(8),
            "headers": {"Content-Type": "application/octet-stream", "X-Shape": "1,1", "X-Dtype": "<f8"},
        },
        {"content": b"not gzip", "headers": {"Content-Encoding": "gzip"}},
    ],
)
def test_an_answer_that_is_none_is_an_error_and_no_crash(reply: dict[str, Any]) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "x", "dim": 2}]})
        return httpx.Response(200, **reply)

    with pytest.raises(ClientError, match="the server"):
        Both("http://x", transport=httpx.MockTransport(handle)).embed(b"a")
    with pytest.raises(ClientError, match="the server"):
        Both("http://x", transport=httpx.MockTransport(handle)).search(b"a")


def test_an_interrupted_call_leaves_no_thread(live: str) -> None:
    def images() -> Iterator[bytes]:
        yield from [encoded(picture(seed)) for seed in range(40)]
        raise KeyboardInterrupt

    with Client(live, batch_size=2) as client, pytest.raises(KeyboardInterrupt):
        client.embed(images())
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("clf-client")])
