"""The page: drop a picture, see its neighbours. Gradio, in the same process and through the same queue as the API.

Nothing is loaded from the network, pictures come from the gallery by URL, and what is uploaded is read as it is, so
the page and the API agree on every file, EXIF orientation included.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path, PurePath
from typing import Any

import gradio
from fastapi import FastAPI

from clf.errors import ClfError
from clf_serve.api import thumbnail_url
from clf_serve.call import Call
from clf_serve.deployment import Deployment
from clf_serve.problems import Problem
from clf_serve.service import Service
from clf_serve.gallery.store import Hit
from clf_serve.style import PALETTE

_log = logging.getLogger(__name__)
_EXAMPLES = 10
_KEEP = 1800  # seconds that an uploaded file stays in the temporary folder
_COUNTS = (12, 24, 48, 96)


def mount(app: FastAPI, service: Service) -> None:
    """Adds the page at ``/``; routes that were added before win."""
    css = PALETTE + (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    look = {"theme": _theme(), "css": css}
    mounting = _accepted(gradio.mount_gradio_app, {**look, "footer_links": [], "run_history": False, "ssr_mode": False})
    at_blocks = {name: value for name, value in look.items() if name not in mounting}  # before Gradio 6
    blocks = _blocks(Page(service), at_blocks)
    gradio.mount_gradio_app(app, blocks, path="/", max_file_size=service.limits.max_bytes, **mounting)


class Page:
    """What the page shows, as HTML. Every text from outside is escaped."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.has_gallery = service.default.gallery is not None

    async def look_up(self, path: str | None, count: int, like: int | None) -> str:
        """Neighbours of an uploaded file, or of the gallery's image ``like``."""
        if path is None and like is None:
            return self.welcome()
        call = Call(deadline=time.monotonic() + self._service.limits.timeout)
        try:
            with self._service.using() as deployment:
                if path is None:
                    return await self._like(deployment, int(like or 0), count, call)
                blob = await asyncio.to_thread(Path(path).read_bytes)
                vector = (await deployment.embed([blob], call))[0]
                if deployment.gallery is None:
                    return _vector_html(vector.tolist(), call)
                return self._hits(deployment, await deployment.neighbours(vector, count, call), call, "")
        except Problem as problem:
            return _message("That did not work", problem.message)
        except (ClfError, OSError) as error:
            _log.error("%s", error)
            return _message("That did not work", "The server could not read it; its log says why.")

    async def from_link(self, request: gradio.Request) -> tuple[str, int | None]:
        """What the page shows at first: with ``?like=ID`` the neighbours of that image."""
        text = str(request.query_params.get("like", ""))
        like = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
        return await self.look_up(None, _COUNTS[1], like), like

    async def _like(self, deployment: Deployment, id_: int, count: int, call: Call) -> str:
        vector = await deployment.vector(id_)
        hits = await deployment.neighbours(vector, count, call, but=id_)
        asked = await asyncio.to_thread(deployment.require_gallery().get, id_)
        return self._hits(deployment, hits, call, _asked(asked) if asked else "")

    def _hits(self, deployment: Deployment, hits: Sequence[Hit], call: Call, asked: str) -> str:
        cards = "".join(map(_card, hits))
        count = f"<b>{len(hits)}</b> nearest of {len(deployment.require_gallery()):,}"
        line = f'<div class="clf-line"><span>{count}</span>{_times(call)}</div>'
        return f'{line}{asked}<div class="clf-grid">{cards}</div>'

    def header(self) -> str:
        deployment = self._service.default
        manifest = deployment.engine.manifest
        facts = [f"{manifest.dim} dimensions", f"{manifest.image_size} px", deployment.engine.device.upper()]
        if deployment.gallery is not None:
            facts.insert(0, f"{len(deployment.gallery):,} images")
        chips = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
        trained = " · ".join(escape(part) for part in (manifest.plugin, manifest.backbone) if part)
        return (
            f'<header class="clf-head"><div><h1>{escape(manifest.name)}</h1><p>{trained}</p></div>'
            f'<nav>{chips}<a href="docs">API</a></nav></header>'
        )

    def examples(self) -> str:
        gallery = self._service.default.gallery
        if gallery is None:
            return ""
        hits = gallery.sample(_EXAMPLES)
        if not hits:
            return ""
        links = "".join(
            f'<a href="?like={hit.id}" title="{escape(hit.uri)}"><img src="{_picture(hit)}" alt="" loading="lazy"></a>'
            for hit in hits
        )
        return f'<div class="clf-examples"><p>Or start from one of the gallery</p><div>{links}</div></div>'

    def welcome(self) -> str:
        gallery = self._service.default.gallery
        if gallery is None:
            text = "This server has no gallery. Drop a picture to see its embedding, or start it with --gallery."
            return _message("Drop a picture", text)
        if not len(gallery):
            return _message("The gallery is empty", "Fill it: clf index MODEL IMAGES -o GALLERY")
        return _message("Drop a picture", "Its nearest neighbours in the gallery appear here, the most alike first.")


