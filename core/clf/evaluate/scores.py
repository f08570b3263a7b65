"""All that labels can say about one representation, from features that were computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clf.evaluate.few_labels import SHARES, few_labels, too_few_labels
from clf.evaluate.few_shot import SHOTS, few_shot, too_few_shots
from clf.evaluate.knn import nearest, vote
from clf.evaluate.linear import probe, rotated
from clf.evaluate.results import ClassScore, KnnScore, LinearScore
from clf.evaluate.retrieval import retrieval

KNN = (200, 20)
"""Neighbours that vote."""
TEMPERATURE = 0.1


@dataclass(frozen=True)
class Labelled:
    """Features of the training and the test split with their labels, all on one device."""

    bank: Tensor  # (n, D)
    bank_labels: Tensor  # (n,) int64
    queries: Tensor  # (m, D)
    query_labels: Tensor  # (m,) int64


def scores(x: Labelled, class_names: Sequence[str] | None, seed: int, everything: bool) -> dict[str, Any]:
    """The fields of :class:`~clf.evaluate.results.Representation` that need labels.

    Args:
        seed: of what is held out of the training split and of the subsets and episodes.
        everything: few labels, few shots and retrieval too.
    """
    cosines, rows = nearest(x.bank, x.queries, max(KNN))
    neighbours = x.bank_labels[rows]  # (m, k)
    votes = {k: vote(cosines[:, :k], neighbours[:, :k], TEMPERATURE) for k in KNN}
    features = rotated(x.bank, x.queries)
    linear = probe(features, x.bank_labels, x.query_labels, seed)
    found: dict[str, Any] = {
        "knn": tuple(
            KnnScore(k=k, voters=min(k, len(x.bank)), accuracy=_share(predicted == x.query_labels))
            for k, predicted in votes.items()
        ),
        "linear": LinearScore(
            accuracy=linear.accuracy, strength=linear.strength, held_out_accuracy=linear.held_out_accuracy
        ),
        "per_class": per_class(x.query_labels, votes[min(KNN)], linear.predicted, class_names),
    }
    if everything:
        found["few_labels"] = tuple(
            few_labels(features, x.bank_labels, x.query_labels, share, seed)
            for share in SHARES
            if not too_few_labels(x.bank_labels, share)
        )
        found["few_shot"] = tuple(
            few_shot(x.bank, x.bank_labels, x.queries, x.query_labels, shots, seed)
            for shots in SHOTS
            if not too_few_shots(x.bank_labels, x.query_labels, shots)
        )
        found["retrieval"] = retrieval(x.bank, x.bank_labels, x.queries, x.query_labels)
    return found


def left_out(bank_labels: Tensor, query_labels: Tensor) -> list[str]:
    """A sentence for each measurement that a class is too small for."""
    reasons = [too_few_labels(bank_labels, share) for share in SHARES]
    reasons += [too_few_shots(bank_labels, query_labels, shots) for shots in SHOTS]
    return [reason for reason in reasons if reason]


def per_class(
    query_labels: Tensor, knn: Tensor, linear: Tensor, class_names: Sequence[str] | None
) -> tuple[ClassScore, ...]:
    """For each class of the test split the share of its images that the k-NN and the linear probe put in it.

    Args:
        query_labels, knn, linear: (m,) int64, what is true and what was predicted.
        class_names: by label; a class without one is named by its number.
    """
    names = class_names or ()
    found = []
    for label in torch.unique(query_labels).tolist():
        rows = query_labels == label
        found.append(
            ClassScore(
                name=names[label] if label < len(names) else str(label),
                images=int(rows.sum()),
                knn=_share(knn[rows] == label),
                linear=_share(linear[rows] == label),
            )
        )
    return tuple(found)


def _share(right: Tensor) -> float:
    return float(right.double().mean())
