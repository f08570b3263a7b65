"""The linear probe at CIFAR-10's size: seconds, and beside scikit-learn's LogisticRegression at the same strength.

    python tests/benchmarks/probe.py [--threads 2] [--rounds 3] [--features FILE.npz]

Without a file the features are drawn: 50,000 x 512 and 10,000 x 512 float32 of ten classes, non-negative and strongly
correlated, as those of a ResNet are. A file holds ``bank``, ``bank_labels``, ``queries`` and ``query_labels``. Printed
are the time of the whole probe (the strength chosen and all of the bank fitted), then, in rounds whose order is
random, the time of one fit from zero at the chosen strength by clf and by scikit-learn: the median, the least and the
most, and what both reached of the objective and of accuracy. scikit-learn stops by its default tolerance (1e-4), which
is looser than clf's.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from clf.evaluate.linear import LinearClassifier, fit, linear_probe, objective, principal_axes

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def drawn(n: int, m: int, dim: int, classes: int) -> Data:
    """Features relu(class mean + noise) whose noise has a spectrum that falls as 1 / rank."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, classes, (n + m,), generator=g)
    mixing = torch.randn(dim, dim, generator=g) / torch.arange(1, dim + 1)[:, None]
    centres = 0.25 * torch.randn(classes, dim, generator=g)
    noise = torch.randn(n + m, dim, generator=g) @ mixing + 0.3 * torch.randn(n + m, dim, generator=g)
    x = (centres[y] + noise).relu()
    return x[:n], y[:n], x[n:], y[n:]


def read(path: Path) -> Data:
    with np.load(path) as file:
        bank, bank_y, queries, y = (
            torch.from_numpy(file[name]) for name in ("bank", "bank_labels", "queries", "query_labels")
        )
    return bank.float(), bank_y.long(), queries.float(), y.long()


def seconds(work: Callable[[], LinearClassifier]) -> tuple[float, LinearClassifier]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def scikit_learn(x: Tensor, y: Tensor, strength: float) -> LinearClassifier:
    axes = principal_axes(x)
    z = (x - axes.mean) / axes.scale
    model = LogisticRegression(C=1 / (len(x) * strength), max_iter=5000).fit(z.numpy(), y.numpy())
    weight, bias = (torch.from_numpy(part).float() for part in (model.coef_, model.intercept_))
    return LinearClassifier(axes.mean, axes.scale, weight, bias)


def compare(data: Data, strength: float, rounds: int) -> None:
    x, y, queries, query_y = data
    classes = int(y.max()) + 1
    works = {"clf": lambda: fit(x, y, classes, strength), "scikit-learn": lambda: scikit_learn(x, y, strength)}
    times: dict[str, list[float]] = {name: [] for name in works}
    found: dict[str, LinearClassifier] = {}
    order = list(works)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            taken, found[name] = seconds(works[name])
            times[name].append(taken)
    base = statistics.median(times["clf"])
    print(f"one fit at strength {strength:g}, {rounds} rounds")
    for name, values in times.items():
        median, best = statistics.median(values), found[name]
        z = (x - best.mean) / best.scale
        reached = float(objective(z, y, best.weight, best.bias, strength))
        right = float((best.logits(queries).argmax(1) == query_y).double().mean())
        print(
            f"  {name:13}{median:8.2f} s  ({min(values):.2f} .. {max(values):.2f})  x {median / base:6.2f}  "
            f"objective {reached:.7f}  top-1 {100 * right:.2f} %"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, metavar="FILE.npz")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = read(options.features) if options.features else drawn(50_000, 10_000, 512, 10)
    with threadpool_limits(options.threads):
        started = time.perf_counter()
        found = linear_probe(*data)
        print(f"{len(data[0])} x {data[0].shape[1]} features, {len(data[2])} queries, {options.threads} threads")
        print(f"whole probe {time.perf_counter() - started:.1f} s: {found}")
        if options.rounds:
            compare(data, found.strength, options.rounds)


if __name__ == "__main__":
    main()
