"""How good a representation is: k-NN, linear probe and label-free figures, with baselines and the protocol in words."""

from clf.evaluate.measure import evaluate_run
from clf.evaluate.results import Evaluation, KnnScore, LinearScore, Representation, read_evaluations
from clf.evaluate.terminal import format_table, render

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
