"""Batched augmentation with draws per image, no loop over images in Python.

The order is SimCLR's and BYOL's: crop, resize and flip; colour jitter; grayscale; blur; solarize. Each operation has
torchvision's semantics for the same parameters. Draws come from a CPU generator and are a small table of numbers, so
they are the same on every device, and a rank may draw for all M rows and keep its own.

``recipe`` holds what is drawn, ``resample`` and ``colour`` the equations; ``blocks`` applies them on the CPU, ``dense``
as one compiled graph or on a GPU.
"""

from __future__ import annotations

from clf.augment.apply import Augment, Views
from clf.augment.recipe import Draws, Recipe, crop_boxes, simclr_recipe
from clf.augment.resample import gaussian_blur

__all__ = ["Augment", "Draws", "Recipe", "Views", "crop_boxes", "gaussian_blur", "simclr_recipe"]
