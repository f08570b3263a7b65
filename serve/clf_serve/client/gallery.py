"""One gallery of a server, as :class:`clf_serve.client.client.Client` and ``AsyncClient`` give it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from numpy.typing import ArrayLike

from clf_serve.client.exchange import Steps, Vectors
from clf_serve.client.gallery_talks import (
    FolderStored,
    GalleryHit,
    GalleryImage,
    GalleryTalks,
    Metadata,
    Page,
    Stored,
    Where,
)
from clf_serve.client.talks import Talks
from clf_serve.client.uploads import Source

T = TypeVar("T")


class _Run(Protocol):
    def __call__(self, steps: Steps[T], /) -> T: ...


class _Await(Protocol):
    def __call__(self, steps: Steps[T], /) -> Awaitable[T]: ...


class RemoteGallery:
    """Made by :meth:`clf_serve.client.client.Client.gallery`. Errors are those of :mod:`clf_serve.client.exchange`;
    changes to a gallery need a server that was started with ``--writable``."""

    def __init__(self, talks: Talks, name: str, run: _Run) -> None:
        self.name = name
        self._talks = GalleryTalks(talks, name)
        self._run = run

    def info(self) -> dict[str, Any]:
        """What it holds: images, model, dim, the index and its measured recall, fields of the metadata and more."""
        return self._run(self._talks.info())

    def search(
        self,
        image: Source | None = None,
        *,
        vector: ArrayLike | None = None,
        id: int | None = None,  # noqa: A002 - the server's word
        like: Sequence[Any] = (),
        unlike: Sequence[Any] = (),
        k: int = 10,
        offset: int = 0,
        where: Where | None = None,
        min_score: float | None = None,
        exact: bool = False,
        fold: bool | float = False,
    ) -> list[GalleryHit]:
        """The k nearest images, best first.

        Args:
            like, unlike: ids, images and vectors (D,) that are combined with each other and with the query, in a
                :class:`clf_serve.client.client.Weighted` where a weight other than 1 (0.5 for unlike) is wanted.
            offset: how many of the best to pass over.
            where: a filter, as ``{"label": "cat", "year": {"$gte": 2020}}``.
            min_score: only hits of at least this cosine.
            exact: compare with every vector, whatever the index.
            fold: show near duplicates as one hit; a number is the cosine from which they are.
        """
        options = {"k": k, "offset": offset, "where": where, "min_score": min_score, "exact": exact, "fold": fold}
        return self._run(self._talks.search(image, vector, id, like, unlike, options))

    def page(self, after: int = 0, limit: int = 100, where: Where | None = None) -> Page:
        """Up to ``limit`` images in order of id, from the first whose id is greater than ``after``."""
        return self._run(self._talks.page(after, limit, where))

    def items(self, where: Where | None = None) -> Iterator[GalleryImage]:
        """All images in order of id, asked for page by page."""
        after: int | None = 0
        while after is not None:
            images, after = self.page(after, 1000, where)
            yield from images

    def get(self, id: int) -> GalleryImage | None:  # noqa: A002 - the server's word
        """One image, or None where there is no such image."""
        return self._run(self._talks.get(id))

    def vector(self, id: int) -> Vectors | None:  # noqa: A002 - the server's word
        """(D,) float32, or None where there is no such image."""
        return self._run(self._talks.vector(id))

    def thumbnail(self, id: int) -> bytes | None:  # noqa: A002 - the server's word
        """A small JPEG, or None where there is none."""
        return self._run(self._talks.thumbnail(id))

    def upsert(
        self,
        images: Source | Iterable[Source],
        *,
        keys: Sequence[str] | None = None,
        uris: Sequence[str] | None = None,
        metadata: Sequence[Metadata] | None = None,
    ) -> list[Stored]:
        """Adds images, or replaces those of the same key.

        Images are those that :meth:`clf_serve.client.client.Client.embed` takes; keys, uris and metadata are as many.
        Without keys the digest of its file is an image's key. Each request is taken as a whole or not at all; of
        several, those before an error stay.
        """
        return self._run(self._talks.upsert(images, keys, uris, metadata))

    def upsert_vectors(
        self,
        vectors: ArrayLike,
        *,
        keys: Sequence[str] | None = None,
        uris: Sequence[str] | None = None,
        metadata: Sequence[Metadata] | None = None,
    ) -> list[Stored]:
        """Adds vectors (n, D) of the gallery's model without images, as :meth:`upsert`."""
        return self._run(self._talks.upsert_vectors(vectors, keys, uris, metadata))

    def upsert_folder(
        self,
        folder: str | Path,
        *,
        metadata: Callable[[Path], Metadata] | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        progress: bool = True,
    ) -> FolderStored:
        """Adds all images below a folder; their paths as they are here become keys and URIs. What is gone from the
        folder stays in the gallery.

        Args:
            metadata: called with each path.
            on_error: what to do with a file that is no usable image; its neighbours are added in any case.
            progress: shows a bar on standard error, if that is a terminal.
        """
        return self._run(self._talks.upsert_folder(folder, metadata, on_error, progress))

    def set_metadata(self, id: int, patch: Metadata | None) -> GalleryImage:  # noqa: A002 - the server's word
        """Merges ``patch`` into an image's metadata, where None deletes a name (RFC 7396); None alone deletes all."""
        return self._run(self._talks.set_metadata(id, patch))

    def delete(self, ids: Iterable[int]) -> int:
        """How many of these images there were; they are gone now."""
        return self._run(self._talks.delete(ids))

    def delete_where(self, where: Where, confirm: int) -> int:
        """Deletes all that match, if they are as many as ``confirm`` says; else nothing, and RefusedError."""
        return self._run(self._talks.delete_where(where, confirm))


