"""Maps: principal components against the singular value decomposition, what is kept, and UMAP's process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from serve_helpers import until

from clf.errors import GalleryError, MissingExtraError
from clf_serve import projection
from clf_serve.projection import Drawing, Projection, Projections, pca, pca_map, umap_map
from clf_serve.umap_process import SHAPE

STAND_IN = """
import numpy as np, sys, time
import clf_serve.umap_process as process
def layout(vectors):
    print("what a library prints")
    process._say("halfway", 0.5)
    {action}
    return np.ascontiguousarray(vectors[:, 1::-1])
process.layout = layout
process.main()
"""


class Fake:
    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.rows = vectors
        self.generation = 1

    def ids(self) -> NDArray[np.int64]:
        return np.arange(1, len(self.rows) + 1)

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return self.rows[np.array(ids, int) - 1]

    def __len__(self) -> int:
        return len(self.rows)


def unit(n: int, dim: int = 8) -> NDArray[np.float32]:
    vectors = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def umap_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a process in UMAP's place that gives back the first two columns, exchanged, after some ``action``."""
    popen = subprocess.Popen

    def replace(action: str) -> None:
        def start(command: list[str], **options: object) -> object:
            assert command[1:] == ["-m", "clf_serve.umap_process"]
            return popen([sys.executable, "-c", STAND_IN.format(action=action)], **options)  # type: ignore[call-overload]

        monkeypatch.setattr(projection.subprocess, "Popen", start)
        monkeypatch.setattr(projection, "has_umap", lambda: True)

    return replace


