"""What a training step of each method costs beside SimCLR's, in one interleaved run on the same images and backbone.

    python tests/benchmarks/cost.py [--rounds 5] [--steps 2] [--threads 2] [--only NAME ...] [key=value ...]

Preparation (the generator of hard_sample_gen) is timed apart. Prints medians over rounds with the least and the most.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from clf import experiment, settings, training
from clf.config import Layer, parse_overrides
from clf.distributed import Ranks
from clf.runs import Run
from clf.trainer import Trainer

COMMON = {
    "data.name": "shapes",
    "data.image_size": 32,
    "data.options.train_images": 2560,
    "backbone.name": "resnet10t",
    "train.batch_size": 128,
    "train.epochs": 100,
    "monitor.knn_every": 0,
}
BATCH_NORM_FREE = {"backbone.norm": "none", "backbone.activation": "leaky_relu"}
ARMS: dict[str, dict[str, Any]] = {
    "simclr": {"plugin": "simclr"},
    "simclr, network of ebclr": {"plugin": "simclr", **BATCH_NORM_FREE},
    "moco": {"plugin": "moco"},
    "moco, symmetric": {"plugin": "moco", "method.symmetric": True},
    "nnclr": {"plugin": "nnclr"},
    "dcl": {"plugin": "dcl"},
    "dclw": {"plugin": "dcl", "method.weighted": True},
    "ebclr": {"plugin": "ebclr"},
    "batch_curation": {"plugin": "batch_curation", "method.start_epoch": 0},
    "batch_curation, best_of_k": {"plugin": "batch_curation", "method.start_epoch": 0, "method.mode": "best_of_k"},
    "hard_sample_gen": {"plugin": "hard_sample_gen", "method.gan": "lite", "method.gan_steps": 2},
}


def prepared(values: dict[str, Any], folder: Path, threads: int) -> tuple[Trainer, float]:
    """A trainer past its preparation and its first steps, and the seconds of one preparation step."""
    config = settings.resolve([Layer("cost.py", {**COMMON, **values, "train.threads": threads})])[0]
    with training.session(config) as ranks:
        config = training.settle(config, ranks.device)
        trainer = Trainer(experiment.build(config), Run(folder), Ranks(device=ranks.device))
    seconds = 0.0
    while trainer.prepared < trainer.preparation_steps:
        started = time.perf_counter()
        trainer.prepare()
        seconds = time.perf_counter() - started
    trainer.step = trainer.total_steps // 2  # past warm-ups and ramps
    for _ in range(2):
        trainer.one_step()
    return trainer, seconds


def timed(trainer: Trainer, steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        trainer.one_step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(ARMS))
    words, overrides = parser.parse_known_args()
    given = dict(parse_overrides(overrides).values)
    torch.set_num_threads(words.threads)
    with tempfile.TemporaryDirectory() as folder:
        made = {name: prepared({**ARMS[name], **given}, Path(folder), words.threads) for name in words.only}
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(words.rounds):
            for name in random.sample(list(made), len(made)):
                seconds[name].append(timed(made[name][0], words.steps))
    reference = seconds[next(iter(seconds))]
    for name, values in seconds.items():
        ratios = [value / plain for value, plain in zip(values, reference, strict=True)]
        before = f"  (preparation: {made[name][1]:.2f} s a step)" if made[name][1] else ""
        print(
            f"{name:28} {statistics.median(values) * 1000:8.0f} ms   {statistics.median(ratios):5.2f} x "
            f"({min(ratios):.2f}-{max(ratios):.2f}){before}"
        )


if __name__ == "__main__":
    main()
