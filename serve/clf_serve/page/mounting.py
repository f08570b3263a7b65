"""The frame of the page: a header, and a tab for each thing one can do. Each tab is a module with ``build(page)``.

Nothing is loaded from the network, and pictures come from the galleries by URL.
"""

from __future__ import annotations

from typing import Any

import gradio
from fastapi import FastAPI

from clf_serve.page import compare_tab, ingest_tab, search
from clf_serve.page import map as map_tab
from clf_serve.page.layout import Page
from clf_serve.page.theme import accepted, look
from clf_serve.service import Service

_TABS = (("Search", search), ("Map", map_tab), ("Compare", compare_tab), ("Add images", ingest_tab))
_IDLE = 1.0  # seconds between two looks into a queue that the tabs never use; Gradio takes a thousandth of that
_KEEP = 600  # seconds that what somebody sends to Gradio's own upload route stays; the tabs never use it


def mount(app: FastAPI, service: Service) -> None:
    page = Page(app, service)
    search.add_routes(page)
    dressing = look()
    options = {**dressing, "footer_links": [], "run_history": False, "ssr_mode": False}
    mounting = accepted(gradio.mount_gradio_app, options)
    at_blocks = {name: value for name, value in dressing.items() if name not in mounting}  # before Gradio 6
    blocks = _blocks(page, at_blocks)
    gradio.mount_gradio_app(app, blocks, path="/", max_file_size=service.limits.max_bytes, **mounting)
    queue = getattr(blocks, "_queue", None)
    for name in ("sleep_when_free", "progress_update_sleep_when_free"):
        if hasattr(queue, name):  # it has no public name
            setattr(queue, name, _IDLE)


def _blocks(page: Page, dressing: dict[str, Any]) -> gradio.Blocks:
    blocks: gradio.Blocks
    with gradio.Blocks(title="clf search", analytics_enabled=False, delete_cache=(60, _KEEP), **dressing) as blocks:
        page.html(search.header(), "clf-header")
        with gradio.Tabs(elem_id="clf-tabs"):
            for label, tab in _TABS:
                name = tab.__name__.rpartition(".")[2]
                with gradio.Tab(label, id=name, elem_id=f"clf-tab-{name}"):
                    tab.build(page)
    return blocks
