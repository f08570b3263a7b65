"""The embedded data set: the same for everybody, balanced, and not solvable from its pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clf.config import DataSection
from clf.data import load_source
from clf.data.shapes import CLASSES, draw_images
from clf.errors import ConfigError


def section(train: int, test: int) -> DataSection:
    return DataSection(name="shapes", options={"train_images": train, "test_images": test})


def test_sixteen_balanced_classes_of_48_pixels() -> None:
    data = load_source(section(330, 64), 0)
    assert (data.name, data.image_size, data.channels, data.split_note) == ("shapes", 48, 3, "own test split")
    assert data.train.images.shape == (330, 3, 48, 48) and data.train.images.dtype == torch.uint8
    assert data.class_names is not None and len(data.class_names) == 16
    assert data.train.labels is not None and data.test is not None and data.test.labels is not None
    assert sorted(data.train.labels.bincount().tolist()) == [20] * 6 + [21] * 10
    assert data.test.labels.bincount().tolist() == [4] * 16


def test_the_same_images_whatever_the_runs_seed() -> None:
    a, b = load_source(section(32, 16), 0), load_source(section(32, 16), 99)
    assert a.fingerprint == b.fingerprint
    assert torch.equal(a.train.images, b.train.images)
    assert load_source(section(33, 16), 0).fingerprint != a.fingerprint


def test_training_and_test_images_differ() -> None:
    data = load_source(section(16, 16), 0)
    assert data.test is not None
    assert not torch.equal(data.train.images, data.test.images)


def test_other_seeds_give_other_images() -> None:
    (a, _), (b, _) = draw_images(16, 1), draw_images(16, 2)
    assert not np.array_equal(a, b)


def test_every_class_is_one_outline_with_one_fill_and_no_two_look_alike() -> None:
    v, u = np.mgrid[-1.5:1.5:121j, -1.5:1.5:121j].astype(np.float32)
    drawn = {}
    for name, (outline, fill) in CLASSES.items():
        inside = outline(u[None], v[None])[0] < 0
        marked = fill(u[None], v[None])[0] > 0
        assert 0.1 < inside.mean() < 0.45, name
        assert not inside[0].any() and not inside[-1].any() and not inside[:, 0].any() and not inside[:, -1].any(), name
        share = marked[inside].mean()
        assert share == 0 if name.startswith("plain") else 0.1 < share < 0.6, name
        drawn[name] = inside.astype(int) + (inside & marked)
    pictures = list(drawn.values())
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            assert (a != b).sum() / ((a > 0) | (b > 0)).sum() > 0.09


def test_raw_pixels_say_little_about_the_class() -> None:
    """k-NN on pixels is far from solving it, which is what makes a learnt representation worth showing."""
    data = load_source(section(3000, 500), 0)
    assert data.train.labels is not None and data.test is not None and data.test.labels is not None
    bank, queries = (F.normalize(split.clean.flatten(1).float(), dim=1) for split in (data.train, data.test))
    votes = data.train.labels[(queries @ bank.T).topk(20).indices]
    accuracy = (votes.mode().values == data.test.labels).float().mean().item()
    assert accuracy < 0.35


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"data\.options\.test_images must be at least 16, one image a class, got 3"):
        load_source(section(32, 3), 0)
    with pytest.raises(ConfigError, match=r"options\.train_image is unknown .* Did you mean 'train_images'\?"):
        load_source(DataSection(name="shapes", options={"train_image": 5}), 0)
    with pytest.raises(ConfigError, match="must be of type int, got '5'"):
        load_source(DataSection(name="shapes", options={"train_images": "5"}), 0)
