"""What an evaluation found, as it lies in ``evaluation.json``. Reading it needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from clf.config import DataSection
from clf.errors import RunError
from clf.runs import Run

FILE = "evaluation.json"
OF_ALL = ("few_labels", "few_shot", "retrieval")
"""What ``clf evaluate --all`` measures besides."""
BESIDES = (*OF_ALL, "fine_tuned")
"""Fields of :class:`Representation` that a plain ``clf evaluate`` leaves as an earlier one has filled them."""
PROTOCOL_NAMES = {
    "few_labels": "few labels",
    "few_shot": "few-shot",
    "retrieval": "retrieval",
    "fine_tuned": "fine-tuning",
}
"""Their entries in ``Evaluation.protocol``."""
EVALUATOR = "evaluator "
"""How the name of a plugin's evaluator begins in ``Evaluation.protocol`` and ``Evaluation.measured``."""
NO_GAIN = "Training has not shown a gain"
"""How the note of an evaluation begins whose :func:`gain` is not clear."""


class Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KnnScore(Result):
    k: int
    voters: int
    """k, or the size of the bank where that is smaller."""
    accuracy: float


class LinearScore(Result):
    accuracy: float
    strength: float
    """L2 strength, chosen on a held-out part of the training split."""
    held_out_accuracy: float | None


class ClassScore(Result):
    """One class of the test split."""

    name: str
    images: int
    """Of the test split."""
    knn: float
    """Share of them that the k-NN of smallest k puts in this class."""
    linear: float
    """Share of them that the linear probe puts in this class."""


class FewLabels(Result):
    """Linear probe on a part of the training labels."""

    share: float
    """Of the labels of each class."""
    images: int
    """In one subset."""
    accuracy: float
    """Mean over the subsets."""
    std: float | None
    """Sample standard deviation over the subsets."""
    repeats: int
    """Subsets."""


class FewShot(Result):
    """Nearest class mean in episodes of a few classes and images."""

    ways: int
    """Classes in an episode."""
    shots: int
    """Training images of each class in an episode."""
    accuracy: float
    """Mean over the episodes."""
    interval: float
    """Half the width of the mean's 95 % interval."""
    episodes: int


class Retrieval(Result):
    """The training split searched with each test image; an image of the same class is a right answer."""

    mean_average_precision: float
    recall: dict[str, float]
    """By k: share of queries with a right answer among the first k."""
    precision: dict[str, float]
    """By k: share of right answers among the first k."""
    queries: int
    searched: int


class FineTuned(Result):
    """The whole network trained on the labels of the training split, after the last epoch."""

    accuracy: float
    epochs: int
    seconds: float


class Diagnostics(Result):
    """Label-free figures of a set of features (n, D)."""

    images: int
    dim: int
    rank_me: float
    """Effective number of dimensions, in [1, min(n, D)]."""
    feature_std: float
    """Mean standard deviation of a coordinate of unit-length features: 0 collapsed, 1 / sqrt(D) spread evenly."""
    mean_cosine: float
    """Cosine between the features of two different images, on average, in [-1, 1]; 0 for features that are zero."""
    uniformity: float
    """In [-8, 0], lower is more spread out; 0 collapsed, about -4 for directions spread evenly."""
    alignment: float | None = None
    """Squared distance between two views of an image, in [0, 4], lower is closer; None without views."""

    @property
    def spread(self) -> float:
        """feature_std relative to that of directions spread evenly over the sphere: 0 collapsed, 1 even."""
        return self.feature_std * math.sqrt(self.dim)


class Representation(Result):
    """One row of the tables: the same measurements on pixels, an untrained encoder, the trained one."""

    name: str
    dim: int
    knn: tuple[KnnScore, ...] = ()
    linear: LinearScore | None = None
    per_class: tuple[ClassScore, ...] = ()
    few_labels: tuple[FewLabels, ...] = ()
    few_shot: tuple[FewShot, ...] = ()
    retrieval: Retrieval | None = None
    fine_tuned: FineTuned | None = None
    diagnostics: Diagnostics | None = None
    extra: dict[str, dict[str, float]] = {}
    """By the name of an evaluator of a plugin its figures, by name."""
    seconds: float


class Evaluation(Result):
    """One run measured on one data set."""

    run: str
    step: int
    """Optimiser steps of the checkpoint."""
    data: str
    fingerprint: str
    train_images: int
    test_images: int
    classes: int | None
    """Classes of the training split; None without labels."""
    representations: tuple[Representation, ...]
    verdict: str | None
    """One plain sentence when the trained representation has collapsed."""
    protocol: dict[str, str]
    """How each figure was made, in words."""
    notes: tuple[str, ...] = ()
    measured: dict[str, str] = {}
    """When each of BESIDES and of the evaluators was measured; one that was kept from before has an earlier time."""
    device: str
    seconds: float
    created: str
    clf_version: str

    def same_subject(self, other: Evaluation) -> bool:
        """Whether both measured one checkpoint on the same images, so that figures of both may stand together."""
        names = ("step", "fingerprint", "train_images", "test_images", "classes")
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(frozen=True)
class Gain:
    """The trained encoder beside the best of its baselines, by the k-NN of smallest k."""

    ours: float
    theirs: float
    best: str
    """The name of that baseline."""
    error: float
    """Half the width of the difference's 95 % interval from so many test images, as if they were not the same ones for
    both, which is cautious: the errors of two representations go together."""
    clear: bool
    """Whether that interval lies above zero."""

    @property
    def figures(self) -> str:
        return (
            f"{100 * self.ours:.1f} % against {100 * self.theirs:.1f} % for the {self.best}, with a sampling error of "
            f"± {100 * self.error:.1f} points"
        )


