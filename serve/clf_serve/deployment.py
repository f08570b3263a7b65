"""One model at work: its engine, its batcher, its decoders, and perhaps the gallery of its vectors. No HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from clf.errors import ClfError, ImageError
from clf_serve.backends.base import DeviceMemoryError
from clf_serve.batching.batcher import Batcher
from clf_serve.call import Call
from clf_serve.engine import Decoding, Engine, Pixels, VariantName, Vectors
from clf_serve.gallery import Identity
from clf_serve.gallery.store import Hit
from clf_serve.limits import ServeLimits
from clf_serve.lookups import Lookups
from clf_serve.metrics import Metrics
from clf_serve.priority import apart
from clf_serve.problems import Problem, too_late
from clf_serve.runtime import Provider, usable_cores
from clf_serve.stores import AnyGallery, AnyPlace, open_gallery
from clf_serve.worker import Worker

T = TypeVar("T")
_log = logging.getLogger(__name__)
_FRESH = 30.0  # seconds; a success this recent proves that the model works
_PROBE = 5.0  # seconds that a probe of an idle model may take
_LEFT = 5.0  # seconds that a warm-up nobody waits for is given to notice that its engine was closed


@dataclass(frozen=True)
class Opened:
    """A model, and the gallery of its vectors."""

    engine: Engine
    gallery: AnyGallery | None = None
    owned: bool = False
    """Whether the engine is closed with the deployment."""

    def open(self) -> Opened:
        """Itself; so an engine that is open already can be served too, though not reloaded."""
        return self

    def close(self) -> None:
        """The gallery, and the engine if it is owned."""
        if self.owned:
            self.engine.close()
        if self.gallery is not None:
            self.gallery.close()


class Source(Protocol):
    """Where a model and its gallery come from; asked again at each reload."""

    def open(self) -> Opened: ...


@dataclass(frozen=True)
class Folders:
    """A model folder made by ``clf export``, and a gallery made by ``clf index``."""

    model: Path
    gallery: AnyPlace | None = None
    provider: Provider = "auto"
    threads: int | None = None
    variant: VariantName = "fp32"
    decoding: Decoding = "exact"
    samples: Path | None = None

    def open(self) -> Opened:
        """Raises ModelError, GalleryError: they cannot be used, or not together."""
        engine = apart(self._engine)
        try:
            gallery = open_gallery(self.gallery, Identity.of(engine.manifest)) if self.gallery else None
        except BaseException:
            engine.close()
            raise
        return Opened(engine, gallery, owned=True)

    def _engine(self) -> Engine:
        return Engine(
            self.model,
            self.provider,
            self.threads,
            variant=self.variant,
            decoding=self.decoding,
            samples=self.samples,
        )


class Deployment:
    """Serves many impatient callers from one model. Belongs to one event loop.

    Args:
        opened: the model, and its gallery, which the deployment closes when it is stopped.
        decoders: threads that decode images; may be shared.
        lookups: threads that search; may be shared.
    """

    def __init__(
        self,
        opened: Opened,
        limits: ServeLimits,
        metrics: Metrics,
        decoders: ThreadPoolExecutor,
        lookups: Lookups | None = None,
    ) -> None:
        self.engine = opened.engine
        self.gallery = opened.gallery
        self._opened = opened
        self.name = opened.engine.manifest.name
        self.batcher = Batcher(self.engine.embed, lambda: self.engine.buckets, limits.queue, metrics)
        self.warm = False
        self.failed = False
        """Whether the model or the gallery could not be brought to work; the log says why."""
        self._limits = limits
        self._metrics = metrics
        self._decoders = decoders
        self._lookups = lookups or Lookups(limits, metrics)
        self._cores = usable_cores()
        self._warming: Worker | None = None
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def start(self) -> None:
        self.batcher.start()

    async def warm_up(self) -> None:
        """Tries the model in every batch size, and reads the gallery's index. May be cancelled at any time.

        Raises:
            ClfError: one of them does not work.
        """
        self._warming = aside = Worker("clf-warm-up")  # one that hangs must not hold up the end of the process
        try:
            await aside(self.engine.warm_up)
            await self.batcher.embed([self.engine.blank()])
            if self.gallery is not None:
                await aside(self.gallery.load_index)
        except BaseException:
            self.failed = True
            raise
        finally:
            await aside.close(0)
        self.warm = True
        if self.engine.note:
            _log.warning("%s: %s", self.name, self.engine.note)

    async def stop(self) -> None:
        """Tells whoever still waits, and closes what belongs to it."""
        await self.batcher.stop()
        await asyncio.to_thread(self._opened.close)  # which waits for calls that have begun
        if self._warming is not None and not await self._warming.close(_LEFT):
            _log.error("the warm-up of the model did not come back; its thread is left behind")

    def check_room(self, deadline: float) -> None:
        """Raises Problem when not even one image would be taken: 429, 503."""
        self._check_warm()
        self.batcher.check_room(1, deadline)

    def enter(self) -> None:
        self._users += 1
        self._unused.clear()

    def leave(self) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def retire(self, seconds: float) -> None:
        """Stops once nobody uses it any more, or after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._unused.wait()
        except TimeoutError:
            _log.warning("a replaced model was still in use after %g s and is closed now", seconds)
        await self.stop()

    async def embed(self, blobs: Sequence[bytes | Path], call: Call, names: Sequence[str] | None = None) -> Vectors:
        """Vectors (n, D) of n encoded images.

        Args:
            names: of the images in the request, for ``param``.

        Raises:
            Problem: an image that cannot be used, named by ``param``; too many; no room; too late; shutting down.
        """
        names = names or [f"input[{index}]" for index in range(len(blobs))]

        def prepare(blob: bytes | Path) -> tuple[Pixels, None]:
            return self.engine.prepare(blob, self._limits.image), None

        return (await self.embed_with(blobs, names, call, prepare))[0]

    async def embed_with(
        self,
        blobs: Sequence[bytes | Path],
        names: Sequence[str],
        call: Call,
        prepare: Callable[[bytes | Path], tuple[Pixels, T]],
    ) -> tuple[Vectors, list[T]]:
        """Vectors (n, D) of n encoded images, and what else ``prepare`` makes of each.

        Args:
            names: of the images in the request, for ``param``.
            prepare: called in a decoder's thread; raises ImageError.

        Raises:
            Problem: as :meth:`embed`.
        """
        self._check_number(len(blobs))
        with self.batcher.admitted(len(blobs), call.deadline):
            start = time.monotonic()
            try:
                prepared = await self._decode(blobs, names, call, prepare)
            finally:
                self._metrics.stage("decode").observe(call.since("decode", start))
            vectors = await self._run([pixels for pixels, _ in prepared], call)
        return vectors, [rest for _, rest in prepared]

    async def embed_pixels(self, pixels: Sequence[Pixels], call: Call) -> Vectors:
        """Vectors (n, D) of images that are prepared already, (S, S, 3) uint8 each.

        Raises:
            Problem: as :meth:`embed`.
        """
        self._check_number(len(pixels))
        with self.batcher.admitted(len(pixels), call.deadline):
            return await self._run(pixels, call)

    async def neighbours(self, vector: Vectors, k: int, call: Call, *, but: int | None = None) -> list[Hit]:
        """The k nearest images of the gallery, without the image ``but``."""
        gallery = self.require_gallery()
        left_out = () if but is None else (but,)
        return await self.look_up(lambda: gallery.search(vector, k, but=left_out), call)

    async def look_up(self, work: Callable[[], T], call: Call) -> T:
        """What ``work`` finds in the gallery, in one of the threads for that.

        Raises:
            Problem: 429, 503.
        """
        self._check_warm()
        return await self._lookups(work, call)

    async def vector(self, id_: int) -> Vectors:
        """The stored vector of a gallery's image. Raises Problem 404."""
        vector = await asyncio.to_thread(self.require_gallery().vector, id_)
        if vector is None:
            raise Problem(404, "unknown_id", f"the gallery has no image {id_}", param="id")
        return vector

    def require_gallery(self) -> AnyGallery:
        """Raises Problem 404 when there is none."""
        if self.gallery is None:
            text = f"the model {self.name!r} has no gallery here; start the server with --gallery GALLERY"
            raise Problem(404, "no_gallery", text)
        return self.gallery

    async def why_not_ready(self) -> str | None:
        """None when images will be embedded. An idle model is put to the test."""
        if self.failed:
            return "the model or the gallery failed to start; see the log"
        if not self.warm:
            return "warming up"
        if not self.batcher.alive:
            return "the batcher has ended"
        if time.monotonic() - self.batcher.last_success < _FRESH:
            return None
        try:
            await asyncio.wait_for(self.batcher.embed([self.engine.blank()]), _PROBE)
        except Exception as error:
            return f"a test image was not embedded: {type(error).__name__}"
        return None

    def _check_warm(self) -> None:
        if self.failed:
            raise Problem(503, "model_failed", "the model or its gallery failed to start; see the server's log")
        if not self.warm:
            raise Problem(503, "warming_up", "the model is warming up; try again soon", retry_after=1)

    def _check_number(self, n: int) -> None:
        self._check_warm()
        if not n:
            raise Problem(400, "no_images", "the request holds no image", param="input")
        if n > self._limits.max_images:
            text = f"{n} images are more than the {self._limits.max_images} a request may hold"
            raise Problem(413, "too_many_images", text, param="input")

    async def _run(self, pixels: Sequence[Pixels], call: Call) -> Vectors:
        try:
            vectors, jobs = await self.batcher.embed(pixels, call.deadline)
        except DeviceMemoryError as error:
            raise Problem(503, "out_of_memory", f"{error}; try again later", retry_after=5) from error
        call.add("queue", min(job.arrived for job in jobs), max(job.started for job in jobs))
        call.add("inference", max(job.started for job in jobs), max(job.done for job in jobs))
        call.images += len(pixels)
        call.model = self.name
        self._metrics.images.inc(len(pixels))
        return vectors

    async def _decode(
        self,
        blobs: Sequence[bytes | Path],
        names: Sequence[str],
        call: Call,
        prepare: Callable[[bytes | Path], tuple[Pixels, T]],
    ) -> list[tuple[Pixels, T]]:
        """Not more of one request at a time than there are cores, so that a large one does not hold up all others."""
        loop = asyncio.get_running_loop()
        turns = asyncio.Semaphore(self._cores)

        def in_time(blob: bytes | Path) -> tuple[Pixels, T]:
            if not call.left:
                raise too_late(self._limits.timeout)
            return prepare(blob)

        async def decode(blob: bytes | Path) -> tuple[Pixels, T]:
            async with turns:
                return await loop.run_in_executor(self._decoders, in_time, blob)

        tasks = [asyncio.ensure_future(decode(blob)) for blob in blobs]
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()  # those that have not begun
        prepared = []
        for index, result in enumerate(results):
            if isinstance(result, ImageError):
                words = str(result) if len(blobs) == 1 else f"image {index} of the request: {result}"
                raise Problem(422, "invalid_image", words, param=names[index])
            if isinstance(result, BaseException):
                raise result
            prepared.append(result)
        return prepared


async def warm_up_or_log(deployment: Deployment) -> bool:
    """Whether the deployment works now; the log says why not."""
    try:
        await deployment.warm_up()
    except ClfError as error:
        _log.error("%s", error)
    except Exception:
        _log.exception("the model failed to warm up")
    return deployment.warm
