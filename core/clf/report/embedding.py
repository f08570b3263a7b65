"""The embedding map of a report: features of some images in the plane, by PCA and by t-SNE.

van der Maaten, Hinton: Visualizing Data using t-SNE. JMLR 9, 2008. What such a picture can and cannot tell:
Wattenberg, Viégas, Johnson: How to Use t-SNE Effectively. Distill, 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clf.random import derive_seed

POINTS = 1500
"""Images on the map, at most."""
REDUCED = 50
"""Principal components that t-SNE starts from, as the authors' own implementation does."""
PERPLEXITY = 30.0
FEWEST = 10
"""Images below which t-SNE has no neighbourhoods to keep."""
KEPT = 10
"""Neighbours that are looked for again on the map."""
SAME = 1e-12
"""Variance of unit-length features below which all of them are one point."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """One arrangement of the images in the plane."""

    points: Array  # (n, 2)
    kept: float
    """Share of the nearest neighbours by features that are among the nearest in the plane, in [0, 1]."""


@dataclass(frozen=True)
class EmbeddingMap:
    images: Tensor  # (n, C, S, S) uint8
    pca: Layout
    explained: tuple[float, float]
    """Share of the variance along each of the two axes of the PCA."""
    tsne: Layout | None
    """None for fewer images than FEWEST."""
    perplexity: float
    labels: Sequence[int] | None
    """Class of each image, -1 where unknown; None without labels."""
    class_names: Sequence[str]
    names: Sequence[str] | None
    split: str
    total: int
    """Images of the split that these were drawn from."""


def make_map(
    features: Tensor,
    images: Tensor,
    *,
    seed: int,
    split: str,
    total: int,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> EmbeddingMap | None:
    """The map of features (n, D), scaled to unit length as k-NN compares them.

    Returns:
        None where there is nothing to draw: features that are not finite, all the same, or of a single image.
    """
    if len(features) < 2 or not bool(torch.isfinite(features).all()):
        return None
    x = F.normalize(features.double(), dim=1)
    if float((x - x.mean(0)).square().sum(1).mean()) < SAME:
        return None
    reduced, explained = pca(x.numpy(), REDUCED)
    plane = np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    second = None
    if len(x) >= FEWEST:
        points = tsne(reduced, plane, perplexity, derive_seed(seed, "report t-SNE") % 2**32)
        second = Layout(points, kept(x.numpy(), points))
    return EmbeddingMap(
        images=images,
        pca=Layout(plane, kept(x.numpy(), plane)),
        explained=(float(explained[0]), float(explained[1]) if len(explained) > 1 else 0.0),
        tsne=second,
        perplexity=perplexity,
        labels=labels,
        class_names=class_names,
        names=names,
        split=split,
        total=total,
    )


def pca(x: Array, dims: int) -> tuple[Array, Array]:
    """Principal components of rows (n, D), of each axis the sign that makes its farthest point positive.

    Returns:
        Coordinates (n, d) and the share of the variance along each axis (d,), d = min(dims, n, D).
    """
    x = x - x.mean(axis=0)
    wide = x.shape[1] > x.shape[0]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)  # rising
    order = np.argsort(values)[::-1][: min(dims, *x.shape)]
    variance = values[order].clip(min=0)
    points: Array = vectors[:, order] * np.sqrt(variance) if wide else x @ vectors[:, order]
    farthest = points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])]
    return points * np.where(farthest < 0, -1.0, 1.0), variance / max(float(values.clip(min=0).sum()), 1e-300)


def tsne(x: Array, start: Array, perplexity: float, seed: int) -> Array:
    """t-SNE of rows (n, d) in the plane, started from their first two components (n, 2).

    On one thread: the sums of several come in any order, and small differences grow into other pictures.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    spread = float(start[:, 0].std()) or 1.0
    model = TSNE(
        perplexity=perplexity, init=(start / spread * 1e-4).astype(np.float32), learning_rate="auto",
        random_state=seed, n_jobs=1,
    )  # fmt: skip
    with threadpool_limits(1, user_api="openmp"):
        return np.asarray(model.fit_transform(x.astype(np.float32)), np.float64)


def kept(features: Array, points: Array, k: int = KEPT) -> float:
    """Share of each row's k nearest in features (n, D) that are among its k nearest in points (n, 2), on average."""
    k = min(k, len(features) - 1)
    near = [_neighbours(torch.from_numpy(x), k) for x in (features, points)]  # (n, k) each
    shared = (near[0][:, :, None] == near[1][:, None, :]).any(2)  # (n, k)
    return float(shared.double().mean())


def _neighbours(x: Tensor, k: int) -> Tensor:
    """(n, D) -> rows (n, k) of the nearest others."""
    distance = torch.cdist(x, x)
    distance.fill_diagonal_(float("inf"))
    return distance.topk(k, dim=1, largest=False).indices
