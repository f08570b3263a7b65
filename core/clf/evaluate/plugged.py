"""Evaluators of plugins: run under guard beside the built-in figures, which are on the disk before the first of them.

Each has its own copy of the features and of the encoder, and torch's generator seeded by the run and its name.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from clf import foreign, offered
from clf.errors import ClfError, PluginError
from clf.evaluate.material import Material
from clf.evaluate.results import evaluator_key
from clf.evaluators import Evaluator, Subject
from clf.offered import Offered
from clf.random import derive_seed

Figures = dict[str, float]


@dataclass(frozen=True)
class Plugged:
    """An evaluator that was made, and where it comes from."""

    evaluator: Evaluator
    what: Offered

    @property
    def name(self) -> str:
        return self.what.name

    @property
    def protocol(self) -> str:
        """The plugin and its version, and the first line of what the evaluator says of itself."""
        origin = self.what.origin()
        version = f", SHA-256 {origin['sha256'][:12]}" if "sha256" in origin else ""
        words = (type(self.evaluator).__doc__ or "").strip().partition("\n")[0]
        return f"{self.what.plugin.info}{version}{': ' if words else ''}{words}"


class Evaluators:
    """The evaluators of one evaluation. ``complaints`` are sentences about those that failed.

    Args:
        words: as they are given to ``clf evaluate --evaluator``; several may stand in one, with commas between.

    Raises:
        PluginError: one cannot be found or made.
    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        names = [name.strip() for word in words for name in word.split(",") if name.strip()]
        self._plugged = [Plugged(_made(evaluator, what), what) for evaluator, what in offered.evaluators(names)]
        self.complaints: list[str] = []

    def fitting(self, material: Material) -> list[Plugged]:
        """Those that can be measured on these data."""
        return [each for each in self._plugged if material.scorable or not each.evaluator.needs_labels]

    def left_out(self, material: Material) -> list[str]:
        """A sentence for each of the others."""
        fitting = self.fitting(material)
        return [
            f"{each.what} is left out: it needs labels of two classes at least, and a labelled test split."
            for each in self._plugged
            if each not in fitting
        ]

    def others(self, notes: Sequence[str]) -> list[str]:
        """The notes of an evaluation but for what an earlier one had to say of these evaluators."""
        own = tuple(f"evaluator {each.name!r} " for each in self._plugged)
        return [note for note in notes if not note.startswith(own)]

    def measure(self, subject: Subject, plugged: Sequence[Plugged]) -> dict[str, Figures]:
        """By evaluator the figures of one representation; those that failed are in ``complaints`` instead."""
        found = {}
        for each in plugged:
            try:
                found[each.name] = self._figures(each, subject)
            except PluginError as error:
                self.complaints.append(f"{error}.")
        return {name: figures for name, figures in found.items() if figures}

    def _figures(self, plugged: Plugged, subject: Subject) -> Figures:
        """
        Raises:
            PluginError: the evaluator failed, or returned what is no mapping of names to numbers.
        """
        doing = f"on {subject.representation}"
        devices = [subject.device] if subject.device.startswith("cuda") else []
        with torch.random.fork_rng(devices), torch.set_grad_enabled(True), foreign.off_standard_output():
            torch.manual_seed(derive_seed(subject.seed, "evaluator", plugged.name))
            try:
                found = plugged.evaluator.measure(_own(subject))
            except (Exception, SystemExit) as error:
                plugged.what.tell_traceback(error)
                raise PluginError(plugged.what.failed(error, doing)) from error
        if not isinstance(found, Mapping):
            kind = type(found).__name__
            raise PluginError(f"{plugged.what} failed {doing}: it returned a {kind}, not a mapping of names to numbers")
        figures: Figures = {}
        for name, value in found.items():
            number = _number(value)
            if not isinstance(name, str) or not name:
                self.complaints.append(f"{plugged.what} failed {doing}: {name!r} is no name for a figure.")
            elif number is None:
                self.complaints.append(
                    f"{plugged.what} failed {doing}: {name!r} is {_shown(value)}, not a finite number. Leave a figure "
                    "that is not defined out of the mapping."
                )
            else:
                figures[name] = number
        return figures


def subject(
    name: str, bank: Tensor, queries: Tensor, material: Material, encoder: nn.Module | None, device: str, seed: int
) -> Subject:
    """What an evaluator is given of one representation."""

    def there(labels: Tensor | None) -> Tensor | None:
        return None if labels is None else labels.to(device)

    return Subject(
        representation=name,
        bank=bank.to(device),
        queries=queries.to(device),
        bank_labels=there(material.bank_labels),
        query_labels=there(material.query_labels),
        class_names=material.class_names,
        images_bank=material.bank,
        images_queries=material.queries,
        encoder=encoder,
        device=device,
        seed=seed,
    )


def protocols(plugged: Sequence[Plugged]) -> dict[str, str]:
    """Their entries in ``Evaluation.protocol``."""
    return {evaluator_key(each.name): each.protocol for each in plugged}


def _own(subject: Subject) -> Subject:
    """A copy of everything that could be written to, but the images."""
    return replace(
        subject,
        bank=subject.bank.clone(),
        queries=subject.queries.clone(),
        bank_labels=None if subject.bank_labels is None else subject.bank_labels.clone(),
        query_labels=None if subject.query_labels is None else subject.query_labels.clone(),
        encoder=None if subject.encoder is None else copy.deepcopy(subject.encoder).eval(),
    )


def _made(evaluator: type[Evaluator], what: Offered) -> Evaluator:
    try:
        return evaluator()
    except ClfError:
        raise
    except (Exception, SystemExit) as error:
        what.tell_traceback(error)
        raise PluginError(what.failed(error, "as it was made")) from error


def _number(value: object) -> float | None:
    """A number, or an array or tensor of one, as a float; None for all else and for what is not finite."""
    if isinstance(value, str | bytes):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _shown(value: object) -> str:
    number = isinstance(value, int | float)
    return str(value) if number else f"a {type(value).__name__} ({' '.join(repr(value).split())[:40]})"
