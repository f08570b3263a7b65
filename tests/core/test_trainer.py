"""The loop: exact resume after a kill, signals, precision, accumulation, records, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clf
from clf import checkpoint, config, experiment, trainer, training
from clf.callbacks import Callback
from clf.config import Config
from clf.distributed import Ranks
from clf.errors import CheckpointError, ConfigError, DataError, PluginError, RunError, TrainingError
from clf.monitor import Monitor
from clf.runs import Run
from clf.verify.child import Child, Job

Make = Callable[..., Config]


def weights(run: Run) -> str:
    """SHA-256 of the newest checkpoint's weights and optimizer state."""
    state, _ = checkpoint.load_newest(run.checkpoints)
    digest = hashlib.sha256()
    for name, tensor in sorted(state["method"].items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    for key, values in sorted(state["optimizers"]["main"]["state"].items()):
        digest.update(str(key).encode() + b"".join(v.numpy().tobytes() for v in values.values() if v is not None))
    return digest.hexdigest()


def facts(run: Run) -> list[dict[str, Any]]:
    """The records without their clock times."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in run.metrics()]


class StopAt(Callback):
    """Sends this process a signal when a step is done."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def on_step(self, trainer: trainer.Trainer) -> None:
        if trainer.step == self.step:
            os.kill(os.getpid(), self.number)


def test_a_run_leaves_its_records(tiny_run: Run) -> None:
    manifest = tiny_run.manifest()
    assert manifest["state"] == "complete"
    assert manifest["step"] == 12  # 96 images, batches of 16, two epochs
    assert manifest["data"]["train_images"] == 96
    assert manifest["plugin_source"]["distribution"] == "clf-vision"
    kinds = [record["kind"] for record in tiny_run.metrics()]
    assert kinds.count("train") == 6 and kinds.count("monitor") == 2
    monitored = [record for record in tiny_run.metrics() if record["kind"] == "monitor"]
    assert all(0 <= record["knn"] <= 1 and record["rank_me"] >= 1 for record in monitored)
    assert config.read_file(tiny_run.path / "config.yaml").values["optimizer.lr"] == 1e-3


def test_the_same_configuration_gives_the_same_weights_and_another_seed_others(tmp_path: Path, tiny: Make) -> None:
    runs = [training.train(tiny(tmp_path, {"seed": seed, "train.epochs": 1}), callbacks=[]) for seed in (0, 0, 1)]
    first, again, other = map(weights, runs)
    assert first == again != other
    assert [run.name for run in runs] == ["simclr-shapes-1", "simclr-shapes-2", "simclr-shapes-3"]


def test_watching_does_not_change_the_run(tmp_path: Path, tiny: Make, tiny_run: Run) -> None:
    assert weights(training.train(tiny(tmp_path), callbacks=[])) == weights(tiny_run)


@pytest.mark.parametrize(("step", "number"), [(3, signal.SIGINT), (6, signal.SIGTERM), (11, signal.SIGINT)])
def test_a_stopped_run_resumes_to_the_same_bits(
    tmp_path: Path, tiny: Make, tiny_run: Run, step: int, number: signal.Signals
) -> None:
    with pytest.raises(trainer.Interrupted, match=f"{number.name} at step {step}") as stopped:
        training.train(tiny(tmp_path), callbacks=[Monitor(), StopAt(step, number)])
    run = stopped.value.run
    assert run.manifest()["state"] == "interrupted" and run.manifest()["step"] == step
    resumed = training.resume(run, callbacks=[Monitor()])
    assert weights(resumed) == weights(tiny_run)
    assert facts(resumed) == facts(tiny_run)
    assert resumed.manifest()["state"] == "complete"


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, tiny: Make, tiny_run: Run) -> None:
    """SIGKILL while the second epoch runs: the run goes on from the last checkpoint, not from the last step."""
    child = Child(Job(tiny(tmp_path, {"run.name": "killed"}), kill_step=9))
    assert child.kill_there()
    run = Run(tmp_path / "killed")
    assert run.manifest()["state"] == "running"
    assert checkpoint.load_newest(run.checkpoints)[0]["step"] == 6
    resumed = training.resume(run, callbacks=[Monitor()])
    assert weights(resumed) == weights(tiny_run)
    assert facts(resumed) == facts(tiny_run)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, tiny: Make, tiny_run: Run) -> None:
    with pytest.raises(trainer.Interrupted) as stopped:
        training.train(tiny(tmp_path), callbacks=[Monitor(), StopAt(9)])
    run = stopped.value.run
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    newest.write_bytes(newest.read_bytes()[:1000])
    assert weights(training.resume(run, callbacks=[Monitor()])) == weights(tiny_run)
    assert "is damaged" in run.manifest()["notes"][0]


