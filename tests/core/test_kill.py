"""Runs that are stopped in every way: by signal, by another process, with damage, in the middle of an epoch."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plugins_to_verify as methods
import pytest
import torch
from PIL import Image
from plugins_to_verify import plugin_file

from clf import checkpoint, trainer, training, verify
from clf.callbacks import Callback
from clf.config import Config
from clf.errors import RunError
from clf.monitor import Monitor
from clf.runs import Run
from clf.verify.child import Child, Job
from clf.verify.compare import differences, end_of

Make = Callable[..., Config]
NAMES = ("left alone", "resumed")


def test_two_processes_do_not_train_one_run(tmp_path: Path, tiny: Make, tiny_run: Run) -> None:
    """The first is stopped while it writes a checkpoint and still holds the run; killed, it lets go."""
    config = tiny(tmp_path, {"run.name": "shared"})
    child = Child(Job(config, kill_step=9, place="with half a checkpoint written"))
    assert child.wait_there()
    run = Run(tmp_path / "shared")
    assert (run.checkpoints / "step-000000012.tmp").is_file()
    with pytest.raises(RunError, match=r"run 'shared' is being trained by process \d+ on .*: wait until it ends"):
        training.resume(run, callbacks=[])
    child.abandon()
    (run.path / ".manifest.json.1.tmp").write_text("{")
    resumed = training.resume(run, callbacks=[Monitor()])
    assert differences(end_of(tiny_run), end_of(resumed), NAMES) == []
    assert sorted(path.name for path in run.path.iterdir()) == [
        *(".lock", "checkpoints", "config.yaml", "manifest.json", "metrics.jsonl"),
    ]


@pytest.mark.slow
def test_sigterm_exits_with_its_own_code_and_auto_skips_what_is_damaged(
    tmp_path: Path, tiny: Make, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at step 4; then the checkpoint of that step is cut short, and the one before it is found."""
    plugin = plugin_file(tmp_path, methods.GETS_A_SIGNAL)
    words = ["data.options.train_images=96", "data.options.test_images=16", "data.image_size=16", "train.threads=1"]
    words += ["backbone.name=test_resnet", "train.batch_size=16", "train.epochs=2", "train.device=cpu"]
    whole = run_cli("train", "--plugin", plugin, *words, f"run.dir={tmp_path}/runs", "run.name=whole")
    assert whole.code == 0
    monkeypatch.setenv("CLF_TEST_SIGNAL", str(int(signal.SIGTERM)))
    stopped = run_cli("train", "--plugin", plugin, *words, f"run.dir={tmp_path}/runs", "run.name=stopped")
    assert stopped.code == 75
    run = Run(tmp_path / "runs" / "stopped")
    assert f"stopped by SIGTERM at step 4; continue with clf train --resume {run.path}" in stopped.err
    monkeypatch.delenv("CLF_TEST_SIGNAL")
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    resumed = run_cli("train", "--resume", "auto", f"run.dir={tmp_path}/runs")
    assert resumed.code == 0
    assert "step-000000004.pt is damaged" in resumed.err and "an older one is used" in resumed.err
    assert differences(end_of(Run(tmp_path / "runs" / "whole")), end_of(run), NAMES) == []
    nothing = run_cli("train", "--resume", "auto", f"run.dir={tmp_path}/runs")
    assert nothing.code == 2 and "there is no unfinished run" in nothing.err


class KeepSteps(Callback):
    """Notes which checkpoints there are after each step but the first, whose own is written before it is called."""

    def __init__(self) -> None:
        self.newest: list[int] = []

    def on_step(self, trainer: trainer.Trainer) -> None:
        newest = checkpoint.newest(trainer.run.checkpoints)
        assert newest is not None
        self.newest.append(int(newest.stem.removeprefix("step-")))


def test_a_long_epoch_has_checkpoints_by_the_clock(tmp_path: Path, tiny: Make, tiny_run: Run) -> None:
    """With 0 minutes between them each step has one; they change neither weights nor records."""
    seen = KeepSteps()
    run = training.train(tiny(tmp_path, {"train.checkpoint_minutes": 0}), callbacks=[Monitor(), seen])
    assert seen.newest == list(range(12))
    assert differences(end_of(tiny_run), end_of(run), NAMES) == []


def test_another_number_of_decoding_workers_does_not_change_a_killed_run(tmp_path: Path) -> None:
    """On a folder of files, where there is something to decode."""
    generator = torch.Generator().manual_seed(0)
    for i in range(48):
        pixels = torch.randint(256, (24, 24, 3), dtype=torch.uint8, generator=generator)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{i}.png")
    changes = {"data.name": "folder", "data.root": str(tmp_path / "images"), "data.image_size": 16}
    report = verify.resume("simclr", changes, kills=3)
    assert report.holds, str(report)
    assert dict(report.facts)["killed"].startswith("3 times")
