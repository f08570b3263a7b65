"""Starting a training and going on with one: folders that a kill left behind, runs that end, epochs that do not fit."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clf
from clf import checkpoint, experiment, runs, trainer, training
from clf.callbacks import Callback
from clf.config import Config, derive
from clf.distributed import Ranks
from clf.errors import CheckpointError, RunError
from clf.runs import Run

Make = Callable[..., Config]


class Settings(clf.MethodConfig):
    pass


def trainer_of(method: type[clf.Method[Any]], folder: Path, config: Config) -> trainer.Trainer:
    """A trainer of a method that no plugin offers, over a run folder of its own."""
    made = experiment.build(derive(config)[0])
    torch.manual_seed(0)
    mine = method(made.method.backbone, Settings(), made.spec)  # type: ignore[arg-type]
    what = experiment.Experiment(made.config, made.data, made.spec, mine, made.recipes)
    run = Run(folder)
    folder.mkdir(exist_ok=True)
    run.write_json("manifest.json", {})
    return trainer.Trainer(what, run, Ranks())


def test_a_run_killed_before_its_first_checkpoint_makes_way(tmp_path: Path, tiny: Make) -> None:
    config = tiny(tmp_path, {"run.name": "job", "train.max_steps": 1, "monitor.knn_every": 0})
    left = tmp_path / "job"
    (left / "checkpoints").mkdir(parents=True)
    (left / "config.yaml").write_text("half", encoding="utf-8")
    (left / ".lock").touch()
    assert training.train(config, callbacks=[]).state() == "complete"


def test_a_folder_that_is_no_abandoned_run_is_never_deleted(tmp_path: Path, tiny: Make) -> None:
    theirs = tmp_path / "job" / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="a run named 'job' exists"):
        runs.create_run(tiny(tmp_path, {"run.name": "job"}))
    assert theirs.read_text(encoding="utf-8") == "mine"


def test_a_run_that_another_process_is_starting_is_not_taken(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job").mkdir()
    monkeypatch.setattr("clf.locks._acquire", lambda file: False)
    with pytest.raises(RunError, match="a run named 'job' exists"):
        runs.create_run(tiny(tmp_path, {"run.name": "job"}))


def test_a_run_killed_between_its_last_checkpoint_and_its_end_is_complete(tmp_path: Path, tiny: Make) -> None:
    run = training.train(tiny(tmp_path, {"train.max_steps": 2, "monitor.knn_every": 0}), callbacks=[])
    run.update_manifest(state="running")
    assert runs.newest_unfinished(tmp_path).name == run.name
    training.resume(run, callbacks=[])
    assert run.state() == "complete"
    with pytest.raises(RunError, match="no unfinished run"):
        runs.newest_unfinished(tmp_path)


def test_epochs_are_counted_in_images_whatever_is_accumulated(tmp_path: Path, tiny: Make) -> None:
    """96 images are 6 batches of 16; 4 a step make 1.5 steps an epoch, and 5 epochs 7 steps of 64 images."""

    class Ends(Callback):
        def __init__(self) -> None:
            self.steps: list[tuple[int, float]] = []

        def on_epoch(self, trainer: trainer.Trainer) -> None:
            self.steps.append((trainer.step, round(trainer.epoch, 3)))

    ends = Ends()
    changes = {"train.accumulate": 4, "train.epochs": 5, "monitor.knn_every": 0}
    run = training.train(tiny(tmp_path, changes), callbacks=[ends])
    assert ends.steps == [(2, 1.333), (3, 2.0), (5, 3.333), (6, 4.0), (7, 4.667)]
    assert run.metrics()[-1]["images"] == 7 * 64


def test_numbers_drawn_while_a_batch_is_chosen_do_not_depend_on_the_past(tmp_path: Path, tiny: Make) -> None:
    drawn: list[float] = []

    class Choosy(clf.Method[Settings]):
        name = "choosy"
        Config = Settings

        def next_batch(self, stream: clf.BatchStream, ctx: clf.Context) -> clf.Batch:
            drawn.append(torch.rand(()).item())
            return stream.next()

        def training_step(self, batch: clf.Batch, ctx: clf.Context) -> Tensor:
            return self.backbone(batch.views[0]).square().mean()

    config = tiny(tmp_path, {"train.max_steps": 2, "monitor.knn_every": 0})
    trainer_of(Choosy, tmp_path / "one", config).fit()
    torch.rand(17)
    trainer_of(Choosy, tmp_path / "two", config).fit()
    assert drawn[:2] == drawn[2:]


def test_a_player_that_was_stepped_is_seen_as_it_is_now_in_bf16(tmp_path: Path, tiny: Make) -> None:
    """Autocast keeps bf16 copies of weights; after minimize they must not be those of before."""
    losses: list[float] = []

    class Player(clf.Method[Settings]):
        name = "player"
        Config = Settings

        def __init__(self, backbone: clf.Backbone, config: Settings, data: clf.DataSpec) -> None:
            super().__init__(backbone, config, data)
            self.player = nn.Linear(4, 1)

        def parameter_groups(self) -> dict[str, Any]:
            return {"main": self.backbone.parameters(), "player": self.player.parameters()}

        def training_step(self, batch: clf.Batch, ctx: clf.Context) -> Tensor:
            for _ in range(4):
                loss = (self.player(torch.ones(8, 4)) - 3).square().mean()
                losses.append(loss.item())
                ctx.minimize("player", loss)
            return self.backbone(batch.views[0]).square().mean()

    sgd = {"optimizer.name": "sgd", "optimizer.lr": 0.05, "optimizer.momentum": 0.0, "schedule.warmup_epochs": 0}
    changes = {**sgd, "train.max_steps": 1, "train.precision": "bf16", "monitor.knn_every": 0}
    trainer_of(Player, tmp_path / "run", tiny(tmp_path, changes)).fit()
    assert losses[0] > 2 * losses[1] > 4 * losses[2] > 8 * losses[3]


def test_optimizer_state_is_not_given_to_parameters_of_other_names(tmp_path: Path, tiny: Make) -> None:
    class First(clf.Method[Settings]):
        name = "swapped"
        Config = Settings

        def __init__(self, backbone: clf.Backbone, config: Settings, data: clf.DataSpec) -> None:
            super().__init__(backbone, config, data)
            for name in self.names:
                setattr(self, name, nn.Linear(3, 3))

        names = ("a", "b")

        def training_step(self, batch: clf.Batch, ctx: clf.Context) -> Tensor:
            return self.backbone(batch.views[0]).square().mean()

    class Second(First):
        names = ("b", "a")

    config = tiny(tmp_path, {"train.max_steps": 1, "monitor.knn_every": 0})
    first = trainer_of(First, tmp_path / "run", config)
    first.fit()
    state, _ = checkpoint.load_newest(first.run.checkpoints)
    with pytest.raises(CheckpointError, match="do not fit this version"):
        trainer_of(Second, tmp_path / "run", config).restore(state)


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"step": step})

    def stale(*arguments: object, **options: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(torch, "load", stale)
    with pytest.raises(CheckpointError, match=r"cannot be read .*see to the disk"):
        checkpoint.load_newest(tmp_path, set_aside=True)
    assert [path.name for path in checkpoint.paths(tmp_path)] == ["step-000000002.pt", "step-000000001.pt"]
