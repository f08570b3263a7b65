"""``clf evaluate``: one run on one data set, beside raw pixels and an untrained encoder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

import clf
from clf import diagnostics, experiment
from clf.config import Config, DataSection
from clf.data import DataSource, Images
from clf.data.stream import Stream
from clf.diagnostics import Diagnostics
from clf.evaluate.features import encode
from clf.evaluate.knn import knn_accuracy
from clf.evaluate.linear import HELD_OUT, STRENGTHS, linear_probe
from clf.evaluate.pixels import LARGEST_RAW, adapt, raw_pixels
from clf.evaluate.results import Evaluation, KnnScore, LinearScore, Representation, add_evaluation
from clf.experiment import Experiment
from clf.runs import Run

KNN = (200, 20)
"""Neighbours that vote."""
TEMPERATURE = 0.1
DIAGNOSED = 5000
"""Images that the label-free figures are computed on, at most."""
PAIRS = 500
"""Images whose two views give the alignment, at most."""


@dataclass(frozen=True)
class Material:
    """The clean images of one evaluation in the encoder's format."""

    bank: Images  # (n, C, S, S) uint8
    queries: Images  # (m, C, S, S) uint8; empty without a test split
    bank_labels: Tensor | None  # (n,) int64
    query_labels: Tensor | None  # (m,) int64

    @property
    def classes(self) -> int | None:
        return None if self.bank_labels is None else len(torch.unique(self.bank_labels))

    @property
    def scorable(self) -> bool:
        """Whether an accuracy can be measured and means something."""
        return self.query_labels is not None and (self.classes or 0) > 1


def evaluate_run(run: Run, on: DataSection | None = None) -> Evaluation:
    """Measures a run's encoder and its baselines, and adds the result to the run's ``evaluation.json``.

    With labels: weighted k-NN and a linear probe. Always: RankMe, alignment, uniformity and feature spread. Nothing is
    tuned on the test split, and the encoder is the run's last checkpoint.

    Args:
        on: another data set; its images are resized to the run's size and channels. Its training split is the bank
            and its test split the queries.

    Raises:
        RunError: the run cannot be loaded.
        DataError: the other data set cannot be loaded.
    """
    started = time.monotonic()
    trained = experiment.load(run, same_data=on is None)
    source = trained.data if on is None else _other(on, trained)
    material = _material(source, trained)
    device = run_device(trained.config)
    rows = []
    if material.scorable:
        rows.append(_measure_pixels(material, trained.config.seed, device))
    for name, what in [*_baselines(trained), ("trained encoder", trained)]:
        rows.append(_measure(name, what, material, device))
    found = rows[-1].diagnostics
    words = [*_notes(source, material), *_no_gain(rows, len(material.queries))]
    evaluation = Evaluation(
        run=run.name,
        step=trained.step,
        data=source.name,
        fingerprint=source.fingerprint,
        train_images=len(material.bank),
        test_images=len(material.queries),
        classes=material.classes,
        representations=tuple(rows),
        verdict=diagnostics.verdict(found) if found else None,
        protocol=_protocol(trained, source, material),
        notes=tuple(words),
        device=str(device),
        seconds=round(time.monotonic() - started, 2),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        clf_version=clf.__version__,
    )
    add_evaluation(run, data_key(trained.config.data if on is None else on), evaluation)
    return evaluation


def data_key(section: DataSection) -> str:
    """The name of a data set in ``evaluation.json``: ``cifar10``, or ``folder:photos`` for one that needs a place."""
    return section.name if section.root is None else f"{section.name}:{section.root}"


def _other(section: DataSection, trained: Experiment) -> DataSource:
    """Another data set, prepared at the size of the run's images where its source can do that."""
    at_size = section.model_copy(update={"image_size": trained.data.image_size})
    return experiment.load_data(at_size, trained.config.seed)


def _material(source: DataSource, trained: Experiment) -> Material:
    """The labelled part of both splits where there is one, else all images without labels."""
    size, channels = trained.data.image_size, trained.data.channels
    bank, queries = source.train.labelled(), source.test.labelled() if source.test else None
    bank_labels = bank.labels if bank else None
    query_labels = queries.labels if bank and queries else None
    if query_labels is None:
        bank, queries = bank or source.train, source.test
    clean = adapt((bank or source.train).clean, size, channels)
    return Material(
        bank=clean,
        queries=adapt(queries.clean, size, channels) if queries else clean[:0],
        bank_labels=bank_labels,
        query_labels=query_labels,
    )


