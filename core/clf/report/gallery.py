"""What a report shows of the images: views the method saw, neighbours of a few queries, the embedding map, which
classes are taken for which, label-free figures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clf import diagnostics
from clf.data import Split
from clf.evaluate.features import encode
from clf.evaluate.knn import knn_predict, nearest
from clf.evaluate.measure import first_views, run_device, view_features
from clf.evaluate.pixels import raw_pixels
from clf.evaluate.results import Diagnostics
from clf.experiment import Experiment
from clf.random import generator
from clf.report.classes import Judged, judge
from clf.report.embedding import POINTS, EmbeddingMap, make_map

SHOWN_VIEWS = 8
QUERIES = 8
NEIGHBOURS = 6
BANK = 5000
"""Training images that are searched, at most."""
VOTERS = 20
"""Neighbours that vote for the class of an image on the map."""


@dataclass(frozen=True)
class Picture:
    """An image with the words under it."""

    image: Tensor  # (C, S, S) uint8
    text: str = ""
    right: bool | None = None
    """Whether a neighbour has the query's class; None without labels."""


@dataclass(frozen=True)
class Search:
    query: Picture
    trained: list[Picture]
    pixels: list[Picture]


@dataclass(frozen=True)
class Gallery:
    views: list[tuple[Picture, list[Picture]]]
    searches: list[Search]
    found: Diagnostics
    searched: int
    query_split: str
    map: EmbeddingMap | None
    judged: Judged | None
    """How k-NN on the bank judges the images of the map; None without held-out labels."""


def make_gallery(what: Experiment) -> Gallery:
    """Encodes the bank and some held-out images once and takes everything from them."""
    data, device = what.data, run_device(what.config)
    encoder = what.method.encoder().to(device)
    bank = data.train.rows(_some(len(data.train), BANK, what.config.seed, "report bank"))
    features = encode(encoder, bank.clean, device=device)  # (n, D)
    held_out = data.test is not None
    asked = data.test if data.test is not None else bank
    rows = _some(len(asked), QUERIES, what.config.seed, "report queries")
    queries = asked.rows(rows)
    own = None if held_out else rows
    trained = _search(encode(encoder, queries.clean, device=device), features, own)
    pixels = _search(raw_pixels(queries.clean), raw_pixels(bank.clean), own)
    mapped = asked.rows(_some(len(asked), POINTS, what.config.seed, "report map"))
    placed = encode(encoder, mapped.clean, device=device)  # (m, D)
    return Gallery(
        views=_views(what),
        searches=[
            Search(
                _picture(queries, i, what),
                [_hit(bank, *hit, queries, i, what) for hit in trained[i]],
                [_hit(bank, *hit, queries, i, what) for hit in pixels[i]],
            )
            for i in range(len(queries))
        ],
        found=diagnostics.diagnose(features, view_features(encoder, what, device)),
        searched=len(bank),
        query_split="test" if held_out else "training",
        map=_map(placed, mapped, what, held_out),
        judged=_judge(features, bank, placed, mapped, what) if held_out else None,
    )


def _map(features: Tensor, mapped: Split, what: Experiment, held_out: bool) -> EmbeddingMap | None:
    labels = None if mapped.labels is None or not bool((mapped.labels >= 0).any()) else mapped.labels.tolist()
    whole = what.data.test if held_out and what.data.test is not None else what.data.train
    return make_map(
        features,
        mapped.clean[:],
        seed=what.config.seed,
        split="test" if held_out else "training",
        total=len(whole),
        labels=labels,
        class_names=what.data.class_names or (),
        names=None if mapped.names is None else list(mapped.names),
    )


def _judge(features: Tensor, bank: Split, placed: Tensor, mapped: Split, what: Experiment) -> Judged | None:
    if bank.labels is None or mapped.labels is None:
        return None
    known, asked = bank.labels >= 0, mapped.labels >= 0
    if not bool(known.any()) or not bool(asked.any()) or not bool(torch.isfinite(features).all()):
        return None
    guesses = knn_predict(features[known], bank.labels[known], placed[asked], VOTERS)
    return judge(mapped.labels[asked].tolist(), guesses.tolist(), what.data.class_names or (), VOTERS, int(known.sum()))


def _some(n: int, most: int, seed: int, purpose: str) -> Tensor:
    """Up to ``most`` row numbers, at random by the seed, rising."""
    return torch.randperm(n, generator=generator(seed, purpose))[:most].sort().values


def _search(queries: Tensor, bank: Tensor, own: Tensor | None) -> list[list[tuple[int, float]]]:
    """Bank rows and cosines for each query, best first, without the query's own row where it is in the bank."""
    scores, rows = nearest(bank, queries, NEIGHBOURS + (own is not None))
    hits = []
    for i, (found, cosines) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True)):
        pairs = list(zip(found, cosines, strict=True))
        if own is not None:
            pairs = [pair for pair in pairs if pair[0] != int(own[i])]
        hits.append(pairs[:NEIGHBOURS])
    return hits


def _views(what: Experiment) -> list[tuple[Picture, list[Picture]]]:
    index, views = first_views(what, SHOWN_VIEWS)
    return [
        (_picture(what.data.train, int(row), what), [Picture(view[i]) for view in views])
        for i, row in enumerate(index.tolist())
    ]


def _picture(split: Split, i: int, what: Experiment) -> Picture:
    return Picture(split.clean[i : i + 1][0], _class_name(split, i, what) or (split.names[i] if split.names else ""))


def _hit(bank: Split, row: int, cosine: float, queries: Split, i: int, what: Experiment) -> Picture:
    right = None
    if bank.labels is not None and queries.labels is not None and min(bank.labels[row], queries.labels[i]) >= 0:
        right = bool(bank.labels[row] == queries.labels[i])
    return Picture(bank.clean[row : row + 1][0], f"{cosine:.2f}", right)


def _class_name(split: Split, i: int, what: Experiment) -> str:
    if split.labels is None or int(split.labels[i]) < 0:
        return ""
    label = int(split.labels[i])
    names = what.data.class_names
    return names[label] if names else f"class {label}"
