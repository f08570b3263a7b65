"""Several models in one service, each replaced under load; and the same without HTTP."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serve_helpers import encoded, picture, running, served, sign, write_model, write_pictures

from clf import images
from clf.errors import GalleryError, ImageError, ModelError, ServeError
from clf.manifest import MODEL_FILE
from clf_serve.asynchronous import AsyncEngine
from clf_serve.backends.base import DeviceMemoryError
from clf_serve.call import Call
from clf_serve.deployment import Deployment, Folders
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.limits import ServeLimits
from clf_serve.problems import Problem, overloaded
from clf_serve.server import Options, sources
from clf_serve.service import Service
from clf_serve.sync.indexing import index_images

PHOTO = encoded(picture(1))


def test_a_request_names_its_model_or_gets_the_first(tmp_path: Path) -> None:
    small, large = write_model(tmp_path / "a", name="small"), write_model(tmp_path / "b", name="large", cells=4, dim=48)

    async def main() -> None:
        async with running(Folders(small), Folders(large)) as service:
            for name, dim in [(None, 12), ("small", 12), ("large", 48)]:
                with service.using(name) as deployment:
                    vectors = await deployment.embed([PHOTO], call := Call())
                assert vectors.shape == (1, dim)
                assert (call.model, call.images) == (deployment.name, 1)
                assert list(call.seconds) == ["decode", "queue", "inference"]
            with pytest.raises(Problem, match=r"'smal' is not here; there is 'small', 'large'\. Did you mean 'small'"):
                service.using("smal").__enter__()

    asyncio.run(main())


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    folders = [Folders(write_model(tmp_path / name, name="twin")) for name in "ab"]
    with pytest.raises(ServeError, match="two models are called 'twin'"):
        Service(folders)


def test_a_service_without_models_is_refused() -> None:
    with pytest.raises(ServeError, match="needs a model"):
        Service([])


def test_a_gallery_goes_to_the_model_it_was_made_with(tmp_path: Path) -> None:
    a, b = write_model(tmp_path / "a", name="a"), write_model(tmp_path / "b", name="b", cells=4, dim=48)
    c = write_model(tmp_path / "c", name="c", cells=1, dim=3)
    write_pictures(tmp_path / "photos", 3)
    galleries = {}
    for model in (a, b, c):
        engine = Engine(model, "cpu")
        galleries[model] = tmp_path / f"gallery-{model.name}"
        with Gallery.open_or_create(galleries[model], Identity.of(engine.manifest), model) as gallery:
            index_images(gallery, engine, tmp_path / "photos")
    found = sources([a, b], [galleries[b]], Options())
    assert [(folders.model, folders.gallery) for folders in found] == [(a, None), (b, galleries[b])]
    with pytest.raises(GalleryError, match=r"gallery-c was made with model c .* is not served here"):
        sources([a, b], [galleries[c]], Options())
    with pytest.raises(ServeError, match="has two galleries"):
        sources([a, b], [galleries[a], shutil.copytree(galleries[a], tmp_path / "copy")], Options())
    with pytest.raises(ServeError, match=r"the gallery .*gallery-a is given twice; name it once"):
        sources([a], [galleries[a], galleries[a]], Options())
    with pytest.raises(ServeError, match=r"the model .*/a is given twice; name it once"):
        sources([a, a / ".." / "a"], [], Options())


def replace_by_cells(folder: Path, cells: int) -> None:
    """Another encoder under the same name, as a new training would leave it."""
    write_model(folder, cells=cells, dim=3 * cells * cells)


def test_a_reload_puts_the_new_model_in_the_place_of_the_old(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")

    async def main() -> None:
        async with running(Folders(folder)) as service:
            before = service.default
            replace_by_cells(folder, 4)
            assert (await embed(service)).shape == (1, 12)  # nothing changes before it is asked for
            with service.using() as held:
                assert await service.reload() == {"tiny": None}
                assert held is before and service.default is not before
                old = await held.embed([PHOTO], Call())  # whoever had it goes on with it
            assert old.shape == (1, 12)
            assert (await embed(service)).shape == (1, 48)
            async with asyncio.timeout(20):
                while before.batcher.alive:
                    await asyncio.sleep(0.01)

    asyncio.run(main())


async def embed(service: Service) -> np.ndarray[Any, np.dtype[np.float32]]:
    with service.using() as deployment:
        return await deployment.embed([PHOTO], Call())


def spoil_file(folder: Path) -> None:
    (folder / MODEL_FILE).write_bytes(b"no graph")


def spoil_graph(folder: Path) -> None:
    (folder / MODEL_FILE).write_bytes(b"no graph")
    sign(folder)


def remove(folder: Path) -> None:
    (folder / MODEL_FILE).unlink()


def rename(folder: Path) -> None:
    write_model(folder, name="other")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_file, "does not match its manifest"),
        (spoil_graph, "cannot be opened by onnxruntime"),
        (remove, f"{MODEL_FILE} is missing"),
        (rename, "holds the model 'other' now"),
    ],
)
def test_what_cannot_be_reloaded_is_refused_and_the_old_goes_on(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_model(tmp_path / "m")

    async def main() -> None:
        async with running(Folders(folder)) as service:
            before = await embed(service)
            spoil(folder)
            outcome = (await service.reload())["tiny"]
            assert outcome is not None and reason in outcome
            np.testing.assert_array_equal(await embed(service), before)
            assert await service.ready() is None
            assert 'clf_reloads_total{outcome="refused"} 1.0' in service.metrics.text().decode()

    asyncio.run(main())
    assert "goes on as it was" in caplog.text


def test_no_call_is_lost_or_wrong_while_models_change(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    answers: list[int] = []

    async def main() -> None:
        async with running(Folders(folder)) as service:
            right = {12: await embed(service)}
            replace_by_cells(folder, 4)
            await service.reload()
            right[48] = await embed(service)

            async def ask() -> None:
                while not done.is_set():
                    vector = await embed(service)
                    np.testing.assert_array_equal(vector, right[vector.shape[1]])
                    answers.append(vector.shape[1])

            done = asyncio.Event()
            askers = [asyncio.create_task(ask()) for _ in range(4)]
            for turn in range(10):
                replace_by_cells(folder, (2, 4)[turn % 2])
                assert await service.reload() == {"tiny": None}
            done.set()
            await asyncio.gather(*askers)

    asyncio.run(main())
    assert set(answers) == {12, 48}


def test_a_stopping_server_takes_nothing_more(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")

    async def main() -> None:
        async with running(Folders(folder)) as service:
            service.draining.set()
            for ask in (service.check_room, lambda: service.using().__enter__()):
                with pytest.raises(Problem) as refused:
                    ask()
                assert (refused.value.status, refused.value.code) == (503, "shutting_down")
            assert await service.ready() == "shutting down"

    asyncio.run(main())


def test_a_refusal_leaves_nothing_to_the_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under overload most requests end in one, and each collection holds up those that come meanwhile."""
    folder = write_model(tmp_path / "m")

    def busy(*_: object) -> None:
        raise overloaded(3)

    async def main() -> None:
        async with running(Folders(folder)) as service:
            monkeypatch.setattr(service.default, "check_room", busy)
            gc.disable()
            try:
                service.check_room()
            except Problem as problem:
                assert problem.retry_after == 3
                refused = weakref.ref(problem)
            finally:
                gone = refused() is None
                gc.enable()
            assert gone

    asyncio.run(main())


