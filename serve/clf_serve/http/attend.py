"""Between a route and the network: reads a body with care, and works only while the client is there to be answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import ParamSpec, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from clf_serve.call import Call
from clf_serve.http.inputs import expanded, read_body
from clf_serve.http.shapes import Source, Url
from clf_serve.limits import ServeLimits
from clf_serve.priority import full_pool
from clf_serve.problems import Problem, overloaded, too_late
from clf_serve.service import Service

P = ParamSpec("P")
T = TypeVar("T")
_LARGE = 2**17  # bytes; reading less of JSON or base64 takes less than a millisecond
_FETCHED_AT_ONCE = 8


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Attended:
    """A request whose body has arrived."""

    body: bytes
    call: Call
    take: Callable[[int], bool]
    """Asks for n more bytes of memory, which are given back with the answer."""

    def keep(self, sources: Sequence[Source]) -> None:
        """Counts images that were copied out of the body. Raises Problem 429 when there is no room for them."""
        copies = [len(source) for source in sources if isinstance(source, bytes) and source is not self.body]
        if not self.take(sum(copies)):
            raise overloaded(1)


async def attended(
    request: Request, service: Service, work: Callable[[Attended], Awaitable[Response]], *, room: bool = True
) -> Response:
    """The answer of ``work``, within the deadline and while the client is there.

    Args:
        room: refuse at once, before the body is read, when the models have no room. The rest of the body is discarded
            as it comes, so that the connection can be used again.

    Raises:
        Problem: 408, 413, 415, 429, 503; what ``work`` raises.
        ClientGoneError: it went.
    """
    limits = service.limits
    call = Call.of(request.scope)
    call.deadline = min(call.deadline, time.monotonic() + limits.timeout)
    if room:
        service.check_room(call.deadline)
    with service.budget.share() as take:
        try:
            async with asyncio.timeout(call.left):
                start = time.monotonic()
                body = await read_body(request, limits, take, _joined)
                service.metrics.stage("read").observe(call.since("read", start))
        except TimeoutError:
            raise Problem(408, "upload_timeout", f"the body did not arrive within {limits.timeout:g} s") from None
        except ClientDisconnect:
            raise ClientGoneError from None
        return await _while_there(request, _expanded(request, body, call, take, limits, work), call, limits.timeout)


@cache
def readers() -> ThreadPoolExecutor:
    """Reading takes up to four times a body's bytes for a moment, and mostly holds the interpreter: two are enough."""
    return full_pool(2, "clf-read")


async def off_loop(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``function`` here, or in a thread when it has so many bytes to read that others would be kept waiting."""
    if size < _LARGE:
        return function(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(readers(), partial(function, *args, **kwargs))


async def _joined(blocks: list[bytes]) -> bytes:
    """In a thread, while others run: joining more than a MiB of bytes lets go of the interpreter."""
    return await off_loop(_LARGE, b"".join, blocks)


async def fetched(sources: Sequence[Source], limits: ServeLimits, job: Attended) -> list[bytes]:
    """Images by URL are fetched, a few at a time; the others are here already, and counted.

    Raises:
        Problem: one cannot be fetched; 413 they are too large together; 429 no room for them.
    """
    job.keep(sources)
    if all(isinstance(source, bytes) for source in sources):
        return [source for source in sources if isinstance(source, bytes)]
    from clf_serve.fetching import fetch_image

    gate = asyncio.Semaphore(_FETCHED_AT_ONCE)
    total = 0

    async def fetch(source: Source) -> bytes:
        nonlocal total
        if isinstance(source, bytes):
            return source
        async with gate:
            blob = await fetch_image(source.address, limits, job.call.deadline, param=source.param, take=job.take)
        total += len(blob)
        if total > limits.max_bytes:
            text = f"the images of this request are larger than {limits.max_bytes / 2**20:g} MiB"
            raise Problem(413, "too_large", text, param=source.param)
        return blob

    if len([source for source in sources if isinstance(source, Url)]) > limits.max_images:
        text = f"the request holds more images than the {limits.max_images} that it may"
        raise Problem(413, "too_many_images", text, param="input")
    tasks = [asyncio.ensure_future(fetch(source)) for source in sources]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _expanded(
    request: Request,
    body: bytes,
    call: Call,
    take: Callable[[int], bool],
    limits: ServeLimits,
    work: Callable[[Attended], Awaitable[Response]],
) -> Response:
    encoding = request.headers.get("content-encoding", "")
    if encoding:
        body = await off_loop(_LARGE, expanded, body, encoding, limits)
        if not take(len(body)):
            raise overloaded(1)
    return await work(Attended(body, call, take))


async def _while_there(request: Request, work: Awaitable[T], call: Call, timeout: float) -> T:
    """The result of ``work``, which is given up at the deadline or when the client goes away.

    Raises:
        ClientGoneError: it went.
        Problem: 503 at the deadline.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, timeout=call.left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGoneError
        raise too_late(timeout)
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection. Only after the whole body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
