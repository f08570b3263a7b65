"""Run folders written by hand: what ``clf compare`` reads, without a training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

FINGERPRINT = "a" * 64
DATA = {
    "name": "toys",
    "fingerprint": FINGERPRINT,
    "train_images": 400,
    "test_images": 200,
    "split": "official test split",
    "image_size": 16,
    "channels": 3,
    "labelled": True,
}
FIGURES = {
    "images": 200,
    "dim": 64,
    "rank_me": 30.0,
    "feature_std": 0.1,
    "mean_cosine": 0.2,
    "uniformity": -2.0,
    "alignment": 0.5,
}
PROTOCOL = {"k-NN": "T = 0.1", "linear probe": "L-BFGS", "encoder": "last checkpoint", "label-free figures": "on test"}


def tree(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections; ``method.*`` stays one mapping."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        node = found
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return found


def evaluation(
    knn: float | None = 0.5,
    linear: float | None = 0.6,
    *,
    data: str = "toys",
    fingerprint: str = FINGERPRINT,
    train_images: int = 400,
    test_images: int = 200,
    step: int = 80,
    protocol: Mapping[str, str] = PROTOCOL,
    **more: Any,
) -> dict[str, Any]:
    """One entry of ``evaluation.json``; ``more`` goes into the trained encoder's row."""
    scores: dict[str, Any] = {
        "knn": [] if knn is None else [{"k": 20, "voters": 20, "accuracy": knn}],
        "linear": None if linear is None else {"accuracy": linear, "strength": 0.1, "held_out_accuracy": None},
    }
    pixels = {"name": "raw pixels", "dim": 768, "knn": [{"k": 20, "voters": 20, "accuracy": 0.1}], "seconds": 1.0}
    trained = {"name": "trained encoder", "dim": 64, **scores, "diagnostics": FIGURES, "seconds": 1.0, **more}
    return {
        "run": "any",
        "step": step,
        "data": data,
        "fingerprint": fingerprint,
        "train_images": train_images,
        "test_images": test_images,
        "classes": None if knn is None else 10,
        "representations": [pixels, trained],
        "verdict": None,
        "protocol": dict(protocol),
        "device": "cpu",
        "seconds": 2.0,
        "created": "2026-01-01T00:00:00+00:00",
        "clf_version": "0.1.0",
    }


def records(knn: Sequence[float] = (0.3, 0.4), seconds: float = 10.0, bank: int = 400) -> list[dict[str, Any]]:
    """Loss and k-NN at the end of each epoch of 40 steps, which takes ``seconds``."""
    lines: list[dict[str, Any]] = []
    for epoch, value in enumerate(knn, start=1):
        where = {"step": 40 * epoch, "epoch": float(epoch)}
        lines.append({"kind": "train", **where, "loss": 3.0 - epoch, "lr": 0.1, "seconds": seconds * epoch})
        measured = {"rank_me": 20.0 + epoch, "alignment": 0.6, "uniformity": -1.5, "knn": value, "bank": bank}
        lines.append({"kind": "monitor", **where, **measured, "collapsed": 0.0})
    return lines


def write_run(
    folder: Path,
    name: str,
    *,
    plugin: str = "simclr",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] | None = None,
    evaluations: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """One run folder; ``evaluations=()`` for a run that was not evaluated."""
    path = folder / name
    path.mkdir(parents=True)
    values = {"plugin": plugin, "seed": seed, "train.epochs": 2, "data.name": "toys", "run.name": name}
    derived = {"optimizer.lr": 0.001, "optimizer.weight_decay": 0.05, "schedule.warmup_epochs": 0.2}
    (path / "config.yaml").write_text(yaml.safe_dump(tree({**derived, **values, **(settings or {})})))
    facts = {
        "state": "complete",
        "step": 80,
        "wall_seconds": 20.0,
        "device": "cpu (any, 2 cores)",
        "threads": 1,
        "commit": "0123456789ab",
        "clf_version": "0.1.0",
        "plugin_source": {"distribution": "clf-vision", "version": "0.1.0"},
        "data": {**DATA, **(data or {})},
        **(manifest or {}),
    }
    (path / "manifest.json").write_text(json.dumps(facts))
    lines = records() if metrics is None else metrics
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries = [evaluation()] if evaluations is None else evaluations
    if entries:
        content = {"format": 1, "evaluations": {str(i): entry for i, entry in enumerate(entries)}}
        (path / "evaluation.json").write_text(json.dumps(content))
    return path
