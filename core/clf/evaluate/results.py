"""What an evaluation found, as it lies in ``evaluation.json``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from clf.diagnostics import Diagnostics
from clf.errors import RunError
from clf.runs import Run

FILE = "evaluation.json"


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


class Representation(Result):
    """One row of the table: the same measurement on pixels, an untrained encoder, the trained one."""

    name: str
    dim: int
    knn: tuple[KnnScore, ...] = ()
    linear: LinearScore | None = None
    diagnostics: Diagnostics | None = None
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
    notes: tuple[str, ...] = ()
    device: str
    seconds: float
    created: str
    clf_version: str


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


def add_evaluation(run: Run, key: str, evaluation: Evaluation) -> None:
    """Writes a result beside those of other data sets; an earlier one of the same data set is replaced."""
    found = {**read_evaluations(run), key: evaluation}
    entries = {name: entry.model_dump(mode="json") for name, entry in found.items()}
    run.write_json(FILE, {"format": 1, "evaluations": entries})
