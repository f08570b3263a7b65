"""What is trained before the training: exact resume, groups of their own settings, and the training left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plugins_to_verify as methods
import pytest
import torch
from plugins_to_verify import plugin_file
from small_settings import SMALL

import clf
from clf import checkpoint, config, experiment, report, training, verify
from clf.callbacks import Callback
from clf.config import Config
from clf.distributed import Ranks
from clf.errors import PluginError, RunError, TrainingError
from clf.groups import make_groups
from clf.runs import Run
from clf.trainer import Interrupted, Trainer

SHARED = torch.nn.Parameter(torch.zeros(2))
WITHOUT = methods.PREPARED.replace("preparation_steps = 7", "preparation_steps = 0").replace("assert self.frozen", "#")


UNWATCHED = {
    **SMALL,
    "monitor.knn_every": 0,
    "monitor.log_every": 3,
}


def configured(folder: Path, body: str = methods.PREPARED, **changes: Any) -> Config:
    values = {**UNWATCHED, "run.dir": str(folder), "plugin": plugin_file(folder, body), **changes}
    return config.build([config.Layer("test", values)])[0]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return training.train(configured(tmp_path_factory.mktemp("prepared")), callbacks=[])


def state_of(run: Run) -> dict[str, Any]:
    return checkpoint.load_newest(run.checkpoints)[0]


def test_it_is_recorded_and_counted(prepared: Run) -> None:
    records = [r for r in prepared.metrics() if r["kind"] == "preparation"]
    assert [r["prepared"] for r in records] == [3, 6, 7] and all(r["step"] == 0 for r in records)
    assert all(r["generator_loss"] > 0 for r in records)
    assert all("challenge" in r for r in prepared.metrics() if r["kind"] == "train")
    assert prepared.manifest()["prepared"] == 7 and state_of(prepared)["prepared"] == 7
    assert checkpoint.newest(prepared.checkpoints).name == "step-000000019.pt"  # 7 and 12


def test_the_training_is_the_same_with_and_without(prepared: Run, tmp_path: Path) -> None:
    plain = training.train(configured(tmp_path, WITHOUT), callbacks=[])
    one, other = state_of(prepared), state_of(plain)
    names = [name for name in one["method"] if name.startswith("backbone")]
    assert names and all(torch.equal(one["method"][name], other["method"][name]) for name in names)
    assert not torch.equal(one["method"]["generator.weight"], other["method"]["generator.weight"])


class StopIn(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_preparation(self, trainer: Trainer) -> None:
        if trainer.prepared == self.step:
            trainer.stop.ask()


def test_stopped_in_the_middle_of_it(prepared: Run, tmp_path: Path) -> None:
    wanted = configured(tmp_path, **{"run.name": "cut"})
    with pytest.raises(Interrupted, match="after 4 steps of preparation; continue with"):
        training.train(wanted, callbacks=[StopIn(4)])
    run = Run(tmp_path / "cut")
    assert run.manifest()["prepared"] == 4
    training.resume(run, callbacks=[])
    one, other = state_of(prepared), state_of(run)
    assert all(torch.equal(one["method"][name], other["method"][name]) for name in one["method"])
    clock = ("seconds",)
    a, b = ([{k: v for k, v in r.items() if k not in clock} for r in x.metrics()] for x in (prepared, run))
    assert a == b


@pytest.mark.slow
def test_killed_at_every_place_and_on_two_ranks(tmp_path: Path) -> None:
    plugin = plugin_file(tmp_path, methods.PREPARED)
    killed = verify.resume(plugin, kills=6)
    assert killed.holds, killed.differences
    assert "7 of them preparation" in dict(killed.facts)["run"]
    ranks = verify.ranks(plugin, counts=[2])
    assert ranks.holds, ranks.differences


class EndIn(Callback):
    """Asks for the end in the second step, or spoils a weight there."""

    def __init__(self, spoils: bool) -> None:
        self.spoils = spoils

    def on_preparation(self, trainer: Trainer) -> None:
        if trainer.prepared == 2 and self.spoils:
            next(trainer.method.generator.parameters()).data.fill_(float("nan"))
        elif trainer.prepared == 2:
            trainer.end("enough")


def test_ended_in_the_middle_of_it(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="was ended after 2 steps of preparation, and its checkpoint saved: enough"):
        training.train(configured(tmp_path, **{"run.name": "ended"}), callbacks=[EndIn(spoils=False)])
    run = Run(tmp_path / "ended")
    assert (state_of(run)["prepared"], run.state(), run.manifest()["reason"]) == (2, "failed", "enough")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    words = (
        r"not finite after 3 steps of preparation of run 'nan'.*step-000000000\.pt\. Lower the learning rates of its"
    )
    with pytest.raises(TrainingError, match=words):
        training.train(configured(tmp_path, **{"run.name": "nan"}), callbacks=[EndIn(spoils=True)])
    assert state_of(Run(tmp_path / "nan"))["prepared"] == 0
    assert Run(tmp_path / "nan").metrics() == []


def test_no_scalar_may_pass_for_the_loss_of_the_training(tmp_path: Path) -> None:
    body = methods.PREPARED.replace("challenge=loss", "loss=loss")
    with pytest.raises(PluginError, match="'loss' is the name of what training_step returns"):
        training.train(configured(tmp_path, body), callbacks=[])


@pytest.mark.parametrize("place", ["preparation_step", "training_step"])
def test_a_mistake_told_in_the_first_step_leaves_no_run(tmp_path: Path, place: str) -> None:
    body = methods.PREPARED.replace(
        f"def {place}(self",
        f"def {place}(self, *unused):\n        raise clf.ConfigError('no')\n\n    def not_{place}(self",
    )
    if place == "training_step":
        body = body.replace("preparation_steps = 7", "preparation_steps = 0")
    with pytest.raises(clf.ConfigError, match="no"):
        training.train(configured(tmp_path, body, **{"run.name": "mistaken"}), callbacks=[])
    assert not (tmp_path / "mistaken").exists()


def test_preparation_without_a_step_of_it_is_told(tmp_path: Path) -> None:
    body = methods.PREPARED.replace("def preparation_step(", "def something_else(")
    with pytest.raises(PluginError, match="asks for 7 preparation_steps and has no preparation_step"):
        training.train(configured(tmp_path, body), callbacks=[])


def test_groups_have_their_own_optimizers_and_schedules(prepared: Run) -> None:
    what = experiment.load(prepared)
    groups = make_groups(what.method, what.config)
    assert {name: type(g.optimizer).__name__ for name, g in groups.items()} == {
        "main": "AdamW",
        "first": "SGD",
        "later": "Adam",
    }
    assert [groups["first"].lr(step, 8, 6.0) for step in (0, 4, 6, 8)] == [0.5, 0.5, 0.25, 0.0]
    assert groups["later"].optimizer.param_groups[0]["betas"] == (0.0, 0.9)
    assert groups["later"].peak == 1e-3 and groups["main"].peak == 1e-3
    assert groups["main"].schedule.warmup_epochs == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"main": clf.Group([], {"lr": 1.0})}, "gives its group 'main' settings of its own"),
        ({"critic": clf.Group([], {"lrr": 1.0})}, "setting 'lrr' of parameter group 'critic'"),
        ({"critic": clf.Group([], {}, {"decay": 2})}, "setting 'decay' of parameter group 'critic'"),
        ({}, "no parameter group 'main'"),
        ({"main": clf.Group([SHARED]), "critic": clf.Group([SHARED])}, "'critic' shares a parameter with 'main'"),
    ],
)
def test_wrong_groups_are_told(prepared: Run, group: dict[str, clf.Group], words: str) -> None:
    what = experiment.load(prepared)
    what.method.parameter_groups = lambda: group
    with pytest.raises(PluginError, match=words):
        make_groups(what.method, what.config)


def test_groups_of_the_preparation_are_stepped_there_only(prepared: Run) -> None:
    what = experiment.load(prepared)
    trainer = Trainer(
        experiment.Experiment(config.derive(what.config)[0], *list(vars(what).values())[1:]), prepared, Ranks()
    )
    method = what.method
    method.training_step = lambda batch, ctx: ctx.minimize("first", method.generator.weight.sum())
    with pytest.raises(PluginError, match=r"the groups besides 'main' are \['later'\]"):
        trainer.one_step()


def test_another_run_can_be_read(prepared: Run, tmp_path: Path) -> None:
    saved = clf.saved_method(prepared.path)
    assert (saved.step, saved.prepared, saved.data.image_size, saved.data.channels) == (12, 7, 16, 3)
    assert saved.state["frozen"] == 1.0 and saved.plugin.endswith("mine.py")
    assert saved.data == experiment.load(prepared).spec
    with pytest.raises(RunError, match="is not a run folder"):
        clf.saved_method(tmp_path / "nowhere")


def test_the_images_are_identified(tmp_path: Path) -> None:
    def fingerprint(**changes: Any) -> str:
        return experiment.build(configured(tmp_path, **changes)).spec.fingerprint

    whole = fingerprint()
    assert fingerprint(seed=1) == whole != fingerprint(**{"data.limit": 64})
    assert fingerprint(**{"data.limit": 64}) != fingerprint(**{"data.limit": 64, "seed": 1})


def test_the_report_shows_what_the_method_measured_and_drew(tmp_path: Path) -> None:
    drawing = (
        methods.PREPARED
        + """
    def pictures(self):
        return {"colours <of> the generator": torch.linspace(0, 1, 2 * 3 * 3 * 8 * 8).view(2, 3, 3, 8, 8)}
"""
    )
    run = training.train(configured(tmp_path, drawing), callbacks=[])
    text = report.write_report(run).read_text()
    for words in ("What the method measured", "generator loss over steps", "challenge over epochs", "own pictures"):
        assert words in text
    assert "colours &lt;of&gt; the generator" in text and "<of>" not in text
