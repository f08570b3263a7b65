"""SimCLR on CIFAR-10 with ResNet-18 over three seeds; wants a GPU and takes hours on a CPU.

    python tests/benchmarks/cifar10.py [key=value ...]

Settings go to `clf train` as they are, for example `data.root=data data.download=true`, or `data.name=npz
data.root=cifar10.npz`. Prints mean and standard deviation of the accuracies over seeds, and the wall time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)


def clf(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "clf", *words], check=True)


def main() -> None:
    scores: dict[str, list[float]] = {}
    for seed in SEEDS:
        run = Path("runs") / f"cifar10-seed-{seed}"
        config = str(ROOT / "configs" / "simclr_cifar10.yaml")
        clf("train", "--config", config, *sys.argv[1:], f"seed={seed}", f"run.name={run.name}", "run.dir=runs")
        clf("evaluate", str(run))
        evaluation = next(iter(json.loads((run / "evaluation.json").read_text())["evaluations"].values()))
        trained = evaluation["representations"][-1]
        for score in trained["knn"]:
            scores.setdefault(f"k-NN, k = {score['k']}", []).append(score["accuracy"])
        scores.setdefault("linear probe", []).append(trained["linear"]["accuracy"])
        manifest = json.loads((run / "manifest.json").read_text())
        scores.setdefault("wall seconds", []).append(manifest["wall_seconds"])
        print(f"seed {seed} on {manifest['device']}", file=sys.stderr)
    for name, values in scores.items():
        print(f"{name:20} {statistics.mean(values):10.4f} ± {statistics.stdev(values):.4f}  ({len(values)} seeds)")


if __name__ == "__main__":
    main()
