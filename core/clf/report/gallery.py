"""What a report shows of the images: views the method saw, neighbours of a few queries, label-free figures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clf import diagnostics
from clf.data import Split
from clf.diagnostics import Diagnostics
from clf.evaluate.features import encode
from clf.evaluate.knn import nearest
from clf.evaluate.measure import first_views, run_device, view_features
from clf.evaluate.pixels import raw_pixels
from clf.experiment import Experiment
from clf.random import generator

SHOWN_VIEWS = 8
QUERIES = 8
NEIGHBOURS = 6
BANK = 5000
"""Training images that are searched, at most."""


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


def make_gallery(what: Experiment) -> Gallery:
    """Encodes the bank once and takes everything from it."""
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
    )


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
