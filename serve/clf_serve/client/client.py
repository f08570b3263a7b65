"""A client of ``clf serve``: images in, vectors and neighbours out. Needs httpx, numpy and Pillow, nothing else.

    with Client("http://127.0.0.1:8000") as client:
        vectors = client.embed(["a.jpg", "b.png"])                     # (2, D) float32, unit length
        vectors, paths, skipped = client.embed_folder("photos/")
        hits = client.search("a.jpg", k=5)
        pets = client.gallery("pets")                                  # search, upsert, delete and more
        hits = pets.search("a.jpg", where={"label": "cat"}, k=5)

:class:`AsyncClient` has the same methods, to be awaited under asyncio. Errors are those of
:mod:`clf_serve.client.exchange`, and ``clf.errors.ImageError`` for a file that cannot be used.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, Literal, Self, TypeVar

import httpx
from numpy.typing import ArrayLike

from clf_serve.client.connection import connection_options, grow
from clf_serve.client.exchange import (
    BusyServerError,
    Call,
    ClientError,
    Patience,
    RefusedError,
    RefusedImageError,
    Reply,
    Send,
    Spread,
    Steps,
    UnexpectedReplyError,
    UnreachableError,
    Vectors,
    Wait,
    WrongKeyError,
)
from clf_serve.client.gallery import AsyncRemoteGallery, RemoteGallery
from clf_serve.client.gallery_talks import GalleryHit, GalleryImage, Stored, Weighted, galleries
from clf_serve.client.punctual import keep_time
from clf_serve.client.talks import FolderVectors, Neighbour, Skipped, Talks
from clf_serve.client.uploads import Source

__all__ = [
    "AsyncClient",
    "BusyServerError",
    "Client",
    "ClientError",
    "FolderVectors",
    "GalleryHit",
    "GalleryImage",
    "Neighbour",
    "RefusedError",
    "RefusedImageError",
    "Skipped",
    "Stored",
    "UnexpectedReplyError",
    "UnreachableError",
    "Weighted",
    "WrongKeyError",
]

T = TypeVar("T")


class _Stopped(Exception):  # noqa: N818 - no error: a sibling failed, and this one need not go on
    pass


class Client:
    """Blocking calls; one client may be used from many threads.

    Args:
        url: where the server is; a trailing ``/v1``, as OpenAI's clients want it, may be there.
        api_key: sent as ``Authorization: Bearer``.
        model: which of the server's models; its first by default.
        batch_size: most images in one request. The server's own limits on images and bytes are kept in any case.
        in_flight: most requests at a time.
        attempts: of one request; more than one for 429, 502, 503, 504 and broken connections only.
        timeout: seconds of one attempt.
        deadline: seconds of one request with all its attempts and pauses.
        verify: how the certificate of an https server is checked, as httpx has it.
        transport: in place of the network; for tests and special needs.

    Raises:
        ClientError: ``url`` is not one of http or https.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        model: str | None = None,
        batch_size: int = 32,
        in_flight: int = 4,
        attempts: int = 6,
        timeout: float = 60.0,
        deadline: float = 180.0,
        verify: bool | ssl.SSLContext = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._talks = Talks(model, batch_size, in_flight, Patience(attempts, timeout, deadline))
        options: dict[str, Any] = {"verify": verify, "transport": transport}
        self._http = httpx.Client(**connection_options(url, api_key, in_flight), **options)
        self._clock = keep_time(self._http)

    def embed(self, images: Source | Iterable[Source]) -> Vectors:
        """Vectors (n, D) float32 of n images, in order; of one alone (1, D).

        An image is a path, a file's bytes, a Pillow image, an array of uint8 (H, W), (H, W, 3) or (H, W, 4), or a file
        opened with ``"rb"``. An array (n, H, W, C) holds n. An iterator is read as requests go out.

        Raises:
            ImageError: an image cannot be used; names it. Where the server says so it is a RefusedImageError.
            ClientError: as listed in :mod:`clf_serve.client.exchange`.
        """
        return self._run(self._talks.embed(images))

    def embed_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        on_error: Literal["skip", "raise"] = "skip",
        progress: bool = True,
    ) -> FolderVectors:
        """All images below a folder, sorted by path: their vectors (n, D), their paths, and what was left out and why.

        Args:
            on_error: what to do with a file that is no usable image; its neighbours are embedded in any case.
            progress: shows a bar on standard error, if that is a terminal.

        Raises:
            ImageError: the folder cannot be read; with ``"raise"``, a file cannot be used.
            ClientError: as listed in :mod:`clf_serve.client.exchange`.
        """
        return self._run(self._talks.embed_folder(folder, on_error, progress))

    def search(
        self,
        image: Source | None = None,
        *,
        vector: ArrayLike | None = None,
        id: int | None = None,  # noqa: A002 - the server's word
        k: int = 10,
    ) -> list[Neighbour]:
        """The k images of the server's gallery nearest to an image, a vector (D,) or one of its own images, best first.

        Raises:
            ClientError: as listed in :mod:`clf_serve.client.exchange`, or not exactly one of the three is given.
            ImageError: as :meth:`embed`.
        """
        return self._run(self._talks.search(image, vector, id, k))

    def gallery(self, name: str) -> RemoteGallery:
        """One of the server's galleries, by its name; nothing is asked yet."""
        return RemoteGallery(self._talks, name, self._run)

    def galleries(self) -> list[dict[str, Any]]:
        """What the server says of its galleries: id, images, model, dim, index and more."""
        return self._run(galleries(self._talks))

    def models(self) -> list[dict[str, Any]]:
        """What the server says of its models: id, dim, image_size, sha256, limits and more."""
        return self._run(self._talks.models())

    def ready(self) -> bool:
        """Whether the server embeds images now; False too when nothing answers. Asks once."""
        return self._run(self._talks.ready())

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        return self._drive(steps, threading.Event())

    def _drive(self, steps: Steps[T], stop: threading.Event) -> T:
        with closing(steps):
            outcome: Any = None
            error: Exception | None = None
            while True:
                try:
                    step = steps.send(outcome) if error is None else steps.throw(error)
                except StopIteration as end:
                    result: T = end.value
                    return result
                outcome = error = None
                try:
                    outcome = self._do(step, stop)
                except Exception as caught:
                    error = caught

    def _do(self, step: object, stop: threading.Event) -> object:
        if stop.is_set():
            raise _Stopped
        if isinstance(step, Send):
            return self._send(step)
        if isinstance(step, Call):
            return step.work()
        if isinstance(step, Spread):
            return self._spread(step, stop)
        assert isinstance(step, Wait)
        if stop.wait(step.seconds):
            raise _Stopped
        return None

    def _send(self, step: Send) -> Reply:
        end = self._clock.end = time.monotonic() + step.timeout
        asked = self._http.stream(step.method, step.path, timeout=step.timeout, **step.content)
        with asked as reply:
            body = bytearray()
            for piece in reply.iter_bytes():
                grow(body, piece)
                if time.monotonic() > end:
                    raise httpx.ReadTimeout(f"no whole answer within {step.timeout:g} s", request=reply.request)
        return Reply(reply.status_code, reply.headers, bytes(body))

    def _spread(self, step: Spread[Any], stop: threading.Event) -> list[Any]:
        results: dict[int, Any] = {}
        running: dict[Future[Any], int] = {}

        def collect(most: int) -> None:
            while len(running) > most:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    results[running.pop(future)] = future.result()

        pool = ThreadPoolExecutor(step.width, thread_name_prefix="clf-client")
        try:
            for place, item in enumerate(step.items):
                running[pool.submit(self._drive, step.work(item), stop)] = place
                collect(step.width - 1)
            collect(0)
        except BaseException:
            stop.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return [results[place] for place in range(len(results))]


