"""What the records of a run say, in plain words with what to do about it. Every sentence is computed; where nothing
applies there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from clf import diagnostics
from clf.evaluate.results import Diagnostics, Evaluation
from clf.evaluate.results import gain as measured_gain
from clf.report.charts import Point

Kind = Literal["good", "hint", "bad"]

FEW_IMAGES = 1000
"""Training images below which the advice is to get more: the built-in sets and those of the papers have 5,000 up."""
FEW_TESTS = 400
"""Test images below which an accuracy near 50 % has an interval of ± 5 points or more."""
END = 2 / 3
"""Share of the run after which an accuracy that still rises says that the run was short."""
PARTS = 10
"""Parts of a run whose median losses are compared."""
RISEN = 0.25
"""Share of the fall of the loss that it may give back before it is called unstable."""
SPIKE = 8.0
"""Times the usual distance of a loss from the median of its neighbours that is a jump."""
JUMPS = 3
SIGMAS = 1.96


@dataclass(frozen=True)
class Verdict:
    kind: Kind
    words: str


@dataclass(frozen=True)
class Facts:
    """What a report knows of a run."""

    records: Sequence[Mapping[str, Any]]
    manifest: Mapping[str, Any]
    values: Mapping[str, Any]
    """The configuration by dotted key."""
    evaluations: Sequence[Evaluation] = ()
    found: Diagnostics | None = None
    """Of the newest checkpoint; None when there is none."""
    wanted_batch: int | None = None
    """Images in a step that the method says its loss needs."""
    folder: str = "RUN"


def verdicts(facts: Facts) -> list[Verdict]:
    """All that applies, the worst first."""
    parts = (unfinished, loss, collapse, gain, still_improving, not_evaluated, small_batch, few_images)
    found = [verdict for part in parts for verdict in part(facts)]
    return sorted(found, key=lambda verdict: ("bad", "hint", "good").index(verdict.kind))


def unfinished(facts: Facts) -> Iterator[Verdict]:
    state = facts.manifest.get("state")
    if state in (None, "complete"):
        return
    reason = f" The reason given: {facts.manifest['reason']}." if facts.manifest.get("reason") else ""
    words = {"failed": "This run failed", "interrupted": "This run was stopped"}.get(
        str(state), "This run has not reached its end"
    )
    epochs = [record["epoch"] for record in facts.records if "epoch" in record]
    where = f" after {max(epochs):.4g} of {facts.values.get('train.epochs', '?')} epochs" if epochs else ""
    yield Verdict(
        "bad", f"{words}{where}.{reason.replace('..', '.')} To go on with it: clf train --resume {facts.folder}"
    )


def loss(facts: Facts) -> Iterator[Verdict]:
    """Not finite, or risen again, or with jumps."""
    rows = [(float(r["epoch"]), float(r["loss"])) for r in facts.records if "loss" in r and r.get("kind") == "train"]
    lower = f"lower optimizer.lr (it was {facts.values.get('optimizer.lr', 'derived')})"
    broken = [x for x, y in rows if not math.isfinite(y)]
    if broken:
        yield Verdict(
            "bad",
            f"The loss was no finite number at epoch {broken[0]:.4g}: training has diverged. {lower.capitalize()}, set "
            "train.clip_grad_norm=1, or raise schedule.warmup_epochs.",
        )
        return
    back = risen(rows)
    if back is not None:
        (where, least), end = back
        yield Verdict(
            "bad",
            f"The loss rose again: {least:.3g} around epoch {where:.3g}, {end:.3g} at the end. If the accuracy fell "
            f"with it, {lower} or set train.clip_grad_norm=1.",
        )
        return
    where_jumped = jumps(rows)
    if len(where_jumped) >= JUMPS:
        yield Verdict(
            "hint",
            f"The loss jumped {len(where_jumped)} times, first at epoch {where_jumped[0]:.3g}: training is not quite "
            f"stable. {lower.capitalize()}, or set train.clip_grad_norm=1.",
        )


def risen(rows: Sequence[Point]) -> tuple[Point, float] | None:
    """Where the loss was least and what it is at the end, if it fell first and gave back RISEN of that fall.

    Medians of PARTS parts of the run are compared, so that single values do not matter. A loss that only ever rises,
    as that of a method whose task gets harder may, is none of these.
    """
    if len(rows) < 2 * PARTS:
        return None
    edges = [round(i * len(rows) / PARTS) for i in range(PARTS + 1)]
    parts = [rows[a:b] for a, b in pairwise(edges)]
    levels = [median(y for _, y in part) for part in parts]
    least = min(range(PARTS), key=lambda i: levels[i])
    fall, back = max(levels[: least + 1]) - levels[least], levels[-1] - levels[least]
    noise = median(abs(y - level) for part, level in zip(parts, levels, strict=True) for _, y in part)
    if fall <= 0 or back < RISEN * fall or back < 4 * noise:
        return None
    return (median(x for x, _ in parts[least]), levels[least]), levels[-1]


def jumps(rows: Sequence[Point]) -> list[float]:
    """Epochs at which one loss lies far above the medians of the five before it and of the five behind it."""
    if len(rows) < 2 * PARTS:
        return []
    values = [y for _, y in rows]
    off = [values[i] - max(median(values[i - 5 : i]), median(values[i + 1 : i + 6])) for i in range(5, len(values) - 5)]
    usual = median(abs(d) for d in off)
    least = 0.1 * median(map(abs, values))
    return [rows[i][0] for i, d in enumerate(off, start=5) if d > max(SPIKE * usual, least)]


def collapse(facts: Facts) -> Iterator[Verdict]:
    """By the newest checkpoint; without one, by the last measurement of the training."""
    found = facts.found
    if found is not None:
        bad = diagnostics.verdict(found)
        good = (
            f"No collapse: the features of {found.images:,} images use about {found.rank_me:.0f} of {found.dim} "
            f"dimensions, and two different images have a mean cosine of {found.mean_cosine:.2f}."
        )
        yield Verdict("bad", bad) if bad else Verdict("good", good)
        return
    measured = [record for record in facts.records if record.get("kind") == "monitor"]
    if measured and measured[-1].get("collapsed"):
        last = measured[-1]
        cosine = f" (mean cosine {last['mean_cosine']:.4f})" if "mean_cosine" in last else ""
        yield Verdict(
            "bad",
            f"Collapsed: the measurement at epoch {last['epoch']:.4g} found features that say little about an "
            f"image{cosine}; try a lower optimizer.lr, a larger train.batch_size or another temperature.",
        )


def gain(facts: Facts) -> Iterator[Verdict]:
    """Whether training was worth it, for each data set with labels, by the k-NN of smallest k."""
    for evaluation in facts.evaluations:
        found = measured_gain(evaluation.representations, evaluation.test_images)
        if found is None:
            continue
        figures = f"k-NN on {evaluation.data} {found.figures}"
        if found.clear:
            yield Verdict("good", f"Training was worth it: {figures}.")
        else:
            yield Verdict(
                "bad",
                f"No gain over the baselines: {figures}. Train longer (train.epochs), on more images, or with other "
                "views (augment.*).",
            )


def still_improving(facts: Facts) -> Iterator[Verdict]:
    """Whether the accuracy of the last measurement is above all those of the first two thirds, beyond chance."""
    if facts.manifest.get("state") not in (None, "complete"):
        return
    rows = [r for r in facts.records if r.get("kind") == "monitor" and "knn" in r]
    if len(rows) < 4:
        return
    last = rows[-1]
    before = [r for r in rows[:-1] if r["epoch"] <= END * last["epoch"]]
    if len(before) < 2:
        return
    best, end = max(r["knn"] for r in before), last["knn"]
    tested = min(int(last.get("bank", 0)), int(facts.manifest.get("data", {}).get("test_images", 0))) or 1
    if end < max(r["knn"] for r in rows) or end - best <= SIGMAS * math.sqrt(end * (1 - end) / tested):
        return
    epochs = facts.values.get("train.epochs")
    longer = f"train.epochs={2 * epochs}" if isinstance(epochs, int) else "more train.epochs"
    yield Verdict(
        "hint",
        f"Still improving at the end: k-NN rose from {100 * best:.1f} % to {100 * end:.1f} % in the last third of the "
        f"epochs. A new run with {longer} should be better; its learning rate falls later too, so resuming this one "
        "is not the same.",
    )


def not_evaluated(facts: Facts) -> Iterator[Verdict]:
    """Labels that nothing was measured with, or figures of an earlier checkpoint."""
    data, command = facts.manifest.get("data", {}), f"clf evaluate {facts.folder}"
    step = facts.manifest.get("step")
    if not facts.evaluations and data.get("labelled") and data.get("test_images"):
        yield Verdict("hint", f"Not evaluated yet: {command} measures this run beside its baselines.")
    for evaluation in facts.evaluations:
        if step is not None and evaluation.step < step:
            yield Verdict(
                "hint",
                f"Old figures: {evaluation.data} was evaluated at step {evaluation.step:,} of {step:,}. Measure again "
                f"with {command}",
            )


def small_batch(facts: Facts) -> Iterator[Verdict]:
    size, wanted = facts.values.get("train.batch_size"), facts.wanted_batch
    if size is None or wanted is None or size >= wanted:
        return
    yield Verdict(
        "hint",
        f"Small batch: the loss had {size} images in a step to tell each one from, and this method wants {wanted} or "
        "more. Raise train.batch_size; train.chunk_size keeps the memory it needs small.",
    )


def few_images(facts: Facts) -> Iterator[Verdict]:
    data = facts.manifest.get("data", {})
    count = data.get("train_images")
    if count is not None and count < FEW_IMAGES:
        yield Verdict(
            "hint",
            f"Few images: {count:,} to train on are not much to learn from. Add images, which need no labels, or start "
            "from backbone.pretrained=true.",
        )
    for evaluation in facts.evaluations:
        tests = evaluation.test_images
        if evaluation.representations and evaluation.representations[-1].knn and 0 < tests < FEW_TESTS:
            yield Verdict(
                "hint",
                f"Few test images: {tests:,} of {evaluation.data}, so that an accuracy near 50 % has an interval of "
                f"± {100 * SIGMAS * math.sqrt(0.25 / tests):.0f} points. Smaller differences mean nothing; hold more "
                "images out.",
            )
