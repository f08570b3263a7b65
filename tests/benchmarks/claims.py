"""What the papers claim, against SimCLR on equal terms: same backbone, images, augmentation and draws, three seeds.

    python tests/benchmarks/claims.py NAME [--scale cpu|gpu] [--out DIR] [--part I/N] [--seeds 0,1,2] [--only ROW] ...
    python tests/benchmarks/claims.py NAME --table [--out DIR]

NAME is dcl, curves (moco, nnclr), batch_curation, ebclr, hard_sample_gen or all. Settings go to the training as they
are; the data must have labels, for example `data.name=npz data.root=cifar10.npz` (four official training batches to
train on and the fifth to test: "4+1 batches") or `data.name=cifar10 data.root=data`. Training never sees the labels.

A cell is one training with its evaluation, and its result one line of DIR/NAME.jsonl; cells that have one are left out,
so the script can be killed and started again, and several processes can share the work with --part. The script prints
mean ± standard deviation over seeds, and differences paired by seed. Scale cpu is meant for two cores and an hour or
two: 5,000 images of 32 pixels (others for each seed), a network of 0.4 M parameters that halves the resolution at
once, k-NN and linear probe on the features of 10,000 labelled training images. Scale gpu is ResNet-18 with a stem for
small images on all images, 200 epochs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clf import experiment, provenance, settings, training
from clf.callbacks import Callback
from clf.config import Config, Layer, parse_overrides
from clf.data import DataSource
from clf.evaluate.features import encode
from clf.evaluate.knn import knn_accuracy
from clf.evaluate.linear import linear_probe
from clf.evaluate.measure import run_device
from clf.runs import Run
from clf.trainer import Trainer

SEEDS = (0, 1, 2)
K = 20


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    common: dict[str, Any]
    epochs: int
    slow_epochs: int
    """Of the methods whose steps take several times as long as SimCLR's."""
    labelled: int | None
    """Training images whose features k-NN and the linear probe may use; None: all."""
    tested: int | None
    batches: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Batch sizes that dcl is compared at."""
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of a plugin at this scale, where the paper's do not fit it."""


SCALES = {
    "cpu": Scale(
        {
            "data.limit": 5000,
            "backbone.name": "test_resnet",
            "backbone.stem": "original",
            "train.batch_size": 128,
            "train.precision": "bf16",
            "train.device": "cpu",
            "train.threads": 1,
            "optimizer.name": "adamw",
            "optimizer.lr": 1e-3,
            "optimizer.weight_decay": 0.05,
        },
        epochs=10,
        slow_epochs=5,
        labelled=10_000,
        tested=5000,
        batches=(32, 128, 512),
        keys={
            "ebclr": {"optimizer.lr": 1e-3},  # the paper's 2e-4 needs more steps than this scale has
            "moco": {"method.momentum": 0.99},  # of the authors' notebook; 0.999 remembers longer than this scale lasts
            "hard_sample_gen": {"method.gan": "tiny", "method.gan_steps": 400},
        },
    ),
    "gpu": Scale(
        {
            "backbone.name": "resnet18",
            "train.batch_size": 256,
            "optimizer.name": "sgd",
            "optimizer.lr": 0.06,
            "optimizer.weight_decay": 5e-4,
        },
        epochs=200,
        slow_epochs=100,
        labelled=None,
        tested=None,
        keys={"moco": {"method.queue_size": 4096, "method.momentum": 0.99}, "hard_sample_gen": {"method.gan": "lite"}},
    ),
}


@dataclass(frozen=True)
class Cell:
    """One training: a row and a column of the table, and the settings that make it."""

    row: str
    column: str
    seed: int
    settings: dict[str, Any]
    probes: tuple[int, ...] = ()
    """Epochs after which the encoder is evaluated too, besides the end."""

    @property
    def key(self) -> str:
        return f"{self.row} | {self.column} | seed {self.seed}"


Arm = tuple[str, str, dict[str, Any], tuple[int, ...]]
"""Row, column, settings and epochs to evaluate after, of all seeds."""