class AsyncClient:
    """:class:`Client` for asyncio: the same arguments, methods and errors. Many tasks may share one, all of one
    event loop."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        model: str | None = None,
        batch_size: int = 32,
        in_flight: int = 4,
        attempts: int = 6,
        timeout: float = 60.0,
        deadline: float = 180.0,
        verify: bool | ssl.SSLContext = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._talks = Talks(model, batch_size, in_flight, Patience(attempts, timeout, deadline))
        options: dict[str, Any] = {"verify": verify, "transport": transport}
        self._http = httpx.AsyncClient(**connection_options(url, api_key, in_flight), **options)

    async def embed(self, images: Source | Iterable[Source]) -> Vectors:
        """As :meth:`Client.embed`. An iterator is advanced on the event loop; files are read beside it."""
        return await self._drive(self._talks.embed(images))

    async def embed_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        on_error: Literal["skip", "raise"] = "skip",
        progress: bool = True,
    ) -> FolderVectors:
        """As :meth:`Client.embed_folder`."""
        return await self._drive(self._talks.embed_folder(folder, on_error, progress))

    async def search(
        self,
        image: Source | None = None,
        *,
        vector: ArrayLike | None = None,
        id: int | None = None,  # noqa: A002 - the server's word
        k: int = 10,
    ) -> list[Neighbour]:
        """As :meth:`Client.search`."""
        return await self._drive(self._talks.search(image, vector, id, k))

    def gallery(self, name: str) -> AsyncRemoteGallery:
        """As :meth:`Client.gallery`; not to be awaited itself."""
        return AsyncRemoteGallery(self._talks, name, self._drive)

    async def galleries(self) -> list[dict[str, Any]]:
        """As :meth:`Client.galleries`."""
        return await self._drive(galleries(self._talks))

    async def models(self) -> list[dict[str, Any]]:
        """As :meth:`Client.models`."""
        return await self._drive(self._talks.models())

    async def ready(self) -> bool:
        """As :meth:`Client.ready`."""
        return await self._drive(self._talks.ready())

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _drive(self, steps: Steps[T]) -> T:
        with closing(steps):
            outcome: Any = None
            error: Exception | None = None
            while True:
                try:
                    step = steps.send(outcome) if error is None else steps.throw(error)
                except StopIteration as end:
                    result: T = end.value
                    return result
                outcome = error = None
                try:
                    outcome = await self._do(step)
                except Exception as caught:
                    error = caught

    async def _do(self, step: object) -> object:
        if isinstance(step, Send):
            return await self._send(step)
        if isinstance(step, Call):
            return await asyncio.to_thread(step.work)
        if isinstance(step, Spread):
            return await self._spread(step)
        assert isinstance(step, Wait)
        await asyncio.sleep(step.seconds)
        return None

    async def _send(self, step: Send) -> Reply:
        # A TLS handshake that is cancelled leaves its connection open, so one that hangs has to time out before.
        timeout = httpx.Timeout(step.timeout, connect=0.45 * step.timeout)
        asked = self._http.stream(step.method, step.path, timeout=timeout, **step.content)
        body = bytearray()
        try:
            async with asyncio.timeout(step.timeout), asked as reply:
                async for piece in reply.aiter_bytes():
                    grow(body, piece)
        except TimeoutError as error:
            raise httpx.ReadTimeout(f"no whole answer within {step.timeout:g} s") from error
        return Reply(reply.status_code, reply.headers, bytes(body))

    async def _spread(self, step: Spread[Any]) -> list[Any]:
        results: dict[int, Any] = {}
        running: dict[asyncio.Task[Any], int] = {}

        async def collect(most: int) -> None:
            while len(running) > most:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    results[running.pop(task)] = task.result()

        try:
            for place, item in enumerate(step.items):
                running[asyncio.create_task(self._drive(step.work(item)))] = place
                await collect(step.width - 1)
            await collect(0)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return [results[place] for place in range(len(results))]
