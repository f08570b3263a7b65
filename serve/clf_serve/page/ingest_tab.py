"""The tab that adds images, where the server was started with ``--writable``; elsewhere it says how.

``ingest.js`` sends each file to ``/v1/galleries/NAME/images`` as it is, a few at a time: what is refused, and why, is
what the API says, and no file is written anywhere on its way.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio

from clf_serve.page.layout import Page


def build(page: Page) -> None:
    """The tab's content, inside its ``gradio.Tab``."""
    gradio.HTML(_frame(list(page.galleries), page.service.limits.writable), elem_id="clf-ingest-frame", padding=False)


def _frame(galleries: list[str], writable: bool) -> str:
    """The markup that ``ingest.js`` brings to life, or why there is nothing to."""
    if not galleries:
        return _closed("This server has no gallery to add to. Make one, and start the server with it:", _START)
    if not writable:
        return _closed("This server only reads its galleries. To let whoever opens this page add to them:", _START)
    markup = (Path(__file__).parent / "ingest.html").read_text(encoding="utf-8")
    options = "".join(f"<option>{escape(name)}</option>" for name in galleries)
    return markup.replace("@GALLERIES@", options).replace("@ONE@", "hidden" if len(galleries) == 1 else "")


_START = "clf serve MODEL --gallery GALLERY --writable"


def _closed(text: str, command: str) -> str:
    return (
        '<section id="clf-ingest" aria-label="Add images"><div class="clf-message">'
        f"<h2>Adding images is switched off</h2><p>{text}</p><pre>{command}</pre></div></section>"
    )
