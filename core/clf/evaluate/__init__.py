"""How good a representation is: k-NN, linear probe, few labels, few shots, retrieval, fine-tuning and label-free
figures, with baselines and the protocol in words.

Reading and showing results needs no torch; it is imported with :func:`evaluate_run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clf.evaluate.results import Evaluation, KnnScore, LinearScore, Representation, read_evaluations
from clf.evaluate.terminal import format_table, render

if TYPE_CHECKING:
    from clf.evaluate.measure import evaluate_run

__all__ = [
    "Evaluation",
    "KnnScore",
    "LinearScore",
    "Representation",
    "evaluate_run",
    "format_table",
    "read_evaluations",
    "render",
]


def __getattr__(name: str) -> Any:
    if name != "evaluate_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from clf.evaluate.measure import evaluate_run

    return evaluate_run
