"""Figures of a representation that clf does not know: a class with one method, in a plugin or in a single file.

    class MeanReciprocalRank(clf.Evaluator):
        name = "mrr"
        needs_labels = True

        def measure(self, subject):
            ...
            return {"MRR": value}

``clf evaluate RUN --evaluator NAME`` runs it for raw pixels, an untrained encoder and the trained one alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from clf.data.source import Images

__all__ = ["Evaluator", "Subject"]


@dataclass(frozen=True)
class Subject:
    """One representation of one data set. An evaluator has its own copy of features, labels and encoder, not of images.

    The bank is the training split and the queries are the test split, of which only labelled images are there when
    both have labels. Nothing may be chosen by the labels of the queries.
    """

    representation: str
    """``raw pixels``, ``random encoder``, ``pretrained encoder`` or ``trained encoder``."""
    bank: Tensor
    """(n, D) float32 on ``device``, of any norm: features of clean images in evaluation mode."""
    queries: Tensor
    """(m, D) float32 on ``device``; m is 0 without a test split."""
    bank_labels: Tensor | None
    """(n,) int64 on ``device``, 0 or more; None without labels."""
    query_labels: Tensor | None
    """(m,) int64 on ``device``; None where either split has no labels."""
    class_names: tuple[str, ...] | None
    """By label; None where the data set names no classes."""
    images_bank: Images = field(repr=False)
    """(n, C, S, S) uint8, a tensor or a :class:`clf.data.ImageTable`, which gives a tensor for a slice or for rows."""
    images_queries: Images = field(repr=False)
    """(m, C, S, S) uint8."""
    encoder: nn.Module | None = field(repr=False)
    """(N, C, S, S) in [0, 1] -> (N, D), on ``device`` and in evaluation mode; None for raw pixels."""
    device: str
    seed: int
    """The run's. torch's own generator is seeded by it and the evaluator's name before each call."""


class Evaluator(ABC):
    """A measurement of features. It is made without arguments, once for all representations of an evaluation."""

    name: ClassVar[str]
    """The title of its table and its key in ``evaluation.json``."""
    needs_labels: ClassVar[bool] = False
    """Left out, with a note, where an accuracy would be: no labels, no test split, or one class only."""

    @abstractmethod
    def measure(self, subject: Subject) -> Mapping[str, float]:
        """The figures of one representation, by the heading of their column, in the order of the columns.

        A figure that is not defined for this representation is left out. What is raised here, and what is returned
        that is no finite number, costs this figure and no other: it becomes a note of the evaluation.
        """