class AsyncRemoteGallery:
    """:class:`RemoteGallery` for asyncio: the same methods, to be awaited; ``items`` with ``async for``."""

    def __init__(self, talks: Talks, name: str, run: _Await) -> None:
        self.name = name
        self._talks = GalleryTalks(talks, name)
        self._run = run

    async def info(self) -> dict[str, Any]:
        """As :meth:`RemoteGallery.info`."""
        return await self._run(self._talks.info())

    async def search(
        self,
        image: Source | None = None,
        *,
        vector: ArrayLike | None = None,
        id: int | None = None,  # noqa: A002 - the server's word
        like: Sequence[Any] = (),
        unlike: Sequence[Any] = (),
        k: int = 10,
        offset: int = 0,
        where: Where | None = None,
        min_score: float | None = None,
        exact: bool = False,
        fold: bool | float = False,
    ) -> list[GalleryHit]:
        """As :meth:`RemoteGallery.search`."""
        options = {"k": k, "offset": offset, "where": where, "min_score": min_score, "exact": exact, "fold": fold}
        return await self._run(self._talks.search(image, vector, id, like, unlike, options))

    async def page(self, after: int = 0, limit: int = 100, where: Where | None = None) -> Page:
        """As :meth:`RemoteGallery.page`."""
        return await self._run(self._talks.page(after, limit, where))

    async def items(self, where: Where | None = None) -> AsyncIterator[GalleryImage]:
        """As :meth:`RemoteGallery.items`."""
        after: int | None = 0
        while after is not None:
            images, after = await self.page(after, 1000, where)
            for image in images:
                yield image

    async def get(self, id: int) -> GalleryImage | None:  # noqa: A002 - the server's word
        """As :meth:`RemoteGallery.get`."""
        return await self._run(self._talks.get(id))

    async def vector(self, id: int) -> Vectors | None:  # noqa: A002 - the server's word
        """As :meth:`RemoteGallery.vector`."""
        return await self._run(self._talks.vector(id))

    async def thumbnail(self, id: int) -> bytes | None:  # noqa: A002 - the server's word
        """As :meth:`RemoteGallery.thumbnail`."""
        return await self._run(self._talks.thumbnail(id))

    async def upsert(
        self,
        images: Source | Iterable[Source],
        *,
        keys: Sequence[str] | None = None,
        uris: Sequence[str] | None = None,
        metadata: Sequence[Metadata] | None = None,
    ) -> list[Stored]:
        """As :meth:`RemoteGallery.upsert`."""
        return await self._run(self._talks.upsert(images, keys, uris, metadata))

    async def upsert_vectors(
        self,
        vectors: ArrayLike,
        *,
        keys: Sequence[str] | None = None,
        uris: Sequence[str] | None = None,
        metadata: Sequence[Metadata] | None = None,
    ) -> list[Stored]:
        """As :meth:`RemoteGallery.upsert_vectors`."""
        return await self._run(self._talks.upsert_vectors(vectors, keys, uris, metadata))

    async def upsert_folder(
        self,
        folder: str | Path,
        *,
        metadata: Callable[[Path], Metadata] | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        progress: bool = True,
    ) -> FolderStored:
        """As :meth:`RemoteGallery.upsert_folder`."""
        return await self._run(self._talks.upsert_folder(folder, metadata, on_error, progress))

    async def set_metadata(self, id: int, patch: Metadata | None) -> GalleryImage:  # noqa: A002 - the server's word
        """As :meth:`RemoteGallery.set_metadata`."""
        return await self._run(self._talks.set_metadata(id, patch))

    async def delete(self, ids: Iterable[int]) -> int:
        """As :meth:`RemoteGallery.delete`."""
        return await self._run(self._talks.delete(ids))

    async def delete_where(self, where: Where, confirm: int) -> int:
        """As :meth:`RemoteGallery.delete_where`."""
        return await self._run(self._talks.delete_where(where, confirm))
