"""The compare tab: two galleries, each with its own encoder, asked the same and shown side by side."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from html import escape
from pathlib import Path, PurePath

import gradio
from starlette.requests import Request
from starlette.responses import Response

from clf_serve.background import Background, percent, words
from clf_serve.compare import PERSISTENCE, SAMPLE, Common, Comparison, Found, Side, common, compare, same_image
from clf_serve.deployment import Deployment
from clf_serve.gallery import Item
from clf_serve.http.attend import Attended, attended
from clf_serve.http.replies import JsonReply
from clf_serve.page.layout import Page
from clf_serve.problems import Problem

COUNTS = (12, 24, 48)
_ROW = 68  # pixels; the lines between the columns meet the rows' middles
_GUTTER = 72
_SAMPLES = 8


def build(page: Page) -> None:
    """The tab's content, inside its ``gradio.Tab``, and its routes."""
    routes = _Routes(page)
    page.app.add_route("/page/compare", routes.start, methods=["GET"], include_in_schema=False)
    page.app.add_route("/page/compare", routes.compare, methods=["POST"], include_in_schema=False)
    markup = (Path(__file__).parent / "compare.html").read_text(encoding="utf-8")
    counts = "".join(
        f'<label><input type="radio" name="clf-compare-k" value="{k}"{" checked" if k == COUNTS[1] else ""}>'
        f"<span>{k}</span></label>"
        for k in COUNTS
    )
    gradio.HTML(markup.replace("@COUNTS@", counts), elem_id="clf-compare-frame", padding=False)


class _Routes:
    def __init__(self, page: Page) -> None:
        self._page = page

    async def start(self, request: Request) -> Response:
        """What can be compared, what two galleries have in common, and pictures to start from."""
        galleries = self._page.galleries
        names = [{"name": name, "model": each.name} for name, each in galleries.items()]
        if len(galleries) < 2:
            return JsonReply({"galleries": names, "html": _alone(len(galleries))})
        with ExitStack() as held:
            first, second = self._pair(request, held)
            shared, samples = await asyncio.to_thread(_common, first, second)
            note = await asyncio.to_thread(_shared_words, shared, first, second)
            return JsonReply({"galleries": names, "note": note, "html": self._samples(samples, first)})

    async def compare(self, request: Request) -> Response:
        """Both rankings: for the image ``?id=`` of the gallery ``?first=``, or for the picture in the body."""

        async def work(job: Attended) -> Response:
            text = request.query_params.get("id", "")
            k = _count(request.query_params.get("k", str(COUNTS[1])))
            with ExitStack() as held:
                first, second = self._pair(request, held)
                if text:
                    sides = await first.look_up(partial(_by_id, first, second, text), job.call)
                else:
                    sides = [
                        Side(each.require_gallery(), (await each.embed([job.body], job.call))[0])
                        for each in (first, second)
                    ]
                found, backgrounds, asked = await first.look_up(partial(_compared, sides, k), job.call)
                html = self._result(found, (first, second), backgrounds)
                reply = {"html": html, "overlap": found.overlap, "rbo": found.rbo.extrapolated, "tau": found.tau}
                if asked is not None:
                    reply["asked"] = {"uri": asked.uri, "picture": self._page.picture(asked, first)}
                return JsonReply(reply)

        return await attended(request, self._page.service, work, room=not request.query_params.get("id"))

    def _pair(self, request: Request, held: ExitStack) -> tuple[Deployment, Deployment]:
        """The galleries that are asked for, by default the first two, which stay open until ``held`` is closed."""
        names = list(self._page.galleries)
        if len(names) < 2:
            raise Problem(404, "no_pair", "this server has fewer than two galleries", param="second")
        first = request.query_params.get("first") or names[0]
        second = request.query_params.get("second") or next(name for name in names if name != first)
        return held.enter_context(self._page.using(first)), held.enter_context(self._page.using(second))

    def _samples(self, items: Sequence[Item], deployment: Deployment) -> str:
        if not items:
            return _message("The first gallery is empty", "Fill it: clf index MODEL IMAGES -o GALLERY")
        pictures = "".join(
            f'<button type="button" data-compare="{item.id}" aria-label="Compare for {escape(item.uri)}">'
            f'<img src="{escape(self._page.picture(item, deployment))}" alt="" loading="lazy"></button>'
            for item in items
        )
        return f'<div class="clf-compare-samples"><h2>Start from one of these</h2><div>{pictures}</div></div>'

    def _result(
        self, found: Comparison, pair: tuple[Deployment, Deployment], backgrounds: Sequence[Background | None]
    ) -> str:
        names = [self._page.service.gallery_name(each) for each in pair]
        columns = [
            self._column(hits, len(others), pair[i], names[i], names[1 - i], found.depth, backgrounds[i], i)
            for i, (hits, others) in enumerate(((found.first, found.second), (found.second, found.first)))
        ]
        body = f'<div class="clf-compare-columns">{columns[0]}{_lines(found)}{columns[1]}</div>'
        return _summary(found) + body

    def _column(
        self,
        hits: Sequence[Found],
        others: int,
        deployment: Deployment,
        name: str,
        other: str,
        depth: int,
        background: Background | None,
        side: int,
    ) -> str:
        rows = []
        for rank, found in enumerate(hits, 1):
            hit = found.hit
            pair = f"{rank}-{found.rank}" if side == 0 else f"{found.rank}-{rank}"
            shared = found.rank is not None and found.rank <= others
            place, spoken = _place(found, others, depth, other)
            share = background.percentile(hit.score) if background else None
            closer = "" if share is None else f'<small title="{words(share)}">closer than {percent(share)}</small>'
            file = escape(PurePath(hit.uri).name)
            rows.append(
                f'<li class="{"clf-shared" if shared else "clf-alone"}"{f" data-pair={pair}" if shared else ""}>'
                f'<span class="clf-rank">{rank}</span>'
                f'<button type="button" data-compare="{hit.id}" data-side="{side}" title="Compare for this one">'
                f'<img src="{escape(self._page.picture(hit, deployment))}" alt="{file}" loading="lazy"></button>'
                f'<span class="clf-what"><b>{hit.score:.3f}{closer}</b>'
                f'<span title="{escape(hit.uri)}">{file}</span></span>'
                f'<span class="clf-place" title="{escape(spoken)}">{place}'
                f'<span class="clf-unseen">{escape(spoken)}</span></span></li>'
            )
        head = f"<h3>{escape(deployment.name)}</h3><p>{escape(name)} · {len(deployment.require_gallery()):,} images</p>"
        return f'<section aria-label="{escape(name)}">{head}<ol style="--row:{_ROW}px">{"".join(rows)}</ol></section>'


