"""A result of ``clf search`` as one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from clf_serve.gallery.store import Hit
from clf_serve.style import PALETTE, VIEWPORT

_CSS = """
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px; }
h1 { font-size: 20px; margin: 0 0 4px; } p { color: var(--soft); margin: 0 0 20px; }
.query { display: flex; gap: 20px; align-items: center; margin-bottom: 28px; }
.query img { width: 128px; height: 128px; object-fit: cover; border-radius: 10px; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; list-style: none;
  margin: 0; padding: 0; }
li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
li img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; }
li div { padding: 8px 10px; font-size: 13px; } b { font-variant-numeric: tabular-nums; color: var(--accent); }
span { display: block; color: var(--soft); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
"""


def data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def result_page(query: str, query_jpeg: bytes, hits: Sequence[tuple[Hit, bytes]], about: str) -> str:
    """HTML of the query and its neighbours, each with its thumbnail (JPEG)."""
    items = "\n".join(
        f'<li><img src="{data_uri(jpeg)}" alt=""><div><b>{hit.score:.4f}</b>'
        f'<span title="{escape(hit.uri)}">{escape(hit.uri)}</span></div></li>'
        for hit, jpeg in hits
    )
    return (
        f'<!doctype html><html lang="en"><head>{VIEWPORT}<title>{escape(query)} · clf search</title>'
        f"<style>{PALETTE}{_CSS}</style></head><body><main>"
        f'<div class="query"><img src="{data_uri(query_jpeg)}" alt="the query"><div><h1>{escape(query)}</h1>'
        f"<p>{escape(about)}</p></div></div><ol>{items}</ol></main></body></html>\n"
    )