def test_pca_by_hand() -> None:
    """Points along (3, 4) with a little along (-4, 3)."""
    along, across = np.array([0.6, 0.8]), np.array([-0.8, 0.6])
    vectors = np.array([-2 * along, 2 * along, across, -across], np.float32) + np.float32(7)

    points, shares = pca(vectors)

    np.testing.assert_allclose(points[:, 0], [-2, 2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(points[:, 1], [0, 0, -1, 1], atol=1e-6)  # -0.8 is the larger entry: turned round
    np.testing.assert_allclose(shares, [0.8, 0.2], atol=1e-6)


@given(arrays(np.float32, (12, 5), elements=st.floats(-1, 1, width=16)))
def test_pca_is_the_best_plane(vectors: NDArray[np.float32]) -> None:
    points, shares = pca(vectors.copy())
    singular = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    total = float(np.square(singular).sum())

    np.testing.assert_allclose(np.linalg.norm(points, axis=0), singular[:2], atol=2e-3)
    if total > 1e-6:
        np.testing.assert_allclose(shares, np.square(singular[:2]) / total, atol=1e-3)
    np.testing.assert_array_equal(points, pca(vectors.copy())[0])


@pytest.mark.parametrize(("n", "dim"), [(0, 3), (1, 3), (2, 3), (3, 1)])
def test_few_images_and_few_dimensions(n: int, dim: int) -> None:
    drawn = pca_map(Fake(unit(3, dim)[:n]))

    assert drawn.points.shape == (n, 2)
    assert np.isfinite(drawn.points).all()
    assert drawn.ids.tolist() == list(range(1, n + 1))


def test_the_map_fills_its_square_without_stretching() -> None:
    vectors = unit(50) * np.array([4, 1, 1, 1, 1, 1, 1, 1], np.float32)
    drawn = pca_map(Fake(vectors))
    points, _ = pca(vectors.copy())
    span = np.ptp(drawn.points, axis=0)

    assert span.max() == pytest.approx(2)
    np.testing.assert_allclose(span[0] / span[1], np.ptp(points, axis=0)[0] / np.ptp(points, axis=0)[1], rtol=1e-4)
    assert np.abs(drawn.points).max() <= 1 + 1e-6
    assert drawn.explained is not None and drawn.explained[0] >= drawn.explained[1] > 0


def test_a_large_gallery_is_drawn_as_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_POINTS", 10)
    assert pca_map(Fake(unit(40))).ids.tolist() == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37]
    monkeypatch.setattr(projection, "_NUMBERS", 4 * 8)
    drawn = pca_map(Fake(unit(40)))
    assert (len(drawn.ids), drawn.images) == (4, 40)


def test_a_map_is_kept_until_the_gallery_changes() -> None:
    gallery, maps = Fake(unit(20)), Projections()
    first = maps.pca(gallery)
    assert maps.pca(gallery) is first

    gallery.rows, gallery.generation = unit(21), 2
    assert len(maps.pca(gallery).ids) == 21


def finished(maps: Projections, gallery: Fake) -> Projection:
    found: list[Projection] = []

    def there() -> bool:
        drawn = maps.umap(gallery)
        found.extend([drawn] if isinstance(drawn, Projection) else [])
        return bool(found)

    until(there, 60)
    return found[0]


def test_umap_is_drawn_in_another_process_and_kept(umap_is: Callable[[str], None]) -> None:
    umap_is("time.sleep(0.5)")
    gallery, maps = Fake(unit(40)), Projections()

    assert isinstance(maps.umap(gallery), Drawing)
    seen: set[str] = set()

    def halfway() -> bool:
        state = maps.umap(gallery)
        seen.update([state.stage] if isinstance(state, Drawing) else [])
        return isinstance(state, Projection)

    until(halfway, 60)
    drawn = finished(maps, gallery)
    assert "halfway" in seen
    assert drawn.kind == "umap" and drawn.explained is None and drawn.seconds > 0.5
    scores, _ = pca(unit(40), 8)
    np.testing.assert_allclose(np.ptp(drawn.points, axis=0).max(), 2, rtol=1e-5)
    assert np.corrcoef(drawn.points[:, 0], scores[:, 1])[0, 1] == pytest.approx(1)

    gallery.generation = 2
    assert maps.umap(gallery) is drawn  # an old map is better than minutes of waiting
    assert isinstance(maps.umap(gallery, again=True), Drawing)
    assert finished(maps, gallery).generation == 2


def test_more_points_than_a_pipe_holds(umap_is: Callable[[str], None]) -> None:
    umap_is("pass")
    assert umap_map(Fake(unit(9000, 4))).points.shape == (9000, 2)


def test_a_failure_is_told_once_and_tried_again(umap_is: Callable[[str], None]) -> None:
    umap_is("raise ValueError('no such thing')")
    gallery, maps = Fake(unit(40)), Projections()

    def failed() -> bool:
        try:
            maps.umap(gallery)
        except GalleryError as error:
            assert "no such thing" in str(error)
            return True
        return False

    until(failed, 60)
    umap_is("pass")
    assert isinstance(finished(maps, gallery), Projection)


def test_umap_needs_some_images_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GalleryError, match="at least 10 images and the gallery has 9; choose PCA"):
        umap_map(Fake(unit(9)))
    monkeypatch.setattr(projection, "has_umap", lambda: False)
    with pytest.raises(MissingExtraError, match=r"clf-vision\[map\]"):
        Projections().umap(Fake(unit(40)))


def test_the_process_ends_when_nobody_waits_for_it() -> None:
    code = STAND_IN.format(action="time.sleep(600)")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin and process.stderr
        process.stdin.write(SHAPE.pack(3, 2) + bytes(24))
        process.stdin.flush()
        assert process.stderr.readline() == b"halfway\t0.500\n"  # it is at work
        assert process.poll() is None
        start = time.monotonic()
        process.stdin.close()
        assert process.wait(30) == 1
        assert time.monotonic() - start < 30


@pytest.mark.slow
def test_umap_itself_keeps_clusters_together_and_repeats_itself(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    middles = np.eye(3, 16, dtype=np.float32)
    noise = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)
    labels = np.arange(60) % 3
    vectors = middles[labels] + 0.05 * noise
    gallery = Fake(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    stages: list[str] = []

    drawn = umap_map(gallery, lambda stage, share: stages.append(stage))

    assert {"loading UMAP", "finding neighbours", "laying out"} <= set(stages)
    distances = np.linalg.norm(drawn.points[:, None] - drawn.points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    np.testing.assert_array_equal(umap_map(gallery).points, drawn.points)
