"""Reloading, ending and failing: whatever a service has opened is closed, and what hangs holds up nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serve_helpers import encoded, picture, running, until, write_model

from clf.errors import GalleryError, ModelError, ServeError
from clf_serve.call import Call
from clf_serve.deployment import Folders
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.problems import Problem
from clf_serve.service import Service
from clf_serve.sync.indexing import index_images


async def dimensions(service: Service) -> int:
    """Of the default model's answer."""
    with service.using() as deployment:
        return int((await deployment.embed([encoded(picture(1))], Call())).shape[1])


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models and galleries that were closed."""
    names: list[str] = []
    for kind in (Engine, Gallery):
        close = kind.close

        def noted(self: Engine | Gallery, close: Callable[[Any], None] = close) -> None:
            names.append((self.manifest if isinstance(self, Engine) else self).__class__.__name__)
            close(self)

        monkeypatch.setattr(kind, "close", noted)
    return names


def make_gallery(folder: Path, model: Path, photos: Path) -> Path:
    engine = Engine(model, "cpu")
    with Gallery.open_or_create(folder, Identity.of(engine.manifest), model) as gallery:
        index_images(gallery, engine, photos)
    return folder


def test_nothing_stays_open_of_what_cannot_be_served(
    model: Path, photos: Path, tmp_path: Path, closed: list[str]
) -> None:
    gallery, other = make_gallery(tmp_path / "g", model, photos), write_model(tmp_path / "o", cells=4, dim=48)
    closed.clear()
    with pytest.raises(ServeError, match="two models are called"):
        Service([Folders(model, gallery), Folders(other)])
    assert sorted(closed) == ["Gallery", "Manifest", "Manifest"]
    closed.clear()
    with pytest.raises(GalleryError, match="was made with model"):
        Folders(other, gallery).open()
    assert sorted(closed) == ["Gallery", "Manifest"]


def model_threads() -> int:
    return sum(thread.name in ("clf-model", "clf-warm-up", "clf-open") for thread in threading.enumerate())


def test_reloads_leave_no_thread_and_no_file_open(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the two threads for searches opens the gallery for itself when a search first falls to it."""
    monkeypatch.setattr("clf_serve.lookups.usable_cores", lambda: 2)
    gallery = make_gallery(tmp_path / "g", model, photos)

    def held() -> tuple[int, int]:
        return model_threads(), sum(1 for _ in Path("/proc/self/fd").iterdir())

    async def reload_and_search(service: Service, times: int) -> None:
        for _ in range(times):
            assert await service.reload() == {"tiny": None}
            with service.using() as deployment:
                await deployment.neighbours(await deployment.vector(1), 3, Call())
        while service._retiring:
            await asyncio.sleep(0.01)

    async def main() -> None:
        before = held()
        async with running(Folders(model, gallery)) as service:
            await reload_and_search(service, 4)
            threads, files = held()
            await reload_and_search(service, 12)
            await become(lambda: held()[0] <= threads)  # the last ones of a reload may be about to end
            assert held()[1] <= files + 2
        await become(lambda: held()[0] <= before[0])
        opened = Folders(model).open()
        service = Service([opened])
        before = held()
        assert await service.reload() == {"tiny": "it does not come from a folder"}
        await become(lambda: held()[0] <= before[0])
        await service.stop()  # though it was never started
        opened.close()

    asyncio.run(main())


class Hanging:
    """A warm-up that hangs from the n-th on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
        self.let_go = threading.Event()
        self.began = 0
        warm_up = Engine.warm_up

        def hang(engine: Engine) -> None:
            self.began += 1
            if self.began >= first:
                self.let_go.wait(60)
            warm_up(engine)

        monkeypatch.setattr(Engine, "warm_up", hang)
        monkeypatch.setattr("clf_serve.deployment._LEFT", 0.1)


async def become(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("first", [1, 2])
def test_a_warm_up_that_hangs_does_not_hold_up_the_end(
    model: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    async def main() -> None:
        service = Service([Folders(model)])
        await service.start()
        reload = asyncio.create_task(service.reload())
        await become(lambda: hanging.began == first)
        if first == 2:
            assert await dimensions(service) == 12  # the old one goes on
        async with asyncio.timeout(20):
            await service.stop()
            assert await reload == {"tiny": "shutting down"}

    hanging = Hanging(monkeypatch, first)
    try:
        asyncio.run(main())
        assert not hanging.let_go.is_set() and hanging.began == first
    finally:
        hanging.let_go.set()


def test_a_reload_that_does_not_get_warm_is_given_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(Folders(model)) as service:
            monkeypatch.setattr("clf_serve.service._RELOAD", 0.2)
            assert await service.reload() == {"tiny": "not warm after 0.2 s"}
            assert await dimensions(service) == 12
            hanging.let_go.set()
            monkeypatch.setattr("clf_serve.service._RELOAD", 20)
            assert await service.reload() == {"tiny": None}

    before = model_threads()
    hanging = Hanging(monkeypatch, 2)
    asyncio.run(main())
    until(lambda: model_threads() <= before)


def test_a_reload_waits_for_the_first_warm_up(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        service = Service([Folders(model)])
        await service.start()
        await become(lambda: hanging.began == 1)
        reload = asyncio.create_task(service.reload())
        await asyncio.sleep(0.1)
        hanging.let_go.set()
        assert await reload == {"tiny": None}
        assert await service.ready() is None
        await service.stop()

    hanging = Hanging(monkeypatch, 1)
    asyncio.run(main())
    assert "failed" not in caplog.text


def test_many_signals_are_one_more_reload(model: Path) -> None:
    async def main() -> None:
        async with running(Folders(model)) as service:
            first = asyncio.create_task(service.reload_all())
            await asyncio.sleep(0)
            await asyncio.gather(first, *(service.reload_all() for _ in range(30)))
            assert 'clf_reloads_total{outcome="reloaded"} 2.0' in service.metrics.text().decode()
            service.draining.set()
            await service.reload_all()

    asyncio.run(main())


def test_a_failed_part_of_a_reload_is_logged_and_the_rest_goes_on(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def unforeseen() -> None:
        raise ValueError("of another kind")

    async def main() -> None:
        async with running(Folders(model)) as service:
            service.also_reload.append(unforeseen)
            assert await service.reload() == {"tiny": None}

    asyncio.run(main())
    assert "of another kind" in caplog.text


def test_a_model_that_failed_says_so_at_the_door(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Engine) -> None:
        raise ModelError("no memory")

    async def main() -> None:
        service = Service([Folders(model)])
        with pytest.raises(Problem) as refused:
            service.check_room()
        assert refused.value.code == "warming_up"
        await service.start()
        await become(lambda: service.default.failed)
        with pytest.raises(Problem) as refused:
            service.check_room()
        assert (refused.value.status, refused.value.code) == (503, "model_failed")
        await service.stop()

    monkeypatch.setattr(Engine, "warm_up", fail)
    asyncio.run(main())


def test_images_inside_are_those_of_all_models(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(*(Folders(write_model(tmp_path / name, name=name)) for name in "ab")) as service:
            a, b = (deployment.batcher for deployment in service.models.values())
            with a.admitted(2):
                with b.admitted(3):
                    assert "clf_images_inside 5.0" in service.metrics.text().decode()
                assert "clf_images_inside 2.0" in service.metrics.text().decode()

    asyncio.run(main())
