"""The batch stream: what the next batch is depends on the seed and on one counter, so a run can stop anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from clf.augment import Augment, Draws, Recipe
from clf.errors import ConfigError, DataError
from clf.method import Batch
from clf.random import generator

_RESIDENT_SHARE = 0.5  # of the device's free memory; a set that needs more stays in main memory


class Stream:
    """Batches of shuffled images with their views; each epoch sees each image once, less an incomplete last batch.

    A rank's batch is its part of the batch that one process would draw: the order of epoch e comes from the purpose
    ("order", e), the draws of a view from ("augment", position, view) for all M rows. ``position``, the number of
    batches drawn so far, is the only state; set it to resume.

    Args:
        source_images: (n, C, H, W) uint8. Kept on ``device`` when it fits there.
        recipes: one for each view.
        batch_size: M, images in a batch on all ranks together.

    Raises:
        DataError: there are fewer images than one batch needs.
        ConfigError: the batch cannot be divided among the ranks.
    """

    def __init__(
        self,
        source_images: Tensor,
        recipes: Sequence[Recipe],
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        n = len(source_images)
        if n < batch_size:
            raise DataError(
                f"the training set has {n} images, fewer than one batch of {batch_size}: "
                f"set train.batch_size to {n} or less, or add images"
            )
        if batch_size % world_size:
            raise ConfigError(f"train.batch_size {batch_size} cannot be divided among {world_size} processes")
        self.device = torch.device(device)
        self.images = source_images.to(self.device) if _fits(source_images, self.device) else source_images
        self.batch_size = batch_size
        self.steps_per_epoch = n // batch_size
        self.position = 0
        self._augments = [Augment(recipe) for recipe in recipes]
        self._seed = seed
        self._dtype = dtype
        local = batch_size // world_size
        self._local = slice(rank * local, (rank + 1) * local)
        self._order = lru_cache(maxsize=1)(self._shuffle)

    def next(self) -> Batch:
        """The batch at ``position``, which moves on by one."""
        epoch, step = divmod(self.position, self.steps_per_epoch)
        index = self._order(epoch)[step * self.batch_size :][self._local]
        images = self.images[index.to(self.images.device, non_blocking=True)].to(self.device, non_blocking=True)
        draws = [
            augment.recipe.draw(self.batch_size, generator(self._seed, "augment", self.position, view))
            for view, augment in enumerate(self._augments)
        ]
        self.position += 1
        return Batch(
            views=self._views(images, [d.rows(self._local) for d in draws]),
            index=index.to(self.device, non_blocking=True),
            images=images,
            augment=self._augment,
        )

    def _augment(self, images: Tensor, source: torch.Generator) -> tuple[Tensor, ...]:
        return self._views(images, [augment.recipe.draw(len(images), source) for augment in self._augments])

    def _views(self, images: Tensor, draws: Sequence[Draws]) -> tuple[Tensor, ...]:
        return tuple(augment(images, d, self._dtype) for augment, d in zip(self._augments, draws, strict=True))

    def _shuffle(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.images), generator=generator(self._seed, "order", epoch))


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= free * _RESIDENT_SHARE
