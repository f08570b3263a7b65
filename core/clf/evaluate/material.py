"""What an evaluation measures: clean images of a labelled set, in the format of a run's encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clf import experiment
from clf.config import DataSection
from clf.data import DataSource, Images
from clf.evaluate.pixels import adapt
from clf.experiment import Experiment

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
    class_names: tuple[str, ...] | None = None

    @property
    def classes(self) -> int | None:
        return None if self.bank_labels is None else len(torch.unique(self.bank_labels))

    @property
    def scorable(self) -> bool:
        """Whether an accuracy can be measured and means something."""
        return self.query_labels is not None and (self.classes or 0) > 1


def other_data(section: DataSection, trained: Experiment) -> DataSource:
    """Another data set, prepared at the size of the run's images where its source can do that."""
    at_size = section.model_copy(update={"image_size": trained.data.image_size})
    return experiment.load_data(at_size, trained.config.seed)


def prepare(source: DataSource, trained: Experiment) -> Material:
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
        class_names=source.class_names,
    )
