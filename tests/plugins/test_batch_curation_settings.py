"""Batch curation: what its files and settings must be, and its equality over ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from curation_toys import SIZE, Here, Plain, Small, colours, context, make, stream
from pydantic import ValidationError
from rank_threads import on_ranks
from torch import Tensor, nn

import clf
from clf.data.stream import Stream
from clf_batch_curation import BatchCuration, Masked
from clf_batch_curation.config import BatchCurationConfig
from clf_batch_curation.oracle import ClassRates, load_labels, load_oracle, save_oracle


def test_rates_of_classes_with_decay() -> None:
    rates = ClassRates(0.5)
    labels = torch.tensor([0, 0, 1, 1, 1, -1])
    rejected = torch.tensor([True, False, False, False, False, True])
    assert rates.update(labels, rejected).item() == pytest.approx(0.5)
    assert rates.update(labels, torch.zeros(6, dtype=torch.bool)).item() == pytest.approx(0.5 / 3)


def test_labels_are_recorded_and_change_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.arange(256) % 4)
    source, batches = colours(256), []
    for labels in (None, str(tmp_path / "labels.npy")):
        method = make(Small, labels=labels, sides="both", dissimilar_action="mask", conflict_quantile=0.2)
        here = Here(source)
        batches.append(method.next_batch(stream(source, recipe=clf.simclr_recipe(SIZE)), context(here)))
    assert torch.equal(batches[0].views[0], batches[1].views[0])
    assert isinstance(batches[1], Masked)
    conflict = batches[1].conflict
    y = batches[1].index % 4
    same = (y[:, None] == y)[conflict].float().mean().item()
    assert here.logged["same_class_share_of_conflicts"] == pytest.approx(same)
    assert 0 <= here.logged["class_rejection_spread"] <= 1


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"mode": "oracle"}, "mode = oracle needs method.oracle"),
    ({"oracle": "file"}, "oracle is read with method.mode=oracle only"),
    ({"sides": "both", "mode": "hard"}, "sides = both goes with method.mode=refresh only"),
    ({"sides": "both", "fallback": "drop"}, "fallback = drop goes with"),
    ({"dissimilar_action": "mask"}, "dissimilar_action = mask is of method.sides=both"),
    ({"trials": 8}, "trials are of method.mode=best_of_k"),
    ({"single_pass": True, "space": "h"}, "single_pass goes with"),
    ({"single_pass": True, "fallback": "drop"}, "single_pass cannot drop images"),
    ({"start_epoch": 3, "stop_epoch": 3}, "stop_epoch = 3 must be above method.start_epoch = 3"),
    ({"phi": 1.0}, "less than 1"),
    ({"rounds": -1}, "greater than or equal to 0"),
]


@pytest.mark.parametrize(("settings", "sentence"), MISFITS)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        BatchCurationConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("n", "settings", "sentence"),
    [
        (4, {}, "train.batch_size = 4 is too small to rank pairs by"),
        (8, {"start_epoch": 4}, "method.start_epoch = 4 leaves nothing to curate in train.epochs = 4"),
        (8, {"sides": "both"}, "method.evict_share = 0.0625 of a batch of 8 is less than one image"),
        (64, {"single_pass": True}, "rejects about 6 of a batch of 64: raise train.batch_size"),
    ],
)
def test_settings_that_do_not_fit_the_batch(n: int, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(clf.ConfigError, match=sentence):
        make(n=n, **settings)


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    method = make(Small)
    np.save(tmp_path / "short.npy", np.arange(5))
    np.save(tmp_path / "words.npy", np.array(["a"] * 256))
    (tmp_path / "text.pt").write_text("nothing")
    with pytest.raises(clf.ConfigError, match="must hold 256 whole numbers"):
        load_labels(tmp_path / "short.npy", method.data)
    with pytest.raises(clf.ConfigError, match="must hold 256 whole numbers"):
        load_labels(tmp_path / "words.npy", method.data)
    for path in ("none.npy", "text.pt"):
        with pytest.raises(clf.ConfigError, match="cannot be read as"):
            load_labels(tmp_path / path, method.data)
    with pytest.raises(clf.ConfigError, match="cannot be read: No such file"):
        load_oracle(tmp_path / "none.pt", method.backbone, method.data)
    with pytest.raises(clf.ConfigError, match="is no oracle: write one with"):
        load_oracle(tmp_path / "text.pt", method.backbone, method.data)
    head = nn.Linear(method.backbone.dim, 4)
    labels = torch.arange(256) % 4
    save_oracle(tmp_path / "other.pt", method.backbone, head, labels, "another print")
    with pytest.raises(clf.ConfigError, match="was made for other training images"):
        load_oracle(tmp_path / "other.pt", method.backbone, method.data)
    save_oracle(tmp_path / "good.pt", method.backbone, head, labels, "print")
    with pytest.raises(clf.ConfigError, match="holds another backbone than"):
        load_oracle(tmp_path / "good.pt", make().backbone, method.data)
    loaded = load_oracle(tmp_path / "good.pt", method.backbone, method.data)
    assert not any(module.training for module in loaded.network.modules())
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_several_processes_cannot_drop_images() -> None:
    here = Here(colours(256))
    here.world_size = 2
    with pytest.raises(clf.ConfigError, match="leaves the 2 processes with batches of different sizes"):
        make(fallback="drop").next_batch(stream(colours(256)), context(here))


def test_a_single_pass_in_chunks_is_not_compiled() -> None:
    method = make(Small, single_pass=True, single_pass_images=2)
    method.backbone.compiled, method.backbone.chunk_size = True, 8
    with pytest.raises(clf.ConfigError, match=r"cannot be compiled, and with train\.chunk_size"):
        method.next_batch(stream(colours(256)), context(Here(colours(256))))


EVERY_WAY: list[dict[str, Any]] = [
    {"phi": 0.4},
    {"phi": 0.4, "score_mode": "train", "fallback": "original"},
    {"phi": 0.4, "sides": "both", "conflict_quantile": 0.9, "evict_share": 0.25},
    {"sides": "both", "dissimilar_action": "mask", "conflict_quantile": 0.9},
    {"phi": 0.4, "single_pass": True, "single_pass_images": 1},
    {"mode": "best_of_k"},
    {"mode": "reject_batch", "rho": 0.0},
    {"mode": "random_refresh"},
    {"mode": "hard"},
]


@pytest.mark.parametrize("settings", EVERY_WAY, ids=str)
@pytest.mark.parametrize("count", [2, 4])
def test_ranks_curate_together_what_one_process_curates(settings: dict[str, Any], count: int) -> None:
    """Over three steps: images, views, loss and everything that is kept, in float64."""
    source = colours(256)
    recipe = clf.simclr_recipe(SIZE)

    def work(method: BatchCuration, rank: int, ranks: int, gather: Callable[[Tensor], Tensor]) -> list[Any]:
        loaded = Stream(source, [recipe, recipe], 64, 0, rank=rank, world_size=ranks, dtype=torch.float64)
        steps = []
        for step in range(3):
            here = Here(source, step)
            here.rank, here.world_size, here.gather = rank, ranks, gather  # type: ignore[method-assign, assignment]
            batch = method.next_batch(loaded, context(here))
            loss = method.training_step(batch, context(here)).loss.detach()
            steps.append((batch.index, *batch.views, loss.view(1), here.logged))
        return steps

    (one,) = on_ranks(1, lambda rank, gather: work(make(Plain, layers=1, **settings).double(), rank, 1, lambda x: x))
    methods = [make(Plain, layers=1, **settings).double() for _ in range(count)]
    several = on_ranks(count, lambda rank, gather: work(methods[rank], rank, count, gather))
    for step, (index, a, b, loss, logged) in enumerate(one):
        parts = [each[step] for each in several]
        assert torch.equal(torch.cat([part[0] for part in parts]), index)
        for view, expected in ((1, a), (2, b)):
            torch.testing.assert_close(torch.cat([part[view] for part in parts]), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.cat([part[3] for part in parts]).mean(), loss[0], rtol=1e-10, atol=0)
        means = {name: sum(part[4][name] for part in parts) / count for name in logged}
        assert means == pytest.approx(logged, rel=1e-10)
        assert (
            logged["redraws_per_image"] > 0 or settings.get("dissimilar_action") or settings["mode"] == "reject_batch"
        )
    for method in methods[1:]:
        assert all(torch.equal(value, methods[0].state_dict()[name]) for name, value in method.state_dict().items())