def test_a_reload_is_asked_for_with_a_key_only(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    with served(Service([Folders(folder)])) as client:
        assert client.post("/admin/reload").json()["error"]["code"] == "needs_keys"
    with served(Service([Folders(folder)]), api_keys=["secret"]) as client:
        assert client.post("/admin/reload").status_code == 401
        client.headers["X-API-Key"] = "secret"
        assert client.post("/admin/reload").json() == {"reloaded": ["tiny"]}
        assert client.post("/admin/reload", params={"model": "no"}).status_code == 404
        remove(folder)
        refused = client.post("/admin/reload")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_reloaded")
        assert f"{MODEL_FILE} is missing" in refused.json()["error"]["message"]


def test_an_unused_deployment_ends_at_once_and_a_used_one_after_its_time(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")

    async def main() -> None:
        with ThreadPoolExecutor(1) as decoders:
            service = Service([Folders(folder)])
            for used in (False, True):
                deployment = Deployment(Folders(folder).open(), ServeLimits(), service.metrics, decoders)
                deployment.start()
                await deployment.warm_up()
                if used:
                    deployment.enter()
                async with asyncio.timeout(20):
                    await deployment.retire(0.05)
                assert not deployment.batcher.alive

    asyncio.run(main())


def asynchronously(work: Callable[[AsyncEngine], Coroutine[Any, Any, None]], folder: Path, **limits: Any) -> None:
    async def main() -> None:
        async with AsyncEngine(Engine(folder, "cpu"), ServeLimits(**limits)) as engine:
            await work(engine)

    asyncio.run(main())


def test_the_async_engine_gives_what_the_engine_gives(model: Path, engine: Engine, photos: Path) -> None:
    paths = sorted(photos.iterdir())
    alone = np.concatenate([engine.embed(engine.prepare(path)[None]) for path in paths])

    async def work(ours: AsyncEngine) -> None:
        together = await asyncio.gather(*(ours.embed([path]) for path in paths))
        np.testing.assert_array_equal(np.concatenate(together), alone)
        np.testing.assert_array_equal(await ours.embed([path.read_bytes() for path in paths]), alone)
        assert (await ours.embed([])).shape == (0, 12)

    asynchronously(work, model)


def test_the_async_engine_raises_what_python_programs_expect(model: Path, tmp_path: Path) -> None:
    async def work(ours: AsyncEngine) -> None:
        with pytest.raises(ImageError, match="image 1 of the request"):
            await ours.embed([PHOTO, PHOTO[:50]])
        with pytest.raises(TimeoutError):
            await ours.embed([PHOTO], timeout=0)
        with pytest.raises(ServeError, match="more than the 2"):
            await ours.embed([PHOTO] * 3)

    asynchronously(work, model, max_images=2)
    with pytest.raises(ServeError, match="async with"):
        asyncio.run(AsyncEngine(Engine(model, "cpu")).embed([PHOTO]))
    broken = write_model(tmp_path / "broken", output="embeddings")
    remove(broken)
    with pytest.raises(ModelError, match="is missing"):
        Engine(broken)


def test_the_async_engine_belongs_to_one_loop_and_is_opened_once(model: Path) -> None:
    async def work(ours: AsyncEngine) -> None:
        with pytest.raises(ServeError, match="belongs to another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(ours.embed([PHOTO])))
        with pytest.raises(ServeError, match="open already"):
            await ours.__aenter__()
        assert (await ours.embed([PHOTO])).shape == (1, 12)

    asynchronously(work, model)


def test_the_async_engine_does_not_wait_for_a_slow_decoder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    async def work(ours: AsyncEngine) -> None:
        prepare = ours.engine.prepare
        monkeypatch.setattr(ours.engine, "prepare", lambda *args: let_go.wait(30) and prepare(*args))
        with pytest.raises(TimeoutError):
            await ours.embed([PHOTO], timeout=0.1)
        assert not let_go.is_set()
        let_go.set()
        assert (await ours.embed([PHOTO])).shape == (1, 12)

    asynchronously(work, model)


def photo_jpegs(folder: Path, n: int, side: int) -> Path:
    """JPEGs that are large enough to be decoded at a fraction of their size."""
    folder.mkdir()
    for seed in range(n):
        noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((side, side)).save(folder / f"{seed}.jpg")
    return folder


def test_fast_decoding_is_measured_said_and_shown(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = photo_jpegs(tmp_path / "photos", 3, 400)

    async def main() -> None:
        async with running(Folders(model, decoding="fast", samples=photos)) as service:
            engine = service.default.engine
            loss = engine.facts()["decoding_loss"]
            assert isinstance(loss, dict) and (loss["files"], loss["scaled"]) == (3, 3)
            fast = (await embed_file(service, photos / "0.jpg"))[0]
            exact = engine.embed(images.prepare(photos / "0.jpg", engine.image_size)[None])[0]
            assert not np.array_equal(fast, exact)
            assert float(fast @ exact) >= float(loss["min_cosine"]) - 1e-6
            assert engine.preprocessing == images.FAST_PREPROCESSING

    asyncio.run(main())
    assert "fast decoding: 3 of 3 files come out different, least cosine" in caplog.text


def test_fast_decoding_that_changes_too_much_is_not_served(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photo_jpegs(tmp_path / "photos", 2, 400)

    def ruin(data: bytes, size: int, limits: images.Limits) -> Any:
        pixels = np.zeros((size, size, 3), np.uint8)
        pixels[: size // 2, :, 0] = 255
        return pixels

    monkeypatch.setattr("clf.decoding.prepare_fast", ruin)
    with pytest.raises(ModelError, match=r"changes the vectors of the photos .* use --decoding exact"):
        Engine(model, "cpu", decoding="fast", samples=photos).warm_up()


async def embed_file(service: Service, path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    with service.using() as deployment:
        return await deployment.embed([path], Call())


def test_a_large_request_does_not_hold_up_the_decoding_of_others(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clf_serve.deployment.usable_cores", lambda: 1)
    monkeypatch.setattr("clf_serve.service.usable_cores", lambda: 1)
    order: list[int] = []

    async def main() -> None:
        async with running(Folders(model)) as service:
            engine = service.default.engine
            prepare = engine.prepare

            def noted(source: bytes, limits: images.Limits) -> Any:
                order.append(len(source))
                time.sleep(0.005)
                return prepare(source, limits)

            monkeypatch.setattr(engine, "prepare", noted)
            with service.using() as deployment:
                large = asyncio.ensure_future(deployment.embed([PHOTO] * 40, Call()))
                while len(order) < 2:
                    await asyncio.sleep(0.001)
                await deployment.embed([PHOTO + b" "], Call())
                await large

    asyncio.run(main())
    assert order.index(len(PHOTO) + 1) < 10


def test_memory_that_runs_out_is_no_error_of_ours(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(Folders(model)) as service:

            def full(pixels: Any) -> Any:
                raise DeviceMemoryError("no memory for 1 image")

            monkeypatch.setattr(service.default.batcher, "_run", full)
            with pytest.raises(Problem) as refused:
                await embed(service)
            assert (refused.value.status, refused.value.code) == (503, "out_of_memory")

    asyncio.run(main())
