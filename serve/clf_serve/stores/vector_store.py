"""What a vector store has to do so that a gallery can be kept in it: seven methods, one of which changes anything.

A store keeps *rows* by id, and a small text of facts about the gallery. It decides nothing: ids, identity, what is
replaced and what filters mean are settled by :class:`clf_serve.stores.StoreGallery`, which turns every change of a
gallery into one :meth:`VectorStore.write`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from clf.errors import GalleryError
from clf_serve.gallery.filters import Where

if TYPE_CHECKING:
    from clf_serve.stores.store_gallery import StoreGallery

Ids = NDArray[np.int64]
Vector = NDArray[np.float32]

NO_VECTOR: Vector = np.empty(0, np.float32)
NO_VECTOR.setflags(write=False)


class NoGalleryError(GalleryError):
    """Raised by :meth:`VectorStore.open`: there is no gallery at the URL."""


class ConflictError(GalleryError):
    """Raised by :meth:`VectorStore.write`: somebody else has written since the generation that was read."""


@dataclass(frozen=True, eq=False)
class Row:
    """One image."""

    id: int
    """From 1 to 2**63 - 1."""
    key: str
    """Differs from row to row; any Unicode but NUL, up to 8192 characters."""
    facts: str = "{}"
    """A JSON object, as text: the rest of what is known of the image. To be given back with the same meaning.

    Texts ``uri``, ``sha256`` and ``folder``, whole numbers ``size``, ``mtime_ns``, ``width`` and ``height``, and the
    object ``metadata``, of up to 256 KiB, which holds what users like.
    """
    vector: Vector = field(default_factory=lambda: NO_VECTOR)
    """(D,) float32, of unit length."""
    thumbnail: bytes = b""
    """JPEG; may be empty."""


@dataclass(frozen=True)
class State:
    """A gallery as a whole."""

    generation: int
    """0 for a new one; rises by one with each write."""
    images: int
    about: Mapping[str, str]
    """Names and texts, as they were given to ``open`` and ``write``."""
    bytes: int = 0
    """That it takes where it is kept; 0 where that cannot be told."""


class VectorStore(ABC):
    """One open gallery in a store. Its class is named by an entry point of the group ``clf.indexes``.

    Calls come from any thread, one at a time unless the class says that it is ``concurrent``. One that does not come
    back holds up whoever waits for it: whatever asks over a network needs a time limit, after which it raises.

    What is read after a write has returned, by this handle or another, of this process or another, has that write in
    it. What a method raises is told to the user as an error of the store, by name; a ``GalleryError`` is told in its
    own words.
    """

    approximate: ClassVar[bool] = False
    """Whether ``search`` may miss neighbours unless it is asked to be exact."""
    concurrent: ClassVar[bool] = False
    """Whether several threads may call one handle at a time; else they take turns, each waiting for the whole call."""
    gallery: ClassVar[type[StoreGallery] | None] = None
    """A subclass of :class:`StoreGallery` whose methods do better what the store is good at."""

    @classmethod
    @abstractmethod
    def open(cls, url: str, *, write: bool, create: Mapping[str, str] | None = None) -> Self:
        """Opens the gallery at ``url``, which is the whole text ``SCHEME://REST``, the scheme in small letters.

        Args:
            write: whether ``write`` will be called. Many handles may be open for writing at a time.
            create: where there is none, make an empty one about which this is remembered, all or nothing. One that is
                there is left as it is.

        Raises:
            NoGalleryError: there is none, and ``create`` is None.
        """

    @abstractmethod
    def state(self) -> State:
        """As it is now."""

    @abstractmethod
    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        """In one transaction, all or nothing: removes the ids in ``delete`` and those of the rows in ``put``, then adds
        ``put``; replaces the named texts ``about``; and raises the generation by one. It is kept when this returns.

        Unknown ids in ``delete`` are ignored. Rows of ``put`` may take each other's keys.

        Raises:
            ConflictError: the generation is not ``at``; nothing is changed.
        """

    @abstractmethod
    def find(self, keys: Sequence[str]) -> Mapping[str, int]:
        """The ids of those keys that there are; compared letter by letter."""

    @abstractmethod
    def read(self, ids: Sequence[int], *, vectors: bool, thumbnails: bool) -> Sequence[Row]:
        """Those of the rows that there are, in any order.

        Args:
            ids: at most 1,000, each once.
            vectors, thumbnails: whether these are wanted; what is not may be left empty.
        """

    @abstractmethod
    def scan(self, after: int, limit: int, *, vectors: bool, thumbnails: bool) -> Sequence[Row]:
        """Up to ``limit`` rows by rising id, from the first whose id is greater than ``after``."""

    @abstractmethod
    def search(self, vector: Vector, k: int, allowed: Ids | None, *, exact: bool) -> Sequence[int]:
        """Ids of the ``k`` rows whose inner product with ``vector`` is the greatest, in any order; all, if fewer.

        Args:
            vector: (D,) float32, of unit length.
            allowed: rising ids; only these may be found. None: all.
            exact: none of the k best may be missing. Matters only where the store is ``approximate``.
        """

    def ids(self, where: Where | None) -> Ids | None:
        """Ids (n,), rising, of the rows that ``where`` lets through, or of all; None: to be found out by ``scan``."""
        return None

    def close(self) -> None:  # noqa: B027 - many have nothing to do
        """Lets go of what is open. Called once, by any thread. What was written is kept, whether this is called or not;
        an error is only logged."""
