"""What is measured of a run, read from its files without torch: names, units, and which way is better."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeGuard

from clf.evaluate.results import Evaluation, Representation, evaluator_key, read_evaluations
from clf.runs import Run

Record = Mapping[str, Any]
Identity: TypeAlias = tuple[str, int, int]
"""Fingerprint, images of the bank and of the queries."""
TRAINED = "trained encoder"
PERCENT = 100.0


@dataclass(frozen=True)
class Measure:
    """A quantity that several runs can have a value of."""

    key: str
    label: str
    better: Literal["higher", "lower", "neither"]
    scale: float = 1.0
    """What a value is multiplied by to be shown: 100 for accuracies, which are in [0, 1]."""
    digits: int = 3
    minor: bool = False
    """Left out of tables on the terminal."""

    told_by: str = ""
    """What the name of the protocol's entry begins with that tells how it was measured."""

    def text(self, value: float, signed: bool = False) -> str:
        return format(self.scale * value, f"{'+' if signed else ''}.{self.digits}f")


def accuracy(key: str, label: str, told_by: str = "", minor: bool = False) -> Measure:
    return Measure(key, label, "higher", PERCENT, 1, minor, told_by)


RANK_ME = Measure("rank_me", "RankMe", "neither", digits=1, told_by="label-free")
ALIGNMENT = Measure("alignment", "alignment", "neither", told_by="label-free")
UNIFORMITY = Measure("uniformity", "uniformity", "neither", told_by="label-free")
LABEL_FREE = (RANK_ME, ALIGNMENT, UNIFORMITY)
KNN = accuracy("knn", "k-NN")
LOSS = Measure("loss", "loss", "neither")
SECONDS = Measure("wall_seconds", "seconds", "neither", digits=1)
TRAINING = (KNN, *LABEL_FREE, LOSS, SECONDS)
"""What a training records."""


@dataclass(frozen=True)
class Evaluated:
    """One data set that a run was evaluated on."""

    data: str
    fingerprint: str
    bank: int
    queries: int
    step: int
    labelled: bool
    protocol: Mapping[str, str]
    scores: Mapping[Measure, float]
    created: str = ""

    @property
    def identity(self) -> Identity:
        """The same images as bank and as queries; where they lie does not matter."""
        return self.fingerprint, self.bank, self.queries


@dataclass(frozen=True)
class Curves:
    """What was recorded while training, as (step, epoch, seconds of training, value)."""

    knn: Sequence[tuple[float, float, float, float]] = ()
    loss: Sequence[tuple[float, float, float, float]] = ()
    rank_me: Sequence[tuple[float, float, float, float]] = ()
    last: Mapping[Measure, float] = field(default_factory=dict)
    """Values of the last record that has them."""
    bank: int | None = None
    """Images of the k-NN bank while training."""
    step: int = 0
    """Of the last record."""


def read_evaluated(run: Run) -> list[Evaluated]:
    """The evaluations in a run's ``evaluation.json``, one for each set of images, the newest where there are two.

    Raises:
        RunError: the file is damaged.
    """
    found = [_evaluated(each) for each in read_evaluations(run).values()]
    newest = {each.identity: each for each in sorted(found, key=lambda each: each.created)}
    return [each for each in found if newest[each.identity] is each]


def _evaluated(found: Evaluation) -> Evaluated:
    rows = found.representations
    row = next((row for row in rows if row.name == TRAINED), rows[-1] if rows else None)
    pairs = _scores(row) if row else ()
    return Evaluated(
        data=found.data,
        fingerprint=found.fingerprint,
        bank=found.train_images,
        queries=found.test_images,
        step=found.step,
        labelled=found.classes is not None,
        protocol=found.protocol,
        scores={measure: value for measure, value in pairs if value is not None and math.isfinite(value)},
        created=found.created,
    )


