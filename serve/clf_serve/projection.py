"""A gallery as a map: its images as points of a plane, those that the encoder finds alike close together.

PCA (K. Pearson, Philosophical Magazine 2, 1901) needs nothing but numpy and takes moments. UMAP (L. McInnes, J. Healy
and J. Melville, arXiv:1802.03426) keeps neighbours together where PCA lays them over each other; it needs umap-learn
(extra ``map``) and minutes, which it takes in a process of its own, so that nobody who searches waits for it.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from clf.errors import GalleryError, missing_extra
from clf_serve.background import Sample, sample
from clf_serve.background import Vectors as Images
from clf_serve.umap_process import SHAPE

Kind = Literal["pca", "umap"]
KINDS: tuple[Kind, ...] = ("pca", "umap")
Progress = Callable[[str, float], None]

_POINTS = 20_000  # more are drawn as an even sample
_NUMBERS = 2**25  # of all vectors together, 128 MiB: bounds the memory when they are long
_LEAST = 10  # images that UMAP's neighbourhoods need
_COMPONENTS = 50  # that UMAP gets; what PCA leaves out below is mostly noise, and the search for neighbours slow


@dataclass(frozen=True)
class Projection:
    """Points of the plane, both coordinates in [-1, 1], and neither stretched against the other."""

    kind: Kind
    ids: NDArray[np.int64]
    """(n,), rising."""
    points: NDArray[np.float32]
    """(n, 2)."""
    images: int
    """Of the gallery when it was drawn; more than n where only an even sample was."""
    generation: int
    seconds: float
    """That it took."""
    explained: tuple[float, float] | None = None
    """Shares of the variance along both axes; PCA only."""


@dataclass(frozen=True)
class Drawing:
    """A projection on its way."""

    stage: str
    share: float
    """Of the work that is done, in [0, 1]."""
    seconds: float
    """Since it was asked for."""


class Projections:
    """Draws maps of galleries and keeps the last of each kind. Thread-safe."""

    def __init__(self) -> None:
        self._kept: MutableMapping[Images, dict[Kind, Projection]] = WeakKeyDictionary()
        self._jobs: MutableMapping[Images, _Job] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # one UMAP at a time

    def pca(self, gallery: Images) -> Projection:
        """Of the gallery as it is now. Takes a second for 20,000 images; not for an event loop."""
        with self._lock:
            kept = self._kept.get(gallery, {}).get("pca")
        if kept is None or kept.generation != gallery.generation:
            kept = pca_map(gallery)
            self._keep(gallery, kept)
        return kept

    def umap(self, gallery: Images, *, again: bool = False) -> Projection | Drawing:
        """The last one drawn, which may be of an earlier generation, or how far the work is that this starts.

        Args:
            again: draw it anew if the gallery has changed since.

        Raises:
            GalleryError: it came to nothing, and why; the next call tries once more.
            MissingExtraError: without umap-learn.
        """
        require_umap()
        with self._lock:
            kept, job = self._kept.get(gallery, {}).get("umap"), self._jobs.get(gallery)
            if job is not None and job.error is not None:
                del self._jobs[gallery]
                raise job.error
            if job is None and (kept is None or (again and kept.generation != gallery.generation)):
                job = self._jobs[gallery] = _Job()
                threading.Thread(target=self._draw, args=(gallery, job), name="clf-map", daemon=True).start()
            if job is not None:
                return job.state
            assert kept is not None
            return kept

    def _draw(self, gallery: Images, job: _Job) -> None:
        try:
            with self._turn:
                drawn = umap_map(gallery, job.report)
        except Exception as error:
            job.error = error if isinstance(error, GalleryError) else GalleryError(f"UMAP could not be drawn: {error}")
            return
        self._keep(gallery, replace(drawn, seconds=job.state.seconds))
        with self._lock:
            del self._jobs[gallery]

    def _keep(self, gallery: Images, drawn: Projection) -> None:
        with self._lock:
            self._kept.setdefault(gallery, {})[drawn.kind] = drawn


@dataclass
class _Job:
    started: float = field(default_factory=time.monotonic)
    stage: str = "waiting"
    share: float = 0.0
    error: GalleryError | None = None

    def report(self, stage: str, share: float) -> None:
        self.stage, self.share = stage, share

    @property
    def state(self) -> Drawing:
        return Drawing(self.stage, self.share, time.monotonic() - self.started)


def pca_map(gallery: Images) -> Projection:
    start, generation = time.monotonic(), gallery.generation
    ids, vectors, images = _picked(gallery)
    points, shares = pca(vectors)
    explained = (float(shares[0]), float(shares[1]))
    return Projection("pca", ids, _fitted(points), images, generation, time.monotonic() - start, explained)


def umap_map(gallery: Images, progress: Progress = lambda stage, share: None) -> Projection:
    """Raises GalleryError: too few images, or the process that draws it failed."""
    start, generation = time.monotonic(), gallery.generation
    progress("reading vectors", 0.0)
    ids, vectors, images = _picked(gallery)
    if len(ids) < _LEAST:
        raise GalleryError(f"UMAP needs at least {_LEAST} images and the gallery has {len(ids)}; choose PCA")
    scores, _ = pca(vectors, min(_COMPONENTS, vectors.shape[1]))
    points = _umap_elsewhere(scores, progress)
    return Projection("umap", ids, _fitted(points), images, generation, time.monotonic() - start)


def pca(vectors: NDArray[np.float32], components: int = 2) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Coordinates (n, C) along the directions of the greatest variance, and their shares (C,) of it.

    Each direction points where its entry of the greatest size is positive, so that the same vectors always make the
    same picture. Where there are fewer directions than asked for, the rest is 0.

    Args:
        vectors: (n, D); centred in place.
    """
    n, dim = vectors.shape
    points = np.zeros((n, components), np.float32)
    shares = np.zeros(components)
    if n < 2:
        return points, shares
    vectors -= vectors.mean(axis=0)
    values, directions = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))  # (D,) rising, (D, D) columns
    found = min(components, dim)
    best = directions[:, ::-1][:, :found]
    best = best * np.where(best[np.abs(best).argmax(axis=0), np.arange(found)] < 0, -1.0, 1.0)
    points[:, :found] = vectors @ best.astype(np.float32)
    if (total := values.sum()) > 1e-12:
        shares[:found] = np.maximum(values[::-1][:found], 0) / total
    return points, shares


