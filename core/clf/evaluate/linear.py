"""Linear probe: multinomial logistic regression on frozen features.

The features are cached, not augmented; the classifier is the exact minimum of a convex objective (L-BFGS, full batch)
instead of SGD, so it has no learning rate to tune. The regularisation is chosen on a held-out part of the training
split; the test split is read once, at the end.

Features of encoders are strongly correlated, and L-BFGS needs hundreds of passes over them. So it works along their
principal axes, each scaled by the curvature that the objective has there at W = 0: there the softmax's Hessian is
(I - 11'/C) / C (Boehning, Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44, 1992, equation 1.2),
so that along an axis of variance v it is v / C + strength. Neither the rotation nor the scale changes the minimum.

On 50,000 x 512 features of CIFAR-10's images (random whitened patches, pooled) the whole probe took 223 passes, where
L-BFGS on the standardised features themselves had taken 603; seconds are in tests/benchmarks/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from clf.random import generator

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Candidate L2 strengths, strongest first: each fit starts from the one before."""
HELD_OUT = 0.2
"""Share of each class of the training split that chooses the strength."""
PATIENCE = 2
"""So many strengths in a row that are no better than the best end the search, once the best is better than always
answering the commonest class: a strong penalty hides what lies along axes of little variance."""
CHUNK = 8192
"""Rows that are standardised and rotated at once."""


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
class Axes:
    """The principal axes of standardised features."""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    vectors: Tensor  # (D, A), an axis is a column; A = D, or fewer where so few images cannot vary along more
    variances: Tensor  # (A,)

    def rotate(self, x: Tensor) -> Tensor:
        """(n, D) -> (n, A) along the axes; lengths and angles of the standardised features of the bank stay."""
        parts = [((part - self.mean) / self.scale) @ self.vectors for part in torch.split(x, CHUNK)]
        return torch.cat(parts) if parts else x


