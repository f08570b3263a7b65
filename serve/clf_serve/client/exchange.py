"""Talking to a server of embeddings without doing any I/O: what to send, when to send it again, what an answer means.

A conversation is a generator (``Steps[T]``): it yields what it wants done (:class:`Send`, :class:`Wait`, :class:`Call`,
:class:`Spread`), is sent the outcome or thrown the error, and returns its result. ``clf_serve.client.client`` drives
the same conversations with blocking calls and with asyncio.

    ClientError(ClfError)
    ├── UnreachableError        no connection, or it broke or took too long, at every attempt
    ├── UnexpectedReplyError    an answer that is not one of this API: another program listens there
    └── RefusedError            the server said no: status, code, param, message
        ├── BusyServerError     429, 502, 503 or 504 at every attempt; or 409 while another process writes
        ├── WrongKeyError       401 or 403
        └── RefusedImageError   413 or 422 for one image; an ImageError too
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import random
import re
import ssl
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeAlias, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from clf.errors import ClfError, ImageError

T = TypeVar("T")
X = TypeVar("X")
Vectors: TypeAlias = NDArray[np.float32]

_TRIED_AGAIN = frozenset({429, 502, 503, 504})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0  # seconds


class ClientError(ClfError):
    """Base of what goes wrong between a client and its server."""


class UnreachableError(ClientError):
    """No answer: no connection, a broken one, or none in time."""


class UnexpectedReplyError(ClientError):
    """An answer that this API does not give."""


class RefusedError(ClientError):
    """The server refused. ``code`` and ``param`` are its own words for the reason and for the field at fault."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after
        """Seconds that the server asked to wait, if it did."""
        self.request_id = request_id
        """What the server's log calls the request."""

    @property
    def index(self) -> int | None:
        """Which image of the request is at fault: 2 where ``param`` is ``input[2]`` or ``images[2]``."""
        found = re.fullmatch(r"(?:input|images)\[(\d{1,9})\](?:\..*)?", self.param or "")
        return int(found[1]) if found else None


class BusyServerError(RefusedError):
    """Overloaded, starting, ending, behind a gateway that cannot reach it, or its gallery is being written to."""


class WrongKeyError(RefusedError):
    """The API key is missing or wrong."""


class RefusedImageError(RefusedError, ImageError):
    """One image that the server cannot use; ``param`` names it as the caller counted."""


@dataclass(frozen=True)
class Send:
    """One HTTP request; its outcome is a :class:`Reply`, or an ``httpx.RequestError`` is thrown."""

    method: str
    path: str
    content: Mapping[str, Any] = field(default_factory=dict)
    """``content``, ``json``, ``files``, ``params`` and ``headers``, as httpx takes them."""
    timeout: float = 60.0
    """Seconds from the connection to the last byte."""