def has_umap() -> bool:
    return find_spec("umap") is not None


def require_umap() -> None:
    if not has_umap():
        raise missing_extra("umap", "map", "a map by UMAP")


def _picked(gallery: Images) -> Sample:
    dim = sample(gallery, 1).vectors.shape[1]
    return sample(gallery, min(_POINTS, _NUMBERS // max(1, dim)))


def _fitted(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Moved and scaled into [-1, 1] x [-1, 1], the same along both axes."""
    if not len(points):
        return points
    low, high = points.min(axis=0), points.max(axis=0)
    reach = float((high - low).max()) / 2
    fitted: NDArray[np.float32] = ((points - (low + high) / 2) / (reach or 1.0)).astype(np.float32)
    return fitted


def _umap_elsewhere(scores: NDArray[np.float32], progress: Progress) -> NDArray[np.float32]:
    """(n, C) -> (n, 2) in another process, which ends when this one does."""
    progress("starting UMAP", 0.0)
    command = [sys.executable, "-m", "clf_serve.umap_process"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin and process.stdout and process.stderr
        try:
            process.stdin.write(SHAPE.pack(*scores.shape) + scores.astype("<f4").tobytes())
            process.stdin.flush()  # and stays open: its end tells the process that nobody waits any more
        except BrokenPipeError:
            pass  # what it said last tells why
        words: list[str] = []
        for line in process.stderr:
            stage, tab, share = line.decode(errors="replace").rstrip("\n").partition("\t")
            if tab:
                progress(stage, float(share))
            elif stage.strip():
                words = [*words[-4:], stage.strip()]
        result = process.stdout.read()
    if process.returncode:
        raise GalleryError(f"UMAP failed (status {process.returncode}): {' '.join(words[-2:]) or 'without a word'}")
    return np.frombuffer(result, "<f4").reshape(len(scores), 2).astype(np.float32)
