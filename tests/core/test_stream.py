"""A batch is a function of the seed and the position, whatever the number of ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clf.augment import Recipe, simclr_recipe
from clf.data.stream import Stream
from clf.errors import ConfigError, DataError
from clf.method import Batch

IMAGES = torch.randint(0, 256, (50, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RECIPES = [simclr_recipe(16), simclr_recipe(16).with_overrides({"solarize": 0.5, "blur": 0.5})]


def stream(batch_size: int = 12, seed: int = 7, images: Tensor = IMAGES, **options: object) -> Stream:
    return Stream(images, RECIPES, batch_size, seed, torch.device("cpu"), **options)


def same(a: Batch, b: Batch) -> bool:
    pairs = zip((*a.views, a.index, a.images), (*b.views, b.index, b.images), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_batch() -> None:
    batch = stream().next()
    assert len(batch) == 12 and len(batch.views) == 2
    assert all(v.shape == (12, 3, 16, 16) and v.dtype == torch.float32 for v in batch.views)
    assert batch.index.dtype == torch.int64
    assert torch.equal(batch.images, IMAGES[batch.index])
    assert not torch.equal(*batch.views)


def test_an_epoch_sees_each_image_once_and_drops_the_rest() -> None:
    s = stream()
    assert s.steps_per_epoch == 4
    epochs = [torch.cat([s.next().index for _ in range(4)]) for _ in range(3)]
    assert s.position == 12
    for epoch in epochs:
        assert len(epoch.unique()) == 48
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_ranks_batches_together_are_one_process_batch(world_size: int) -> None:
    alone = stream()
    ranks = [stream(rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(6):  # into the second epoch
        whole = alone.next()
        parts = [s.next() for s in ranks]
        for view in range(2):
            assert torch.equal(torch.cat([p.views[view] for p in parts]), whole.views[view])
        assert torch.equal(torch.cat([p.index for p in parts]), whole.index)
        assert torch.equal(torch.cat([p.images for p in parts]), whole.images)


def test_setting_the_position_resumes_exactly() -> None:
    first = stream()
    batches = [first.next() for _ in range(9)]
    for position in (8, 0, 5, 3):
        resumed = stream()
        resumed.position = position
        assert same(resumed.next(), batches[position])


def test_the_seed_decides() -> None:
    assert same(stream().next(), stream().next())
    assert not same(stream().next(), stream(seed=8).next())


def test_redrawing_gives_new_views_of_the_chosen_rows_and_repeats() -> None:
    batch = stream().next()
    rows = torch.tensor([3, 3, 0])

    def again() -> tuple[Tensor, ...]:
        return batch.redraw(rows, torch.Generator().manual_seed(1))

    views = again()
    assert [tuple(v.shape) for v in views] == [(3, 3, 16, 16)] * 2
    assert all(torch.equal(a, b) for a, b in zip(views, again(), strict=True))
    assert not torch.equal(views[0][0], views[0][1])  # the same image, drawn twice
    plain = Recipe(16, crop_area=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, grayscale=0)
    same_image = Stream(IMAGES, [plain], 12, 7).next()
    assert torch.equal(same_image.redraw(rows, torch.Generator())[0], same_image.views[0][rows])


def test_float64_views() -> None:
    assert all(v.dtype == torch.float64 for v in stream(dtype=torch.float64).next().views)


def test_a_set_of_exactly_one_batch() -> None:
    s = stream(batch_size=50)
    assert s.steps_per_epoch == 1
    assert torch.equal(s.next().index.sort().values, torch.arange(50))


def test_a_set_smaller_than_a_batch_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"50 images, fewer than one batch of 64: set train\.batch_size to 50 or less"):
        stream(batch_size=64)


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="12 cannot be divided among 5"):
        stream(world_size=5)
