"""The encoder at work: an exported model folder in, unit vectors out. No HTTP in here, and no torch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias, TypeVar

import numpy as np

from clf import images
from clf.decoding import DecodingLoss, compare_decoding_in
from clf.errors import ImageError, ModelError
from clf.manifest import read_manifest
from clf_serve.backends import open_backend
from clf_serve.backends.base import JSON, Backend, DeviceMemoryError, Pixels, Vectors, closed, first_line
from clf_serve.batching.buckets import next_padded_size, next_size
from clf_serve.files import Chunk, Skipped, ahead
from clf_serve.model_file import VariantName, check_ports, differs, read_graph
from clf_serve.probes import probe_images
from clf_serve.runtime import Provider, usable_cores

__all__ = ["Chunk", "Decoding", "Engine", "Pixels", "Skipped", "VariantName", "Vectors"]

T = TypeVar("T")
Decoding: TypeAlias = Literal["exact", "fast"]

_ENOUGH = 0.25  # seconds; a batch that takes longer is bound by arithmetic, and a larger one gains nothing
_LEAST_COSINE = 0.98  # between the vectors of fast and exact decoding
_COMPARED = 8  # images that a backend is compared on with the reference

_log = logging.getLogger(__name__)


class Engine:
    """One exported model, ready to embed, from any number of threads.

    Batches run in a few fixed sizes (buckets). On a CPU only sizes whose rows are bit-identical to the same images
    embedded alone are used, which :meth:`warm_up` checks; so there an embedding does not depend on its neighbours.
    On CUDA rows may differ in their last bits with the batch size; :meth:`facts` says by how much. A variant that the
    manifest calls ``dynamic`` has its images embedded one by one on every device.

    A batch that does not fit the device's memory is cut into smaller ones, and its size is not used again.

    ::

        with Engine(folder) as engine:  # warmed up; closed at the end
            vectors = engine.embed(engine.prepare(Path("photo.jpg"))[None])

    Args:
        provider: ``auto`` is CUDA where it works, else onnxruntime on the CPU. :attr:`note` says when it is another
            than the one asked for.
        threads: for the arithmetic on a CPU; all usable cores unless given.
        variant: which of the folder's graphs to use; see ``clf export --variants``.
        decoding: ``fast`` decodes large JPEGs at reduced size; vectors then differ a little from those of ``exact``,
            which are the ones that evaluation and a gallery know.
        samples: a folder of photos on which :meth:`warm_up` measures by how much; a least cosine below 0.98 refuses.

    Raises:
        ModelError: the folder is incomplete, has no such variant, or its graph differs from its manifest.
        MissingExtraError: onnxruntime, or OpenVINO when that is asked for, is not installed.
    """

    def __init__(
        self,
        folder: Path,
        provider: Provider = "auto",
        threads: int | None = None,
        *,
        variant: VariantName = "fp32",
        decoding: Decoding = "exact",
        samples: Path | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.variant: VariantName = variant
        self.decoding: Decoding = decoding
        self._samples = samples
        self._decoding_loss: DecodingLoss | None = None
        self.requested_provider: Provider = provider
        graph = read_graph(folder, self.manifest, variant)
        differs_from_fp32 = provider == "openvino" and variant != "fp32"
        reference = read_graph(folder, self.manifest, "fp32") if differs_from_fp32 else graph
        self._file, self._sha256, self._by_batch = graph.path, graph.sha256, graph.by_batch
        self._backend: Backend = open_backend(graph, reference, provider, threads or usable_cores())
        self._closed = False
        try:
            check_ports(graph.path, self._backend.ports(), self.image_size, self.dim)
        except ModelError:
            self.close()
            raise
        self._seconds: dict[int, float] = {1: 1.0}
        self._row_difference: float | None = None
        self._shrinking = threading.Lock()
        self.buckets: tuple[int, ...] = (1,)
        """Batch sizes in use, ascending from 1. It becomes shorter when memory runs out."""

    def __enter__(self) -> Self:
        """Raises ModelError: the graph does not run."""
        try:
            self.warm_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def image_size(self) -> int:
        return self.manifest.image_size

    @property
    def dim(self) -> int:
        return self.manifest.dim

    @property
    def max_batch(self) -> int:
        return self.buckets[-1]

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return self._backend.device

    @property
    def note(self) -> str | None:
        """What whoever starts the model should know, above all a device that is not the one asked for."""
        notes = list(self._backend.notes)
        if self._decoding_loss is not None:
            notes.append(f"fast decoding: {self._decoding_loss}")
        return "; ".join(notes) or None

    @property
    def preprocessing(self) -> str:
        """The name of what :meth:`prepare` does."""
        return images.FAST_PREPROCESSING if self.decoding == "fast" else self.manifest.preprocessing

    def facts(self) -> dict[str, JSON]:
        """What is at work here and what was found out about it, for people and programs. JSON."""
        backend = self._backend
        return {
            "requested_provider": self.requested_provider,
            "provider": backend.provider,
            "device": backend.device,
            "runtime": backend.runtime,
            "variant": self.variant,
            "precision": backend.arithmetic or self.variant,
            "sha256": self._sha256,
            "decoding": self.decoding,
            "decoding_loss": asdict(self._decoding_loss) if self._decoding_loss is not None else None,
            "threads": backend.threads,
            "buckets": list(self.buckets),
            "largest_difference_by_batch": self._row_difference,
            "note": self.note,
            **backend.facts(),
        }

    def close(self) -> None:
        """Frees the model; whoever embeds afterwards gets a RuntimeError. Runs that have begun are not disturbed."""
        if not self._closed:
            self._closed = True
            self._backend.close()

    def warm_up(self) -> None:
        """Runs every batch size and keeps those that pay, fit the memory and, on a CPU, change no bit of the result.

        Raises:
            ModelError: the graph does not run, its output is not (n, dim) finite unit vectors, a backend that has to
                agree with onnxruntime does not, or fast decoding changes too much.
            ImageError: ``samples`` holds no image.
        """
        self._check_open()
        sizes = self._backend.sizes[:1] if self._by_batch else self._backend.sizes
        probe = probe_images(max(sizes[-1], _COMPARED), self.image_size)
        self._backend.settle(probe[:_COMPARED])
        alone = [self._tried(probe[:1])]
        seconds = self._time(probe[:1])
        kept, difference = {1: seconds}, 0.0
        for size in sizes[1:]:
            if seconds > _ENOUGH:
                break
            try:
                rows = self._tried(probe[:size])
            except DeviceMemoryError as error:
                self._backend.notes.append(f"batches of {size} and more are not used: {error}")
                break
            except ModelError:  # a graph with a fixed batch of one is slow, not wrong
                break
            alone += [self._backend.run(probe[i : i + 1]) for i in range(len(alone), size)]
            off = float(np.abs(rows - np.concatenate(alone)).max())
            seconds = self._time(probe[:size])
            pays = seconds / size < min(kept[s] / s for s in kept) * 1.05
            if pays and (off == 0 or not self._backend.exact_rows):
                kept[size] = seconds
                difference = max(difference, off)
            else:
                self._backend.drop(size)
        self._row_difference, self._seconds = difference, kept
        self.buckets = tuple(kept)
        if self.decoding == "fast" and self._samples is not None:
            self._measure_decoding(self._samples)

    def fix_batches(self, size: int) -> None:
        """From here on all batches are of one size, at most ``size`` and padded up to it, whatever :meth:`warm_up`
        measured, so that another process gets the same bits. Without effect where rows do not depend on their batch.

        Raises:
            DeviceMemoryError: a batch of that size does not fit.
        """
        backend = self._backend
        if backend.exact_rows or self._by_batch or not backend.pads:
            return
        fixed = max(each for each in backend.sizes if each <= size)
        if fixed not in self.buckets:
            self._tried(probe_images(fixed, self.image_size))
        for other in self.buckets:
            if other != fixed:
                backend.drop(other)
        self._seconds[fixed] = self._seconds.get(fixed, 1.0)
        self.buckets = (fixed,)

    def embed(self, pixels: Pixels) -> Vectors:
        """Unit vectors of prepared images. Thread-safe.

        Args:
            pixels: (n, S, S, 3) uint8, RGB, as :func:`clf.images.prepare` makes them.

        Returns:
            (n, D) float32.

        Raises:
            ValueError: another shape or type.
            DeviceMemoryError: not even one image fits the memory that is left.
            RuntimeError: the engine is closed.
        """
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self._image_shape:
            wanted = ("n", *self._image_shape)
            raise ValueError(f"images must be uint8 {wanted}, got {pixels.dtype} {pixels.shape}")
        self._check_open()
        parts = [np.empty((0, self.dim), np.float32)]
        start = 0
        while start < len(pixels):
            size = self._next_size(len(pixels) - start)
            try:
                parts.append(self._backend.run(pixels[start : start + size]))
            except DeviceMemoryError as error:
                self._use_smaller_than(size, error)
            else:
                start += size
        return np.concatenate(parts) if len(parts) != 2 else parts[1]

    def prepare(self, source: Path | bytes, limits: images.Limits = images.DEFAULT_LIMITS) -> Pixels:
        """An image as this model sees it, (S, S, 3). Raises ImageError."""
        prepare = images.prepare_fast if self.decoding == "fast" else images.prepare
        return prepare(source, self.image_size, limits)

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
    ) -> Generator[Chunk[T], None, None]:
        """Embeds files in order, decoding ahead in threads while the model runs; memory is bounded by two batches.

        Close it to end early without decoding what was begun ahead.

        Args:
            load: makes of a file its pixels (S, S, 3) and whatever should come back beside the vector. It runs in
                threads, and an ImageError of it becomes a skipped file.
        """
        workers = usable_cores()
        depth = 2 * batch_size + workers
        with (
            ThreadPoolExecutor(workers, thread_name_prefix="clf-decode") as pool,
            closing(ahead(pool, load, paths, depth)) as begun,
        ):
            loaded: list[tuple[Path, Pixels, T]] = []
            skipped: list[Skipped] = []
            for path, future in begun:
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

    def _measure_decoding(self, folder: Path) -> None:
        """Raises ModelError where fast decoding changes too much; ImageError without images."""
        loss = compare_decoding_in(self.embed, self.image_size, folder)
        if loss.min_cosine < _LEAST_COSINE:
            raise ModelError(
                f"fast decoding changes the vectors of the photos in {folder} too much: {loss}, and {_LEAST_COSINE} is "
                "the least that is served; use --decoding exact"
            )
        self._decoding_loss = loss

    def _check_open(self) -> None:
        if self._closed:
            raise closed()

    def _next_size(self, n: int) -> int:
        buckets = self.buckets
        if not self._backend.pads:
            return next_size(n, buckets)
        return next_padded_size(n, tuple((size, self._seconds[size]) for size in buckets))

    def _use_smaller_than(self, size: int, error: DeviceMemoryError) -> None:
        """Gives up a bucket for good. Raises the error when there is none below."""
        with self._shrinking:
            smaller = tuple(bucket for bucket in self.buckets if bucket < size)
            if not smaller:
                raise error
            dropped = [bucket for bucket in self.buckets if bucket >= size]
            self.buckets = smaller
            for bucket in dropped:
                self._backend.drop(bucket)
        if dropped:  # else another thread was faster
            _log.warning("%s: %s; batches of at most %d are used from now on", self.folder, error, smaller[-1])

    def _tried(self, pixels: Pixels) -> Vectors:
        """Rows of a batch size that has not been run yet."""
        n = len(pixels)
        try:
            self._backend.prepare(n, pixels)
            rows = self._backend.run(pixels)
        except DeviceMemoryError as error:
            if n > 1:
                raise
            raise ModelError(f"{self.folder} does not fit the device: {error}") from error
        except Exception as error:  # the libraries' exceptions share no base class
            raise ModelError(f"{self.folder} does not run: {first_line(error)}. Export the run again.") from error
        if rows.shape != (n, self.dim):
            raise differs(self._file, f"it returns {rows.shape} for {n} images")
        if not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3):
            raise differs(self._file, "its embeddings are not of unit length")
        return rows

    def _time(self, pixels: Pixels) -> float:
        """Least seconds of a few runs."""
        least = np.inf
        begun = time.perf_counter()
        for _ in range(3):
            start = time.perf_counter()
            self._backend.run(pixels)
            now = time.perf_counter()
            least = min(least, now - start)
            if now - begun > _ENOUGH:
                break
        return float(least)