def _place(found: Found, others: int, depth: int, other: str) -> tuple[str, str]:
    """Where the other gallery has an image: a mark, and what it means."""
    if found.rank is not None and found.rank <= others:
        return f"⇄ {found.rank}", f"also number {found.rank} in {other}"
    if found.rank is not None:
        return str(found.rank), f"only number {found.rank} in {other}"
    if found.present:
        return f">{depth}", f"not among the first {depth} in {other}"
    return "∅", f"{other} does not have this image"


def _lines(found: Comparison) -> str:
    """Curves from the rank in the first column to the rank in the second."""
    height = found.k * _ROW
    curves = []
    for i, each in enumerate(found.first):
        if each.rank is None or each.rank > len(found.second):
            continue
        y, to = (i + 0.5) * _ROW, (each.rank - 0.5) * _ROW
        middle = _GUTTER / 2
        curves.append(
            f'<path data-pair="{i + 1}-{each.rank}" d="M0 {y:g}C{middle:g} {y:g} {middle:g} {to:g} {_GUTTER} {to:g}"/>'
        )
    return (
        f'<svg class="clf-compare-lines" viewBox="0 0 {_GUTTER} {height}" width="{_GUTTER}" height="{height}"'
        f' preserveAspectRatio="none" aria-hidden="true">{"".join(curves)}</svg>'
    )


def _summary(found: Comparison) -> str:
    overlap, tau = found.rbo, found.tau
    only = [sum(each.rank is None or each.rank > found.k for each in side) for side in (found.first, found.second)]
    facts = (
        (f"{found.shared} of {found.k}", "found by both", f"overlap {_percent(found.overlap)}"),
        (f"{overlap.extrapolated:.2f}", "rank-biased overlap", f"from {overlap.least:.2f} to {overlap.most:.2f}"),
        ("–" if tau is None else f"{tau:+.2f}".replace("-", "−"), "Kendall’s τ", "order of the shared"),
        (f"{only[0]} | {only[1]}", "found by one only", f"among its first {found.k}"),
    )
    cells = "".join(f"<div><dt>{label}<small>{hint}</small></dt><dd>{value}</dd></div>" for value, label, hint in facts)
    return f'<dl class="clf-compare-facts">{cells}</dl>{_WHY}'


