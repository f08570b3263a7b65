"""A search as the browser asks for it. The browser keeps everything; the server remembers nothing between requests.

A picture of the gallery is asked for by id. One that was uploaded is embedded once (``/page/embed``), and from then on
the browser sends its vector. So there are no sessions to bound, and nothing of an upload is left behind here.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from clf_serve.engine import Vectors
from clf_serve.gallery.filters import FilterError, Where
from clf_serve.problems import Problem

COUNTS = (12, 24, 48, 96)
"""Results on a page of the page."""
_MOST_QUERIES = 32
_MOST_WEIGHT = 10.0

Crop: TypeAlias = tuple[float, float, float, float]
"""Left, top, width and height as fractions of the upright picture."""


@dataclass(frozen=True)
class Query:
    """One picture and its weight; below 0 for what the results should be unlike. Either ``id`` or ``vector``."""

    weight: float
    id: int | None = None
    vector: Vectors | None = None
    """(D,), unit length."""
    model: str | None = None
    """SHA-256 of the model that made the vector, where the browser knows it."""


@dataclass(frozen=True)
class Search:
    queries: tuple[Query, ...]
    gallery: str | None = None
    k: int = 24
    """Results on one page; a fold of near duplicates counts as one."""
    page: int = 0
    where: Where | None = None
    fold: bool = True
    least: float = -1.0
    """Results of a lower score are left out."""

    @property
    def ids(self) -> list[int]:
        return [query.id for query in self.queries if query.id is not None]


def parse_search(tree: Mapping[str, Any]) -> Search:
    """Raises Problem 400, naming the field."""
    queries = tree.get("queries")
    if not isinstance(queries, list) or not 1 <= len(queries) <= _MOST_QUERIES:
        raise _bad("queries", f"a search takes from 1 to {_MOST_QUERIES} pictures")
    gallery = tree.get("gallery")
    if gallery is not None and not isinstance(gallery, str):
        raise _bad("gallery", "it must be the name of a gallery")
    least = _number(tree.get("min", -1.0), "min", -1.0, 1.0)
    return Search(
        queries=tuple(_query(each, f"queries[{i}]") for i, each in enumerate(queries)),
        gallery=gallery,
        k=_whole(tree.get("k", 24), "k", 1, COUNTS[-1]),
        page=_whole(tree.get("page", 0), "page", 0, 10_000),
        where=parse_where(tree.get("where")),
        fold=tree.get("fold", True) is not False,
        least=least,
    )


def parse_where(value: Any) -> Where | None:
    """Nothing, and the filter that says nothing, let everything through. Raises Problem 400."""
    if value is None or value == {}:
        return None
    try:
        return Where.parse(value)
    except FilterError as error:
        raise Problem(400, "invalid_filter", str(error), param="where") from error


def parse_crop(text: str) -> Crop | None:
    """``left,top,width,height``; None for no text. Raises Problem 400."""
    if not text:
        return None
    wanted = "crop must be left,top,width,height: fractions of the picture, within it and not empty"
    try:
        left, top, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise _bad("crop", wanted) from None
    inside = 0 <= left < 1 and 0 <= top < 1 and 0 < width <= 1 and 0 < height <= 1  # not-a-number is not inside
    if not inside or left + width > 1.001 or top + height > 1.001:
        raise _bad("crop", wanted)
    return left, top, width, height


def vector_text(vector: Vectors) -> str:
    """A vector (D,) as the browser keeps it: little-endian float32 in base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _query(tree: Any, place: str) -> Query:
    if not isinstance(tree, dict) or ("id" in tree) == ("vector" in tree):
        raise _bad(place, "give an id or a vector")
    weight = _number(tree.get("weight", 1.0), f"{place}.weight", -_MOST_WEIGHT, _MOST_WEIGHT)
    if not weight:
        raise _bad(f"{place}.weight", "a weight of 0 asks for nothing; leave the picture out")
    if "id" in tree:
        return Query(weight, id=_whole(tree["id"], f"{place}.id", 0, 2**63 - 1))
    model = tree.get("model")
    if model is not None and not isinstance(model, str):
        raise _bad(f"{place}.model", "it must be text")
    return Query(weight, vector=_vector(tree["vector"], f"{place}.vector"), model=model)


def _vector(text: Any, place: str) -> Vectors:
    try:
        raw = base64.b64decode(text, validate=True)
        vector: Vectors = np.frombuffer(raw, "<f4").astype(np.float32)
    except (TypeError, ValueError, binascii.Error):
        raise _bad(place, "it must be float32 numbers in base64") from None
    length = float(np.linalg.norm(vector.astype(np.float64))) if len(vector) else 0.0
    if not 0 < length < math.inf:
        raise _bad(place, "its numbers must be finite and not all zero")
    unit: Vectors = (vector / length).astype(np.float32)
    return vector if abs(length - 1) < 1e-5 else unit  # what the server gave comes back to the bit


def _whole(value: Any, place: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _bad(place, f"it must be a whole number from {least} to {most}")
    return value


def _number(value: Any, place: str, least: float, most: float) -> float:
    if type(value) not in (int, float) or not least <= value <= most:
        raise _bad(place, f"it must be a number from {least:g} to {most:g}")
    return float(value)


def _bad(place: str, text: str) -> Problem:
    return Problem(400, "invalid_search", f"{place}: {text}", param=place)
