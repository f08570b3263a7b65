"""What is measured while training, when, at what cost, and what is said and done about it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clf import checkpoint, config, experiment, monitor, progress, trainer, training
from clf.augment import Augment
from clf.callbacks import Callback
from clf.config import Config, MonitorSection
from clf.data import DataSource
from clf.diagnostics import alignment
from clf.distributed import Ranks
from clf.errors import ConfigError, TrainingError
from clf.evaluate.features import encode
from clf.evaluate.knn import knn_accuracy
from clf.monitor import Monitor, plan
from clf.random import generator
from clf.runs import Run

Make = Callable[..., Config]

METHOD = """
import clf
import torch
from clf import losses, nn

class Settings(clf.MethodConfig):
    constant: bool = True

class Constant(torch.nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 8)

class Flat(clf.Method[Settings]):
    name = "flat"
    Config = Settings
    min_batch_size = 4

    def training_step(self, batch, ctx):
        a, b = (self.backbone(view) for view in batch.views)
        return losses.nt_xent(a, b, 0.5)

    def encoder(self):
        return Constant() if self.config.constant else self.backbone

@clf.hookimpl
def clf_methods():
    return [Flat]
"""


class Listener(Callback):
    """Keeps what was said, and sends this process a signal when a step is done."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.said: list[str] = []
        self.stop_at = stop_at

    def on_message(self, trainer: trainer.Trainer, sentence: str) -> None:
        self.said.append(sentence)

    def on_step(self, trainer: trainer.Trainer) -> None:
        if trainer.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def flat(tmp_path: Path, tiny: Make) -> Callable[..., Config]:
    """The tiny configuration with a method whose encoder gives the same features to all images."""
    path = tmp_path / "flat.py"
    path.write_text(METHOD)

    def make(changes: dict[str, Any]) -> Config:
        values = {key: value for key, value in config.flatten(tiny(tmp_path)).items() if not key.startswith("method.")}
        layer = config.Layer("test", {**values, "plugin": str(path), "train.epochs": 4, **changes})
        return config.build([layer])[0]

    return make


def started(what: experiment.Experiment, folder: Path) -> tuple[Monitor, trainer.Trainer]:
    run = Run(folder)
    watcher = Monitor()
    made = trainer.Trainer(what, run, Ranks(), [watcher])
    watcher.on_start(made)
    return watcher, made


def built(made: Config) -> experiment.Experiment:
    return experiment.build(training.settle(config.derive(made)[0], torch.device("cpu")))


def cost(found: monitor.Plan, bank: int, queries: int) -> float:
    """Forward passes of all measurements: clean images once; each view of a pair three times as dear."""
    images = min(found.images, bank)
    return found.count * (images + min(found.images, queries) + 3 * 2 * images / 8)


@pytest.mark.parametrize(
    ("images", "epochs", "queries", "expected"),
    [
        (6000, 8, 1000, (1, 500)),
        (5000, 100, 1000, (10, 500)),
        (50_000, 200, 10_000, (21, 5000)),
        (1_281_167, 100, 50_000, (100, 5000)),
    ],
)
def test_the_plans_of_the_docstring(images: int, epochs: int, queries: int, expected: tuple[int, int]) -> None:
    found = plan(MonitorSection(), epochs=epochs, work=2 * images * epochs, bank=images, queries=queries)
    assert (found.count, found.images) == expected


@given(st.integers(100, 3_000_000), st.integers(1, 1000), st.integers(0, 50_000), st.sampled_from([1, 2, 2.8]))
def test_measuring_takes_less_than_a_hundredth_of_the_training_and_ends_with_it(
    images: int, epochs: int, queries: int, views: float
) -> None:
    work = views * images * epochs
    found = plan(MonitorSection(), epochs=epochs, work=work, bank=images, queries=queries)
    assert found.due(epochs)
    assert 1 <= found.count <= epochs
    if work >= 2 * 5867:  # else one measurement of 64 images is more than the share
        assert cost(found, images, queries) <= 3 * work / 200


def test_what_the_user_sets_wins_whatever_it_costs() -> None:
    every = plan(MonitorSection(knn_every=2), epochs=7, work=10, bank=9000, queries=900)
    assert (every.every, every.images) == (2, 5000)
    assert [epoch for epoch in range(1, 8) if every.due(epoch)] == [1, 2, 4, 6, 7]
    both = plan(MonitorSection(knn_every=1, max_images=70), epochs=3, work=10, bank=9000, queries=900)
    assert (both.every, both.images, both.count) == (1, 70, 3)
    size = plan(MonitorSection(max_images=2000), epochs=100, work=2e6, bank=9000, queries=9000)
    assert size.images == 2000
    assert size.count == 5  # 30,000 forward passes for them, 5,500 each
    never = plan(MonitorSection(knn_every=0), epochs=7, work=1e9, bank=9000, queries=900)
    assert never.count == 0


def test_stopping_on_what_is_never_measured_is_refused() -> None:
    layer = config.Layer("test", {"plugin": "simclr", "monitor.knn_every": 0, "monitor.stop_on_collapse": True})
    with pytest.raises(ConfigError, match=r"monitor\.stop_on_collapse.*monitor\.knn_every = 0; remove one"):
        config.build([layer])