_WHY = (
    '<details class="clf-compare-why"><summary>What these say</summary><p>Rank-biased overlap is 1 for the same '
    "ranking and 0 where nothing is shared. Agreement near the top counts more: after each rank a reader goes on "
    f"with the probability {PERSISTENCE:g}, so the first ten ranks hold 86 % of the weight. The range is what it could "
    "still become by the results that are not shown. Kendall’s τ is +1 when both put what they share in the same "
    "order, −1 for the opposite. The number at the end of a row is the image’s rank in the other column.</p></details>"
)


def _percent(share: float) -> str:
    """Rounded down: 100 % is all of them."""
    return f"{math.floor(100 * share + 1e-9)} %"


def _by_id(first: Deployment, second: Deployment, text: str) -> list[Side]:
    """Both sides for an image of the first gallery. Raises Problem 400, 404."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Problem(400, "invalid_id", "id must be an integer", param="id")
    gallery, other = first.require_gallery(), second.require_gallery()
    item = gallery.get(int(text))
    if item is None:
        raise Problem(404, "unknown_id", f"the gallery has no image {text}", param="id")
    there = same_image(item, other)
    if there is None:
        name = PurePath(item.uri).name
        text = f"the second gallery does not have {name}; upload its file, or choose a picture that both have"
        raise Problem(404, "not_in_both", text, param="id")
    sides = [(gallery, item.id), (other, there.id)]
    found = []
    for each, id_ in sides:
        vector = each.vector(id_)
        if vector is None:
            raise Problem(404, "unknown_id", f"the image {id_} has just been removed", param="id")
        found.append(Side(each, vector, [id_]))
    return found


def _compared(sides: Sequence[Side], k: int) -> tuple[Comparison, list[Background | None], Item | None]:
    """Both rankings, what their scores are worth, and the image that was asked with."""
    found = compare(sides[0], sides[1], k)
    asked = next((sides[0].gallery.get(id_) for id_ in sides[0].but), None)
    return found, [Background.of(side.gallery) for side in sides], asked


def _common(first: Deployment, second: Deployment) -> tuple[Common, list[Item]]:
    """The share in common, and images of the first gallery that the second has too."""
    gallery, other = first.require_gallery(), second.require_gallery()
    items = gallery.sample(4 * _SAMPLES)
    both = [item for item in items if other.find(item.key) is not None]
    picked = both or items
    return common(gallery, other), picked[:: max(1, len(picked) // _SAMPLES)][:_SAMPLES]


def _shared_words(shared: Common, first: Deployment, second: Deployment) -> str:
    sizes = [len(each.require_gallery()) for each in (first, second)]
    if not all(sizes):
        return "One of the galleries is empty."
    if shared.share == 1 and shared.exact and sizes[0] == sizes[1]:
        return f"Both galleries hold the same {sizes[0]:,} images."
    sample = "" if shared.exact else f"a sample of {SAMPLE:,} of "
    of = f"of {sample}the smaller gallery’s images" if sizes[0] != sizes[1] else f"of {sample}the first one’s images"
    if shared.share == 0:
        return f"The galleries differ: none {of} is in the other, so their rankings cannot agree."
    part = "All" if shared.share == 1 else _percent(shared.share)
    return f"{part} {of} are in the other ({sizes[0]:,} and {sizes[1]:,})."


def _alone(galleries: int) -> str:
    has = "has one gallery" if galleries else "has no gallery"
    return _message(
        "Two encoders, side by side",
        f"This server {has}. Index the same images with a second model, and start the server with both:",
        ("clf index MODEL_B IMAGES -o GALLERY_B", "clf serve MODEL_A MODEL_B --gallery GALLERY_A --gallery GALLERY_B"),
    )


def _message(title: str, text: str, commands: Iterable[str] = ()) -> str:
    lines = "\n".join(map(escape, commands))
    shown = f"<pre>{lines}</pre>" if lines else ""
    return f'<div class="clf-message"><h2>{escape(title)}</h2><p>{escape(text)}</p>{shown}</div>'


def _count(text: str) -> int:
    """Raises Problem 400."""
    if text not in map(str, COUNTS):
        raise Problem(400, "invalid_k", f"k must be one of {', '.join(map(str, COUNTS))}", param="k")
    return int(text)
