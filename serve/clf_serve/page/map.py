"""The map tab: a gallery's images as points of a plane, drawn by the browser on a canvas of its own (``map.js``).

The points come in one reply, as base64 of typed arrays; names and pictures only of those that someone points at.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from clf.errors import ClfError
from clf_serve.deployment import Deployment
from clf_serve.gallery import Hit, Item, Where
from clf_serve.http.replies import JsonReply
from clf_serve.page.layout import Page
from clf_serve.page.state import parse_where
from clf_serve.problems import Problem
from clf_serve.projection import Drawing, Projection, Projections, has_umap
from clf_serve.stores import AnyGallery

LIGHT = ("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499")
"""P. Tol, Colour Schemes, SRON/EPS/TN/09-002, 2021: "muted", told apart with any colour vision."""
DARK = ("#dd7733", "#7777bb", "#99dd99", "#ffbb33", "#339999", "#ddbbff", "#997755", "#33ffdd", "#bb33ff")
"""For a dark ground; chosen to be far apart for full colour vision and for each of the three dichromacies."""
_LISTED = 200  # values with a line in the legend
_OTHER, _NONE = 254, 255  # codes of a value without a line, and of no value
_AT_ONCE = 5000  # ids in one filter
_GRADES = 253  # of a gradient


def build(page: Page) -> None:
    """The tab's content, inside its ``gradio.Tab``, and its routes."""
    _Routes(page).add()
    gradio.HTML(_frame(), elem_id="clf-map-frame", padding=False)


class _Routes:
    def __init__(self, page: Page) -> None:
        self._page = page
        self._projections = Projections()

    def add(self) -> None:
        self._page.app.add_route("/page/map", self.points, methods=["GET"], include_in_schema=False)
        self._page.app.add_route("/page/map/image", self.image, methods=["GET"], include_in_schema=False)

    async def points(self, request: Request) -> Response:
        """The points and their colours; 202 while they are being drawn. Without ``colour``, those of the folders."""
        query = request.query_params
        where = _where(query.get("where", ""))
        with self._page.using(query.get("gallery") or None) as deployment:
            gallery = deployment.require_gallery()
            try:
                drawn = await asyncio.to_thread(
                    self._drawn, gallery, query.get("kind", "pca"), bool(query.get("again"))
                )
                if isinstance(drawn, Drawing):
                    state = {"stage": drawn.stage, "share": drawn.share, "seconds": drawn.seconds}
                    return JsonReply({"drawing": state}, 202)
                reply = await asyncio.to_thread(self._reply, gallery, drawn, query.get("colour"), where)
                names = list(self._page.galleries)
                shown = query.get("gallery") or names[0]
                return JsonReply(reply | {"galleries": names, "gallery": shown, "picture": self._picture(deployment)})
            except ClfError as error:
                raise Problem(422, "no_map", str(error), param="kind") from error

    async def image(self, request: Request) -> Response:
        """What one point is: ``?id=``."""
        text = request.query_params.get("id", "")
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise Problem(400, "invalid_id", "id must be an integer", param="id")
        with self._page.using(request.query_params.get("gallery") or None) as deployment:
            item = await asyncio.to_thread(deployment.require_gallery().get, int(text))
            if item is None:
                raise Problem(404, "unknown_id", f"the gallery has no image {text}", param="id")
            picture = self._page.picture(item, deployment)
            facts = {"id": item.id, "uri": item.uri, "folder": item.folder, "picture": picture}
            return JsonReply(facts | {"metadata": item.metadata})

    def _picture(self, deployment: Deployment) -> str:
        """The URL of any thumbnail, with ``ID`` in it; without the digest, so the browser asks whether it changed."""
        mark = 2**62 + 1
        return self._page.picture(Hit(mark, "", 0.0), deployment).replace(str(mark), "ID")

    def _drawn(self, gallery: AnyGallery, kind: str, again: bool) -> Projection | Drawing:
        if kind == "umap":
            return self._projections.umap(gallery, again=again)
        if kind != "pca":
            raise Problem(400, "invalid_kind", f"kind must be pca or umap, not {kind[:20]!r}", param="kind")
        return self._projections.pca(gallery)

    def _reply(self, gallery: AnyGallery, drawn: Projection, field: str | None, where: Where | None) -> dict[str, Any]:
        ids = drawn.ids.tolist()
        known = self._page.service.memory.fields(gallery)
        fields = [name for name, facts in known.items() if facts.type in ("text", "number", "bool")]
        if field is None and known["@folder"].distinct > 1:
            field = "@folder"
        found = {item.id: item for item in gallery.items(ids)} if field else {}
        painted = colours([value_of(found[id_], field) if id_ in found else None for id_ in ids]) if field else None
        reply: dict[str, Any] = {
            "kind": drawn.kind,
            "images": drawn.images,
            "n": len(ids),
            "seconds": round(drawn.seconds, 2),
            "stamp": f"{drawn.generation}",
            "stale": drawn.generation != gallery.generation,
            "explained": drawn.explained,
            "ids": _base64(drawn.ids.astype("<f8")),  # exact below 2^53, and what JavaScript counts with
            "xy": _base64(((drawn.points + 1) * 32767.5).round().astype("<u2")),
            "fields": sorted(fields, key=lambda name: (name != "@folder", name)),
            "field": field or None,
        }
        if painted is not None:
            reply |= {"codes": _base64(painted.codes), "other": painted.other, "missing": painted.missing}
            reply |= {"low": painted.low, "high": painted.high, "values": _legend(painted, drawn)}
        if where is not None:
            passing = _passing(gallery, ids, where)
            reply["shown"] = _base64(np.array([id_ in passing for id_ in ids], np.uint8))
        return reply


