"""A result of ``clf search`` as one HTML file that needs nothing else, not even a network; and parts of such files."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from clf_serve.gallery.store import Hit
from clf_serve.style import PALETTE, VIEWPORT
from clf_serve.transfer.whole import whole

_CSS = """
.query { display: flex; gap: 20px; align-items: center; margin-bottom: 28px; }
.query > div { min-width: 0; } .query h1 { overflow-wrap: anywhere; }
.query img { width: 128px; height: 128px; object-fit: cover; border-radius: 10px; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; list-style: none;
  margin: 0; padding: 0; }
li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
li img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; }
li div { padding: 8px 10px; font-size: 13px; } b { font-variant-numeric: tabular-nums; color: var(--accent); }
li span { display: block; color: var(--soft); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
"""
_PAGE_CSS = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 20px; line-height: 1.3; margin: 0 0 4px; } p { color: var(--soft); margin: 0 0 20px; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
"""


def data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def picture(jpeg: bytes, alt: str) -> str:
    """An ``img`` element, or a blank field of its place where there is no thumbnail."""
    if not jpeg:
        return f'<span class="blank" role="img" aria-label="{escape(alt)}"></span>'
    return f'<img src="{data_uri(jpeg)}" alt="{escape(alt)}" loading="lazy" decoding="async">'


def page(title: str, css: str, body: str) -> str:
    """A whole HTML document of one column, light and dark."""
    return (
        f'<!doctype html><html lang="en"><head>{VIEWPORT}<title>{escape(title)}</title>'
        f"<style>{PALETTE}{_PAGE_CSS}{css}</style></head><body><main>{body}</main></body></html>\n"
    )


def result_page(query: str, query_jpeg: bytes, hits: Sequence[tuple[Hit, bytes]], about: str) -> str:
    """HTML of the query and its neighbours, each with its thumbnail (JPEG)."""
    items = "\n".join(
        f"<li>{picture(jpeg, '')}<div><b>{hit.score:.4f}</b>"
        f'<span title="{escape(hit.uri)}">{escape(hit.uri)}</span></div></li>'
        for hit, jpeg in hits
    )
    return page(
        f"{query} · clf search",
        _CSS,
        f'<div class="query">{picture(query_jpeg, "the query")}<div><h1>{escape(query)}</h1>'
        f"<p>{escape(about)}</p></div></div><ol>{items}</ol>",
    )


def write_whole(path: Path, text: str) -> None:
    """Writes a file beside its place and renames it, so that there is the earlier one or all of this one.

    Raises:
        DataError: it cannot be written.
    """
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")
