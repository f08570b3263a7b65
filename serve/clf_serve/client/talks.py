"""What a client says to its server, call by call, as conversations of :mod:`clf_serve.client.exchange`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import httpx
import numpy as np
from numpy.typing import ArrayLike

from clf.errors import ImageError
from clf.images import find_images
from clf_serve.client.exchange import (
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
    Vectors,
    read_json,
    read_vectors,
    request,
)
from clf_serve.client.uploads import Source, encode, listed, named

T = TypeVar("T")
Row = TypeVar("Row", covariant=True)

_WANTED = "application/octet-stream, application/json;q=0.5"
_MOST_BYTES = 16 * 2**20  # of one request with several images, so that little is lost when it must be sent again
_LONGEST = 1e8  # seconds; a socket takes no timeout much beyond
_OVERHEAD = 512  # bytes of a form around each file
_OLD_SERVER = {"max_images": 32, "max_bytes": 8 * 2**20}  # for one that does not tell its limits


class Skipped(NamedTuple):
    path: Path
    reason: str


class FolderVectors(NamedTuple):
    """The images of a folder; row i of ``vectors`` (n, D) belongs to ``paths[i]``."""

    vectors: Vectors
    paths: list[Path]
    skipped: list[Skipped]


@dataclass(frozen=True)
class Neighbour:
    """A hit of a search; ``score`` is the cosine of the angle between it and the query."""

    id: int
    uri: str
    score: float
    metadata: dict[str, Any] = field(default_factory=dict)
    thumbnail: str = ""
    """Path of a small picture, relative to the server."""


@dataclass(frozen=True)
class Upload:
    """An image to be sent, and what is said of it."""

    index: int
    name: str
    source: Source
    about: Mapping[str, Any] = field(default_factory=dict)


class Loaded(NamedTuple):
    item: Upload
    blob: bytes


class Errand(Protocol[Row]):
    """What some images are sent for."""

    def send(self, group: Sequence[Loaded]) -> Send: ...

    def read(self, reply: Reply, n: int) -> Sequence[Row]:
        """A row for each of the n images, in order. Raises UnexpectedReplyError."""
        ...


class _Embedding:
    def send(self, group: Sequence[Loaded]) -> Send:
        return _post("/v1/embeddings", *(blob for _, blob in group))

    def read(self, reply: Reply, n: int) -> Sequence[Vectors]:
        return list(read_vectors(reply, n))


@dataclass(frozen=True)
class Room:
    """What the server takes in one request."""

    images: int
    bytes: int
    dim: int


def _nothing(_: int) -> None:
    pass


def skips(on_error: str) -> bool:
    """Raises ClientError unless it is one of "skip" and "raise"."""
    if on_error not in ("skip", "raise"):
        raise ClientError(f"on_error is {on_error!r}; it must be 'skip' or 'raise'")
    return on_error == "skip"


class Talks:
    """All calls of one client. It holds no connection, only what it was told and what the server said of itself."""

    def __init__(self, model: str | None, batch_size: int, in_flight: int, patience: Patience) -> None:
        if min(batch_size, in_flight, patience.attempts) < 1 or not (
            0 < patience.timeout < _LONGEST and patience.deadline > 0
        ):
            raise ClientError("batch_size, in_flight, attempts, timeout and deadline must be positive, timeout finite")
        self._model = model
        self.batch_size = batch_size
        """Most images in one request."""
        self._in_flight = in_flight
        self._patience = patience
        self._room: Room | None = None

    def models(self) -> Steps[list[dict[str, Any]]]:
        reply = yield from self.asked(Send("GET", "/v1/models"))
        data = read_json(reply).get("data")
        if not isinstance(data, list) or not all(isinstance(model, dict) for model in data):
            raise UnexpectedReplyError("the server's list of models is none; is this its address?")
        return data

    def ready(self) -> Steps[bool]:
        try:
            reply: Reply = yield Send("GET", "/health/ready", timeout=self._patience.timeout)
        except httpx.RequestError:
            return False
        return reply.status == 200

    def search(self, image: Source | None, vector: ArrayLike | None, id_: int | None, k: int) -> Steps[list[Neighbour]]:
        if sum(given is not None for given in (image, vector, id_)) != 1:
            raise ClientError("search takes one of image, vector and id")
        if image is not None:
            name = named(image, "the image")
            room = yield from self.known_room()
            blob: bytes = yield Call(partial(encode, image, name, room.bytes))
            try:
                reply = yield from self.asked(_post("/search", blob, k=k))
            except RefusedError as refusal:
                if refusal.status not in (413, 422):
                    raise
                raise of_image(refusal, name, 0) from refusal
        else:
            query = {"id": id_} if vector is None else {"vector": numbers(vector)}
            reply = yield from self.asked(Send("POST", "/search", {"json": {**query, "k": k}}))
        try:
            return [_neighbour(hit) for hit in read_json(reply)["hits"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UnexpectedReplyError(f"the server's answer holds no neighbours ({error!r})") from error

    def embed(self, images: Source | Iterable[Source]) -> Steps[Vectors]:
        sources = listed(images)
        items = (Upload(i, named(source, f"input[{i}]"), source) for i, source in enumerate(sources))
        rows = yield from self.sent(items, _Embedding(), skip=False)
        return (yield from self._stacked(rows))

    def embed_folder(
        self, folder: str | os.PathLike[str], on_error: Literal["skip", "raise"], progress: bool
    ) -> Steps[FolderVectors]:
        skip = skips(on_error)
        paths: list[Path] = yield Call(partial(find_images, Path(folder)))
        items = (Upload(i, str(path), path) for i, path in enumerate(paths))
        with bar("embedding", len(paths), progress) as advance:
            rows = yield from self.sent(items, _Embedding(), skip=skip, advance=advance)
        kept = [path for path, row in zip(paths, rows, strict=True) if not isinstance(row, ImageError)]
        skipped = [
            Skipped(path, str(row)) for path, row in zip(paths, rows, strict=True) if isinstance(row, ImageError)
        ]
        vectors = yield from self._stacked([row for row in rows if not isinstance(row, ImageError)])
        return FolderVectors(vectors, kept, skipped)

    def sent(
        self, items: Iterator[Upload], errand: Errand[T], *, skip: bool, advance: Callable[[int], object] = _nothing
    ) -> Steps[list[T | ImageError]]:
        """What becomes of each item, or, where ``skip``, why nothing does; in order."""
        room = yield from self.known_room()
        chunks = chunked(items, min(self.batch_size, room.images))
        work = partial(self._chunk, errand=errand, room=room, skip=skip, advance=advance)
        parts = yield Spread(work, chunks, self._in_flight)
        return [row for part in parts for row in part]

    def _chunk(
        self, items: Sequence[Upload], *, errand: Errand[T], room: Room, skip: bool, advance: Callable[[int], object]
    ) -> Steps[list[T | ImageError]]:
        """Reads some images and sends them, in as few requests as their bytes allow."""
        rows: dict[int, T | ImageError] = {}
        group: list[Loaded] = []
        most, held = min(room.bytes, _MOST_BYTES), 0
        for item in items:
            try:
                blob: bytes = yield Call(partial(encode, item.source, item.name, room.bytes))
            except ImageError as error:
                if not skip:
                    raise
                rows[item.index] = error
                continue
            if group and held + len(blob) + _OVERHEAD > most:
                rows |= yield from self._group(group, errand, skip)
                group, held = [], 0
            group.append(Loaded(item, blob))
            held += len(blob) + _OVERHEAD
        rows |= yield from self._group(group, errand, skip)
        advance(len(items))
        return [rows[item.index] for item in items]

    def _group(self, group: Sequence[Loaded], errand: Errand[T], skip: bool) -> Steps[dict[int, T | ImageError]]:
        """One request. An image that the server names as bad is taken out and the others are sent again."""
        rows: dict[int, T | ImageError] = {}
        waiting = list(group)
        while waiting:
            try:
                reply = yield from self.asked(errand.send(waiting))
            except RefusedError as refusal:
                if refusal.status not in (413, 422):
                    raise
                bad = _culprit(refusal, len(waiting))
                if bad is None:  # too much at once, perhaps for a proxy: less may do
                    half = len(waiting) // 2
                    rows |= yield from self._group(waiting[:half], errand, skip)
                    waiting = waiting[half:]
                    continue
                item = waiting.pop(bad).item
                error = of_image(refusal, item.name, item.index)
                if not skip:
                    raise error from refusal
                rows[item.index] = error
                continue
            found = errand.read(reply, len(waiting))
            return rows | {item.index: row for (item, _), row in zip(waiting, found, strict=True)}
        return rows

    def _stacked(self, rows: Sequence[Any]) -> Steps[Vectors]:
        if len({len(row) for row in rows}) > 1:
            raise UnexpectedReplyError("the server's vectors are not all of one length; its model changed meanwhile")
        if rows:
            return np.stack(rows)
        room = yield from self.known_room()
        return np.empty((0, room.dim), np.float32)

    def known_room(self) -> Steps[Room]:
        """The server's limits, asked for once."""
        if self._room is None:
            models = yield from self.models()
            chosen = [model for model in models if model.get("id") == self._model] or models[:1]
            facts = {**_OLD_SERVER, "dim": 0, **(chosen[0] if chosen else {})}
            try:
                room = Room(*(int(facts[name]) for name in ("max_images", "max_bytes", "dim")))
                if min(room.images, room.bytes, room.dim + 1) < 1:
                    raise ValueError(f"{room.images} images of {room.bytes} bytes, {room.dim} numbers a vector")
                self._room = room
            except (TypeError, ValueError, OverflowError) as error:
                raise UnexpectedReplyError(f"the server's limits cannot be read ({error})") from error
        return self._room

    def asked(self, send: Send) -> Steps[Reply]:
        content = dict(send.content)
        if self._model is not None and not send.path.startswith("/v1/galleries"):
            content["params"] = {**content.get("params", {}), "model": self._model}
        return (yield from request(Send(send.method, send.path, content), self._patience))


