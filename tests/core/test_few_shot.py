"""Few-shot episodes against the definition, one distance at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from clf.evaluate.few_shot import draw, eligible, few_shot, too_few_shots


def drawn(per_class: int, classes: int, noise: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    y = torch.arange(classes).repeat(per_class)
    sides = [centres[y] + noise * torch.randn(len(y), 5, generator=g, dtype=torch.float64) for _ in range(2)]
    return sides[0] * 4, y, sides[1].flip(0), y.flip(0)


def nearest_mean(bank: Tensor, queries: Tensor, support: Tensor, asked: Tensor) -> float:
    """One episode in plain numbers: squared distances of unit vectors to class means that are not unit vectors."""

    def unit(x: Tensor) -> list[float]:
        return [float(v) / math.sqrt(sum(float(u) ** 2 for u in x)) for v in x]

    means = [np.mean([unit(bank[i]) for i in rows], axis=0) for rows in support.tolist()]
    right = 0
    for place, rows in enumerate(asked.tolist()):
        for i in rows:
            distances = [float(((np.array(unit(queries[i])) - mean) ** 2).sum()) for mean in means]
            right += distances.index(min(distances)) == place
    return right / asked.numel()


@pytest.mark.parametrize("shots", [1, 3])
def test_it_is_the_mean_over_episodes_of_the_nearest_class_mean(shots: int) -> None:
    bank, bank_y, queries, y = drawn(8, 6, 0.9, seed=0)
    found = few_shot(bank, bank_y, queries, y, shots, seed=3, ways=4, episodes=25)
    each = [nearest_mean(bank, queries, s, q) for s, q in draw(bank_y, y, 4, shots, 25, 3)]
    assert found.accuracy == pytest.approx(np.mean(each))
    assert found.interval == pytest.approx(1.96 * np.std(each, ddof=1) / math.sqrt(25))
    assert (found.ways, found.shots, found.episodes) == (4, shots, 25)
    assert 0.3 < found.accuracy < 0.99


def test_an_episode_takes_each_image_once_and_from_its_class() -> None:
    _, bank_y, _, y = drawn(20, 7, 1.0, seed=1)
    episodes = list(draw(bank_y, y, 5, 4, 30, seed=2))
    for support, asked in episodes:
        assert (support.shape, asked.shape) == ((5, 4), (5, 15))
        classes = bank_y[support][:, 0]
        assert len(classes.unique()) == 5
        assert bool((bank_y[support] == classes[:, None]).all())
        assert bool((y[asked] == classes[:, None]).all())
        assert len(support.unique()) == 20
        assert len(asked.unique()) == 75
    assert len({tuple(s.flatten().tolist()) for s, _ in episodes}) == 30  # no two are the same
    assert all(torch.equal(s, again) for (s, _), (again, _) in zip(episodes, draw(bank_y, y, 5, 4, 30, 2), strict=True))


def test_classes_that_are_apart_are_all_recognised() -> None:
    found = few_shot(*drawn(6, 3, 0.001, seed=2), 1, seed=0, episodes=20)
    assert (found.accuracy, found.interval, found.ways) == (1.0, 0.0, 3)  # three classes, though five are usual


def test_features_that_say_nothing_are_at_chance() -> None:
    y = torch.arange(5).repeat(20)
    found = few_shot(torch.ones(100, 3), y, torch.ones(100, 3), y, 5, seed=0, episodes=10)
    assert found.accuracy == pytest.approx(0.2)


def test_small_classes_are_left_out_and_few_test_images_all_used() -> None:
    bank_y = torch.tensor([0] * 5 + [1] * 5 + [2] * 4 + [3] * 5)
    y = torch.tensor([0] * 20 + [1] * 3 + [2] * 20)
    assert eligible(bank_y, y, 5) == [0, 1]  # 2 has too few images to learn from, 3 none to ask
    for support, asked in draw(bank_y, y, 2, 5, 5, seed=0):
        assert (support.shape, asked.shape) == ((2, 5), (2, 3))


def test_too_few_images_are_told_in_a_sentence() -> None:
    bank_y, y = torch.tensor([0, 0, 1]), torch.tensor([0, 1])
    assert too_few_shots(bank_y, y, 1) is None
    assert "5-shot classification is left out" in str(too_few_shots(bank_y, y, 5))
    with pytest.raises(ValueError, match="2 training images and a test image, and there is one"):
        few_shot(torch.eye(3), bank_y, torch.eye(3)[:2], y, 2, seed=0)
