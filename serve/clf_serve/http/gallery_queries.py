"""What a search in a gallery is for: images, vectors and ids to be like or unlike, a filter, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from clf_serve.engine import Vectors
from clf_serve.gallery.filters import Where
from clf_serve.http.forms import read_form
from clf_serve.http.gallery_bodies import check_names, finite, id_of, parse_where
from clf_serve.http.inputs import MORE_PARTS, body_kind, read_json, unit_vector, urls_of, whole
from clf_serve.http.shapes import Source, image_of
from clf_serve.limits import ServeLimits
from clf_serve.problems import Problem

DEEPEST = 10_000
"""Hits of one search, those that are paged over included."""
MOST_TERMS = 100
"""Queries that one search may combine."""
LIKE, UNLIKE = 1.0, -0.5
"""Weights of what is given none."""
_MOST_WEIGHT = 1000.0
_QUERIES = ("image", "vector", "id")
_OPTIONS = ("k", "offset", "where", "min_score", "exact", "fold", "include")
_FIELDS = frozenset((*_QUERIES, "like", "unlike", *_OPTIONS))


@dataclass(frozen=True)
class Term:
    """An image, a vector (D,) or the id of an image in the gallery; its weight is below 0 for what is unlike."""

    content: Source | Vectors | int
    weight: float
    param: str


@dataclass(frozen=True)
class Query:
    terms: tuple[Term, ...]
    k: int = 10
    offset: int = 0
    where: Where | None = None
    min_score: float | None = None
    """Only hits of at least this cosine."""
    exact: bool = False
    fold: float | bool = False
    """Whether near duplicates are folded, or the cosine from which hits are."""
    vectors: bool = False
    """Whether the hits' vectors are wanted too."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Of the gallery's own images among the terms, which are left out of the hits."""
        return tuple(term.content for term in self.terms if isinstance(term.content, int))


def parse_query(headers: Headers, query: Mapping[str, str], body: bytes, limits: ServeLimits, dim: int) -> Query:
    """Options of the body win over those of the URL.

    Raises:
        Problem: 400, 413, 415.
    """
    kind = body_kind(headers)
    check_names(query, _OPTIONS)
    given = _of_texts(query)
    if kind == "json":
        tree = read_json(body)
        check_names(tree, _FIELDS)
        given |= {name: tree[name] for name in _OPTIONS if tree.get(name) is not None}
        return _query(_terms(tree, limits, dim), given, limits)
    if kind == "image":
        return _query([Term(body, LIKE, "image")], given, limits)
    form = read_form(headers["content-type"], body, limits.max_images + MORE_PARTS)
    sources: list[Source] = [*form.files, *urls_of(form, limits)]
    if len(sources) != 1:
        text = f"a form holds one image to search for, not {len(sources)}; JSON may combine several"
        raise Problem(400, "one_image", text, param="image")
    check_names(form.fields, {*_OPTIONS, "urls"})
    return _query([Term(sources[0], LIKE, "image")], given | _of_texts(form.last()), limits)


def parse_link(query: Mapping[str, str], limits: ServeLimits) -> Query:
    """A search for the neighbours of one image of the gallery, all of it in the URL. Raises Problem 400."""
    if "id" not in query:
        raise Problem(400, "one_query", "id is missing; other searches are sent with POST", param="id")
    check_names(query, {"id", *_OPTIONS})
    return _query([Term(id_of(_number(query["id"]), "id"), LIKE, "id")], _of_texts(query), limits)


def _query(terms: list[Term], given: Mapping[str, Any], limits: ServeLimits) -> Query:
    k = _integer(given, "k", 10, 1, limits.max_k)
    offset = _integer(given, "offset", 0, 0, DEEPEST - k)
    min_score = given.get("min_score")
    if min_score is not None and (min_score := finite(min_score, -1.0, 1.0)) is None:
        raise Problem(400, "invalid_min_score", "min_score must be a number from -1 to 1", param="min_score")
    exact = given.get("exact", False)
    if not isinstance(exact, bool):
        raise Problem(400, "invalid_exact", "exact must be true or false", param="exact")
    include = given.get("include", [])
    if not isinstance(include, list) or any(each != "vector" for each in include):
        raise Problem(400, "invalid_include", 'include must be a list that holds "vector" or nothing', param="include")
    where = parse_where(given.get("where"))
    return Query(tuple(terms), k, offset, where, min_score, exact, _fold(given.get("fold")), bool(include))


def _terms(tree: Mapping[str, Any], limits: ServeLimits, dim: int) -> list[Term]:
    asked = [name for name in _QUERIES if tree.get(name) is not None]
    sides = {name: tree[name] for name in ("like", "unlike") if tree.get(name) is not None}
    if len(asked) > 1 or not (asked or sides):
        text = f"give one of image, vector and id, or a list like; {len(asked)} were given"
        raise Problem(400, "one_query", text)
    terms = [_term(tree[name], name, LIKE, limits, dim, name) for name in asked]
    for side, items in sides.items():
        if not isinstance(items, list):
            raise Problem(400, "invalid_input", f"{side} must be a list", param=side)
        if len(terms) + len(items) > MOST_TERMS:
            raise Problem(413, "too_many_queries", f"a search combines {MOST_TERMS} queries at most", param=side)
        terms += [_weighted(item, f"{side}[{place}]", side, limits, dim) for place, item in enumerate(items)]
    if not terms:
        raise Problem(400, "one_query", "like and unlike are empty", param="like")
    images = [term for term in terms if not isinstance(term.content, int) and not hasattr(term.content, "shape")]
    if len(images) > limits.max_images:
        text = f"the search holds more images than the {limits.max_images} that it may"
        raise Problem(413, "too_many_images", text, param="like")
    return terms


def _weighted(item: Any, place: str, side: str, limits: ServeLimits, dim: int) -> Term:
    """An id, an image in base64, or an object of one of id, image and vector with a weight."""
    default = LIKE if side == "like" else UNLIKE
    if not isinstance(item, dict):
        return _term(item, "image" if isinstance(item, str) else "id", default, limits, dim, place)
    check_names(item, {*_QUERIES, "weight"}, place)
    asked = [name for name in _QUERIES if item.get(name) is not None]
    if len(asked) != 1:
        raise Problem(400, "one_query", f"{place} must have one of image, vector and id", param=place)
    weight = default
    if item.get("weight") is not None:
        number = finite(item["weight"], 0.0, _MOST_WEIGHT)
        if not number:
            text = f"{place}.weight must be a number above 0 and up to {_MOST_WEIGHT:g}"
            raise Problem(400, "invalid_weight", text, param=f"{place}.weight")
        weight = number if side == "like" else -number
    return _term(item[asked[0]], asked[0], weight, limits, dim, f"{place}.{asked[0]}")


def _term(value: Any, kind: str, weight: float, limits: ServeLimits, dim: int, param: str) -> Term:
    if kind == "id":
        return Term(id_of(value, param), weight, param)
    if kind == "vector":
        return Term(unit_vector(value, dim, param), weight, param)
    return Term(image_of(value, param, limits.allow_urls), weight, param)


def _fold(value: Any) -> float | bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    cosine = finite(value, 0.0, 1.0)
    if not cosine:
        text = "fold must be true, false, or a cosine above 0 and up to 1"
        raise Problem(400, "invalid_fold", text, param="fold")
    return cosine


def _integer(given: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    if given.get(name) is None:
        return default
    number = whole(given[name])
    if number is None or not least <= number <= most:
        raise Problem(400, f"invalid_{name}", f"{name} must be an integer from {least} to {most}", param=name)
    return number


def _of_texts(query: Mapping[str, str]) -> dict[str, Any]:
    """Options in a URL or a form, where everything is text."""
    given: dict[str, Any] = {name: query[name] for name in _OPTIONS if name in query}
    for name in ("k", "offset", "min_score"):
        if name in given:
            given[name] = _number(given[name])
    for name in ("exact", "fold"):
        if name in given:
            given[name] = {"true": True, "false": False}.get(given[name].lower(), _number(given[name]))
    if "include" in given:
        given["include"] = [word for word in given["include"].split(",") if word]
    return given


def _number(text: str) -> int | float | str:
    """The text itself where it is none, to be refused under its own name."""
    if text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 20:
        return int(text)
    try:
        return float(text) if len(text) < 40 and text.isascii() else text
    except ValueError:
        return text