def dcl(scale: Scale) -> Iterator[Arm]:
    """Section 1 of the paper: without the coupling, small batches learn as well as large ones."""
    arms = {
        "simclr, tau 0.1": {"plugin": "simclr", "method.temperature": 0.1},
        "simclr, tau 0.5": {"plugin": "simclr", "method.temperature": 0.5},
        "dcl, tau 0.1": {"plugin": "dcl", "method.temperature": 0.1},
        "dclw, tau 0.1": {"plugin": "dcl", "method.temperature": 0.1, "method.weighted": True},
    }
    for batch in scale.batches:
        for row, own in arms.items():
            yield row, f"batch {batch}", {**own, "train.batch_size": batch, "train.epochs": scale.epochs}, ()


def ebclr(scale: Scale) -> Iterator[Arm]:
    """Figure 1 and section 4 of the paper: fewer epochs to the same accuracy, and batches of 16 as good as of 128.

    A step takes about five times as long as SimCLR's, which the last row makes up for.
    """
    epochs = scale.slow_epochs
    probes = (epochs // 5, 2 * epochs // 5)
    for batch in (128, 16):
        size = {"train.batch_size": batch, "train.epochs": epochs}
        own = {"plugin": "ebclr", "optimizer.name": "adam", "optimizer.lr": 2e-4 if batch == 128 else 1e-4}
        own |= {"optimizer.weight_decay": 0.0, **scale.keys.get("ebclr", {})}
        yield f"ebclr, batch {batch}", "end", {**own, **size}, probes
        if batch == 128:
            yield "ebclr, lambda 0, batch 128", "end", {**own, **size, "method.generative_weight": 0}, probes
        yield f"simclr, batch {batch}", "end", {"plugin": "simclr", **size}, probes
    longer = {"plugin": "simclr", "train.batch_size": 128, "train.epochs": 5 * epochs}
    yield "simclr, batch 128, 5 x the epochs", "end", longer, ()


def batch_curation(scale: Scale) -> Iterator[Arm]:
    """At equal steps, with controls, and against a plain training as long as the curated one takes."""
    equal = {"train.epochs": scale.epochs}
    start = {"plugin": "batch_curation", **equal}
    yield "simclr", "end", {"plugin": "simclr", **equal}, ()
    yield "simclr, 1.4 x the epochs", "end", {"plugin": "simclr", "train.epochs": round(1.4 * scale.epochs)}, ()
    yield "refresh", "end", start, ()
    for mode in ("random_refresh", "best_of_k", "hard"):
        yield mode, "end", {**start, "method.mode": mode}, ()
    if scale.labelled is None:
        yield "refresh, both sides", "end", {**start, "method.sides": "both"}, ()
        yield "reject_batch", "end", {**start, "method.mode": "reject_batch"}, ()


def hard_sample_gen(scale: Scale) -> Iterator[Arm]:
    """Same number of steps on 100, 50 and 20 % of the images; the generator sees those images only."""
    own = {"plugin": "hard_sample_gen", **scale.keys.get("hard_sample_gen", {})}
    for share in (1.0, 0.2, 0.5):
        part: dict[str, Any] = {"train.epochs": round(scale.slow_epochs / share)}
        if scale.common.get("data.limit"):
            part["data.limit"] = round(scale.common["data.limit"] * share)
        elif share < 1:
            part["data.limit"] = round(40_000 * share)
        column = f"{share:.0%} of the images"
        yield "simclr", column, {"plugin": "simclr", **part}, ()
        for variant in ("static", "full"):
            yield variant, column, {**own, "method.variant": variant, **part}, ()
    longer = {"plugin": "simclr", "train.epochs": round(1.6 * scale.slow_epochs)}
    yield "simclr, 1.6 x the steps", "100% of the images", longer, ()


def curves(scale: Scale) -> Iterator[Arm]:
    """moco and nnclr: accuracy over epochs. NNCLR is slower at first, for neighbours in a random queue mean nothing."""
    epochs = {"train.epochs": scale.epochs}
    probes = (scale.epochs // 5, scale.epochs // 2)
    arms: dict[str, dict[str, Any]] = {
        "simclr": {"plugin": "simclr"},
        "moco": {"plugin": "moco"},
        "moco, symmetric": {"plugin": "moco", "method.symmetric": True},
        "nnclr": {"plugin": "nnclr"},
    }
    for row, own in arms.items():
        yield row, "end", {**own, **scale.keys.get(own["plugin"], {}), **epochs}, probes


GRIDS: dict[str, Callable[[Scale], Iterator[Arm]]] = {
    "dcl": dcl,
    "curves": curves,
    "batch_curation": batch_curation,
    "ebclr": ebclr,
    "hard_sample_gen": hard_sample_gen,
}


def cells(name: str, scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    grid = list(GRIDS[name](scale))
    return [Cell(row, column, seed, own, probes) for seed in seeds for row, column, own, probes in grid]


class Probe(Callback):
    """Evaluates the encoder after some epochs, without changing the training."""

    def __init__(self, epochs: Sequence[int], judge: Judge) -> None:
        self.epochs = epochs
        self.judge = judge
        self.found: dict[str, dict[str, float]] = {}

    def on_epoch(self, trainer: Trainer) -> None:
        epoch = trainer.epochs_done(trainer.step)
        if epoch in self.epochs:
            self.found[str(epoch)] = self.judge(trainer.method.encoder(), trainer.config.seed)


class Judge:
    """k-NN and linear probe of an encoder, on the same labelled images for all cells."""

    def __init__(self, data: DataSource, scale: Scale) -> None:
        train, test = data.train, data.test
        assert test is not None and train.labels is not None and test.labels is not None, "labels are needed"
        bank, queries = slice(None, scale.labelled), slice(None, scale.tested)
        self.bank, self.bank_labels = train.clean[bank], train.labels[bank]
        self.queries, self.query_labels = test.clean[queries], test.labels[queries]

    def __call__(self, encoder: torch.nn.Module, seed: int) -> dict[str, float]:
        device = next(encoder.parameters()).device
        bank, queries = (encode(encoder, images, device=device) for images in (self.bank, self.queries))
        labels = self.bank_labels.to(bank.device), self.query_labels.to(bank.device)
        return {
            "knn": knn_accuracy(bank, labels[0], queries, labels[1], K),
            "linear": linear_probe(bank, labels[0], queries, labels[1], seed).accuracy,
        }


def configured(cell: Cell, scale: Scale, out: Path, given: dict[str, Any]) -> Config:
    """The cell's configuration: the command line wins over the cell, the cell over the scale."""
    quiet = {"monitor.knn_every": 0, "train.checkpoint_minutes": 60, "run.dir": str(out / "runs")}
    values = {**quiet, **scale.common, **cell.settings, **given, "seed": cell.seed}
    if "method.gan_run" in values:
        values.pop("method.gan_steps", None)  # its GAN is trained already
    return settings.resolve([Layer("claims.py", values)])[0]


def measure(cell: Cell, scale: Scale, out: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Trains and evaluates one cell; its run folder is removed."""
    config = configured(cell, scale, out, given)
    gan_seconds = 0.0
    if config.plugin == "hard_sample_gen":
        gan = pretrained(cell, scale, out, given)
        gan_seconds = gan.manifest()["wall_seconds"]
        config = configured(cell, scale, out, {**given, "method.gan_run": str(gan.path)})
    whole = experiment.load_data(config.data.model_copy(update={"limit": None}), 0)
    judge = Judge(whole, scale)
    probe = Probe(cell.probes, judge)
    started = time.monotonic()
    run = training.train(config, callbacks=[probe])
    trained = experiment.load(run)
    manifest = run.manifest()
    final = judge(trained.method.encoder().to(run_device(config)), cell.seed)
    records = [r for r in run.metrics() if r["kind"] == "train"]
    shutil.rmtree(run.path)
    return {
        "key": cell.key,
        "row": cell.row,
        "column": cell.column,
        "seed": cell.seed,
        **final,
        "after": probe.found,
        "train_seconds": manifest["wall_seconds"],
        "gan_seconds": gan_seconds,
        "seconds": round(time.monotonic() - started, 1),
        "steps": manifest["step"],
        "last_record": records[-1],
        "device": manifest["device"],
        "commit": provenance.source_commit(),
        "settings": {**cell.settings, **given},
    }


def pretrained(cell: Cell, scale: Scale, out: Path, given: dict[str, Any]) -> Run:
    """A run that has trained the GAN on the cell's images; all variants on these images start from it."""
    name = f"gan-{cell.column.split()[0].rstrip('%')}-{cell.seed}"
    run = Run(out / "runs" / name)
    if not run.path.exists() or run.state() != "complete":
        shutil.rmtree(run.path, ignore_errors=True)
        own = {"run.name": name, "train.max_steps": 1, "method.variant": "static"}
        training.train(configured(cell, scale, out, {**given, **own}), callbacks=[])
    return run


def share_of(name: str, asked: Sequence[Cell], number: int, parts: int) -> list[Cell]:
    """The cells of one of several processes; those that share a GAN stay together."""
    groups = list(dict.fromkeys((cell.column, cell.seed) if name == "hard_sample_gen" else cell.key for cell in asked))
    mine = set(groups[number::parts])
    return [cell for cell in asked if cell.key in mine or (cell.column, cell.seed) in mine]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(results: Sequence[dict[str, Any]]) -> str:
    """Mean ± standard deviation over seeds, in percent, as Markdown."""
    columns = list(dict.fromkeys(column for r in results for column in (*_after(r), r["column"])))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for row in dict.fromkeys(r["row"] for r in results):
        words = [_words([r for r in results if r["row"] == row], column) for column in columns]
        lines.append(f"| {row} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def differences(results: Sequence[dict[str, Any]]) -> str:
    """Each row less the first, of the same seed and column: mean ± standard deviation over seeds, in points."""
    first = {(r["column"], r["seed"]): r for r in results if r["row"] == results[0]["row"]}
    lines = []
    for row, column in dict.fromkeys((r["row"], r["column"]) for r in results if r["row"] != results[0]["row"]):
        pairs = [
            (r, first[column, r["seed"]])
            for r in results
            if (r["row"], r["column"]) == (row, column) and (column, r["seed"]) in first
        ]
        words = " / ".join(_spread([100 * (a[name] - b[name]) for a, b in pairs], "+") for name in ("knn", "linear"))
        lines.append(f"{row}, {column}: {words} ({len(pairs)} seeds)")
    return "\n".join(lines)


def _after(result: dict[str, Any]) -> list[str]:
    return [f"epoch {epoch}" for epoch in result["after"]]


def _words(results: Sequence[dict[str, Any]], column: str) -> str:
    """k-NN / linear of one cell of the table."""
    scores = [
        r if r["column"] == column else r["after"][column.removeprefix("epoch ")]
        for r in results
        if r["column"] == column or column.removeprefix("epoch ") in r["after"]
    ]
    return " / ".join(_spread([100 * score[name] for score in scores]) for name in ("knn", "linear")) if scores else ""


def _spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*GRIDS, "all"])
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--out", type=Path, default=Path("claims"))
    parser.add_argument("--part", default="0/1", help="I/N: of N processes this is number I, counted from 0")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="a part of the name of the rows to train")
    parser.add_argument("--table", action="store_true", help="print what there is and train nothing")
    words, overrides = parser.parse_known_args()
    scale, given = SCALES[words.scale], dict(parse_overrides(overrides).values)
    seeds = [int(seed) for seed in words.seeds.split(",")]
    number, parts = map(int, words.part.split("/"))
    words.out.mkdir(parents=True, exist_ok=True)
    for name in GRIDS if words.name == "all" else [words.name]:
        path = words.out / f"{name}.jsonl"
        for cell in [] if words.table else share_of(name, cells(name, scale, seeds), number, parts):
            if words.only in cell.row and cell.key not in {r["key"] for r in read(path)}:
                result = measure(cell, scale, words.out, given)
                with path.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(f"{name}: {cell.key}: k-NN {result['knn']:.3f}, linear {result['linear']:.3f}", flush=True)
        if results := read(path):
            print(f"\n{name}: k-NN (k = {K}) / linear probe, %, {len(results)} trainings\n\n{table(results)}\n")
            print(f"less {results[0]['row']}, by seed:\n{differences(results)}\n")


if __name__ == "__main__":
    main()
