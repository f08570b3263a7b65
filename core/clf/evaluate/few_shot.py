"""Few-shot classification by the nearest class mean.

Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning. NeurIPS 2017, arXiv 1703.05175, equations 1 and 2:
a query belongs to the class whose mean is nearest in squared Euclidean distance. On frozen features of unit length, as
in Wang, Chao, Weinberger, van der Maaten: SimpleShot. arXiv 1911.04623, section 3.2 (L2N).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from clf.evaluate.knn import directions
from clf.evaluate.results import FewShot
from clf.random import generator
from clf.spread import spread

WAYS = 5
"""Classes of an episode, or all that there are."""
SHOTS = (1, 5)
QUERIES = 15
"""Test images of each class of an episode, or as many as the smallest of them has."""
EPISODES = 600
NORMAL_975 = 1.96


@torch.no_grad()
def few_shot(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    shots: int,
    seed: int,
    ways: int = WAYS,
    episodes: int = EPISODES,
) -> FewShot:
    """Top-1 of the nearest class mean over episodes, each of ``shots`` images of ``ways`` classes out of the bank.

    Args:
        bank, queries: (n, D) and (m, D) of any norm, on one device.
        bank_labels, query_labels: (n,) and (m,) int64.
        seed: of the episodes, which depend on nothing else but the labels, ``ways`` and ``shots``.
        ways: fewer where fewer classes have enough images.

    Raises:
        ValueError: fewer than two classes have enough images; see :func:`too_few_shots`.
    """
    reason = too_few_shots(bank_labels, query_labels, shots)
    if reason:
        raise ValueError(reason)
    ways = min(ways, len(eligible(bank_labels, query_labels, shots)))
    bank, queries = directions(bank), directions(queries)
    accuracies = []
    for support, asked in draw(bank_labels.cpu(), query_labels.cpu(), ways, shots, episodes, seed):
        means = bank[support.to(bank.device)].mean(1)  # (W, D)
        x = queries[asked.to(bank.device).flatten()]  # (W * Q, D), class by class
        nearest = (x @ means.T - means.square().sum(1) / 2).argmax(1)  # the least |x - mean|^2
        truth = torch.arange(ways, device=x.device).repeat_interleave(asked.shape[1])
        accuracies.append(float((nearest == truth).double().mean()))
    found = spread(accuracies)
    interval = NORMAL_975 * (found.std or 0.0) / math.sqrt(found.n)
    return FewShot(ways=ways, shots=shots, accuracy=found.mean, interval=interval, episodes=episodes)


def too_few_shots(bank_labels: Tensor, query_labels: Tensor, shots: int) -> str | None:
    """Why episodes of so many shots cannot be drawn; None where they can."""
    found = len(eligible(bank_labels, query_labels, shots))
    if found > 1:
        return None
    return (
        f"{shots}-shot classification is left out: it takes two classes with {shots} training images and a test image, "
        f"and there {'is one' if found else 'are none'}."
    )


def eligible(bank_labels: Tensor, query_labels: Tensor, shots: int) -> list[int]:
    """Classes with enough training images and at least one test image, rising."""
    labels, counts = torch.unique(bank_labels, return_counts=True)
    tested = set(torch.unique(query_labels).tolist())
    return [label for label in labels[counts >= shots].tolist() if label in tested]


def draw(
    bank_labels: Tensor, query_labels: Tensor, ways: int, shots: int, episodes: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Episodes: rows of the bank (W, shots) and rows of the queries (W, Q), class by class, none of them twice."""
    classes = eligible(bank_labels, query_labels, shots)
    trained = [(bank_labels == label).nonzero()[:, 0] for label in classes]
    tested = [(query_labels == label).nonzero()[:, 0] for label in classes]
    for episode in range(episodes):
        source = generator(seed, "few shot", ways, shots, episode)
        chosen = torch.randperm(len(classes), generator=source)[:ways].tolist()
        asked = min(QUERIES, *(len(tested[c]) for c in chosen))
        support = [trained[c][torch.randperm(len(trained[c]), generator=source)[:shots]] for c in chosen]
        query = [tested[c][torch.randperm(len(tested[c]), generator=source)[:asked]] for c in chosen]
        yield torch.stack(support), torch.stack(query)
