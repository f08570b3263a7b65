"""Several ranks: what they exchange, what they do when one is gone, and a real job under torchrun."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import plugins_to_verify as methods
import pytest
import torch
from plugins_to_verify import plugin_file
from torch import nn

from clf import checkpoint, distributed, training
from clf.cli import main
from clf.distributed import LARGE, Ranks, gather
from clf.errors import ConfigError, PluginError, TrainingError
from clf.runs import Run
from clf.window import Window

TINY = [
    *("data.name=shapes", "data.image_size=16", "data.options.train_images=96", "data.options.test_images=16"),
    *("backbone.name=test_resnet", "train.batch_size=16", "train.epochs=2", "train.device=cpu", "train.threads=1"),
]


def enter(environment: Mapping[str, str], errors: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
    work(*arguments)


def on_ranks(
    count: int, folder: Path, work: Callable[..., None], *arguments: Any, **more: str
) -> list[tuple[int, str]]:
    """Exit code and standard error of each of several processes that torchrun's environment makes ranks."""
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    processes = [
        context.Process(
            target=enter,
            args=({**shared, **more, "RANK": str(i), "LOCAL_RANK": str(i)}, folder / f"err-{i}", work, arguments),
        )
        for i in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "a rank hangs"
    return [(process.exitcode, (folder / f"err-{i}").read_text()) for i, process in enumerate(processes)]


def exchange() -> None:
    """Run by each of two ranks; an assertion that fails is its exit code."""
    with distributed.together("cpu") as ranks:
        assert ranks.world_size == 2
        check_gradients(ranks)
        check_statistics_and_weights(ranks)
        check_gather(ranks)
        check_main(ranks)
        check_window(ranks)


def check_gradients(ranks: Ranks) -> None:
    """Rank r has gradients r + 1, so their mean is 1.5; one that rank 1 lacks is half of rank 0's."""
    shapes: list[tuple[int, ...]] = [(3,), (LARGE, 2), (4, 3, 2, 2), (5,), (2,), (4, 3, 2, 2)]
    parameters = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
    for parameter in parameters[:3]:
        parameter.grad = torch.full_like(parameter, ranks.rank + 1.0)
    strided = torch.arange(48.0, dtype=torch.float64).view(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    parameters[2].grad = strided * (ranks.rank + 1)
    parameters[5].data = parameters[5].data.to(memory_format=torch.channels_last)
    parameters[5].grad = (strided if ranks.is_main else strided.contiguous()) * (ranks.rank + 1)
    if ranks.is_main:
        parameters[3].grad = torch.ones(5, dtype=torch.float64)
    distributed.average_gradients(parameters, ranks)
    grads = [parameter.grad for parameter in parameters]
    assert grads[0] is not None and grads[0].tolist() == [1.5] * 3
    assert grads[1] is not None and torch.equal(grads[1], torch.full_like(grads[1], 1.5))
    assert grads[2] is not None and torch.equal(grads[2], 1.5 * strided)
    assert grads[2].is_contiguous(memory_format=torch.channels_last)
    assert grads[3] is not None and grads[3].tolist() == [0.5] * 5
    assert grads[4] is None
    assert grads[5] is not None and torch.equal(grads[5], 1.5 * strided)


def check_statistics_and_weights(ranks: Ranks) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) * (ranks.rank + 1))
    norm.running_mean.fill_(ranks.rank)
    distributed.average_statistics(module, ranks)
    assert norm.running_mean.tolist() == [0.5] * 4
    distributed.broadcast(module, ranks)
    for parameter in module.parameters():
        assert torch.equal(parameter.flatten(), torch.arange(parameter.numel()).float())


def check_gather(ranks: Ranks) -> None:
    """Rank r weighs row i of the four gathered ones with (r + 1) (i + 1), so row i gets (1 + 2) (i + 1)."""
    x = (torch.tensor([[1.0], [2.0]]) + 2 * ranks.rank).requires_grad_()
    y = gather(x, ranks)
    assert y[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    (y[:, 0] * torch.tensor([1.0, 2.0, 3.0, 4.0]) * (ranks.rank + 1)).sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].tolist() == [[3.0, 6.0], [9.0, 12.0]][ranks.rank]


def check_main(ranks: Ranks) -> None:
    assert distributed.from_main("räume/1" if ranks.is_main else "", ranks) == "räume/1"
    assert distributed.on_main(lambda: 7, ranks) == (7 if ranks.is_main else None)
    assert distributed.largest([ranks.rank, -ranks.rank], ranks) == [1.0, 0.0]

    def fail() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError if ranks.is_main else TrainingError, match=r"no|rank 0 could not go on"):
        distributed.on_main(fail, ranks)


