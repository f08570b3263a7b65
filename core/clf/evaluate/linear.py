"""Linear probe: multinomial logistic regression on frozen features.

The features are cached, not augmented; the classifier is the exact minimum of a convex objective (L-BFGS, full batch)
instead of SGD, so it has no learning rate to tune. The regularisation is chosen on a held-out part of the training
split; the test split is read once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clf.random import generator

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Candidate L2 strengths, strongest first: each fit starts from the one before."""
HELD_OUT = 0.2
"""Share of each class of the training split that chooses the strength."""


@dataclass(frozen=True)
class LinearClassifier:
    """``(x - mean) / scale @ weight.T + bias``"""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    weight: Tensor  # (classes, D)
    bias: Tensor  # (classes,)

    def logits(self, x: Tensor) -> Tensor:
        """(n, D) -> (n, classes)"""
        return F.linear((x - self.mean) / self.scale, self.weight, self.bias)


@dataclass(frozen=True)
class LinearProbe:
    accuracy: float
    """Top-1 on the test split, in [0, 1]."""
    strength: float
    """The chosen L2 strength."""
    held_out_accuracy: float | None
    """Top-1 of that strength on the held-out part of training; None where no class has two images."""


def linear_probe(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, seed: int = 0
) -> LinearProbe:
    """Top-1 of a linear classifier trained on the bank, with its L2 strength chosen on a part of the bank.

    Args:
        bank: (n, D) floating point; the computation has its type and device.
        bank_labels: (n,) int64 with two classes at least. A query of a class that the bank lacks counts as wrong.
        queries: (m, D).
        seed: of the held-out part.

    Raises:
        ValueError: fewer than two classes.
    """
    classes, targets = torch.unique(bank_labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError("a linear probe needs at least two classes")
    fit_rows, held_rows = (rows.to(bank.device) for rows in _split(targets.cpu(), seed))
    strength, held_out = STRENGTHS[len(STRENGTHS) // 2], None
    if len(held_rows):
        strength, held_out = _choose(bank, targets, fit_rows, held_rows, len(classes))
    classifier = fit(bank, targets, len(classes), strength)
    predicted = classes[classifier.logits(queries).argmax(1)]
    return LinearProbe(float((predicted == query_labels).double().mean()), strength, held_out)


def fit(
    x: Tensor, y: Tensor, classes: int, strength: float, start: LinearClassifier | None = None, max_iter: int = 300
) -> LinearClassifier:
    """Minimises mean cross entropy + strength / 2 * |W|^2 over W (classes, D) and a bias that is not penalised.

    This is scikit-learn's ``LogisticRegression(C=1 / (n * strength))`` on standardised features.

    Args:
        x: (n, D); standardised here by its own mean and standard deviation, constant columns only centred.
        y: (n,) int64 in [0, classes).
        start: a classifier of the same features to start from.
    """
    mean, scale = _moments(x)
    x = (x - mean) / scale  # (n, D)
    weight = x.new_zeros(classes, x.shape[1]) if start is None else start.weight.clone()
    bias = x.new_zeros(classes) if start is None else start.bias.clone()
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iter, history_size=10, line_search_fn="strong_wolfe",
        tolerance_grad=1e-6, tolerance_change=1e-9,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(x, y, weight, bias, strength)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return LinearClassifier(mean, scale, weight.detach(), bias.detach())


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, strength: float) -> Tensor:
    """Mean cross entropy of standardised features plus the L2 penalty, a scalar."""
    return F.cross_entropy(F.linear(x, weight, bias), y) + strength / 2 * weight.square().sum()


def _choose(x: Tensor, y: Tensor, fit_rows: Tensor, held_rows: Tensor, classes: int) -> tuple[float, float]:
    """The strength of highest held-out accuracy, the stronger one of equals."""
    x_fit, y_fit, x_held, y_held = x[fit_rows], y[fit_rows], x[held_rows], y[held_rows]
    best, classifier = (STRENGTHS[0], -1.0), None
    for strength in STRENGTHS:
        classifier = fit(x_fit, y_fit, classes, strength, classifier, max_iter=60)
        accuracy = float((classifier.logits(x_held).argmax(1) == y_held).double().mean())
        if accuracy > best[1]:
            best = (strength, accuracy)
    return best


def _split(y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to fit and rows held out: HELD_OUT of each class at random, at least one stays for the fit."""
    shuffled = torch.randperm(len(y), generator=generator(seed, "linear probe"))
    held = torch.zeros(len(y), dtype=torch.bool)
    for label in torch.unique(y):
        rows = shuffled[y[shuffled] == label]
        held[rows[: min(round(len(rows) * HELD_OUT), len(rows) - 1)]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column; 1 for a column that is constant up to rounding."""
    mean = x.mean(0)
    deviation = (x - mean).square().mean(0).sqrt()
    noise = 16 * torch.finfo(x.dtype).eps * x.abs().amax(0)
    return mean, deviation.where(deviation > noise, torch.ones_like(deviation))
