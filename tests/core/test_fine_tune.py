"""Fine-tuning: it learns, it repeats, it leaves the encoder alone, and it chooses nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from clf.data.source import Rows
from clf.errors import TrainingError
from clf.evaluate.fine_tune import batch_size, fine_tune


def coloured(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of noise whose class is the brightest channel, by a little."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 200, (n, 3, 8, 8), generator=g, dtype=torch.uint8)
    images[torch.arange(n), labels] += 40
    return images, labels


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1)
    )


TRAIN, TEST = coloured(96, seed=1), coloured(60, seed=2)


def test_it_learns_and_repeats_bit_for_bit() -> None:
    start, more = (fine_tune(encoder(), *TRAIN, *TEST, epochs=epochs, seed=0)[0] for epochs in (1, 40))
    assert more > max(start, 0.9)
    outer = torch.random.get_rng_state()
    assert fine_tune(encoder(), *TRAIN, *TEST, epochs=40, seed=0)[0] == more
    assert torch.equal(torch.random.get_rng_state(), outer)


def test_the_encoder_stays_as_it_is_and_a_frozen_one_is_trained_all_the_same() -> None:
    ours, frozen = encoder(), encoder().requires_grad_(False)
    before = copy.deepcopy(ours.state_dict())
    accuracy = fine_tune(ours, *TRAIN, *TEST, epochs=8, seed=0)[0]
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    assert all(part.training for part in ours.modules())
    assert fine_tune(frozen, *TRAIN, *TEST, epochs=8, seed=0)[0] == accuracy
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_the_test_labels_choose_nothing_and_labels_need_not_be_contiguous() -> None:
    names = torch.tensor([30, 4, 700])
    accuracy = fine_tune(encoder(), *TRAIN, *TEST, epochs=5, seed=0)[0]
    renamed = fine_tune(encoder(), TRAIN[0], names[TRAIN[1]], TEST[0], names[TEST[1]], epochs=5, seed=0)[0]
    assert renamed == accuracy
    shares = [fine_tune(encoder(), *TRAIN, TEST[0], (TEST[1] + i) % 3, epochs=5, seed=0)[0] for i in range(3)]
    assert shares[0] == accuracy
    assert sum(shares) == pytest.approx(1.0)  # the same predictions each time, so each is right for one labelling
    assert fine_tune(encoder(), *TRAIN, TEST[0], TEST[1] + 3, epochs=1, seed=0)[0] == 0.0  # classes never seen


def test_images_that_are_read_when_asked_for_give_the_same() -> None:
    table = Rows(TRAIN[0], torch.arange(96))
    from_table = fine_tune(encoder(), table, TRAIN[1], Rows(TEST[0], torch.arange(60)), TEST[1], epochs=3, seed=0)
    assert from_table[0] == fine_tune(encoder(), *TRAIN, *TEST, epochs=3, seed=0)[0]


def test_each_epoch_is_told_and_divergence_is_an_error() -> None:
    told: list[int] = []
    fine_tune(encoder(), *TRAIN, *TEST, epochs=3, seed=0, on_epoch=told.append)
    assert told == [1, 2, 3]
    broken = encoder()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="diverged"):
        fine_tune(broken, *TRAIN, *TEST, epochs=3, seed=0)


def test_small_sets_have_smaller_batches() -> None:
    assert [batch_size(n) for n in (4, 16, 100, 1000, 2560, 50_000)] == [4, 16, 16, 50, 128, 128]
