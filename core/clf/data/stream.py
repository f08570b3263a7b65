"""The batch stream: what the next batch is depends on the seed and on one counter, so a run can stop anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from clf.augment import Draws, Recipe, Views
from clf.data.ahead import ReadAhead
from clf.data.source import Images
from clf.errors import ConfigError, DataError
from clf.method import Batch
from clf.phases import Phases, unmeasured
from clf.random import generator

_RESIDENT_SHARE = 0.5  # of the device's free memory; a set that needs more stays in main memory


class Stream:
    """Batches of shuffled images with their views; each epoch sees each image once, less an incomplete last batch.

    A rank's batch is its part of the batch that one process would draw: the order of epoch e comes from the purpose
    ("order", e), the draws of a view from ("augment", position, view) for all M rows; where images share their draws,
    from ("augment together", e, view) for all groups. ``position``, the number of batches drawn so far, is the only
    state; set it to resume. Images that lie on the device are taken from there;
    others are read ahead by threads, which changes no batch and ends with :meth:`close` or with the stream.

    Args:
        source: (n, C, H, W) uint8, a tensor or a table. A tensor is kept on ``device`` when it fits there.
        recipes: one for each view.
        batch_size: M, images in a batch on all ranks together.
        compiled: whether the augmentation is compiled.
        phases: what the time is charged to: data (waiting for raw images), copy and augment.

    Raises:
        DataError: there are fewer images than one batch needs.
        ConfigError: the batch cannot be divided among the ranks.
    """

    def __init__(
        self,
        source: Images,
        recipes: Sequence[Recipe],
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        dtype: torch.dtype = torch.float32,
        *,
        compiled: bool = False,
        phases: Phases = unmeasured,
    ) -> None:
        n = len(source)
        if n < batch_size:
            raise DataError(
                f"the training set has {n} images, fewer than one batch of {batch_size}: "
                f"set train.batch_size to {n} or less, or add images"
            )
        if batch_size % world_size:
            raise ConfigError(f"train.batch_size {batch_size} cannot be divided among {world_size} processes")
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.steps_per_epoch = n // batch_size
        self.position = 0
        self.views = Views(recipes, compiled)
        self._seed = seed
        self._dtype = dtype
        self._phases = phases
        local = batch_size // world_size
        self._local = slice(rank * local, (rank + 1) * local)
        order = lru_cache(maxsize=2)(partial(_shuffle, n, seed))  # two, for reading ahead crosses the end of an epoch
        self._rows = partial(_rows, order, self.steps_per_epoch, batch_size, self._local)
        self._source = source
        self._resident = source.to(self.device) if isinstance(source, Tensor) and _fits(source, self.device) else None
        self._ahead = None if self._resident is not None else ReadAhead(source, self._rows, local, self.device)

    def next(self) -> Batch:
        """The batch at ``position``, which moves on by one.

        Raises:
            DataError: an image that has to be decoded has vanished or changed.
        """
        index, images = self._raw(self.position)
        with self._phases("augment"):
            draws = [self._draws(view, recipe) for view, recipe in enumerate(self.views.recipes)]
            views = self.views(images, draws, self._dtype)
        self.position += 1
        return Batch(
            views=views,
            index=index,
            images=images,
            augment=self._augment,
            first=self._local.start,
            draws=tuple(zip(self.views.recipes, draws, strict=True)),
        )

    def images(self, index: Tensor) -> Tensor:
        """Raw images (n, C, H, W) at positions (n,), on the device.

        Raises:
            DataError: an image that has to be decoded has vanished or changed.
        """
        if self._resident is not None:
            return self._resident[index.to(self._resident.device)]
        return self._source[index.cpu()].to(self.device)

    def close(self) -> None:
        """Ends the threads that read ahead. The stream is of no further use."""
        if self._ahead is not None:
            self._ahead.close()

    def _raw(self, position: int) -> tuple[Tensor, Tensor]:
        """Row numbers (N,) and raw images (N, C, H, W) on the device."""
        if self._resident is not None:
            with self._phases("copy"):
                index = self._rows(position).to(self.device, non_blocking=True)
            with self._phases("data"):
                return index, self._resident[index]
        assert self._ahead is not None
        with self._phases("data"):
            index, images = self._ahead.get(position)
        with self._phases("copy"):
            return index.to(self.device, non_blocking=True), images.to(self.device, non_blocking=True)

    def _draws(self, view: int, recipe: Recipe) -> Draws:
        """The random numbers of this rank's rows of the batch at ``position``."""
        if recipe.shared_by == 1:
            purpose = generator(self._seed, "augment", self.position, view)
            return recipe.draw(self.batch_size, purpose).rows(self._local)
        epoch = self.position // self.steps_per_epoch
        groups = -(-len(self._source) // recipe.shared_by)
        all_groups = recipe.draw(groups, generator(self._seed, "augment together", epoch, view))
        return all_groups.rows(self._rows(self.position) // recipe.shared_by)

    def _augment(self, images: Tensor, source: torch.Generator, places: Tensor | None = None, /) -> tuple[Tensor, ...]:
        places = torch.arange(len(images)) if places is None else places.cpu()
        rows = int(places.max()) + 1 if len(places) else 0
        draws = []
        for recipe in self.views.recipes:
            seed = torch.randint(2**62, (), generator=source)  # a table for each view: its rows depend on nothing else
            table = recipe.draw(-(-rows // recipe.shared_by), torch.Generator().manual_seed(int(seed)))
            draws.append(table.rows(places // recipe.shared_by))
        return self.views(images, draws, self._dtype)


def _shuffle(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=generator(seed, "order", epoch))


def _rows(order: Callable[[int], Tensor], steps_per_epoch: int, batch_size: int, local: slice, position: int) -> Tensor:
    """This rank's row numbers (N,) of the batch at a position: a copy, for a method may change what it is given."""
    epoch, step = divmod(position, steps_per_epoch)
    return order(epoch)[step * batch_size :][local].clone()


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda" or images.device == device:
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= free * _RESIDENT_SHARE