def _baselines(trained: Experiment) -> list[tuple[str, Experiment]]:
    """The run before its first step, and without pretrained weights if it had some."""
    config = trained.config
    if not config.backbone.pretrained:
        return [("random encoder", experiment.build(config, trained.data))]
    untrained = config.backbone.model_copy(update={"pretrained": False, "stem": "original"})
    random = config.model_copy(update={"backbone": untrained})
    return [
        ("random encoder", experiment.build(random, trained.data)),
        ("pretrained encoder", experiment.build(config, trained.data)),
    ]


def _measure_pixels(material: Material, seed: int, device: torch.device) -> Representation:
    started = time.monotonic()
    bank, queries = raw_pixels(material.bank), raw_pixels(material.queries)
    knn, linear = _score(bank, queries, material, seed, device)
    seconds = round(time.monotonic() - started, 2)
    return Representation(name="raw pixels", dim=bank.shape[1], knn=knn, linear=linear, seconds=seconds)


def _measure(name: str, what: Experiment, material: Material, device: torch.device) -> Representation:
    started = time.monotonic()
    encoder = what.method.encoder().to(device)
    bank = encode(encoder, material.bank, device=device)
    queries = encode(encoder, material.queries, device=device) if len(material.queries) else bank[:0]
    knn: tuple[KnnScore, ...] = ()
    linear = None
    if material.scorable:
        knn, linear = _score(bank, queries, material, what.config.seed, device)
    found = _diagnose(encoder, what, queries if len(queries) > 1 else bank, device)
    seconds = round(time.monotonic() - started, 2)
    return Representation(name=name, dim=bank.shape[1], knn=knn, linear=linear, diagnostics=found, seconds=seconds)


def _score(
    bank: Tensor, queries: Tensor, material: Material, seed: int, device: torch.device
) -> tuple[tuple[KnnScore, ...], LinearScore]:
    assert material.bank_labels is not None
    assert material.query_labels is not None
    bank, queries = bank.to(device), queries.to(device)
    bank_labels, query_labels = material.bank_labels.to(device), material.query_labels.to(device)
    knn = tuple(
        KnnScore(
            k=k,
            voters=min(k, len(bank)),
            accuracy=knn_accuracy(bank, bank_labels, queries, query_labels, k, TEMPERATURE),
        )
        for k in KNN
    )
    probe = linear_probe(bank, bank_labels, queries, query_labels, seed)
    linear = LinearScore(accuracy=probe.accuracy, strength=probe.strength, held_out_accuracy=probe.held_out_accuracy)
    return knn, linear


def _diagnose(encoder: nn.Module, what: Experiment, features: Tensor, device: torch.device) -> Diagnostics | None:
    """Label-free figures of features, and of two views of training images as the method draws them."""
    if len(features) < 2:
        return None
    rows = torch.linspace(0, len(features) - 1, min(DIAGNOSED, len(features))).long()
    return diagnostics.diagnose(features[rows], view_features(encoder, what, device))


