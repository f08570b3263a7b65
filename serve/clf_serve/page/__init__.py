"""The page of the server: search, map, compare, and adding images. Needs Gradio, which ``mount`` imports."""

from __future__ import annotations

from fastapi import FastAPI

from clf_serve.service import Service


def mount(app: FastAPI, service: Service) -> None:
    """Adds the page at ``/``; routes that were added before win.

    Raises:
        ModuleNotFoundError: gradio is not installed.
    """
    from clf_serve.page.mounting import mount as mount_blocks

    mount_blocks(app, service)
