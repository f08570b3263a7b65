"""A search in a gallery, from its queries to its hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clf_serve.background import Background
from clf_serve.combine import combine
from clf_serve.deployment import Deployment
from clf_serve.engine import Vectors
from clf_serve.gallery import Hit
from clf_serve.gallery_memory import Memory
from clf_serve.http.attend import Attended, fetched
from clf_serve.http.gallery_queries import DEEPEST, Query
from clf_serve.http.gallery_replies import hit_json, index_json
from clf_serve.http.replies import JsonReply
from clf_serve.http.shapes import Url
from clf_serve.ingest import unknown_id
from clf_serve.limits import ServeLimits
from clf_serve.problems import Problem
from clf_serve.stores import AnyGallery

_SPARE = 2  # hits that are looked up for each one that is shown, where some are folded away


@dataclass(frozen=True)
class _Shown:
    """A hit, and those that were folded under it."""

    hit: Hit
    folded: Sequence[int] = ()


async def search(
    name: str, deployment: Deployment, query: Query, memory: Memory, limits: ServeLimits, job: Attended
) -> JsonReply:
    """The answer to ``query`` in the gallery called ``name``, written off the event loop: it may have many MiB.

    Raises:
        Problem: 404 a query's id is unknown; 400 the queries cancel each other out; what embedding raises.
    """
    vector = await _direction(query, deployment, limits, job)
    gallery = deployment.require_gallery()

    def look() -> JsonReply:
        return JsonReply(_answer(name, deployment.name, gallery, vector, query, memory))

    return await deployment.look_up(look, job.call)


async def _direction(query: Query, deployment: Deployment, limits: ServeLimits, job: Attended) -> Vectors:
    """(D,), of unit length: what the search is for."""
    vectors: list[Vectors | None] = [None] * len(query.terms)
    pictures = []
    for place, term in enumerate(query.terms):
        if isinstance(term.content, (bytes, Url)):
            pictures.append(place)
        elif not isinstance(term.content, int):
            vectors[place] = term.content
    if query.ids:
        gallery = deployment.require_gallery()
        stored = await deployment.look_up(lambda: {id_: gallery.vector(id_) for id_ in set(query.ids)}, job.call)
        for place, term in enumerate(query.terms):
            if isinstance(term.content, int):
                if stored[term.content] is None:
                    problem = unknown_id(term.content)
                    problem.param = term.param
                    raise problem
                vectors[place] = stored[term.content]
    if pictures:
        sources = [term.content for term in query.terms if isinstance(term.content, (bytes, Url))]
        blobs = await fetched(sources, limits, job)
        names = [query.terms[place].param for place in pictures]
        for place, vector in zip(pictures, await deployment.embed(blobs, job.call, names), strict=True):
            vectors[place] = vector
    try:
        return combine(np.stack([vector for vector in vectors if vector is not None]), [t.weight for t in query.terms])
    except ValueError as error:
        raise Problem(400, "no_direction", str(error), param="like") from error


def _answer(
    name: str, model: str, gallery: AnyGallery, vector: Vectors, query: Query, memory: Memory
) -> dict[str, Any]:
    facts = memory.facts(gallery)
    total = facts.images if query.where is None else memory.count(gallery, query.where)
    shown, more = _folded(gallery, vector, query, memory) if query.fold is not False else _plain(gallery, vector, query)
    background = Background.of(gallery)
    hits = []
    for each in shown:
        percentile = background.percentile(each.hit.score) if background else None
        hits.append(hit_json(name, each.hit, percentile, each.folded))
    if query.vectors and hits:
        stored = _vectors(gallery, [each.hit for each in shown])
        hits = [{**hit, "vector": row} for hit, row in zip(hits, stored, strict=True)]
    following = query.offset + query.k
    return {
        "object": "list",
        "hits": hits,
        "gallery": name,
        "model": model,
        "images": facts.images,
        "matching": total,
        "next": following if more and following + query.k <= DEEPEST else None,
        "index": index_json(facts),
    }


def _plain(gallery: AnyGallery, vector: Vectors, query: Query) -> tuple[list[_Shown], bool]:
    """One hit more than is shown tells whether another page follows."""
    if query.min_score is None:
        hits = _ranked(gallery, vector, query, query.k + 1, query.offset)
    else:
        hits = _ranked(gallery, vector, query, query.offset + query.k + 1, 0)[query.offset :]
    return [_Shown(hit) for hit in hits[: query.k]], len(hits) > query.k


def _folded(gallery: AnyGallery, vector: Vectors, query: Query, memory: Memory) -> tuple[list[_Shown], bool]:
    """Looks further until enough hits stand alone: whatever comes later never changes which do."""
    from clf_serve.duplicates.finding import fold

    threshold = memory.near(gallery) if query.fold is True else float(query.fold)
    wanted = query.offset + query.k
    reach = min(_SPARE * wanted + 1, DEEPEST)
    while True:
        hits = _ranked(gallery, vector, query, reach, 0)
        vectors = _vectors(gallery, hits)
        groups = fold(hits, vectors, [hit.sha256 for hit in hits], threshold) if hits else []
        if len(groups) > wanted or len(hits) < reach or reach == DEEPEST:
            break
        reach = min(2 * reach, DEEPEST)
    shown = [_Shown(hits[lead], [hits[place].id for place in rest]) for lead, *rest in groups]
    return shown[query.offset : wanted], len(groups) > wanted


def _ranked(gallery: AnyGallery, vector: Vectors, query: Query, k: int, offset: int) -> list[Hit]:
    but = set(query.ids)
    if query.min_score is not None:
        return gallery.within(vector, query.min_score, limit=k, where=query.where, but=but)
    return gallery.search(vector, k, where=query.where, but=but, offset=offset, exact=query.exact)


def _vectors(gallery: AnyGallery, hits: list[Hit]) -> Vectors:
    """(n, D); one that has gone meanwhile is like no other."""
    try:
        return gallery.vectors([hit.id for hit in hits])
    except KeyError:
        stored = [gallery.vector(hit.id) for hit in hits]
        none = np.zeros(gallery.model.dim, np.float32)
        return np.stack([none if vector is None else vector for vector in stored])
