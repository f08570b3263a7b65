"""A study that was never run, with records made by hand, for tests of the board."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

STUDY: dict[str, Any] = {
    "name": "toy",
    "title": "A toy",
    "question": "Is the new one better?",
    "paper": "arXiv 0000.00000",
    "reference": "plain",
    "seeds": [0, 1, 2],
    "base": {"plugin": "simclr", "data.name": "cifar10", "train.epochs": 4, "train.batch_size": 8},
    "rows": {"plain": None, "new": {"method.temperature": 0.1}},
    "evaluate": {"after_epochs": [1]},
    "claims": [{"text": "New is better", "row": "new", "against": "plain", "to_tell": "more seeds"}],
    "scales": {"cpu": {}, "gpu": {"seeds": [0]}},
}
PUBLISHED = [
    {
        "source": "Theirs (a repository)",
        "beside": ["toy"],
        "differs": "another probe",
        "figures": [{"method": "New", "set": "CIFAR-10", "epochs": 200, "metric": "linear", "value": 84.0}],
    }
]


def record(row: str, seed: int, knn: float, linear: float, **changes: Any) -> dict[str, Any]:
    """A record of the study at scale cpu, as a line of its file holds it."""
    epoch = {"knn": knn - 0.1, "linear": linear - 0.1, "wall_seconds": 10.0}
    own = {"method.temperature": 0.1} if row == "new" else {}
    return {
        "study": "toy",
        "scale": "cpu",
        "row": row,
        "column": "end",
        "seed": seed,
        "plugin": "simclr",
        "settings": {"data.name": "cifar10", "train.epochs": 4, "train.batch_size": 8, **own},
        "evaluate": {"knn_k": 20, "linear": True, "bank": None, "queries": None},
        "command": f"clf train --plugin simclr data.name=cifar10 {row} seed={seed}",
        "data": {
            "name": "cifar10",
            "fingerprint": "ab" * 32,
            "split": "official test split",
            "train_images": 40_000,
            "test_images": 10_000,
            "image_size": 32,
            "channels": 3,
        },
        "backbone": "tiny",
        "epochs": 4,
        "batch_size": 8,
        "steps": 20_000,
        "parameters": 392_000,
        "wall_seconds": 40.0 + seed,
        "preparation_seconds": None,
        "images_per_second": 4000.0 - 100 * seed,
        "device": "cpu (x86_64, 2 cores)",
        "threads": 1,
        "world_size": 1,
        "packages": {"torch": "2.9.0"},
        "python": "3.12.1",
        "commit": "abc123",
        "clf_version": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "scores": {"knn": knn, "linear": linear},
        "protocol": {"k-NN": "k = 20", "linear probe": "L-BFGS"},
        "after": {"1": epoch},
        "last": {"loss": 1.0},
        **changes,
    }


def six() -> list[dict[str, Any]]:
    """Three seeds of both rows: the new one gains 2.0, 3.0 and 4.0 points of the linear probe, and nothing of k-NN."""
    plain = [record("plain", seed, 0.40, 0.42 + 0.01 * seed) for seed in range(3)]
    return [*plain, *(record("new", seed, 0.40, 0.44 + 0.02 * seed) for seed in range(3))]


def lay_out(folder: Path, records: Iterable[dict[str, Any]], study: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """The folders of the results and of the studies."""
    results, studies = folder / "plugins/results", folder / "configs/studies"
    for each in (results, studies):
        each.mkdir(parents=True, exist_ok=True)
    (studies / "toy.yaml").write_text(yaml.safe_dump(study or STUDY, sort_keys=False))
    (results / "published.yaml").write_text(yaml.safe_dump(PUBLISHED))
    (results / "toy-cpu.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return results, studies