def test_a_changed_configuration_is_refused_by_name(tiny_run: Run) -> None:
    before = config.read_file(tiny_run.path / "config.yaml")
    changes = config.Layer("command line", {"train.epochs": 3, "method.temperature": 0.1, "monitor.knn_every": 7})
    changed, _ = config.build([before, changes])
    with pytest.raises(RunError, match=r"train\.epochs: 2 -> 3; method\.temperature: 0\.5 -> 0\.1"):
        training.resume(tiny_run, changed)


def test_changed_data_are_refused(tmp_path: Path, tiny: Make) -> None:
    with pytest.raises(trainer.Interrupted) as stopped:
        training.train(tiny(tmp_path), callbacks=[StopAt(2)])
    stopped.value.run.update_manifest(data={"fingerprint": "0" * 64})
    with pytest.raises(RunError, match="have changed since it was trained"):
        training.resume(stopped.value.run, callbacks=[])


def test_a_complete_run_is_left_alone(tiny_run: Run) -> None:
    before = weights(tiny_run)
    assert training.resume(tiny_run, callbacks=[]) is tiny_run
    assert weights(tiny_run) == before


def test_a_taken_name_is_refused(tiny_run: Run, tiny: Make) -> None:
    with pytest.raises(RunError, match="a run named 'tiny' exists"):
        training.train(tiny(tiny_run.path.parent, {"run.name": "tiny"}), callbacks=[])


class SpoilLoss(Callback):
    """Turns a weight into NaN before step 9, as a diverging optimizer would."""

    def on_step(self, trainer: trainer.Trainer) -> None:
        if trainer.step == 8:
            next(trainer.method.parameters()).data.fill_(float("nan"))


def test_a_loss_that_is_not_finite_stops_and_names_the_good_checkpoint(tmp_path: Path, tiny: Make) -> None:
    with pytest.raises(TrainingError, match=r"not finite at step 9 .*step-000000006\.pt.*Lower optimizer\.lr"):
        training.train(tiny(tmp_path), callbacks=[SpoilLoss()])
    run = Run(tmp_path / "simclr-shapes-1")
    assert run.manifest()["state"] == "failed"
    state, _ = checkpoint.load_newest(run.checkpoints)
    assert state["step"] == 6 and all(
        torch.isfinite(t).all() for t in state["method"].values() if t.is_floating_point()
    )


def test_a_batch_larger_than_the_set_is_refused(tmp_path: Path, tiny: Make) -> None:
    with pytest.raises(DataError, match=r"96 training images, fewer than train\.batch_size = 128"):
        training.train(tiny(tmp_path, {"train.batch_size": 128}), callbacks=[])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"train.precision": "bf16"}, marks=pytest.mark.slow),  # most processors imitate such numbers
        {"train.precision": "fp64"},
        {"train.clip_grad_norm": 0.1, "optimizer.name": "sgd"},
        {"train.accumulate": 3, "optimizer.name": "lars"},
        {"train.channels_last": True, "schedule.name": "constant"},
        {"train.max_steps": 4},
    ],
)
def test_settings_of_the_loop_train_and_resume(tmp_path: Path, tiny: Make, changes: dict[str, Any]) -> None:
    whole = training.train(tiny(tmp_path, changes), callbacks=[])
    with pytest.raises(trainer.Interrupted) as stopped:
        training.train(tiny(tmp_path, changes), callbacks=[StopAt(1)])
    assert weights(training.resume(stopped.value.run, callbacks=[])) == weights(whole)
    expected = 4 if "train.max_steps" in changes else 4 if "train.accumulate" in changes else 12
    assert whole.manifest()["step"] == expected


