"""How well a gallery of labelled photos finds the same class: a trained encoder, an untrained one, and raw pixels.

    python tests/benchmarks/retrieval.py RUN FOLDER

FOLDER holds one folder of photos for each class. The trained encoder goes the way that a user goes: exported, indexed
with `clf index`, searched with the gallery; each photo is a query and is left out of its own answer. The two baselines
are searched exactly, in the same way. Prints precision@10: the share of the ten nearest photos that are of the query's
class, over all photos, and over those that the run held out of its training. The 95 % interval is of a bootstrap over
queries.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clf import experiment
from clf.evaluate.features import encode
from clf.evaluate.pixels import raw_pixels
from clf.export import export_run
from clf.runs import open_run
from clf_serve.gallery import Gallery

K = 10


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def precision(vectors: NDArray[np.float32], classes: NDArray[np.str_]) -> NDArray[np.float64]:
    """Of each row, (n,): the share of its K nearest others that are of its class."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    nearest = np.argpartition(-scores, K, axis=1)[:, :K]
    return (classes[nearest] == classes[:, None]).mean(1)


def by_gallery(model: Path, folder: Path, paths: Sequence[Path]) -> NDArray[np.float64]:
    """The same by ``clf index`` and the gallery's search."""
    with tempfile.TemporaryDirectory() as made:
        output = Path(made) / "gallery"
        subprocess.run([sys.executable, "-m", "clf", "index", str(model), str(folder), "-o", str(output)], check=True)
        found = []
        with Gallery(output) as gallery:
            for path in paths:
                item = gallery.find(str(path.parent.resolve() / path.name))
                assert item is not None, f"{path} was not indexed"
                vector = gallery.vector(item.id)
                assert vector is not None
                hits = gallery.search(vector, K, but=[item.id])
                found.append(np.mean([Path(hit.uri).parent.name == path.parent.name for hit in hits]))
    return np.array(found)


def interval(values: NDArray[np.float64]) -> str:
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{100 * values.mean():5.1f}  ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    run, folder = open_run(sys.argv[1]), Path(sys.argv[2])
    trained = experiment.load(run)
    splits = [trained.data.train, trained.data.test]
    assert all(split is not None and split.names for split in splits), "the run was not trained on a folder of photos"
    names = [name for split in splits for name in split.names]
    pictures = torch.cat([split.clean[:] for split in splits])
    classes = np.array([Path(name).parent.name for name in names])
    test = np.arange(len(names)) >= len(trained.data.train)
    pixels = raw_pixels(pictures).numpy()
    untrained = experiment.build(trained.config, trained.data).method.encoder()
    rows = {
        "raw pixels": precision(unit(pixels), classes),
        "raw pixels, less their mean": precision(unit(pixels - pixels.mean(0)), classes),
        "untrained encoder": precision(unit(encode(untrained, pictures).numpy()), classes),
        "trained encoder": by_gallery(export_run(run), folder, [folder / name for name in names]),
    }
    print(f"{len(names)} photos, {len(set(classes))} classes, {test.sum()} held out; precision@{K} in %")
    print(f"{'':30} {'all photos':24} held-out photos as queries")
    for name, values in rows.items():
        print(f"{name:30} {interval(values):24} {interval(values[test])}")
    chance = np.mean([(classes == name).sum() - 1 for name in classes]) / (len(classes) - 1)
    print(f"{'by chance':30} {100 * chance:5.1f}")


if __name__ == "__main__":
    main()