def gain(rows: Sequence[Representation], test_images: int) -> Gain | None:
    """What training added, the trained encoder being the last row; None without a baseline or without accuracies.

    The interval is that of Agresti and Caffo (The American Statistician 54, 2000): one right and one wrong answer are
    added to each side, without which a few images that are all right or all wrong would leave no doubt.
    """
    scored = [row for row in rows if row.knn]
    if len(scored) < 2 or not test_images:
        return None
    *baselines, trained = scored
    best = max(baselines, key=lambda row: row.knn[-1].accuracy)
    ours, theirs = trained.knn[-1].accuracy, best.knn[-1].accuracy
    a, b = ((share * test_images + 1) / (test_images + 2) for share in (ours, theirs))
    error = 1.96 * math.sqrt((a * (1 - a) + b * (1 - b)) / (test_images + 2))
    return Gain(ours, theirs, best.name, error, clear=a - b > error)


def evaluator_key(name: str) -> str:
    """The name of an evaluator in ``Evaluation.protocol`` and ``Evaluation.measured``."""
    return EVALUATOR + name


def with_earlier(new: Evaluation, old: Evaluation) -> Evaluation:
    """The new evaluation with what it did not measure and an earlier one of the same checkpoint and images did."""
    kept = [name for name in old.measured if name not in new.measured]
    if not kept or not new.same_subject(old):
        return new
    found = {row.name: row for row in old.representations}
    rows = [_with_kept(row, found[row.name], kept) if row.name in found else row for row in new.representations]
    rows = [*_only_earlier(new, old, kept), *rows]
    words = {key: old.protocol[key] for name in kept if (key := PROTOCOL_NAMES.get(name, name)) in old.protocol}
    return new.model_copy(
        update={
            "representations": tuple(rows),
            "protocol": {**new.protocol, **words},
            "notes": tuple(dict.fromkeys([*new.notes, *(n for n in old.notes if not n.startswith(NO_GAIN))])),
            "measured": {**{name: old.measured[name] for name in kept}, **new.measured},
        }
    )


def _with_kept(row: Representation, earlier: Representation, kept: Sequence[str]) -> Representation:
    fields = {name: getattr(earlier, name) for name in kept if name in BESIDES}
    return row.model_copy(update={**fields, "extra": {**_kept_extra(earlier, kept), **row.extra}})


def _kept_extra(earlier: Representation, kept: Sequence[str]) -> dict[str, dict[str, float]]:
    return {name: figures for name, figures in earlier.extra.items() if evaluator_key(name) in kept}


def _only_earlier(new: Evaluation, old: Evaluation, kept: Sequence[str]) -> list[Representation]:
    """Raw pixels of data without labels, which only an evaluator measures."""
    names = {row.name for row in new.representations}
    return [
        Representation(name=row.name, dim=row.dim, extra=extra, seconds=row.seconds)
        for row in old.representations
        if row.name not in names and (extra := _kept_extra(row, kept))
    ]


def data_key(section: DataSection) -> str:
    """The name of a data set in ``evaluation.json``: ``cifar10``, or ``folder:photos`` for one that needs a place."""
    return section.name if section.root is None else f"{section.name}:{section.root}"


def read_evaluations(run: Run) -> dict[str, Evaluation]:
    """The results of a run by data set; empty before the first ``clf evaluate``.

    Raises:
        RunError: the file is damaged.
    """
    if not (run.path / FILE).is_file():
        return {}
    content = run.read_json(FILE)
    try:
        return {name: Evaluation.model_validate(entry) for name, entry in content["evaluations"].items()}
    except (ValidationError, KeyError, AttributeError) as error:
        raise RunError(f"{run.path / FILE} is damaged: remove it and run clf evaluate again") from error


def add_evaluation(run: Run, key: str, evaluation: Evaluation) -> Evaluation:
    """Writes a result beside those of other data sets, in the place of an earlier one of the same data set.

    Returns:
        What was written: with the measurements that only the earlier one made of the same checkpoint and images.
    """
    known = read_evaluations(run)
    written = with_earlier(evaluation, known[key]) if key in known else evaluation
    entries = {name: entry.model_dump(mode="json") for name, entry in {**known, key: written}.items()}
    run.write_json(FILE, {"format": 1, "evaluations": entries})
    return written
