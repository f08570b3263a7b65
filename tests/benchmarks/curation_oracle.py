"""Trains the classifier that ``batch_curation`` with ``method.mode=oracle`` asks. A diagnostic: it uses labels.

    python tests/benchmarks/curation_oracle.py oracle.pt --epochs 30 --labels labels.npy [key=value ...]

Settings are those of ``clf train``: give the ones of the training that the oracle is for, at least data and backbone.
It learns from the same augmented views. ``--labels`` also writes the labels of the training images, for
``method.labels``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clf import distributed, experiment, settings
from clf.config import Config
from clf.data.stream import Stream
from clf.experiment import Experiment
from clf_batch_curation.oracle import save_oracle


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Trains an oracle for batch_curation.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--labels", type=Path, help=".npy to write the labels to")
    parser.add_argument("settings", nargs="*", help="key=value")
    given = parser.parse_intermixed_args(words)
    config, _ = settings.resolve([settings.command_line(given.settings, "simclr")])
    share = write(config, given.out, given.epochs, given.labels)
    print(f"{given.out}: {share:.2%} of the views of the last epoch were named rightly", file=sys.stderr)


def write(config: Config, out: Path, epochs: int, labels_out: Path | None = None) -> float:
    """Trains the backbone of a configuration and a linear classifier on it, and writes both.

    Returns:
        The share of the last epoch's views that were named rightly.
    """
    what = experiment.build(config)
    labels = what.data.train.labels
    if labels is None or int(labels.max()) < 1:
        raise SystemExit(f"{what.data.name} has no labels to learn from")
    device = distributed.start(config.train.device).device
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        head = nn.Linear(what.method.backbone.dim, int(labels.max()) + 1).to(device)
    backbone = what.method.backbone.to(device)
    share = _train(what, nn.Sequential(backbone, head), labels.to(device), device, epochs)
    save_oracle(out, backbone, head, labels, what.spec.fingerprint)
    if labels_out is not None:
        np.save(labels_out, labels.numpy())
    return share


def _train(what: Experiment, network: nn.Module, labels: torch.Tensor, device: torch.device, epochs: int) -> float:
    config = what.config
    stream = Stream(what.data.train.images, what.recipes, config.train.batch_size, config.seed, device)
    total = epochs * stream.steps_per_epoch
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
    right = torch.zeros((), device=device)
    for step in range(total):
        batch = stream.next()
        y = labels[batch.index].repeat(2)  # (2N,)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(torch.cat(batch.views))  # (2N, classes)
        loss = F.cross_entropy(logits.float(), y, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step >= total - stream.steps_per_epoch:
            right += (logits.argmax(1) == y).float().mean() / stream.steps_per_epoch
    stream.close()
    return float(right)


if __name__ == "__main__":
    main(sys.argv[1:])
