"""A batch is a function of the seed and the position, whatever the number of ranks."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clf.augment import Recipe, simclr_recipe
from clf.data import ahead
from clf.data.ahead import DEPTH, ReadAhead
from clf.data.source import Rows
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
    rows = torch.tensor([3, 0, 5])

    def again(seed: int = 1) -> tuple[Tensor, ...]:
        return batch.redraw(rows, torch.Generator().manual_seed(seed))

    views = again()
    assert [tuple(v.shape) for v in views] == [(3, 3, 16, 16)] * 2
    assert all(torch.equal(a, b) for a, b in zip(views, again(), strict=True))
    assert not torch.equal(views[0], views[1])
    assert not any(torch.equal(a, b) for a, b in zip(views, again(seed=2), strict=True))
    plain = Recipe(16, crop_area=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, grayscale=0)
    same_image = Stream(IMAGES, [plain], 12, 7).next()
    assert torch.equal(same_image.redraw(rows, torch.Generator())[0], same_image.views[0][rows])


def test_a_redrawn_row_does_not_depend_on_the_other_rows_or_on_the_ranks() -> None:
    whole = stream().next()
    parts = [stream(rank=rank, world_size=2).next() for rank in (0, 1)]
    everything = whole.redraw(torch.arange(12), torch.Generator().manual_seed(1))
    some = whole.redraw(torch.tensor([7, 2]), torch.Generator().manual_seed(1))
    second = parts[1].redraw(torch.tensor([1]), torch.Generator().manual_seed(1))
    for view in (0, 1):
        assert torch.equal(some[view], everything[view][[7, 2]])
        assert torch.equal(second[view], everything[view][[7]])
    assert [part.first for part in parts] == [0, 6]


def test_images_that_share_their_draws_look_alike_where_they_are_alike() -> None:
    same = IMAGES[:1].repeat(20, 1, 1, 1)
    shared = Stream(same, [Recipe(16, shared_by=5)] * 2, 20, 7)
    first, later = shared.next(), shared.next()
    for batch in (first, later):
        for view in batch.views:
            groups = view[batch.index.argsort()].view(4, 5, 3, 16, 16)
            assert torch.equal(groups, groups[:, :1].expand_as(groups))
            assert not torch.equal(groups[0, 0], groups[1, 0])
    assert not torch.equal(first.views[0][first.index.argsort()], later.views[0][later.index.argsort()])
    ranks = [Stream(same, shared.views.recipes, 20, 7, rank=rank, world_size=2).next() for rank in (0, 1)]
    assert torch.equal(torch.cat([batch.views[1] for batch in ranks]), first.views[1])
    again = first.augment(same, torch.Generator().manual_seed(1))[0].view(4, 5, 3, 16, 16)
    assert torch.equal(again, again[:, :1].expand_as(again))
    with pytest.raises(ValueError, match="shared_by"):
        Recipe(16, shared_by=0)


def test_a_batch_knows_where_its_views_were_cut_from() -> None:
    recipe = Recipe(16, crop_area=(0.2, 0.5), flip=0, jitter=0, grayscale=0)
    batch = Stream(IMAGES, [recipe, recipe], 12, 7).next()
    first, second = batch.crops
    assert first.shape == (12, 4) and not torch.equal(first, second)
    top, left, height, width = first.T
    assert bool((top >= 0).all() and (left >= 0).all() and (top + height <= 1).all() and (left + width <= 1).all())
    assert float((height * width).min()) > 0.1 and float((height * width).max()) < 0.6
    whole = Recipe(16, crop_area=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, grayscale=0)
    assert torch.equal(
        Stream(IMAGES, [whole], 12, 7).next().crops[0], torch.tensor([0, 0, 1, 1]).double().expand(12, 4)
    )


def test_any_training_image_can_be_asked_for() -> None:
    index = torch.tensor([4, 4, 49])
    assert torch.equal(stream().images(index), IMAGES[index])


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


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.sampled_from([1, 2, 4]), st.integers(0, 60), st.integers(0, 3))
def test_the_ranks_divide_each_batch_without_duplicates(part: int, world_size: int, spare: int, seed: int) -> None:
    """Whatever the size of the set: ranks are disjoint, together one batch, and an epoch shows no image twice."""
    n = part * world_size + spare
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    ranks = [Stream(images, [], part * world_size, seed, "cpu", rank, world_size) for rank in range(world_size)]
    for _ in range(2):
        seen = torch.cat([s.next().index for _ in range(n // (part * world_size)) for s in ranks])
        assert len(seen) == len(seen.unique()) == n - n % (part * world_size)


class SlowTable:
    """Images that are read in threads, some batches later than the ones behind them."""

    shape = tuple(IMAGES.shape)

    def __init__(self) -> None:
        self.reads: list[Tensor] = []
        self.bad: set[int] = set()

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        assert isinstance(rows, Tensor)
        self.reads.append(rows)
        time.sleep(0.01 if len(self.reads) % 2 else 0)
        if self.bad & set(rows.tolist()):
            raise DataError(f"row {self.bad} cannot be read")
        return IMAGES[rows]


def ahead_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("clf-ahead")]


@pytest.fixture
def table() -> Iterator[SlowTable]:
    yield SlowTable()
    gc.collect()
    for thread in ahead_threads():
        thread.join(5)
    assert not ahead_threads()


def test_reading_ahead_changes_no_batch(table: SlowTable) -> None:
    resident, ahead = stream(), stream(images=table)
    for _ in range(9):  # into the third epoch
        assert same(resident.next(), ahead.next())
    for position in (3, 3, 4, 20, 0, 1):  # resumed, repeated, gone back
        resident.position = ahead.position = position
        assert same(resident.next(), ahead.next()) and ahead.position == position + 1
    ahead.close()


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_that_read_ahead(table: SlowTable, world_size: int) -> None:
    alone = stream()
    ranks = [stream(images=table, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(5):
        whole, parts = alone.next(), [s.next() for s in ranks]
        assert torch.equal(torch.cat([p.views[0] for p in parts]), whole.views[0])
    for each in ranks:
        each.close()


def test_the_next_batches_are_read_before_they_are_asked_for(table: SlowTable) -> None:
    s = stream(images=table)
    first = s.next()
    for _ in range(200):
        if len(table.reads) == 1 + DEPTH:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(table.reads) == 1 + DEPTH  # and no more
    expected = [first.index] + [stream_at(position).index for position in range(1, 1 + DEPTH)]
    assert {tuple(rows.tolist()) for rows in table.reads} == {tuple(rows.tolist()) for rows in expected}
    s.close()


def stream_at(position: int) -> Batch:
    s = stream()
    s.position = position
    return s.next()


def test_an_error_comes_with_the_batch_it_concerns(table: SlowTable) -> None:
    s = stream(images=table)
    table.bad = {int(stream_at(2).index[5])}
    assert same(s.next(), stream_at(0)) and same(s.next(), stream_at(1))
    for _ in range(2):  # also when it is tried again
        with pytest.raises(DataError, match="cannot be read"):
            s.next()
        assert s.position == 2
    table.bad = set()
    assert same(s.next(), stream_at(2))
    s.close()


def test_the_threads_end_with_the_stream(table: SlowTable) -> None:
    s = stream(images=table)
    batch = s.next()
    assert ahead_threads()
    del s, batch  # a batch holds its stream, for it can draw views again
    gc.collect()
    for thread in ahead_threads():
        thread.join(5)
    assert not ahead_threads()


def test_a_table_of_some_rows_reads_only_those(table: SlowTable) -> None:
    some = Rows(table, torch.tensor([7, 3, 9]))
    assert len(some) == 3 and tuple(some.shape) == (3, 3, 20, 20) and not table.reads
    assert torch.equal(some[1:], IMAGES[[3, 9]])
    assert torch.equal(some[torch.tensor([2, 0])], IMAGES[[9, 7]])


@pytest.mark.parametrize("resident", [True, False])
def test_the_time_is_charged_to_phases(table: SlowTable, resident: bool) -> None:
    told: list[str] = []

    @contextmanager
    def phases(name: str) -> Iterator[None]:
        told.append(name)
        yield

    s = stream(images=IMAGES if resident else table, phases=phases)
    s.next()
    assert sorted(told) == ["augment", "copy", "data"]
    s.close()


@pytest.mark.parametrize(("side", "depth"), [(8, DEPTH), (2048, 3), (9000, 1)])
def test_large_batches_are_not_read_far_ahead(table: SlowTable, side: int, depth: int) -> None:
    """Twelve images of 2048 x 2048 are 151 MB, so that three such batches fit into 512 MiB; of larger ones, one."""
    table.shape = (50, 3, side, side)
    reader = ReadAhead(table, lambda position: torch.arange(12), 12, torch.device("cpu"))
    reader.get(5)
    assert sorted(reader._running) == list(range(6, 6 + depth))
    reader.close()


def test_threads_read_ahead_on_the_streams_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[tuple[str, object]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: entered.append((threading.current_thread().name, d)))
    monkeypatch.setattr(ahead, "_Staging", lambda device: None)  # so that images stay on the CPU
    reader = ReadAhead(IMAGES, lambda position: torch.arange(3) + position, 3, torch.device("cuda", 1))
    assert torch.equal(reader.get(2)[1], IMAGES[2:5])
    reader.close()
    assert entered and all(n.startswith("clf-ahead") and d == torch.device("cuda", 1) for n, d in entered)


@pytest.mark.parametrize("resident", [True, False])
def test_what_is_done_to_a_batch_stays_in_it(table: SlowTable, resident: bool) -> None:
    s = stream(images=IMAGES if resident else table)
    batch = s.next()
    batch.index.zero_()
    batch.images.zero_()
    s.position = 0
    assert same(s.next(), stream().next())
    s.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_staging_takes_images_of_any_shape() -> None:
    staging = ahead._Staging(torch.device("cuda"))
    for part in (IMAGES[:7], IMAGES[:3], IMAGES[:9]):
        uploaded, copied = staging.upload(part)
        copied.synchronize()
        assert torch.equal(uploaded.cpu(), part)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_on_a_gpu_are_those_on_the_cpu(table: SlowTable) -> None:
    on_cpu = stream()
    for images in (table, IMAGES):
        on_gpu = Stream(images, RECIPES, 12, 7, torch.device("cuda"))
        on_cpu.position = 0
        for _ in range(3 * DEPTH):  # staging memory is used several times
            a, b = on_cpu.next(), on_gpu.next()
            assert b.images.is_cuda and torch.equal(a.images, b.images.cpu()) and torch.equal(a.index, b.index.cpu())
            assert all(torch.allclose(x, y.cpu(), atol=1e-5) for x, y in zip(a.views, b.views, strict=True))
        on_gpu.close()
