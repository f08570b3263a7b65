"""What the server does, without HTTP: bytes of images in, vectors and neighbours out. The API and the UI share it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from clf.errors import ClfError, ImageError
from clf.images import DEFAULT_LIMITS, Limits
from clf_serve.batcher import Batcher
from clf_serve.engine import Engine, Pixels, Vectors
from clf_serve.gallery import Gallery
from clf_serve.metrics import Metrics
from clf_serve.problems import Problem, draining
from clf_serve.runtime import usable_cores
from clf_serve.store import Hit

_log = logging.getLogger(__name__)
_FRESH = 30.0  # seconds; a success this recent proves that the model works
_PROBE = 5.0  # seconds that a probe of an idle model may take


@dataclass(frozen=True)
class ServeLimits:
    """What one request may cost, and all together."""

    max_bytes: int = 64 * 2**20
    """Of a request's body."""
    max_bytes_together: int = 1024 * 2**20
    """Of all bodies being read or worked on."""
    max_pixels: int = DEFAULT_LIMITS.max_pixels
    """Of one image, as its header states them."""
    max_images: int = 256
    """Of one request."""
    max_k: int = 1000
    """Neighbours of one search."""
    queue: int = 1024
    """Images inside the server at a time."""
    timeout: float = 30.0
    """Seconds from the first byte of a request to its answer."""

    @property
    def image(self) -> Limits:
        return Limits(max_bytes=self.max_bytes, max_pixels=self.max_pixels)


@dataclass
class Timings:
    """Seconds of each stage of a request, for people and for the Server-Timing header."""

    seconds: dict[str, float] = field(default_factory=dict)

    def since(self, stage: str, start: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - start

    @property
    def header(self) -> str:
        return ", ".join(f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in self.seconds.items())


class Budget:
    """Bytes that all request bodies together may hold in memory."""

    def __init__(self, total: int) -> None:
        self._left = total

    @contextmanager
    def share(self) -> Iterator[Callable[[int], bool]]:
        """Yields a function that takes n more bytes, or says False; all are given back at the end."""
        taken = 0

        def take(n: int) -> bool:
            nonlocal taken
            if n > self._left:
                return False
            self._left -= n
            taken += n
            return True

        try:
            yield take
        finally:
            self._left += taken


class Service:
    """An engine, perhaps a gallery, and everything between them and many impatient callers."""

    def __init__(self, engine: Engine, gallery: Gallery | None = None, limits: ServeLimits | None = None) -> None:
        self.engine = engine
        self.gallery = gallery
        self.limits = limits or ServeLimits()
        self.metrics = Metrics()
        self.budget = Budget(self.limits.max_bytes_together)
        self.batcher = Batcher(engine.embed, lambda: engine.max_batch, self.limits.queue, self.metrics)
        self._decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="clf-decode")
        self._warm_up: asyncio.Task[None] | None = None
        self.warm = False
        self.draining = asyncio.Event()
        """Set once the server is asked to end."""

    async def start(self) -> None:
        """Starts the batcher, and warms the model up in the background: not ready until then."""
        self.batcher.start()
        self._warm_up = asyncio.create_task(self._warm(), name="clf-warm-up")

    async def stop(self) -> None:
        self.draining.set()
        if self._warm_up is not None:
            await asyncio.wait([self._warm_up])
        await self.batcher.stop()
        self._decoders.shutdown(wait=True, cancel_futures=True)
        if self.gallery is not None:
            self.gallery.close()

    async def embed(self, blobs: Sequence[bytes], timings: Timings) -> Vectors:
        """Vectors (n, D) of n encoded images.

        Raises:
            Problem: an image that cannot be used, named by ``param``; too many; no room; shutting down.
        """
        self._check_open()
        if not blobs:
            raise Problem(400, "no_images", "the request holds no image", param="input")
        if len(blobs) > self.limits.max_images:
            text = f"{len(blobs)} images are more than the {self.limits.max_images} a request may hold"
            raise Problem(413, "too_many_images", text, param="input")
        with self.batcher.admitted(len(blobs)):
            start = time.monotonic()
            pixels = await self._decode(blobs)
            timings.since("decode", start)
            self.metrics.stage("decode").observe(time.monotonic() - start)
            vectors, jobs = await self.batcher.embed(pixels)
        timings.seconds["queue"] = max(job.started - job.arrived for job in jobs)
        timings.seconds["inference"] = max(job.done - job.started for job in jobs)
        self.metrics.images.inc(len(blobs))
        return vectors

    async def neighbours(self, vector: Vectors, k: int, timings: Timings, *, but: int | None = None) -> list[Hit]:
        """The k nearest images of the gallery, without the image ``but``."""
        self._check_open()
        gallery = self.require_gallery()
        start = time.monotonic()
        hits = await asyncio.to_thread(gallery.search, vector, k + (but is not None))
        timings.since("search", start)
        self.metrics.stage("search").observe(time.monotonic() - start)
        return [hit for hit in hits if hit.id != but][:k]

    async def vector(self, id_: int) -> Vectors:
        """The stored vector of a gallery's image. Raises Problem 404."""
        vector = await asyncio.to_thread(self.require_gallery().vector, id_)
        if vector is None:
            raise Problem(404, "unknown_id", f"the gallery has no image {id_}", param="id")
        return vector

    def require_gallery(self) -> Gallery:
        if self.gallery is None:
            text = "this server has no gallery; start it with: clf serve MODEL --gallery GALLERY"
            raise Problem(404, "no_gallery", text)
        return self.gallery

    async def ready(self) -> str | None:
        """None when requests will be answered, else the reason why not. An idle model is put to the test."""
        reason = await self._why_not_ready()
        self.metrics.ready.set(reason is None)
        return reason

    async def _why_not_ready(self) -> str | None:
        if self.draining.is_set():
            return "shutting down"
        if self._warm_up is not None and self._warm_up.done() and not self.warm:
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

    def _check_open(self) -> None:
        if self.draining.is_set():
            raise draining()
        if not self.warm:
            raise Problem(503, "warming_up", "the model is warming up; try again soon", retry_after=1)

    async def _warm(self) -> None:
        try:
            await asyncio.to_thread(self.engine.warm_up)
            await self.batcher.embed([self.engine.blank()])
            if self.gallery is not None:
                await asyncio.to_thread(self.gallery.load_index)
        except ClfError as error:
            _log.error("%s", error)
        except Exception:
            _log.exception("the model failed to warm up")
        else:
            self.warm = True

    async def _decode(self, blobs: Sequence[bytes]) -> list[Pixels]:
        loop = asyncio.get_running_loop()
        limits = self.limits.image
        tasks = [loop.run_in_executor(self._decoders, self.engine.prepare, blob, limits) for blob in blobs]
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
        pixels = []
        for index, result in enumerate(results):
            if isinstance(result, ImageError):
                words = str(result) if len(blobs) == 1 else f"image {index} of the request: {result}"
                raise Problem(422, "invalid_image", words, param=f"input[{index}]")
            if isinstance(result, BaseException):
                raise result
            pixels.append(result)
        return pixels