def test_a_measurement_equals_its_parts_by_hand(tmp_path: Path, tiny: Make) -> None:
    watcher, made = started(built(tiny(tmp_path, {"monitor.max_images": 40})), tmp_path)
    watcher.on_epoch(made)  # knn_every is 1
    (record,) = made.run.metrics()
    encoder, data, recipes = made.method.encoder(), made.data, made.experiment.recipes
    g = generator(0, "monitor")
    bank = torch.randperm(96, generator=g)[:40].sort().values
    asked = torch.randperm(48, generator=generator(0, "monitor"))[:40].sort().values
    assert data.train.labels is not None and data.test is not None and data.test.labels is not None
    features, found = encode(encoder, data.train.clean[bank]), encode(encoder, data.test.clean[asked])
    wanted = knn_accuracy(features, data.train.labels[bank], found, data.test.labels[asked], 20, 0.1)
    assert record["knn"] == wanted
    rows = bank[torch.randperm(40, generator=generator(0, "monitor"))[:5]].sort().values
    views = []
    with torch.no_grad():
        encoder.eval()
        for view in (0, 1):
            draws = recipes[view].draw(5, generator(0, "monitor", "view", view, int(rows[0])))
            views.append(encoder(Augment(recipes[view])(data.train.images[rows], draws)))
    assert record["alignment"] == pytest.approx(alignment(*views), rel=1e-5)
    assert (record["collapsed"], record["bank"]) == (0, 40)
    assert {"rank_me", "feature_std", "mean_cosine", "uniformity"} < record.keys()


def test_measuring_leaves_modes_statistics_and_random_numbers_alone(tmp_path: Path, tiny: Make) -> None:
    watcher, made = started(built(tiny(tmp_path)), tmp_path)
    before = {name: value.clone() for name, value in made.method.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    watcher.on_epoch(made)
    watcher.on_epoch(made)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in made.method.state_dict().items())
    assert all(part.training for part in made.method.modules())
    assert all(parameter.grad is None for parameter in made.method.parameters())
    first, second = made.run.metrics()
    assert first == second


def test_without_labels_everything_but_the_accuracy_is_measured(tmp_path: Path, tiny: Make) -> None:
    what = built(tiny(tmp_path))
    bare: DataSource = replace(what.data, train=replace(what.data.train, labels=None), test=None)
    watcher, made = started(replace(what, data=bare), tmp_path)
    watcher.on_epoch(made)
    (record,) = made.run.metrics()
    assert "knn" not in record
    assert {"rank_me", "alignment", "uniformity"} < record.keys()
    words = progress.figures(record)
    assert words.startswith(f"RankMe {record['rank_me']:.1f}  alignment {record['alignment']:.3f}")
    assert progress.figures({**record, "knn": 0.5, "bank": 5000}).startswith("k-NN accuracy 50.0%  (bank of 5,000)  Ra")


def test_only_images_whose_label_is_known_vote(tmp_path: Path, tiny: Make) -> None:
    what = built(tiny(tmp_path))
    assert what.data.train.labels is not None
    labels = what.data.train.labels.clone()
    labels[:60] = -1
    partly = replace(what.data, train=replace(what.data.train, labels=labels))
    watcher, made = started(replace(what, data=partly), tmp_path)
    assert watcher._bank.tolist() == list(range(60, 96))
    watcher.on_epoch(made)
    assert 0 <= made.run.metrics()[0]["knn"] <= 1


@pytest.mark.slow
def test_a_collapsed_training_says_so_and_ends_where_that_is_wanted(flat: Callable[..., Config]) -> None:
    listener = Listener()
    run = training.train(flat({}), callbacks=[Monitor(), listener])
    assert run.state() == "complete"
    assert len(listener.said) == 4 and all("Collapsed: all images have nearly the same" in s for s in listener.said)
    wanted = flat({"monitor.stop_on_collapse": True, "run.name": "stopped"})
    with pytest.raises(
        TrainingError, match=r"'stopped' was ended at step 12 .*two measurements.*try a lower opt"
    ) as no:
        training.train(wanted, callbacks=[Monitor()])
    stopped = Run(run.path.parent / "stopped")
    assert stopped.state() == "failed"
    assert stopped.manifest()["reason"] in str(no.value)
    assert checkpoint.load_newest(stopped.checkpoints)[0]["step"] == 12  # two epochs of six steps, of four
    assert [record["collapsed"] for record in stopped.metrics() if record["kind"] == "monitor"] == [1, 1]


def test_a_resumed_training_remembers_the_first_of_two_measurements(flat: Callable[..., Config]) -> None:
    wanted = flat({"monitor.stop_on_collapse": True})
    with pytest.raises(trainer.Interrupted) as stop:
        training.train(wanted, callbacks=[Monitor(), Listener(stop_at=8)])
    with pytest.raises(TrainingError, match="was ended at step 12"):
        training.resume(stop.value.run, callbacks=[Monitor()])


def test_a_healthy_training_is_not_ended(flat: Callable[..., Config]) -> None:
    changes = {"monitor.stop_on_collapse": True, "method.constant": False, "train.epochs": 2}
    assert training.train(flat(changes), callbacks=[Monitor()]).state() == "complete"


@pytest.mark.slow
def test_a_batch_that_is_too_small_is_named_once(tmp_path: Path, tiny: Make, flat: Callable[..., Config]) -> None:
    small = Listener(stop_at=2)
    with pytest.raises(trainer.Interrupted) as stop:
        training.train(tiny(tmp_path, {"run.name": "small"}), callbacks=[Monitor(), small])
    (sentence,) = small.said
    assert sentence.startswith("train.batch_size = 16 is small for 'simclr'")
    assert "wants 32 or more" in sentence
    again = Listener()
    training.resume(stop.value.run, callbacks=[Monitor(), again])
    assert again.said == []
    content = Listener()
    training.train(flat({"method.constant": False, "train.epochs": 1}), callbacks=[Monitor(), content])
    assert content.said == []  # the method declares that four are enough
