"""A training of a second: what tests of the engine and of the plugins start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SMALL: Mapping[str, Any] = {
    "data.name": "shapes",
    "data.image_size": 16,
    "data.options.train_images": 96,
    "data.options.test_images": 48,
    "backbone.name": "test_resnet",
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.threads": 1,
    "train.device": "cpu",
}