def _post(path: str, *blobs: bytes, **params: object) -> Send:
    """One image as it is, several as a form."""
    content: dict[str, Any] = {"params": params, "headers": {"Accept": _WANTED}}
    if path.endswith("embeddings"):
        content["params"]["encoding_format"] = "base64"
    else:
        content["headers"] = {}
    if len(blobs) == 1:
        content["content"] = blobs[0]
        content["headers"]["Content-Type"] = "application/octet-stream"
    else:
        content["files"] = [("images", (str(i), blob, "application/octet-stream")) for i, blob in enumerate(blobs)]
    return Send("POST", path, content)


def _culprit(refusal: RefusedError, n: int) -> int | None:
    """Which of the n images of a request is at fault, if that can be known."""
    if n == 1:
        return 0
    index = refusal.index
    return index if index is not None and index < n else None


def of_image(refusal: RefusedError, name: str, index: int) -> RefusedImageError:
    """The server's refusal in the caller's terms, who knows nothing of requests."""
    words = re.sub(r"^image \d+ of the request: ", "", refusal.message)
    return RefusedImageError(
        f"{name}: {words}",
        status=refusal.status,
        code=refusal.code,
        param=f"input[{index}]",
        request_id=refusal.request_id,
    )


def _neighbour(hit: dict[str, Any]) -> Neighbour:
    return Neighbour(
        int(hit["id"]), str(hit["uri"]), float(hit["score"]), dict(hit["metadata"]), str(hit.get("thumbnail", ""))
    )


def numbers(vector: ArrayLike) -> Any:
    try:
        numbers = np.asarray(vector, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ClientError(f"the vector of a search must be numbers ({error})") from error
    if not np.isfinite(numbers).all():
        raise ClientError("the vector of a search must be finite")
    return numbers.tolist()


def chunked(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(items, size)):
        yield chunk


@contextmanager
def bar(label: str, total: int, wanted: bool) -> Iterator[Callable[[int], object]]:
    """Images done, images a second and time left, on a terminal; yields what is told of images done."""
    if not wanted:
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(label, total=total)
        yield lambda n: shown.update(task, advance=n)
