"""fp16 and int8 variants of an exported graph: made, measured against it, and refused where they lose too much."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clf.doctor.machine import processor
from clf.manifest import VARIANT_FILES, Manifest, Variant, VariantName, sha256_file
from clf.onnx_session import Embed, session

CALIBRATION = 128
"""Training images, at most, that 8-bit ranges are taken from."""
HELD_OUT = 256
"""Images, at most, that a variant is compared on."""
TIMED = 48
LEAST_COSINE = 0.95
"""A variant whose mean cosine is below is refused."""
DOUBTFUL_COSINE, DOUBTFUL_NEIGHBOURS = 0.99, 0.9
NEIGHBOURS = 10

Pixels: TypeAlias = NDArray[np.uint8]
Vectors: TypeAlias = NDArray[np.float32]
Method: TypeAlias = Literal["float16", "static", "dynamic"]
Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Refused:
    """A variant that was asked for and not kept."""

    name: VariantName
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def make_variants(
    model: Path, names: Sequence[VariantName], calibration: Pixels, held_out: Pixels, say: Say
) -> tuple[dict[VariantName, Variant], list[Refused]]:
    """Writes variants of ``model`` beside it.

    int8 is made in each way that suits the graph, static and dynamic, and the best is kept: of those that are not
    slower than the graph, or of all if every one is, the one that keeps the most neighbours.

    Args:
        calibration, held_out: (n, S, S, 3) and (m, S, S, 3) uint8, of different images.
    """
    measure = Measure(model, held_out)
    made: dict[VariantName, Variant] = {}
    refused: list[Refused] = []
    for name in names:
        target = model.with_name(VARIANT_FILES[name])
        found: list[Variant] = []
        failures: list[str] = []
        for method, write in _ways(name, model, calibration):
            draft = target.with_name(f"{method}-{target.name}")
            say(f"{name}: making ({method})")
            try:
                write(draft)
                say(f"{name}: comparing ({method}) on {len(held_out)} images")
                found.append(measure(draft, method))
            except OSError:  # a full disk
                raise
            except Exception as error:  # the tools fail on graphs they do not know with errors of any type
                failures.append(f"{method}: {' '.join(str(error).split())[:200] or type(error).__name__}")
                draft.unlink(missing_ok=True)
        best = _best(found)
        if best is not None and best.mean_cosine >= LEAST_COSINE:
            target.with_name(best.file).rename(target)
            made[name] = best.model_copy(update={"file": target.name})
        else:
            refused.append(Refused(name, _why(best, failures)))
        for variant in found:
            target.with_name(variant.file).unlink(missing_ok=True)
    return made, refused


def doubts(name: str, variant: Variant) -> str | None:
    """A sentence for whoever is about to serve a variant that loses much."""
    kept = variant.neighbours_kept
    if variant.mean_cosine >= DOUBTFUL_COSINE and (kept is None or kept >= DOUBTFUL_NEIGHBOURS):
        return None
    neighbours = "" if kept is None else f" and {kept:.0%} of the nearest neighbours"
    return (
        f"{name} keeps a mean cosine of {variant.mean_cosine:.4f}{neighbours} only: "
        "search your own images with it before you serve it"
    )


COLUMNS = (
    "variant",
    "MB",
    "method",
    "images",
    "mean cosine",
    "least cosine",
    "neighbours kept",
    "in an fp32 gallery",
    "speed",
)


def rows(manifest: Manifest, graph_bytes: int) -> list[tuple[object, ...]]:
    """A table of COLUMNS: the graph itself, then its variants."""
    mega = 1_000_000
    first = ("fp32", f"{graph_bytes / mega:.1f}", *[None] * 6, "1.00")
    return [first] + [
        (
            name,
            f"{variant.bytes / mega:.1f}",
            variant.method,
            variant.images,
            f"{variant.mean_cosine:.5f}",
            f"{variant.min_cosine:.5f}",
            _share(variant.neighbours_kept),
            _share(variant.neighbours_kept_in_fp32),
            None if variant.speed_ratio is None else f"{variant.speed_ratio:.2f}",
        )
        for name, variant in manifest.variants.items()
    ]


def _share(part: float | None) -> str | None:
    return None if part is None else f"{part:.1%}"


class Measure:
    """Compares graphs with the first one on the same images, each image alone."""

    def __init__(self, reference: Path, images: Pixels) -> None:
        self._images = images
        self._reference = session(reference, threads=1)  # one thread: its processor time is all there is
        self._vectors = _embed(self._reference, images)
        self._ranking = nearest(self._vectors, self._vectors)

    def __call__(self, path: Path, method: Method) -> Variant:
        """Raises ValueError: it does not give finite unit vectors."""
        embed = session(path, threads=1)
        vectors = _embed(embed, self._images)
        if not np.isfinite(vectors).all() or np.abs(np.linalg.norm(vectors, axis=1) - 1).max() > 1e-3:
            raise ValueError("its embeddings are not finite vectors of unit length")
        cosines = (vectors.astype(np.float64) * self._vectors).sum(1)
        return Variant(
            file=path.name,
            sha256=sha256_file(path),
            bytes=path.stat().st_size,
            method=method,
            images=len(vectors),
            mean_cosine=float(cosines.mean()),
            min_cosine=float(cosines.min()),
            neighbours_kept=self._kept(vectors, vectors),
            neighbours_kept_in_fp32=self._kept(vectors, self._vectors),
            speed_ratio=self._speed(embed),
            speed_device=f"one core of {processor()}",
        )

    def _kept(self, queries: Vectors, bank: Vectors) -> float | None:
        if len(bank) <= 2 * NEIGHBOURS:  # too few for the rest to be far
            return None
        pairs = zip(nearest(queries, bank), self._ranking, strict=True)
        return float(np.mean([len(np.intersect1d(ours, theirs)) / NEIGHBOURS for ours, theirs in pairs]))

    def _speed(self, embed: Embed) -> float:
        """Processor time of both on each image in turn; other programs on the machine do not count."""
        ratios = []
        for image in self._images[:TIMED]:
            start = time.thread_time()
            self._reference(image[None])
            middle = time.thread_time()
            embed(image[None])
            ratios.append((middle - start) / max(time.thread_time() - middle, 1e-9))
        return float(np.median(ratios))


def nearest(queries: Vectors, bank: Vectors) -> NDArray[np.intp]:
    """(n, 10) row numbers in ``bank`` nearest to each query by cosine, without the query's own row."""
    cosines = queries @ bank.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]


def _embed(embed: Embed, images: Pixels) -> Vectors:
    return np.concatenate([embed(image[None]) for image in images])


def _ways(name: VariantName, model: Path, calibration: Pixels) -> Iterator[tuple[Method, Callable[[Path], None]]]:
    from clf import quantize  # which loads onnx

    if name == "fp16":
        yield "float16", lambda target: quantize.half(model, target)
        return
    yield "static", lambda target: quantize.static(model, target, calibration)
    if quantize.multiplies_weights(model):
        yield "dynamic", lambda target: quantize.dynamic(model, target)


def _best(found: Sequence[Variant]) -> Variant | None:
    good = [variant for variant in found if variant.mean_cosine >= LEAST_COSINE] or found
    swift = [variant for variant in good if (variant.speed_ratio or 0) >= 1] or good
    return max(swift, key=lambda v: (v.neighbours_kept or 0, v.mean_cosine), default=None)


def _why(best: Variant | None, failures: Sequence[str]) -> str:
    if best is None:
        return "onnxruntime cannot make it of this graph (" + "; ".join(failures) + ")"
    return (
        f"its mean cosine to the fp32 graph is {best.mean_cosine:.4f} over {best.images} images, needed {LEAST_COSINE}"
    )
