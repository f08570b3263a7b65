"""How alike random pairs are: percentiles worked out by hand, against all pairs, and of galleries that change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clf.errors import GalleryError
from clf_serve import background
from clf_serve.background import Background, percent, sample, words
from clf_serve.gallery import Entry, Gallery, Identity


class Fake:
    """What Background needs of a gallery, and how often it was read."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.rows = vectors
        self.generation = 1
        self.read = 0
        self.vanishing = 0

    def ids(self) -> NDArray[np.int64]:
        return np.arange(1, len(self.rows) + 1)

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self.read += 1
        if self.vanishing:
            self.vanishing -= 1
            raise KeyError(ids[0])
        return self.rows[np.array(ids, int) - 1]

    def __len__(self) -> int:
        return len(self.rows)


def unit(n: int, dim: int = 8, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_percentile_is_the_share_of_pairs_below() -> None:
    drawn = Background(np.array([0.5, -0.5, 0.0, 0.5], np.float32))

    assert drawn.pairs == 4
    assert drawn.percentile(-1.0) == 0
    assert drawn.percentile(0.1) == 2 / 5
    assert drawn.percentile(0.5) == 2 / 5  # those as alike are not less alike
    assert drawn.percentile(1.0) == 4 / 5  # four pairs cannot show more
    np.testing.assert_array_equal(drawn.percentile(np.array([[0.1], [0.9]])), [[2 / 5], [4 / 5]])


def test_every_pair_counts_once_and_none_with_itself() -> None:
    vectors = unit(30)
    cosines = sorted(float(vectors[i] @ vectors[j]) for i in range(30) for j in range(i))
    drawn = Background.among(vectors)

    assert drawn.pairs == 30 * 29 // 2 == len(cosines)
    for score in np.linspace(-1, 1, 21):
        assert drawn.percentile(score) == sum(cosine < score for cosine in cosines) / (len(cosines) + 1)


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=30))
def test_percentile_rises_with_the_score_and_never_reaches_one(scores: list[float]) -> None:
    drawn = Background.among(unit(40))
    shares = drawn.percentile(np.sort(np.asarray(scores)))

    assert np.all(np.diff(shares) >= 0)
    assert np.all((shares >= 0) & (shares < 1))


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0.0 %"),
        (0.01, "1.0 %"),
        (0.29, "29.0 %"),  # 100 x 0.29 is 28.999... in binary
        (0.5, "50.0 %"),
        (0.989999, "98.9 %"),
        (0.9984, "99.8 %"),
        (0.99899, "99.8 %"),
        (0.9999, "99.99 %"),
        (0.999899, "99.98 %"),
        (0.99999, "99.99 %"),
        (499_500 / 499_501, "99.99 %"),
        (1.0, "100.00 %"),
    ],
)
def test_percent_is_rounded_down_and_says_a_hundred_of_all_only(share: float, text: str) -> None:
    assert percent(share) == text
    assert words(share) == f"closer than {text} of random pairs"


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_tiny_gallery_has_no_background(n: int) -> None:
    assert Background.of(Fake(unit(3)[:n])) is None


def test_a_large_gallery_is_sampled_the_same_each_time() -> None:
    vectors = unit(3000)
    first, again = Background.of(Fake(vectors)), Background.of(Fake(vectors.copy()))

    assert first is not None and again is not None
    assert first.pairs == 1000 * 999 // 2
    scores = np.linspace(-1, 1, 201)
    np.testing.assert_array_equal(first.percentile(scores), again.percentile(scores))
    everything = Background.among(vectors).percentile(scores)
    assert np.abs(first.percentile(scores) - everything).max() < 0.01


def test_images_deleted_while_they_are_read_are_left_out() -> None:
    gallery = Fake(unit(20))
    gallery.vanishing = 2
    ids, vectors, images = sample(gallery, 5)

    assert ids.tolist() == [1, 5, 9, 13, 17]
    np.testing.assert_array_equal(vectors, gallery.rows[ids - 1])
    assert images == 20
    gallery.vanishing = 100
    with pytest.raises(GalleryError, match="too fast"):
        sample(gallery, 5)


def test_it_is_kept_until_the_gallery_has_changed_much(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(background.time, "monotonic", lambda: now[0])
    gallery = Fake(unit(100))
    first = Background.of(gallery)
    assert Background.of(gallery) is first
    assert gallery.read == 1

    gallery.rows, gallery.generation = unit(109), 2
    assert Background.of(gallery) is first  # a little more of the same
    gallery.rows, gallery.generation = unit(111), 3
    second = Background.of(gallery)
    assert second is not first

    gallery.generation = 4
    assert Background.of(gallery) is second
    now[0] += 61
    assert Background.of(gallery) is not second  # as many as before, and perhaps others
    assert gallery.read == 3


def test_of_a_real_gallery(tmp_path: Path) -> None:
    vectors = unit(20)
    with Gallery.open_or_create(tmp_path / "g", Identity("m", "0" * 64, 8), tmp_path) as gallery:
        gallery.upsert([Entry(str(i), str(i), vector) for i, vector in enumerate(vectors)])
        drawn = Background.of(gallery)

    assert drawn is not None
    assert drawn.pairs == 190
    assert drawn.percentile(0.3) == Background.among(vectors).percentile(0.3)
