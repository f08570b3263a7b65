"""Images per second of `clf train` against a bare PyTorch loop, and against lightly's SimCLR loop, interleaved.

    python tests/benchmarks/training.py [--backbone test_resnet] [--size 32] [--batch 256] [--peer PYTHON]

- clf: the real trainer with its stream, augmentation, records and finite checks.
- bare: the same arithmetic written as a plain loop: the same augmentation, network, loss and optimizer, nothing else.
  clf / bare is what the engine costs; it should be at most 1.03.
- lightly (with --peer, the Python of a virtual environment that holds lightly): the loop of its documentation, with
  torchvision transforms on PIL images in DataLoader workers, the same recipe, network, projector and batch. Each
  number of workers of --workers is tried, and the fastest one counts.

Each round runs every candidate for the same number of steps, in random order; medians over rounds are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEER = Path(__file__).with_name("lightly_loop.py")
IMAGES = 5120


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--stem", default="original", choices=["original", "small"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--compile", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="steps of each candidate in a round")
    parser.add_argument("--peak", type=float, help="TFLOP/s that the device can reach, for the share of it")
    parser.add_argument("--peer", help="Python of an environment with lightly")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, os.cpu_count() or 1])
    return parser.parse_args()


def make_trainer(options: argparse.Namespace, folder: Path) -> Any:
    """A real trainer, and images made for it; its method, optimizer and data serve the bare loop too."""
    import numpy as np
    import torch

    from clf import allocator, experiment, trainer, training
    from clf import config as configuration
    from clf.distributed import start
    from clf.runs import create_run

    allocator.keep_freed_memory()  # as a training does; the bare loop has it too
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (IMAGES, options.size, options.size, 3), np.uint8))
    values = {
        "plugin": "simclr",
        "data.name": "npz",
        "data.root": str(folder / "images.npz"),
        "backbone.name": options.backbone,
        "backbone.stem": options.stem,
        "train.batch_size": options.batch,
        "train.device": options.device,
        "train.precision": options.precision,
        "train.compile": options.compile,
        "train.epochs": 10**6,
        "run.dir": str(folder),
    }
    config, _ = configuration.derive(configuration.build([configuration.Layer("benchmark", values)])[0])
    ranks = start(config.train.device)
    config = training.settle(config, ranks.device)
    torch.manual_seed(0)
    run = create_run(config)
    run.write_json("manifest.json", {})
    return trainer.Trainer(experiment.build(config), run, ranks)


def bare_loop(made: Any) -> Callable[[int], None]:
    """The same work as the trainer's, by hand."""
    import torch

    from clf.augment import Views
    from clf.losses import nt_xent
    from clf.optim import make_optimizer

    method, device, section = made.method, made.device, made.config.train
    images = made.data.train.images.to(device)
    views = Views(made.experiment.recipes, compiled=section.compile == "on")
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = make_optimizer(made.config.optimizer, parameters)

    def run(steps: int) -> None:
        for _ in range(steps):
            index = torch.randperm(len(images))[: section.batch_size]
            batch = images[index.to(device)]
            draws = [recipe.draw(len(batch), torch.Generator().manual_seed(0)) for recipe in views.recipes]
            x = torch.cat(views(batch, draws))
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=section.precision == "bf16"):
                a, b = method.projector(method.backbone(x)).chunk(2)
                loss = nt_xent(a, b, 0.5)
            loss.backward()
            optimizer.step()
        loss.item()

    return run


def clf_loop(made: Any) -> Callable[[int], None]:
    """The trainer's own loop, for some steps more."""

    def run(steps: int) -> None:
        made.total_steps = made.step + steps
        made.save = made._close = lambda: None  # in so few steps these would count for far more than in a training
        made.fit()

    return run


def flops_per_image(made: Any) -> float:
    """Of the network forward and backward, both views, by torch's own count of matrix products and convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    n, size = 8, made.data.image_size
    model = made.method.backbone.model
    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        with FlopCounterMode(display=False) as counter:
            made.method.projector(
                made.method.backbone(torch.rand(2 * n, 3, size, size, device=made.device))
            ).sum().backward()
    finally:
        model._compiled_call_impl = compiled
    made.method.zero_grad()
    return counter.get_total_flops() / n


class Peer:
    """Another interpreter that runs its loop when it is told to, and is silent otherwise."""

    def __init__(self, python: str, options: argparse.Namespace, device: str, workers: int) -> None:
        words = [options.backbone, str(options.size), str(options.batch), device, str(workers)]
        self._process = subprocess.Popen(
            [python, str(PEER), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ask(1)

    def ask(self, steps: int) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the peer's loop has ended; its error stands above")
        return float(json.loads(line)["seconds"])

    def close(self) -> None:
        self._process.communicate("")


def timed(run: Callable[[int], None], steps: int) -> float:
    started = time.perf_counter()
    run(steps)
    return time.perf_counter() - started


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        made = make_trainer(options, Path(folder))
        ours, bare = clf_loop(made), bare_loop(made)
        candidates: dict[str, Callable[[], float]] = {
            "clf": lambda: timed(ours, options.steps),
            "bare loop": lambda: timed(bare, options.steps),
        }
        peers = {}
        for workers in options.workers if options.peer else ():
            peer = peers[f"lightly, {workers} workers"] = Peer(options.peer, options, made.device.type, workers)
            candidates[f"lightly, {workers} workers"] = lambda peer=peer: peer.ask(options.steps)  # type: ignore[misc]
        for run in (ours, bare):
            run(3)  # memory and kernels are settled, compiled code is there
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for number in range(options.rounds):
            for name in random.sample(sorted(candidates), len(candidates)):
                seconds[name].append(candidates[name]())
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for each in peers.values():
            each.close()
        flops = flops_per_image(made)
    section = made.config.train
    print(
        f"{options.backbone} ({options.stem} stem), {options.size} px, batch {options.batch}, {section.precision}, ",
        end="",
    )
    print(f"compile {section.compile}, {made.device}, {options.rounds} rounds of {options.steps} steps")
    images = options.steps * options.batch
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        rates = sorted(images / value for value in values)
        print(f"{name:22} {images / medians[name]:8.0f} images/s ({rates[0]:.0f} to {rates[-1]:.0f})")
    reached = flops * images / medians["clf"] / 1e12
    share = f", {reached / options.peak:.1%} of the peak" if options.peak else ""
    print(f"the network's {flops / 1e9:.3f} GFLOP an image make {reached:.3g} TFLOP/s{share}")
    print(f"clf takes {medians['clf'] / medians['bare loop']:.3f} times as long as the bare loop")
    if peers:
        fastest = min(medians[name] for name in peers)
        print(f"clf is {fastest / medians['clf']:.2f} times as fast as lightly's loop")


if __name__ == "__main__":
    main()