@dataclass(frozen=True)
class Colours:
    """What the points are coloured by."""

    codes: NDArray[np.uint8]
    """(n,): the number of a value in ``values`` or a grade of a gradient; ``_OTHER``, ``_NONE``."""
    values: Sequence[tuple[str, int]] = ()
    """Labels with their counts, the most frequent first."""
    other: int = 0
    """Images whose value has no line of its own."""
    missing: int = 0
    low: float | None = None
    high: float | None = None
    """Ends of a gradient."""


def colours(values: Sequence[Any]) -> Colours:
    """Of each image's value: text, number, bool, or None for no value.

    More than nine different numbers make a gradient; all else a list.
    """
    known = [value for value in values if isinstance(value, str | int | float)]
    missing = len(values) - len(known)
    numbers = [float(v) for v in known if isinstance(v, int | float) and not isinstance(v, bool)]
    if numbers and len(numbers) == len(known) and len(set(numbers)) > len(LIGHT):
        return _gradient(values, missing)
    counts = Counter(map(_label, known))
    listed = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:_LISTED]
    code = {label: number for number, (label, _) in enumerate(listed)}
    codes = [code.get(_label(v), _OTHER) if isinstance(v, str | int | float) else _NONE for v in values]
    other = len(known) - sum(count for _, count in listed)
    return Colours(np.array(codes, np.uint8), listed, other, missing)


def _gradient(values: Sequence[Any], missing: int) -> Colours:
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    grades = np.nan_to_num((numbers - low) / (high - low) * _GRADES).round().astype(np.uint8)
    codes = np.where(np.isnan(numbers), _NONE, grades).astype(np.uint8)
    return Colours(codes, missing=missing, low=low, high=high)


def _label(value: str | int | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else f"{value:g}"


def value_of(item: Item, name: str) -> str | int | float | None:
    """An image's value of a field: ``@folder``, or a name of its metadata, dotted into what is nested."""
    if name == "@folder":
        return item.folder or "(top)"
    value: Any = item.metadata
    if name in item.metadata:
        value = item.metadata[name]
    else:
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, str | int | float) else None


def _where(text: str) -> Where | None:
    """Raises Problem 400."""
    try:
        return parse_where(json.loads(text)) if text else None
    except (ValueError, RecursionError) as error:
        raise Problem(400, "invalid_filter", f"where: this is no JSON ({error})", param="where") from error


def _passing(gallery: AnyGallery, ids: Sequence[int], where: Where) -> set[int]:
    """Which of these the filter lets through; the rest of the gallery is not looked at."""
    found: set[int] = set()
    for start in range(0, len(ids), _AT_ONCE):
        part = list(ids[start : start + _AT_ONCE])
        both = Where.parse({"$and": [{"@id": {"$in": part}}, json.loads(where.json)]})
        found.update(item.id for item in gallery.page(limit=len(part), where=both))
    return found


def _legend(painted: Colours, drawn: Projection) -> list[dict[str, Any]]:
    """The values, each with the image in the middle of its points."""
    lines = []
    for code, (label, count) in enumerate(painted.values):
        places = np.flatnonzero(painted.codes == code)
        points = drawn.points[places]
        middle = places[np.square(points - np.median(points, axis=0)).sum(axis=1).argmin()]
        lines.append({"label": label, "count": count, "example": int(drawn.ids[middle])})
    return lines


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _frame() -> str:
    """The markup that ``map.js`` fills."""
    umap = "" if has_umap() else ' disabled title="needs umap-learn: pip install clf-vision[map]"'
    palette = ";".join(
        [f"--map-{i}: light-dark({light}, {dark})" for i, (light, dark) in enumerate(zip(LIGHT, DARK, strict=True))]
    )
    markup = (Path(__file__).parent / "map.html").read_text(encoding="utf-8")
    return markup.replace("@UMAP@", umap).replace("@PALETTE@", escape(palette))
