"""Measurements while training: k-NN accuracy where labels exist, and whether the representation collapses.

Labels stay here; they never reach the method. The measurements draw no random numbers and leave batch norm alone, so
that a run is the same with and without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clf.callbacks import Callback
from clf.data import Split
from clf.diagnostics import diagnose, verdict
from clf.evaluate.features import encode
from clf.evaluate.knn import knn_accuracy
from clf.random import generator

if TYPE_CHECKING:
    from clf.trainer import Trainer

TEMPERATURE = 0.1


class Monitor(Callback):
    """Encodes a fixed subset every few epochs and at the end; see ``monitor.*`` in the configuration."""

    def on_epoch(self, trainer: Trainer) -> None:
        every = trainer.config.monitor.knn_every
        epoch = round(trainer.epoch)
        if every and (epoch % every == 0 or epoch == 1 or trainer.step == trainer.total_steps):
            self._measure(trainer)

    def _measure(self, trainer: Trainer) -> None:
        section, data = trainer.config.monitor, trainer.data
        encoder = trainer.method.encoder()
        images, _ = _subset(data.train, section.max_images)
        features = encode(encoder, images, device=trainer.device)  # (n, D)
        found = diagnose(features)
        values = {"rank_me": found.rank_me, "feature_std": found.feature_std, "uniformity": found.uniformity}
        known, queries = data.train.labelled(), data.test.labelled() if data.test else None
        if known is not None and queries is not None:
            values["knn"] = self._knn(trainer, known, queries, features if known is data.train else None)
        trainer.record("monitor", **values)
        sentence = verdict(found)
        if sentence:
            trainer.say(f"epoch {round(trainer.epoch)}: {sentence}")

    def _knn(self, trainer: Trainer, known: Split, queries: Split, features: Tensor | None) -> float:
        """k-NN accuracy; ``features`` are those of the known images where they have been computed."""
        section, encoder = trainer.config.monitor, trainer.method.encoder()
        bank, labels = _subset(known, section.max_images)
        asked, answers = _subset(queries, section.max_images)
        assert labels is not None and answers is not None
        if features is None:
            features = encode(encoder, bank, device=trainer.device)  # (n, D)
        found = encode(encoder, asked, device=trainer.device)  # (m, D)
        return knn_accuracy(features, labels, found, answers, section.knn_k, TEMPERATURE)


def _subset(split: Split, limit: int) -> tuple[Tensor, Tensor | None]:
    """The same images in every measurement of every run."""
    n = len(split.clean)
    if n <= limit:
        return split.clean, split.labels
    rows = torch.randperm(n, generator=generator(0, "monitor"))[:limit].sort().values
    return split.clean[rows], split.labels[rows] if split.labels is not None else None