def check_window(ranks: Ranks) -> None:
    """A window that was stored and taken up again has the bits of one that was not, also where sums round."""
    windows = [Window(), Window()]
    for window in windows:
        window.add({"loss": 0.1 * (ranks.rank + 1)})
    windows[1].restore(windows[1].state(ranks), ranks)
    for window in windows:
        window.add({"loss": 0.7})
    assert windows[0].flush(ranks) == windows[1].flush(ranks)
    windows[0].add({"only here" if ranks.is_main else "only there": 1.0})
    with pytest.raises(PluginError, match=r"different scalars.*only (here|there)"):
        windows[0].flush(ranks)


def test_two_ranks_exchange_what_they_should(tmp_path: Path) -> None:
    for code, err in on_ranks(2, tmp_path, exchange):
        assert code == 0, err


def fall_silent() -> None:
    """Rank 1 no longer answers; rank 0 waits for it, though not for ever."""
    distributed.TIMEOUT = timedelta(seconds=2)
    with distributed.together("cpu") as ranks:
        distributed.largest([0.0], ranks)
        if not ranks.is_main:
            time.sleep(6)
            os._exit(0)
        distributed.largest([0.0], ranks)


@pytest.mark.slow
def test_a_rank_that_no_longer_answers_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    (code, err), _ = on_ranks(2, tmp_path, fall_silent)
    assert code == 1
    assert "clf.errors.TrainingError: rank 0 lost the other ranks: one of them ended" in err


def test_one_process_needs_no_group() -> None:
    x = torch.ones(2, 3)
    assert gather(x, Ranks()) is x
    assert distributed.from_main("text", Ranks()) == "text"


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match=r"WORLD_SIZE = 2, but not RANK, MASTER_ADDR, MASTER_PORT: start with torchrun"
    ):
        distributed.start("cpu")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="more processes on this machine than its 1 GPUs"):
        distributed.start("auto")


def test_a_bug_is_not_taken_for_a_lost_rank() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"), distributed.together("cpu"):
        torch.zeros(2) + torch.zeros(3)


def command(*words: str) -> None:
    try:
        main(words)
    except SystemExit as end:
        sys.exit(end.code)
    except BaseException:
        traceback.print_exc()
        raise


def test_sigterm_to_one_rank_stops_all_with_one_checkpoint(tmp_path: Path) -> None:
    """Rank 1 is asked to leave in its fourth step; the run then goes on with one process."""
    words = ("train", "--plugin", plugin_file(tmp_path, methods.GETS_A_SIGNAL), *TINY, f"run.dir={tmp_path}/runs")
    done = on_ranks(2, tmp_path, command, *words, CLF_TEST_SIGNAL=str(int(signal.SIGTERM)))
    assert [code for code, _ in done] == [75, 75]
    assert [err.count("stopped by SIGTERM at step 4") for _, err in done] == [1, 0]
    run = Run(tmp_path / "runs" / "mine-shapes-1")
    assert [path.name for path in checkpoint.paths(run.checkpoints)] == ["step-000000004.pt", "step-000000000.pt"]
    assert run.manifest()["state"] == "interrupted" and run.manifest()["world_size"] == 2
    assert training.resume(run, callbacks=[]).manifest()["state"] == "complete"
    assert [record["step"] for record in run.metrics() if record["kind"] == "train"] == [6, 10, 12]


def test_a_mistake_of_the_user_names_the_rank(tmp_path: Path) -> None:
    done = on_ranks(2, tmp_path, command, "train", "--plugin", "simclr", *TINY, "train.batch_size=15")
    for rank, (code, err) in enumerate(done):
        assert code == 2
        assert err.startswith(f"rank {rank}: error: ")
    assert "cannot be divided among 2" in done[0][1] + done[1][1]


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_job_under_torchrun(tmp_path: Path) -> None:
    """SIGKILL, as the kernel sends when memory is short; the run goes on afterwards."""
    plugin = plugin_file(tmp_path, methods.GETS_A_SIGNAL)
    words = ["--standalone", "--nproc-per-node=2", "-m", "clf", "train", "--plugin", plugin, *TINY]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, f"run.dir={tmp_path}/runs"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CLF_TEST_SIGNAL": str(int(signal.SIGKILL))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    assert "rank 0: error: rank 0 lost the other ranks: one of them ended" in done.stderr
    assert "clf/trainer.py" not in done.stderr  # torchrun shows its own traceback; there is none of ours
    run = Run(tmp_path / "runs" / "mine-shapes-1")
    assert run.manifest()["state"] == "failed"
    assert training.resume(run, callbacks=[]).manifest()["state"] == "complete"