@dataclass(frozen=True)
class Wait:
    """A pause of so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Call(Generic[T]):
    """Something that may take a while on this machine, such as reading a file; its outcome is what it returns."""

    work: Callable[[], T]


@dataclass(frozen=True)
class Spread(Generic[X]):
    """``work`` for every item, at most ``width`` at a time; its outcome is the list of results, in order.

    Items are taken from the iterable as places become free.
    """

    work: Callable[[X], Steps[Any]]
    items: Iterable[X]
    width: int


Step: TypeAlias = Send | Wait | Call[Any] | Spread[Any]
Steps: TypeAlias = Generator[Step, Any, T]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: httpx.Headers
    body: bytes


@dataclass(frozen=True)
class Patience:
    """How long and how often a request is tried."""

    attempts: int
    timeout: float
    """Seconds of one attempt."""
    deadline: float
    """Seconds of all attempts and the pauses between them."""


def request(asked: Send, patience: Patience) -> Steps[Reply]:
    """The answer to one request, which is sent again after 429, 502, 503, 504, 409 of a gallery that is being
    written to, and broken connections.

    Pauses grow twofold from half a second to 20 seconds and are drawn at random from their upper half, so that many
    clients do not come back together. Where the server says ``Retry-After``, the pause is never shorter; where that is
    beyond the deadline, it is not waited for.

    Raises:
        RefusedError: or one of its kinds. UnreachableError: at the last attempt.
    """
    end = time.monotonic() + patience.deadline
    for attempt in itertools.count(1):
        timeout = min(patience.timeout, max(end - time.monotonic(), 0.001))
        failure: ClientError
        try:
            reply: Reply = yield Send(asked.method, asked.path, asked.content, timeout)
        except httpx.RequestError as error:
            failure, retry_after = _unreachable(error, attempt), None
            failure.__cause__ = error
            if not _passing(error):
                raise failure from error
        else:
            if 200 <= reply.status < 300:
                return reply
            retry_after = read_retry_after(reply.headers)
            failure = refusal(reply, retry_after)
            if not isinstance(failure, BusyServerError):
                raise failure
        pause = _pause(attempt, retry_after)
        if attempt >= patience.attempts or time.monotonic() + pause > end:
            raise failure
        yield Wait(pause)
    raise AssertionError  # the loop has no end


def refusal(reply: Reply, retry_after: float | None) -> ClientError:
    """The error for an answer that is not a success, in the server's own words where it has any."""
    if reply.status < 400:
        where = reply.headers.get("location", "nowhere")
        return UnexpectedReplyError(f"the server sends callers on to {where} ({reply.status}); use that address")
    words: Any = None
    with suppress(ValueError, KeyError, TypeError, RecursionError):  # a proxy's page is not ours
        words = json.loads(reply.body)["error"]
    words = words if isinstance(words, dict) else {"message": words}
    texts = {name: value for name, value in words.items() if isinstance(value, str)}
    kind: type[RefusedError] = RefusedError
    if reply.status in _TRIED_AGAIN or (reply.status == 409 and texts.get("code") == "gallery_busy"):
        kind = BusyServerError
    elif reply.status in (401, 403):
        kind = WrongKeyError
    return kind(
        texts.get("message") or f"the server answered {reply.status} without a reason",
        status=reply.status,
        code=texts.get("code"),
        param=texts.get("param"),
        retry_after=retry_after,
        request_id=reply.headers.get("x-request-id"),
    )


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by ``Retry-After`` (RFC 9110, section 10.2.3): a number of seconds, or a date.

    A date is compared with the server's own ``Date``, so that clocks need not agree.
    """
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    then = _date(text)
    if then is None:
        return None
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (then - now).total_seconds())


def read_json(reply: Reply) -> dict[str, Any]:
    try:
        tree = json.loads(reply.body)
    except (ValueError, RecursionError) as error:
        raise UnexpectedReplyError(f"the server's answer is not JSON ({error}); is this its address?") from error
    if not isinstance(tree, dict):
        raise UnexpectedReplyError("the server's answer is not a JSON object; is this its address?")
    return tree


def read_vectors(reply: Reply, n: int) -> Vectors:
    """Vectors (n, D) from raw little-endian float32 with their shape in headers, or from JSON, base64 or floats.

    Raises:
        UnexpectedReplyError: it is neither, or of another number of images.
    """
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        vectors = _raw(reply) if kind == "application/octet-stream" else _rows(read_json(reply)["data"])
        if vectors.ndim != 2 or len(vectors) != n:
            raise ValueError(f"shape {vectors.shape} for {n} images")
        if vectors.size == 0 or not np.isfinite(vectors).all():
            raise ValueError("no numbers, or some that are not finite")
    except (ValueError, KeyError, TypeError, OverflowError, binascii.Error) as error:
        raise UnexpectedReplyError(f"the server's answer holds no embeddings of these images ({error})") from error
    return vectors


def _raw(reply: Reply) -> Vectors:
    shape = [int(side) for side in reply.headers["x-shape"].split(",")]
    if reply.headers["x-dtype"] != "<f4":
        raise ValueError(f"numbers of type {reply.headers['x-dtype']}")
    return np.frombuffer(reply.body, "<f4").astype(np.float32).reshape(shape)


def _rows(data: Any) -> Vectors:
    """OpenAI's ``data``; the order of its rows is by their ``index``."""
    data = sorted(data, key=lambda row: int(row["index"]))
    if [int(row["index"]) for row in data] != list(range(len(data))):
        raise ValueError("an index is missing or there twice")
    rows = [row["embedding"] for row in data]
    if rows and isinstance(rows[0], str):
        rows = [np.frombuffer(base64.b64decode(row, validate=True), "<f4") for row in rows]
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
        return np.array(rows, np.float32)


def _date(text: str) -> datetime | None:
    try:
        then = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return then if then.tzinfo else then.replace(tzinfo=UTC)


def _pause(attempt: int, retry_after: float | None) -> float:
    longest = min(_FIRST_PAUSE * 2 ** min(attempt - 1, 30), _LONGEST_PAUSE)
    if retry_after is not None:
        return retry_after + random.uniform(0, longest / 2)
    return random.uniform(longest / 2, longest)


def _passing(error: httpx.RequestError) -> bool:
    """Whether another attempt may fare better."""
    if not isinstance(error, httpx.TransportError) or isinstance(
        error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
    ):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        cause = cause.__cause__ or cause.__context__
    return True


def _unreachable(error: httpx.RequestError, attempts: int) -> UnreachableError:
    where = ""
    with suppress(RuntimeError):  # it does not always know its request
        where = f" at {error.request.url.scheme}://{error.request.url.netloc.decode('ascii')}"
    tried = f" ({attempts} attempts)" if attempts > 1 else ""
    reason = str(error) or type(error).__name__
    return UnreachableError(
        f"no answer from the server{where}: {reason}{tried}; see whether it runs and this is its address"
    )
