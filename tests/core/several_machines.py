"""The guide to training on several machines, cut into its blocks, and a training that waits in its middle."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from namespaces import Host
from test_distributed import command, on_ranks

from clf.runs import Run
from clf.verify.compare import End, end_of

GUIDE = Path(__file__).resolve().parents[2] / "core" / "README.md"

METHOD = """
import os, time
from pathlib import Path

import torch

import clf
from clf import losses

class Settings(clf.MethodConfig):
    pass

class Mine(clf.Method[Settings]):
    'SimCLR without batch norm, which has other statistics on another number of ranks. In step 8 it waits for a file.'
    name = "mine"
    Config = Settings

    def __init__(self, backbone, config, data):
        super().__init__(backbone, config, data)
        self.head = torch.nn.Linear(backbone.dim, 16)

    def training_step(self, batch, ctx):
        gate = os.environ.get("CLF_TEST_GATE")
        if gate and ctx.step == 8:
            Path(gate, f"waiting-{ctx.rank}").touch()
            while not Path(gate, "go").exists():
                time.sleep(0.05)
        a, b = self.head(self.backbone(torch.cat(list(batch.views)))).chunk(2)
        return losses.nt_xent(a, b, 0.5, gather=ctx.gather, rank=ctx.rank)

@clf.hookimpl
def clf_methods():
    return [Mine]
"""
UNREACHABLE = 4
SETTINGS: Mapping[str, Any] = {
    "plugin": "./mine.py",
    "run": {"dir": "runs", "name": "first"},
    "data": {"name": "shapes", "image_size": 16, "options": {"train_images": 64, "test_images": 16}},
    "backbone": {"name": "test_vit"},
    "train": {
        "batch_size": 16,
        "epochs": 3,
        "checkpoint_every": 1,
        "precision": "fp64",
        "device": "cpu",
        "threads": 1,
        "unreachable_seconds": UNREACHABLE,
    },
    "monitor": {"log_every": 1, "knn_every": 0},
}
"""Four steps in an epoch, twelve in all."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    file: str
    """The name alone on the line above; empty without one."""
    language: str
    text: str


def blocks() -> list[Block]:
    """All fenced blocks of the guide, in order."""
    found = re.findall(r"(?:^`([^`\n]+)`\n\n)?^```(\w+)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    return [Block(*each) for each in found]


def block(word: str) -> str:
    """The text of the one block that is a file of this name, or a command with these words in it."""
    files = [each.text for each in blocks() if each.file == word]
    (found,) = files or (each.text for each in blocks() if not each.file and word in each.text)
    return found


def prepare(folder: Path) -> None:
    """Writes the method, and the ``train.yaml`` that the guide's commands read, with what makes it take seconds."""
    (folder / "mine.py").write_text(METHOD, encoding="utf-8")
    (folder / "train.yaml").write_text(json.dumps(SETTINGS), encoding="utf-8")  # which is YAML too


def environment(folder: Path, gated: bool = True) -> dict[str, str]:
    """For the commands of the guide: they find ``torchrun``, and the training waits at its gate."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    gate = {"CLF_TEST_GATE": str(folder)} if gated else {}
    return {"PATH": path, "OMP_NUM_THREADS": "1", **gate}


def wait_at_the_gate(folder: Path, ranks: int, told: Callable[[], str]) -> None:
    """Until so many ranks wait in their eighth step."""
    until(lambda: len(list(folder.glob("waiting-*"))) == ranks, told)


def open_the_gate(folder: Path) -> None:
    (folder / "go").touch()


def until(true: Callable[[], bool], told: Callable[[], str], seconds: float = 240) -> None:
    """Waits; what was said meanwhile explains a failure."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, told()
        time.sleep(0.1)


def start(hosts: Sequence[Host], folder: Path, text: str) -> list[subprocess.Popen[str]]:
    """Types a command of the guide on each host."""
    return [
        host.start(["bash", "-c", text], folder, {**environment(folder), "NODE_RANK": str(i)})
        for i, host in enumerate(hosts)
    ]


def said(hosts: Sequence[Host], folder: Path) -> str:
    """What was printed on all hosts."""
    return "\n".join(f"--- {host.name}\n{host.said(folder)}" for host in hosts)


def in_a_folder(folder: Path, *words: str) -> None:
    os.chdir(folder)
    command(*words)


def on_one_host(folder: Path, name: str, ranks: int) -> End:
    """How the same training ends with so many ranks on this machine and nothing that interrupts it."""
    logs = folder / f"logs-{name}"
    logs.mkdir()
    for code, err in on_ranks(ranks, logs, in_a_folder, folder, "train", "--config", "train.yaml", f"run.name={name}"):
        assert code == 0, err
    return end_of(Run(folder / "runs" / name))
