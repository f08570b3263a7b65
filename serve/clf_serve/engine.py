"""The encoder at work: an exported model folder in, unit vectors out. No HTTP in here, and no torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from clf import images
from clf.errors import ImageError, ModelError
from clf.manifest import MODEL_FILE, read_manifest
from clf_serve.runtime import Provider, open_session, usable_cores

T = TypeVar("T")
Pixels: TypeAlias = NDArray[np.uint8]
Vectors: TypeAlias = NDArray[np.float32]

_BUCKETS = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 2, 4, 8, 16, 32, 64, 128)}
_ENOUGH = 0.25  # seconds; a batch that takes longer is bound by arithmetic, and a larger one gains nothing


class Skipped(NamedTuple):
    path: Path
    reason: str


@dataclass(frozen=True)
class Chunk(Generic[T]):
    """A part of a stream of files: what was embedded, and what could not be."""

    items: list[T]
    vectors: Vectors
    """(len(items), D)."""
    skipped: list[Skipped]


class Engine:
    """One exported model, ready to embed.

    Batches run in a few fixed sizes (buckets). On a CPU only sizes whose rows are bit-identical to the same images
    embedded alone are used, which :meth:`warm_up` checks; so there an embedding does not depend on its neighbours.
    On CUDA rows may differ in their last bits with the batch size.

    Raises:
        ModelError: the folder is incomplete or its graph differs from its manifest.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, folder: Path, provider: Provider = "auto", threads: int | None = None) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        session, self.device, self.note = open_session(folder / MODEL_FILE, provider, threads)
        self._session = session
        self._check_graph()
        self.buckets: tuple[int, ...] = (1,)

    @property
    def image_size(self) -> int:
        return self.manifest.image_size

    @property
    def dim(self) -> int:
        return self.manifest.dim

    @property
    def max_batch(self) -> int:
        return self.buckets[-1]

    def warm_up(self) -> None:
        """Runs every batch size once or more and keeps those that pay and, on a CPU, change no bit of the result.

        Raises:
            ModelError: the graph does not run, or its output is not (n, dim) finite unit vectors.
        """
        sizes = _BUCKETS[self.device]
        probe = np.random.default_rng(0).integers(0, 256, (sizes[-1], *self._image_shape), dtype=np.uint8)
        alone: list[Vectors] = [self._checked_run(probe[:1])]
        best = self._seconds(probe[:1])
        kept = [1]
        spent = best
        for size in sizes[1:]:
            if spent > _ENOUGH:
                break
            try:
                rows = self._checked_run(probe[:size])
            except ModelError:  # a graph with a fixed batch of one is slow, not wrong
                break
            alone += [self._run(probe[i : i + 1]) for i in range(len(alone), size)]
            spent = self._seconds(probe[:size])
            exact = self.device != "cpu" or np.array_equal(rows, np.concatenate(alone))
            if exact and spent / size < best * 1.05:
                kept.append(size)
                best = min(best, spent / size)
        self.buckets = tuple(kept)

    def embed(self, pixels: Pixels) -> Vectors:
        """Unit vectors of prepared images. Thread-safe.

        Args:
            pixels: (n, S, S, 3) uint8, RGB, as :func:`clf.images.prepare` makes them.

        Returns:
            (n, D) float32.

        Raises:
            ValueError: another shape or type.
        """
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self._image_shape:
            wanted = ("n", *self._image_shape)
            raise ValueError(f"images must be uint8 {wanted}, got {pixels.dtype} {pixels.shape}")
        parts = [self._run(pixels[start:end]) for start, end in _split(len(pixels), self.buckets)]
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def prepare(self, source: Path | bytes, limits: images.Limits = images.DEFAULT_LIMITS) -> Pixels:
        """An image as this model sees it. Raises ImageError."""
        return images.prepare(source, self.image_size, limits)

    def blank(self) -> Pixels:
        """A grey image (S, S, 3), to try the model with."""
        return np.full(self._image_shape, 128, np.uint8)

    def embed_files(
        self,
        paths: Sequence[Path],
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Vectors, list[Path], list[Skipped]]:
        """Embeds image files: vectors (n, D), their paths, and the files that could not be used.

        Args:
            progress: called with the number of files done since the last call.
        """
        vectors, kept, skipped = [np.empty((0, self.dim), np.float32)], [], []
        for chunk in self.stream(paths, lambda path: (self.prepare(path), path), batch_size):
            vectors.append(chunk.vectors)
            kept += chunk.items
            skipped += chunk.skipped
            if progress:
                progress(len(chunk.items) + len(chunk.skipped))
        return np.concatenate(vectors), kept, skipped

    def stream(
        self, paths: Iterable[Path], load: Callable[[Path], tuple[Pixels, T]], batch_size: int = 32
    ) -> Iterator[Chunk[T]]:
        """Embeds files in order, decoding ahead in threads while the model runs; memory is bounded by two batches.

        Args:
            load: makes of a file its pixels (S, S, 3) and whatever should come back beside the vector. It runs in
                threads, and an ImageError of it becomes a skipped file.
        """
        workers = usable_cores()
        with ThreadPoolExecutor(workers, thread_name_prefix="clf-decode") as pool:
            loaded: list[tuple[Path, Pixels, T]] = []
            skipped: list[Skipped] = []
            for path, future in _ahead(pool, load, paths, depth=2 * batch_size + workers):
                try:
                    loaded.append((path, *future.result()))
                except ImageError as error:
                    skipped.append(Skipped(path, str(error)))
                if len(loaded) + len(skipped) >= batch_size:
                    yield self._chunk(loaded, skipped)
                    loaded, skipped = [], []
            if loaded or skipped:
                yield self._chunk(loaded, skipped)

    def _chunk(self, loaded: list[tuple[Path, Pixels, T]], skipped: list[Skipped]) -> Chunk[T]:
        if not loaded:
            return Chunk([], np.empty((0, self.dim), np.float32), skipped)
        vectors = self.embed(np.stack([pixels for _, pixels, _ in loaded]))
        good = np.asarray(np.isfinite(vectors).all(axis=1))
        skipped = skipped + [
            Skipped(path, f"{path} has no finite embedding")
            for (path, _, _), ok in zip(loaded, good, strict=True)
            if not ok
        ]
        items = [item for (_, _, item), ok in zip(loaded, good, strict=True) if ok]
        return Chunk(items, vectors[good], skipped)

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, 3)

    def _run(self, pixels: Pixels) -> Vectors:
        rows: Vectors = self._session.run(["embeddings"], {"images": pixels})[0]
        return rows

    def _checked_run(self, pixels: Pixels) -> Vectors:
        try:
            rows = self._run(pixels)
        except Exception as error:  # onnxruntime's exceptions share no base class
            first = str(error).strip().splitlines()[0]
            raise ModelError(f"{self.folder} does not run: {first}. Export the run again.") from error
        if rows.shape != (len(pixels), self.dim):
            raise self._differs(f"it returns {rows.shape} for {len(pixels)} images")
        if not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3):
            raise self._differs("its embeddings are not of unit length")
        return rows

    def _seconds(self, pixels: Pixels) -> float:
        start = time.perf_counter()
        self._run(pixels)
        return time.perf_counter() - start

    def _check_graph(self) -> None:
        ends = [
            (self._session.get_inputs(), "images", "tensor(uint8)", [None, self.image_size, self.image_size, 3]),
            (self._session.get_outputs(), "embeddings", "tensor(float)", [None, self.dim]),
        ]
        for nodes, name, kind, shape in ends:
            found = [(node.name, node.type, list(node.shape)) for node in nodes]
            if len(found) != 1 or found[0][:2] != (name, kind) or not _fits(found[0][2], shape):
                raise self._differs(f"{found} was found where one {name!r} {kind} {shape} belongs")

    def _differs(self, what: str) -> ModelError:
        return ModelError(f"{self.folder / MODEL_FILE} differs from its manifest: {what}. Export the run again.")


def _fits(found: list[int | str | None], wanted: list[int | None]) -> bool:
    """Symbolic sizes fit anything."""
    return len(found) == len(wanted) and all(
        not isinstance(f, int) or w is None or f == w for f, w in zip(found, wanted, strict=True)
    )


def _split(n: int, buckets: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Cuts n rows into pieces of the given sizes, largest first: 13 by (1, 4, 8) is 8 + 4 + 1."""
    start = 0
    for size in reversed(buckets):
        while n - start >= size:
            yield start, start + size
            start += size


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Path], T], paths: Iterable[Path], depth: int
) -> Iterator[tuple[Path, Future[T]]]:
    """``function`` of each path, in order, begun up to ``depth`` items before it is asked for."""
    pending: deque[tuple[Path, Future[T]]] = deque()
    try:
        for path in paths:
            pending.append((path, pool.submit(function, path)))
            if len(pending) >= depth:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        for _, future in pending:
            future.cancel()