def view_features(encoder: nn.Module, what: Experiment, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Features of the first two views of the run's first images, (m, D) each; None for a method of one view."""
    if len(what.recipes) < 2:
        return None
    a, b = first_views(what, PAIRS)[1][:2]
    return encode(encoder, a, device=device), encode(encoder, b, device=device)


def first_views(what: Experiment, count: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The first images of the run in training order with the very views its first steps saw.

    Returns:
        Positions (m,) int64 and V tensors (m, C, S, S) uint8, m = ``count`` at most.
    """
    images = what.data.train.images
    batch_size = min(what.config.train.batch_size, len(images))
    stream = Stream(images, what.recipes, batch_size, what.config.seed, torch.device("cpu"))
    batches = [stream.next() for _ in range(min(-(-count // batch_size), len(images) // batch_size))]
    stream.close()
    index = torch.cat([batch.index for batch in batches])[:count]
    views = zip(*[batch.views for batch in batches], strict=True)
    return index, tuple((torch.cat(v)[:count] * 255).round().to(torch.uint8) for v in views)


def run_device(config: Config) -> torch.device:
    """The run's device where this machine has it, else the CPU. float64 is needed, which mps lacks."""
    wanted = config.train.device
    if torch.cuda.is_available() and (wanted == "auto" or wanted.startswith("cuda")):
        return torch.device("cuda")
    return torch.device("cpu")


def _protocol(trained: Experiment, source: DataSource, material: Material) -> dict[str, str]:
    """How the figures were made, in words."""
    size, channels = trained.data.image_size, trained.data.channels
    words = {
        "encoder": f"last checkpoint (step {trained.step}), not the best of several",
        "features": "output of the encoder in evaluation mode; the projector is not part of it",
        "images": f"clean (no augmentation), {size} x {size} x {channels}, scaled to [0, 1]",
        "split": f"{source.split_note}; bank of {len(material.bank)} training images, "
        f"{len(material.queries)} test images",
    }
    if material.scorable:
        words |= {
            "k-NN": f"cosine on L2-normalised features, votes exp(cosine / T), T = {TEMPERATURE}, bank = training "
            "split (Wu et al. 2018)",
            "linear probe": "multinomial logistic regression (L-BFGS, full batch) on standardised features; L2 "
            f"strength from {STRENGTHS[0]:g} to {STRENGTHS[-1]:g}, chosen on {HELD_OUT:.0%} of the training split, "
            "then refitted on all of it; the test split is read once",
            "raw pixels": f"flattened clean images in [0, 1], averaged down to {LARGEST_RAW} x {LARGEST_RAW}"
            if size > LARGEST_RAW
            else "flattened clean images in [0, 1]",
            "sampling error": f"an accuracy near 50 % has a 95 % interval of ± {98 / len(material.queries) ** 0.5:.1f} "
            f"points from the {len(material.queries)} test images alone; other seeds add to it",
        }
    words["label-free figures"] = (
        f"on {min(DIAGNOSED, max(len(material.queries), 2) if len(material.queries) > 1 else len(material.bank))} "
        f"{'test' if len(material.queries) > 1 else 'training'} images; alignment on the method's own views of at most "
        f"{PAIRS} training images of the run"
    )
    return words


def _notes(source: DataSource, material: Material) -> list[str]:
    """What a reader must know before trusting or missing a figure."""
    if material.classes == 1:
        return [
            f"All images of {source.name} have the same label: every answer is right, so an accuracy would be 100 % "
            "for any encoder and mean nothing. A folder needs one sub-folder for each of at least two classes."
        ]
    if material.bank_labels is None:
        return [
            f"{source.name} has no labels, and accuracy needs labels. Measure on a labelled set with --on, or judge "
            "the neighbours in the report."
        ]
    if material.query_labels is None:
        return [
            f"{source.name} has labels but no test split ({source.split_note}), so there is nothing to measure "
            "accuracy on. Hold some images out: data.test_fraction=0.2"
        ]
    few = [k for k in KNN if k > len(material.bank)]
    notes = [f"k = {k} is more than the bank's {len(material.bank)} images; all of them vote." for k in few]
    if len(source.skipped):
        notes.append(f"{len(source.skipped)} unreadable files of {source.name} were skipped.")
    return notes


def _no_gain(rows: list[Representation], test_images: int) -> list[str]:
    """A plain sentence when the trained encoder is not clearly better than a baseline by the k-NN of smallest k."""
    trained, baselines = rows[-1], rows[:-1]
    if not trained.knn:
        return []
    best = max(baselines, key=lambda row: row.knn[-1].accuracy)
    ours, theirs = trained.knn[-1].accuracy, best.knn[-1].accuracy
    error = 1.96 * ((ours * (1 - ours) + theirs * (1 - theirs)) / test_images) ** 0.5
    if ours - theirs > error:
        return []
    return [
        f"Training has not shown a gain: k-NN {100 * ours:.1f} % against {100 * theirs:.1f} % for the {best.name}, "
        f"with a sampling error of ± {100 * error:.1f} points. Train longer, on more images or with other views."
    ]
