"""The evaluation of a cell: k-NN and linear probe on the same labelled images for all cells of one data set."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import nn

import clf
from clf import experiment
from clf.config import Config
from clf.data import DataSource
from clf.errors import DataError
from clf.evaluate.features import encode
from clf.evaluate.knn import knn_accuracy
from clf.evaluate.linear import HELD_OUT, STRENGTHS, linear_probe
from clf.evaluate.results import Evaluation, KnnScore, LinearScore, Representation
from clf.runs import Run
from clf.study.spec import Evaluate

TEMPERATURE = 0.1


@dataclass(frozen=True)
class Measured:
    """What was found of one encoder."""

    dim: int
    knn: KnnScore
    linear: LinearScore | None
    seconds: float

    @property
    def scores(self) -> dict[str, float]:
        linear = {} if self.linear is None else {"linear": self.linear.accuracy}
        return {"knn": self.knn.accuracy, **linear}


class Judge:
    """Measures encoders on one data set."""

    def __init__(self, data: DataSource, evaluate: Evaluate) -> None:
        """
        Raises:
            DataError: the data have no labels, or no test split.
        """
        train, test = data.train.labelled(), data.test.labelled() if data.test else None
        if train is None or test is None:
            lack = "no labels" if train is None else "no labelled test split (data.test_fraction holds some images out)"
            raise DataError(f"{data.name} has {lack}, and a study's scores need them: take another data set")
        assert train.labels is not None and test.labels is not None
        bank, queries = slice(None, evaluate.bank), slice(None, evaluate.queries)
        self.bank, self.bank_labels = train.clean[bank], train.labels[bank]
        self.queries, self.query_labels = test.clean[queries], test.labels[queries]
        if len(torch.unique(self.bank_labels)) < 2:
            raise DataError(f"the first {len(self.bank):,} training images of {data.name} are of one class: raise bank")
        self.data = data
        self.evaluate = evaluate

    def measure(self, encoder: nn.Module, seed: int, device: torch.device) -> Measured:
        """Scores of an encoder, which is on ``device`` already. The mode of its modules is restored.

        Args:
            seed: of the part of the bank on which the linear probe chooses its regularisation.
        """
        started = time.monotonic()
        bank, queries = (encode(encoder, images, device=device) for images in (self.bank, self.queries))
        place = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        bank, queries = bank.to(place), queries.to(place)
        bank_labels, query_labels = self.bank_labels.to(place), self.query_labels.to(place)
        k = self.evaluate.knn_k
        accuracy = knn_accuracy(bank, bank_labels, queries, query_labels, k, TEMPERATURE)
        linear = None
        if self.evaluate.linear:
            probe = linear_probe(bank, bank_labels, queries, query_labels, seed)
            linear = LinearScore(
                accuracy=probe.accuracy, strength=probe.strength, held_out_accuracy=probe.held_out_accuracy
            )
        knn = KnnScore(k=k, voters=min(k, len(bank)), accuracy=accuracy)
        return Measured(bank.shape[1], knn, linear, time.monotonic() - started)

    def protocol(self) -> dict[str, str]:
        """How the scores are measured, in words."""
        size, channels = self.data.image_size, self.data.channels
        words = {
            "encoder": "of the last epoch, not the best of several",
            "features": "output of the encoder in evaluation mode; the projector is not part of it",
            "images": f"clean (no augmentation), {size} x {size} x {channels}, scaled to [0, 1]",
            "split": self.data.split_note,
            "bank": f"{_first(self.evaluate.bank)} {len(self.bank)} labelled training images, whatever part of them "
            "data.limit leaves for the training",
            "queries": f"{_first(self.evaluate.queries)} {len(self.queries)} test images",
            "k-NN": f"offline: k = {self.evaluate.knn_k}, cosine on L2-normalised features, votes exp(cosine / T), "
            f"T = {TEMPERATURE} (Wu et al. 2018)",
        }
        if self.evaluate.linear:
            words["linear probe"] = (
                "offline: multinomial logistic regression (L-BFGS, full batch) on standardised features of the bank; "
                f"L2 strength from {STRENGTHS[0]:g} to {STRENGTHS[-1]:g}, chosen on {HELD_OUT:.0%} of the bank, then "
                "refitted on all of it; the test images are read once"
            )
        return words

    def evaluation(self, run: Run, step: int, found: Measured, device: torch.device) -> Evaluation:
        """The result as the run's ``evaluation.json`` holds it."""
        row = Representation(
            name="trained encoder",
            dim=found.dim,
            knn=(found.knn,),
            linear=found.linear,
            seconds=round(found.seconds, 2),
        )
        return Evaluation(
            run=run.name,
            step=step,
            data=self.data.name,
            fingerprint=self.data.fingerprint,
            train_images=len(self.bank),
            test_images=len(self.queries),
            classes=len(torch.unique(self.bank_labels)),
            representations=(row,),
            verdict=None,
            protocol=self.protocol(),
            device=str(device),
            seconds=round(found.seconds, 2),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            clf_version=clf.__version__,
        )


class Judges:
    """Makes the judge of a cell, and keeps the last one: most cells of a study have the same data."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._last: tuple[str, Judge] | None = None

    def of(self, config: Config) -> Judge:
        """
        Raises:
            ClfError: the data cannot be read, or lack labels.
        """
        whole = config.data.model_copy(update={"limit": None})
        wanted = whole.model_dump_json()
        if self._last is None or self._last[0] != wanted:
            self._last = None
            self._last = wanted, Judge(experiment.load_data(whole, config.seed), self._evaluate)
        return self._last[1]


def _first(limit: int | None) -> str:
    return "all" if limit is None else "the first"
