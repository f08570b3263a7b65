"""What every method of this distribution must do, on a network and images that train in seconds.

Batch norm is of one rank's rows by its nature; :mod:`clf.verify` lets it see the rows of all ranks, for the comparison
of ranks only. Chunks are compared without batch norm, which sees one chunk at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_settings import SMALL
from torch import Tensor

import clf
from clf import config, experiment, plugins, settings, training, verify
from clf.config import Config, Layer
from clf.distributed import Ranks
from clf.runs import Run
from clf.trainer import Trainer

NORM_FREE = {"backbone.norm": "none", "backbone.activation": "leaky_relu"}
MOCO = {"queue_size": 32, "projection_dim": 16, "bn_splits": 2}
NNCLR = {"queue_size": 32, "hidden_dim": 32, "projection_dim": 16, "predictor_dim": 32}

EVERY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "simclr": ("simclr", {}),
    "moco": ("moco", {f"method.{key}": value for key, value in MOCO.items()}),
    "moco, symmetric": ("moco", {**{f"method.{key}": value for key, value in MOCO.items()}, "method.symmetric": True}),
    "nnclr": ("nnclr", {f"method.{key}": value for key, value in NNCLR.items()}),
    "dcl": ("dcl", {}),
    "dclw": ("dcl", {"method.weighted": True}),
    "dcl on moco": ("dcl", {"method.base": "moco", **{f"method.moco.{key}": value for key, value in MOCO.items()}}),
    "dcl on nnclr": ("dcl", {"method.base": "nnclr", **{f"method.nnclr.{key}": value for key, value in NNCLR.items()}}),
    "ebclr": ("ebclr", {}),
    "batch_curation": ("batch_curation", {}),
    "batch_curation, both sides": ("batch_curation", {"method.sides": "both"}),
    "hard_sample_gen": ("hard_sample_gen", {}),
    "hard_sample_gen on moco": (
        "hard_sample_gen",
        {"method.base": "moco", **{f"method.moco.{key}": value for key, value in MOCO.items()}},
    ),
}

every = pytest.mark.parametrize("name", EVERY)
RICH = "dcl on moco"
"""With a queue, a momentum encoder, and a loss on another method's features: the one for those who have no time."""
every_at_length = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == RICH else pytest.mark.slow) for name in EVERY]
)


def built_in() -> set[str]:
    return {row.name for row in plugins.list_plugins() if row.distribution == "clf-vision"}


def configured(name: str, folder: Path, **changes: Any) -> Config:
    plugin, own = EVERY[name]
    small = {
        **SMALL,
        "run.dir": str(folder),
        "train.max_steps": 6,
        "monitor.knn_every": 0,
        "monitor.log_every": 1,
    }
    if "data.name" in changes:
        small = {key: value for key, value in small.items() if not key.startswith("data.")}
    below = Layer("test", {**small, **plugins.load_method(plugin).tiny})
    return settings.resolve([below, Layer("command line", {"plugin": plugin, **own, **changes})])[0]


def test_no_method_is_left_out() -> None:
    assert {plugin for plugin, _ in EVERY.values()} == built_in()


@every_at_length
def test_a_killed_run_that_is_resumed_keeps_its_bits(name: str) -> None:
    plugin, changes = EVERY[name]
    report = verify.resume(plugin, {"train.epochs": 2, **changes}, kills=2)
    assert report.holds, report.differences


@every_at_length
def test_two_and_four_ranks_equal_one_process(name: str) -> None:
    """A method's further settings, which share its code, with two."""
    plugin, changes = EVERY[name]
    report = verify.ranks(plugin, changes, counts=[2, 4] if name == plugin else [2])
    assert report.holds, report.differences


@every_at_length
def test_the_exported_encoder_gives_the_trainers_embeddings(name: str) -> None:
    plugin, changes = EVERY[name]
    report = verify.export(plugin, changes)
    assert report.holds, report.differences


@every
def test_it_trains_in_bf16_on_grey_images_that_are_not_square(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "grey.npz", images=rng.integers(0, 256, (80, 20, 28), np.uint8))
    wanted = configured(
        name,
        tmp_path,
        **{
            "data.name": "npz",
            "data.root": str(tmp_path / "grey.npz"),
            "data.image_size": 16,
            "train.precision": "bf16",
            "train.max_steps": 3,
        },
    )
    run = training.train(wanted, callbacks=[])
    losses = [record["loss"] for record in run.metrics() if record["kind"] == "train"]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    method = experiment.load(run).method
    assert method.encoder()(torch.zeros(2, 1, 16, 16)).shape == (2, method.backbone.dim)


def first_gradient(what: experiment.Experiment, folder: Path) -> tuple[float, list[Tensor]]:
    """Loss and gradient of the first step."""
    folder.mkdir()
    trainer = Trainer(what, Run(folder), Ranks())
    while trainer.prepared < trainer.preparation_steps:
        trainer.prepare()
    trainer.window.flush(Ranks())
    trainer.optimizers["main"].step = lambda: None  # type: ignore[method-assign]
    trainer.one_step()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.parameters["main"]]
    loss = trainer.window.flush(Ranks())["loss"]
    trainer.stream.close()
    return loss, gradients


@every
def test_chunks_give_the_loss_and_gradient_of_the_whole_batch(name: str, tmp_path: Path) -> None:
    """To 1e-9 relative in float64. The projectors see all rows at once; the network has no batch norm."""
    exact = {"train.precision": "fp64", **NORM_FREE}
    found = []
    for i, size in enumerate((None, 5)):
        wanted = configured(name, tmp_path, **exact, **{"train.chunk_size": size})
        found.append(first_gradient(experiment.build(config.derive(wanted)[0]), tmp_path / str(i)))
    (loss, gradients), (other, others) = found
    assert other == pytest.approx(loss, rel=1e-9)
    largest = max(float(g.abs().max()) for g in gradients)
    assert largest > 0
    for one, two in zip(gradients, others, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-8, atol=1e-10 * largest)


@every
def test_its_metrics_are_numbers_and_its_pictures_are_pictures(name: str, tmp_path: Path) -> None:
    run = training.train(configured(name, tmp_path), callbacks=[])
    records = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert all(isinstance(v, (int, float)) and math.isfinite(v) for r in records for k, v in r.items() if k != "kind")
    method = experiment.load(run).method
    for title, images in method.pictures().items():
        assert title and images.ndim == 5 and images.shape[2] == 3
        assert float(images.min()) >= 0 and float(images.max()) <= 1


@every
def test_no_setting_is_without_a_description(name: str) -> None:
    method = plugins.load_method(EVERY[name][0])
    assert issubclass(method, clf.Method)
    fields = method.Config.model_fields.values()
    assert all(field.description or hasattr(field.annotation, "model_fields") for field in fields)