@dataclass(frozen=True)
class Rotated:
    """Features of the training split along its principal axes, and those of the test split as they came. No labels are
    used.
    """

    bank: Tensor  # (n, A)
    queries: Tensor  # (m, D)
    axes: Axes

    def logits(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Of the queries (m, classes), by a weight (classes, A) along the axes.

        The weight is turned back, for which the queries need not be turned.
        """
        back = LinearClassifier(self.axes.mean, self.axes.scale, weight @ self.axes.vectors.T, bias)
        return torch.cat([back.logits(part) for part in torch.split(self.queries, CHUNK)])


@dataclass(frozen=True)
class LinearProbe:
    accuracy: float
    """Top-1 on the test split, in [0, 1]."""
    strength: float
    """The chosen L2 strength."""
    held_out_accuracy: float | None
    """Top-1 of that strength on the held-out part of training; None where no class has two images."""
    predicted: Tensor = field(compare=False, repr=False)
    """(m,) int64, the class of each query."""


@torch.no_grad()
def principal_axes(x: Tensor) -> Axes:
    """Mean, standard deviation and principal axes of features (n, D); constant columns are only centred.

    Few images span few of the axes. The others are left out: no weight can lie there at a minimum, for it would cost
    its penalty and change no training image's answer.
    """
    mean, scale = _moments(x)
    if 2 * len(x) <= x.shape[1]:
        _, singular, axes = torch.linalg.svd((x - mean) / scale, full_matrices=False)
        return Axes(mean, scale, axes.T, singular.square() / len(x))
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for part in torch.split(x, CHUNK):
        z = (part - mean) / scale
        gram += (z.T @ z).double()
    variances, vectors = torch.linalg.eigh((gram / len(x)).to(x.dtype))
    return Axes(mean, scale, vectors, variances.clamp_min(0))


def rotated(bank: Tensor, queries: Tensor) -> Rotated:
    """What :func:`probe` takes, from features (n, D) and (m, D) of one type on one device. What is not finite, as of a
    run that diverged, counts as zero.
    """
    bank, queries = (x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for x in (bank, queries))
    axes = principal_axes(bank)
    return Rotated(axes.rotate(bank), queries, axes)


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
    return probe(rotated(bank, queries), bank_labels, query_labels, seed)


def probe(
    features: Rotated, bank_labels: Tensor, query_labels: Tensor, seed: int, rows: Tensor | None = None
) -> LinearProbe:
    """:func:`linear_probe` on rotated features, of which only some ``rows`` (k,) of the bank have labels, if given.

    Raises:
        ValueError: fewer than two classes.
    """
    x = features.bank if rows is None else features.bank[rows]
    classes, y = torch.unique(bank_labels if rows is None else bank_labels[rows], return_inverse=True)
    if len(classes) < 2:
        raise ValueError("a linear probe needs at least two classes")
    fit_rows, held_rows = (part.to(x.device) for part in _split(y.cpu(), seed))
    strength, held_out, start = STRENGTHS[len(STRENGTHS) // 2], None, None
    if len(held_rows):
        strength, held_out, start = _choose(x, y, features.axes.variances, fit_rows, held_rows, len(classes))
    weight, bias = minimise(x, y, features.axes.variances, len(classes), strength, start)
    predicted = classes[features.logits(weight, bias).argmax(1)]
    return LinearProbe(float((predicted == query_labels).double().mean()), strength, held_out, predicted)


def fit(x: Tensor, y: Tensor, classes: int, strength: float) -> LinearClassifier:
    """Minimises mean cross entropy + strength / 2 * |W|^2 over W (classes, D) and a bias that is not penalised.

    This is scikit-learn's ``LogisticRegression(C=1 / (n * strength))`` on standardised features.

    Args:
        x: (n, D); standardised here by its own mean and standard deviation, constant columns only centred.
        y: (n,) int64 in [0, classes).
    """
    axes = principal_axes(x)
    weight, bias = minimise(axes.rotate(x), y, axes.variances, classes, strength)
    return LinearClassifier(axes.mean, axes.scale, weight @ axes.vectors.T, bias)


def minimise(
    x: Tensor,
    y: Tensor,
    variances: Tensor,
    classes: int,
    strength: float,
    start: tuple[Tensor, Tensor] | None = None,
    max_iter: int = 300,
    tolerance: float = 1e-9,
) -> tuple[Tensor, Tensor]:
    """Weight (classes, D) and bias (classes,) at the minimum of :func:`objective`.

    Args:
        x: (n, D), centred.
        variances: (D,) of its columns, which should be uncorrelated; they decide the speed, not the minimum.
        start: weight and bias to start from.
        tolerance: a step that changes the objective by less is the last.
    """
    unit = (variances / classes + strength).rsqrt()  # (D,) the step along each axis that counts as one
    weight, bias = start or (x.new_zeros(classes, x.shape[1]), x.new_zeros(classes))
    steps, bias = (weight / unit).requires_grad_(), bias.clone().requires_grad_()  # (classes, D), (classes,)
    optimizer = torch.optim.LBFGS(
        [steps, bias], max_iter=max_iter, history_size=10, line_search_fn="strong_wolfe",
        tolerance_grad=1e-6, tolerance_change=tolerance,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(x, y, steps * unit, bias, strength)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return steps.detach() * unit, bias.detach()


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, strength: float) -> Tensor:
    """Mean cross entropy of standardised features plus the L2 penalty, a scalar."""
    return F.cross_entropy(F.linear(x, weight, bias), y) + strength / 2 * weight.square().sum()


def _choose(
    x: Tensor, y: Tensor, variances: Tensor, fit_rows: Tensor, held_rows: Tensor, classes: int
) -> tuple[float, float, tuple[Tensor, Tensor]]:
    """The strength of highest held-out accuracy, the stronger one of equals, that accuracy, and the classifier."""
    x_fit, y_fit, x_held, y_held = x[fit_rows], y[fit_rows], x[held_rows], y[held_rows]
    found: list[tuple[float, float, tuple[Tensor, Tensor]]] = []
    best, classifier = 0, None
    constant = float((y_held == y_fit.mode().values).double().mean())
    for strength in STRENGTHS:
        classifier = minimise(x_fit, y_fit, variances, classes, strength, classifier, max_iter=60, tolerance=1e-6)
        accuracy = float((F.linear(x_held, *classifier).argmax(1) == y_held).double().mean())
        found.append((strength, accuracy, classifier))
        if accuracy > found[best][1]:
            best = len(found) - 1
        if found[best][1] > constant and len(found) - 1 - best >= PATIENCE:
            break
    return found[best]


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