def test_clipping_bounds_the_step(tmp_path: Path, tiny: Make) -> None:
    """SGD without momentum, decay or warm-up moves the weights by lr times the clipped gradient's norm at most."""
    changes = {
        "optimizer.name": "sgd",
        "optimizer.lr": 1.0,
        "optimizer.momentum": 0.0,
        "optimizer.weight_decay": 0.0,
        "schedule.warmup_epochs": 0,
        "train.max_steps": 1,
        "train.clip_grad_norm": 1e-3,
    }
    run = training.train(tiny(tmp_path, changes), callbacks=[])
    before = experiment.build(run.config()).method
    after = experiment.load(run).method
    moved = torch.cat([(a - b).flatten() for a, b in zip(after.parameters(), before.parameters(), strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(1e-3, rel=1e-3)


class Settings(clf.MethodConfig):
    pass


class TwoPlayers(clf.Method[Settings]):
    """A network that is minimised over ``main`` and a critic that has its own group."""

    name = "two_players"
    Config = Settings

    def __init__(self, backbone: clf.Backbone, config: Settings, data: clf.DataSpec) -> None:
        super().__init__(backbone, config, data)
        self.critic = nn.Linear(backbone.dim, 1)

    def parameter_groups(self) -> dict[str, Any]:
        return {"main": self.backbone.parameters(), "critic": self.critic.parameters()}

    def training_step(self, batch: clf.Batch, ctx: clf.Context) -> Tensor:
        h = self.backbone(batch.views[0])
        self.mean_feature = h.detach().mean(0)
        ctx.minimize("critic", self.critic(h.detach()).mean())
        ctx.log(draw=torch.rand(1, generator=ctx.generator("noise")).item())
        return self.critic(h).square().mean()


def trainer_of(method: type[clf.Method[Any]], folder: Path, tiny: Make) -> trainer.Trainer:
    what = experiment.build(config.derive(tiny(folder))[0])
    made = method(what.method.backbone, method.Config(), what.spec)
    run = Run(folder)
    run.write_json("manifest.json", {})
    changed = experiment.Experiment(what.config, what.data, what.spec, made, what.recipes)
    return trainer.Trainer(changed, run, Ranks())


def test_two_players_have_two_optimizers_and_no_gradient_crosses(tmp_path: Path, tiny: Make) -> None:
    """The critic's loss is linear in its weights, so its gradient is the mean feature; the encoder's adds nothing."""
    t = trainer_of(TwoPlayers, tmp_path, tiny)
    before = t.method.critic.weight.detach().clone()
    t.one_step()
    gradient = t.method.critic.weight.grad
    assert gradient is not None
    torch.testing.assert_close(gradient[0], t.method.mean_feature)
    assert not torch.equal(t.method.critic.weight.detach(), before)
    assert len(t.optimizers["critic"].state) == 2
    assert 0 <= t.window.flush(Ranks())["draw"] <= 1


def test_checkpoints_take_two_hundredths_of_the_time_where_nothing_is_said(tmp_path: Path, tiny: Make) -> None:
    t = trainer_of(TwoPlayers, tmp_path, lambda folder: tiny(folder, {"train.checkpoint_every": None}))
    t.save_seconds = 1.0
    now = time.monotonic()
    for ago, due in [(45, False), (55, True)]:
        t.saved_at = now - ago
        assert t._save_is_due(epoch_done=True) is due
        assert not t._save_is_due(epoch_done=False)
    t.saved_at = now - 11 * 60  # longer than train.checkpoint_minutes
    assert t._save_is_due(epoch_done=False)


def test_minimize_knows_its_groups(tmp_path: Path, tiny: Make) -> None:
    t = trainer_of(TwoPlayers, tmp_path, tiny)
    with pytest.raises(PluginError, match=r"besides 'main' are \['critic'\]"):
        trainer.StepContext(t, 0).minimize("main", torch.zeros((), requires_grad=True))


def test_records_are_json_lines_and_a_cut_line_is_ignored(tmp_path: Path, tiny_run: Run) -> None:
    lines = tiny_run.metrics_file.read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
    run = Run(tmp_path)
    run.metrics_file.write_text("\n".join(lines) + '\n{"kind": "tra')
    assert len(run.metrics()) == len(lines)
    run.truncate_metrics(6)
    assert max(record["step"] for record in run.metrics()) == 6


PLUGIN_FILE = """
import clf
import torch
from torch import nn

class Settings(clf.MethodConfig):
    pass

class Forgetful(clf.Method[Settings]):
    name = "forgetful"
    Config = Settings

    def training_step(self, batch, ctx):
        h = self.backbone(torch.cat(batch.views))
        return nn.functional.dropout(h, 0.5).square().mean()
"""


def test_dropout_resumes_to_the_same_bits(tmp_path: Path, tiny: Make) -> None:
    path = tmp_path / "forgetful.py"
    path.write_text(PLUGIN_FILE)
    wanted = tiny(tmp_path, {"plugin": str(path)}).model_copy(update={"method": {}})
    torch.manual_seed(1)
    whole = training.train(wanted, callbacks=[])
    torch.manual_seed(2)
    with pytest.raises(trainer.Interrupted) as stopped:
        training.train(wanted, callbacks=[StopAt(4)])
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    resumed = training.resume(stopped.value.run, callbacks=[])
    assert torch.equal(torch.rand(1), expected)  # the caller's generator is left as it was
    assert weights(resumed) == weights(whole)


def test_images_without_a_label_are_left_out_of_the_measurement(tmp_path: Path, tiny: Make) -> None:
    """STL-10 gives its unlabelled images the label -1."""
    wanted, _ = config.derive(tiny(tmp_path, {"train.epochs": 1}))
    what = experiment.build(wanted)
    assert what.data.train.labels is not None
    what.data.train.labels[::2] = -1
    run = Run(tmp_path)
    run.write_json("manifest.json", {})
    trainer.Trainer(what, run, Ranks(), [Monitor()]).fit()
    assert 0 <= next(record["knn"] for record in run.metrics() if record["kind"] == "monitor") <= 1


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*details: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", refuse)
    with pytest.raises(KeyboardInterrupt):
        training.train(tiny(tmp_path, {"run.name": "mine"}), callbacks=[])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_ends_the_run_in_one_sentence(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 3 on every write of this run fails."""

    class Fill(Callback):
        def on_step(self, t: trainer.Trainer) -> None:
            if t.step == 3:
                monkeypatch.setattr(Path, "open", full)

    real = Path.open

    def full(self: Path, mode: str = "r", *details: Any, **more: Any) -> Any:
        if mode[0] in "wax":
            raise OSError(28, "No space left on device", str(self))
        return real(self, mode, *details, **more)

    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written \(No space left on device\)"):
        training.train(tiny(tmp_path, {"run.name": "full"}), callbacks=[Fill()])
    monkeypatch.undo()
    run = Run(tmp_path / "full")
    assert checkpoint.load_newest(run.checkpoints)[0]["step"] == 0
    assert training.resume(run, callbacks=[]).manifest()["state"] == "complete"


def test_a_resume_keeps_what_may_change_and_sets_damage_aside(tmp_path: Path, tiny: Make) -> None:
    with pytest.raises(trainer.Interrupted) as stopped:
        training.train(tiny(tmp_path), callbacks=[StopAt(9)])
    run = stopped.value.run
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    newest.write_bytes(b"not a checkpoint")
    changes = config.Layer("command line", {"monitor.knn_every": 7})
    changed, _ = config.build([config.read_file(run.path / "config.yaml"), changes])
    training.resume(run, changed, callbacks=[])
    assert run.config().monitor.knn_every == 7
    assert newest.with_suffix(".damaged").exists()


@pytest.mark.parametrize("device", ["cuda:99", "no-such-device"])
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, tiny: Make, device: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.device = {device} cannot be used here"):
        training.train(tiny(tmp_path, {"train.device": device}), callbacks=[])


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path, tiny: Make, tiny_run: Run) -> None:
    copy = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "copy")))
    text = (copy.path / "config.yaml").read_text()
    (copy.path / "config.yaml").write_text(text.replace("test_resnet", "test_convnext"))
    with pytest.raises(CheckpointError, match="do not fit what its configuration builds now"):
        experiment.load(copy)