def _scores(row: Representation) -> Iterator[tuple[Measure, float | None]]:
    """All that a representation was measured by, in the order of the tables."""
    for score in row.knn:
        yield accuracy(f"knn_{score.k}", f"k-NN {score.k}", "k-NN"), score.accuracy
    if row.linear:
        yield accuracy("linear", "linear", "linear"), row.linear.accuracy
    for few in row.few_labels:
        yield accuracy(f"few_labels_{few.share:g}", f"{100 * few.share:g} % labels", "few labels"), few.accuracy
    for shot in row.few_shot:
        name = f"{shot.ways}-way {shot.shots}-shot"
        yield accuracy(f"few_shot_{shot.ways}_{shot.shots}", name, "few-shot"), shot.accuracy
    if row.retrieval:
        yield accuracy("retrieval_map", "retrieval mAP", "retrieval"), row.retrieval.mean_average_precision
        for kind, by_k in (("recall", row.retrieval.recall), ("precision", row.retrieval.precision)):
            for k, value in by_k.items():
                minor = (kind, k) != ("recall", "1")
                yield accuracy(f"retrieval_{kind}_{k}", f"{kind}@{k}", "retrieval", minor), value
    if row.fine_tuned:
        yield accuracy("fine_tuned", "fine-tuned", "fine-tuning"), row.fine_tuned.accuracy
    for name, figures in row.extra.items():
        for figure, found in figures.items():
            told_by = evaluator_key(name)
            yield Measure(f"{told_by}: {figure}", f"{name}: {figure}", "neither", told_by=told_by), found
    if row.diagnostics:
        yield RANK_ME, row.diagnostics.rank_me
        yield ALIGNMENT, row.diagnostics.alignment
        yield UNIFORMITY, row.diagnostics.uniformity


def read_curves(records: Sequence[Record], wall_seconds: float) -> Curves:
    """The curves of a run, each point with the seconds of training until then; what is not finite is left out.

    ``seconds`` in records goes on where the checkpoint stopped that a resumed run started from: it holds preparation
    and measurements, neither the time between two processes nor work that a kill undid.

    Args:
        wall_seconds: those of the whole training; 0 where only the records tell.

    Raises:
        TypeError: a record is no mapping.
        KeyError: one has no step or no epoch.
    """
    clock = _clock(records)

    def curve(kind: str, key: str) -> list[tuple[float, float, float, float]]:
        return [
            (float(r["step"]), float(r["epoch"]), clock[i], float(r[key]))
            for i, r in enumerate(records)
            if r.get("kind") == kind and all(_finite(r.get(name)) for name in (key, "step", "epoch"))
        ]

    curves = {"knn": curve("monitor", "knn"), "rank_me": curve("monitor", "rank_me"), "loss": curve("train", "loss")}
    kinds = {KNN: "monitor", RANK_ME: "monitor", ALIGNMENT: "monitor", UNIFORMITY: "monitor", LOSS: "train"}
    last = {measure: found[-1][3] for measure, kind in kinds.items() if (found := curve(kind, measure.key))}
    seconds = wall_seconds or (clock[-1] if clock else 0.0)
    if 0 < seconds < math.inf:
        last[SECONDS] = seconds
    banks = [int(r["bank"]) for r in records if r.get("kind") == "monitor" and _finite(r.get("bank"))]
    step = max((int(r["step"]) for r in records if _finite(r["step"])), default=0)
    return Curves(**curves, last=last, bank=banks[-1] if banks else None, step=step)


def _clock(records: Sequence[Record]) -> list[float]:
    """Seconds of training at each record: its own, or those of the record before, which is of the same step or near."""
    clock, now = [], 0.0
    for record in records:
        if not isinstance(record, Mapping):
            raise TypeError("a record is no mapping")
        for name in ("step", "epoch"):
            if name not in record:
                raise KeyError(name)
        seconds = record.get("seconds")
        now = max(now, float(seconds)) if _finite(seconds) else now
        clock.append(now)
    return clock


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