def _blocks(page: Page, look: dict[str, Any]) -> gradio.Blocks:
    private = _accepted(gradio.on, {"api_visibility": "private", "show_api": False})
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, **private}
    blocks: gradio.Blocks
    with gradio.Blocks(title="clf search", analytics_enabled=False, delete_cache=(600, _KEEP), **look) as blocks:
        gradio.HTML(page.header())
        like = gradio.State(None)
        with gradio.Row(elem_id="clf-main"):
            with gradio.Column(scale=1, min_width=270, elem_id="clf-side"):
                picture = gradio.Image(
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    show_label=False,
                    height=264,
                    elem_id="clf-query",
                )
                # Gradio would decode the file here; what the API gets, and what it says of bad files, is the rule
                picture.preprocess = _path  # type: ignore[method-assign]
                count = gradio.Radio(
                    list(_COUNTS), value=_COUNTS[1], label="Neighbours", elem_id="clf-count", visible=page.has_gallery
                )
                gradio.HTML(page.examples())
            with gradio.Column(scale=3, min_width=300):
                result = gradio.HTML(page.welcome(), elem_id="clf-result")
        gradio.on([picture.change, count.change], page.look_up, [picture, count, like], result, **quiet)
        blocks.load(page.from_link, None, [result, like], **quiet)
    return blocks


def _path(payload: Any) -> str | None:
    return payload.path if payload else None


def _accepted(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that this version of Gradio knows."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def _theme() -> gradio.themes.Base:
    """The palette's colours, which know light from dark by themselves, and fonts that are on the machine."""
    fonts = [gradio.themes.Font(name) for name in ("ui-sans-serif", "system-ui", "sans-serif")]
    mono = [gradio.themes.Font(name) for name in ("ui-monospace", "monospace")]
    theme = gradio.themes.Base(font=fonts, font_mono=mono, radius_size=gradio.themes.sizes.radius_lg)
    colours = {
        "body_background_fill": "var(--ground)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--soft)",
        "block_background_fill": "var(--card)",
        "block_border_color": "var(--line)",
        "block_label_text_color": "var(--soft)",
        "block_title_text_color": "var(--soft)",
        "border_color_primary": "var(--line)",
        "background_fill_primary": "var(--card)",
        "background_fill_secondary": "var(--ground)",
        "input_background_fill": "var(--card)",
        "color_accent": "var(--accent)",
        "color_accent_soft": "var(--accent-ground)",
        "checkbox_label_background_fill": "var(--card)",
        "checkbox_label_background_fill_hover": "var(--accent-ground)",
        "checkbox_label_background_fill_selected": "var(--accent-ground)",
        "checkbox_label_text_color": "var(--ink)",
        "checkbox_label_text_color_selected": "var(--accent)",
        "checkbox_background_color_selected": "var(--accent)",
        "checkbox_border_color_selected": "var(--accent)",
        "link_text_color": "var(--accent)",
    }
    dark = {f"{name}_dark": value for name, value in colours.items()}
    return theme.set(**_accepted(theme.set, colours | dark))


def _picture(hit: Hit) -> str:
    return escape(thumbnail_url(hit).lstrip("/"))  # relative, so that a proxy may put the page under any path


def _card(hit: Hit) -> str:
    share = max(0.0, min(1.0, hit.score))
    return (
        f'<a class="clf-card" href="?like={hit.id}" title="{escape(hit.uri)}">'
        f'<img src="{_picture(hit)}" alt="{escape(hit.uri)}" loading="lazy">'
        f'<i style="--share:{share:.3f}"></i><span><b>{hit.score:.3f}</b>{escape(PurePath(hit.uri).name)}</span></a>'
    )


def _asked(hit: Hit) -> str:
    return (
        f'<div class="clf-asked"><img src="{_picture(hit)}" alt=""><div><p>Most like</p><b>{escape(hit.uri)}</b>'
        '<a href="./">new search</a></div></div>'
    )


def _times(call: Call) -> str:
    parts = [f"{name} {1000 * seconds:.0f} ms" for name, seconds in call.seconds.items() if name != "queue"]
    return f'<span class="clf-times">{" · ".join(parts)}</span>'


def _vector_html(vector: list[float], call: Call) -> str:
    top = max(map(abs, vector))
    bars = "".join(f'<i style="--share:{abs(x) / top:.3f}" class="{"up" if x >= 0 else "down"}"></i>' for x in vector)
    head = f'<div class="clf-line"><span><b>{len(vector)}</b> numbers</span>{_times(call)}</div>'
    return f'{head}<div class="clf-vector">{bars}</div>'


def _message(title: str, text: str) -> str:
    return f'<div class="clf-message"><h2>{escape(title)}</h2><p>{escape(text)}</p></div>'
