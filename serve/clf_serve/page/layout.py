"""What the tabs of the page build on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gradio
from fastapi import FastAPI

from clf_serve.deployment import Deployment
from clf_serve.gallery.store import Hit, Item
from clf_serve.http.api import thumbnail_url
from clf_serve.page.theme import accepted
from clf_serve.problems import Problem
from clf_serve.service import Service


@dataclass(frozen=True)
class Page:
    """What every tab builds on. Made once; galleries and models are looked up anew for each request."""

    app: FastAPI
    """For routes of a tab's own; below ``/page/``, and ``include_in_schema=False``."""
    service: Service

    @property
    def galleries(self) -> dict[str, Deployment]:
        """By public name; empty where the server has none."""
        return self.service.galleries

    @contextmanager
    def using(self, gallery: str | None = None) -> Iterator[Deployment]:
        """The deployment of a gallery, by default the first, which stays open until the block ends.

        Raises:
            Problem: 404 there is no such gallery; 503 the server is shutting down.
        """
        here = self.galleries
        name = gallery if gallery is not None else next(iter(here), None)
        if name is not None and name not in here:
            text = f"there is no gallery {name!r} here; there is {', '.join(map(repr, here)) or 'none'}"
            raise Problem(404, "gallery_not_found", text, param="gallery")
        with self.service.using(None if name is None else here[name].name) as deployment:
            yield deployment

    def picture(self, image: Hit | Item, deployment: Deployment) -> str:
        """The URL of a thumbnail, relative, so that a proxy may put the page under any path. Not escaped."""
        model = None if deployment.name == self.service.default.name else deployment.name
        return thumbnail_url(image, model).lstrip("/")

    def html(self, value: str, elem_id: str) -> gradio.HTML:
        """Markup that looks as the page's own style sheets say, whose text is escaped already."""
        plain = accepted(gradio.HTML.__init__, {"padding": False, "apply_default_css": False})
        return gradio.HTML(value, elem_id=elem_id, **plain)
