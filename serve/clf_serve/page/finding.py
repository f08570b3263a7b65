"""From a search to results: queries combined, neighbours found, near duplicates folded, a page cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from clf_serve.background import Background
from clf_serve.call import Call
from clf_serve.combine import combine
from clf_serve.deployment import Deployment
from clf_serve.duplicates.finding import fold
from clf_serve.engine import Vectors
from clf_serve.gallery.store import Hit, Item
from clf_serve.gallery_memory import Memory
from clf_serve.page.state import Search
from clf_serve.problems import Problem
from clf_serve.stores import AnyGallery


@dataclass(frozen=True)
class Found:
    groups: list[list[Hit]]
    """Of this page: near duplicates together, best first."""
    more: bool
    """Whether there is a next page."""
    among: int
    """Images that the filter lets through."""
    shares: dict[int, float] = field(default_factory=dict)
    """By id, the share of random pairs of the gallery that are less alike than the query and it."""
    asked: list[Item] = field(default_factory=list)
    """The gallery's images that were asked with."""
    images: int = 0
    """Of the whole gallery."""
    generation: int = 0


async def find(deployment: Deployment, wanted: Search, memory: Memory, call: Call, most: int) -> Found:
    """The page of results that ``wanted`` names.

    Args:
        most: results that a search may reach, all pages together.

    Raises:
        Problem: 404 an image that is not there; 409 a vector of another model; 422 the queries cancel each other out;
            429, 503 the server is busy.
    """
    return await deployment.look_up(partial(_find, deployment.require_gallery(), wanted, memory, most), call)


def _find(gallery: AnyGallery, wanted: Search, memory: Memory, most: int) -> Found:
    vector = _query_vector(gallery, wanted)
    groups, more = _page(gallery, vector, wanted, memory.near(gallery) if wanted.fold else None, most)
    hits = [hit for group in groups for hit in group]
    among = memory.count(gallery, wanted.where)
    known = memory.facts(gallery)
    asked = gallery.items(wanted.ids)
    return Found(groups, more, among, shares(gallery, hits), asked, known.images, known.generation)


def shares(gallery: AnyGallery, hits: Sequence[Hit]) -> dict[int, float]:
    """By id, the share of random pairs that are less alike; empty where the gallery is too small to say."""
    background = Background.of(gallery) if hits else None
    if background is None:
        return {}
    found = background.percentile(np.array([hit.score for hit in hits]))
    return {hit.id: float(share) for hit, share in zip(hits, found, strict=True)}


def _query_vector(gallery: AnyGallery, wanted: Search) -> Vectors:
    vectors = []
    for i, query in enumerate(wanted.queries):
        vector = query.vector if query.id is None else gallery.vector(query.id)
        if vector is None:
            text = f"the gallery has no image {query.id}; it may have been removed"
            raise Problem(404, "unknown_id", text, param=f"queries[{i}].id")
        if query.model not in (None, gallery.model.sha256) or len(vector) != gallery.model.dim:
            text = f"this vector is of another model than the gallery's, which is {gallery.model}"
            raise Problem(409, "other_model", text, param=f"queries[{i}].vector")
        vectors.append(vector)
    try:
        return combine(np.stack(vectors), np.array([query.weight for query in wanted.queries]))
    except ValueError as error:
        raise Problem(422, "no_direction", str(error), param="queries") from error


def _page(
    gallery: AnyGallery, vector: Vectors, wanted: Search, near: float | None, most: int
) -> tuple[list[list[Hit]], bool]:
    """Groups of the page, and whether there are more. From the cosine ``near`` on, results are folded into one.

    Folding looks at all results from the best on, so that a group stands on one page whichever page is asked for.
    """
    first, end = wanted.page * wanted.k, (wanted.page + 1) * wanted.k
    if first >= most:
        raise Problem(400, "invalid_search", f"page: only the best {most} results can be paged through", param="page")
    reach = min(most, end + 1 + (wanted.k if wanted.fold else 0))
    while True:
        hits = gallery.search(vector, reach, where=wanted.where, but=wanted.ids)
        good = [hit for hit in hits if hit.score >= wanted.least]
        groups = [[hit] for hit in good] if near is None else _folded(gallery, good, near)
        if len(groups) > end or len(good) < reach or reach == most:
            return groups[first:end], len(groups) > end
        reach = min(most, 2 * reach)


def _folded(gallery: AnyGallery, hits: Sequence[Hit], near: float) -> list[list[Hit]]:
    if len(hits) < 2:
        return [[hit] for hit in hits]
    try:
        vectors = gallery.vectors([hit.id for hit in hits])
    except KeyError:  # removed since the search
        return [[hit] for hit in hits]
    groups = fold(hits, vectors, [hit.sha256 for hit in hits], near)
    return [[hits[i] for i in group] for group in groups]
