"""This project's augmentation beside torchvision's, which takes one PIL image at a time: same recipe, same images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clf.augment import Recipe
from clf.method import Batch

ROUNDS = 5
TURN = 0.2
"""Seconds of one turn of either side."""


@dataclass(frozen=True)
class Comparison:
    """Views per second."""

    ours: float
    """As the training does it: batches on its device and with its threads."""
    torchvision: float
    """In one process, as one worker of a data loader does it; loading and collating not counted."""

    @property
    def ratio(self) -> float:
        return self.ours / self.torchvision

    def share_of_step(self, views: int, workers: int, step_seconds: float) -> float:
        """How much of a step ``workers`` processes of torchvision's pipeline would need for its views."""
        return views / (self.torchvision * workers) / step_seconds


def pipeline(recipe: Recipe) -> Any:
    """The recipe as torchvision.transforms.v2 has it, from a PIL image to a float tensor."""
    from torchvision.transforms import v2

    jitter = v2.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    blur = v2.GaussianBlur(2 * max(1, recipe.size // 20) + 1, recipe.blur_sigma)
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                recipe.size, recipe.crop_area, recipe.crop_ratio, v2.InterpolationMode.BICUBIC, antialias=True
            ),
            v2.RandomHorizontalFlip(recipe.flip),
            v2.RandomApply([jitter], recipe.jitter),
            v2.RandomGrayscale(recipe.grayscale),
            v2.RandomApply([blur], recipe.blur),
            v2.RandomSolarize(128, recipe.solarize),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def compare(batch: Batch, recipes: Sequence[Recipe], rounds: int = ROUNDS, turn: float = TURN) -> Comparison:
    """Both on the images of one batch, in turns; medians over rounds."""
    pictures = [_picture(image) for image in batch.images.cpu()]
    pipelines = [pipeline(recipe) for recipe in recipes]
    _ours(batch, turn=0)
    ours, theirs = zip(*((_ours(batch, turn), _theirs(pictures, pipelines, turn)) for _ in range(rounds)), strict=True)
    return Comparison(median(ours), median(theirs))


def _ours(batch: Batch, turn: float) -> float:
    generator = torch.Generator().manual_seed(0)
    done, started = 0, time.perf_counter()
    while True:
        views = batch.augment(batch.images, generator)
        if batch.images.device.type == "cuda":
            torch.cuda.synchronize(batch.images.device)
        done += sum(map(len, views))
        seconds = time.perf_counter() - started
        if seconds >= turn:
            return done / seconds


def _theirs(pictures: Sequence[Image.Image], pipelines: Sequence[Any], turn: float) -> float:
    done, started = 0, time.perf_counter()
    while True:
        for transform in pipelines:
            transform(pictures[done // len(pipelines) % len(pictures)])
        done += len(pipelines)
        seconds = time.perf_counter() - started
        if seconds >= turn:
            return done / seconds


def _picture(image: Tensor) -> Image.Image:
    """(C, H, W) uint8 as PIL has it."""
    array = image.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0).copy())
