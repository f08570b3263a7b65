"""What operators ask of a running server. Only with an API key: without keys these routes refuse."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from clf_serve.problems import Problem
from clf_serve.service import Service


class Reloaded(BaseModel):
    reloaded: list[str]
    """Names of models."""


def routes(service: Service, *, keys: bool) -> APIRouter:
    """Args: keys: whether callers need an API key, which the guard has checked then."""
    router = APIRouter()
    refusals: dict[int | str, dict[str, Any]] = {
        403: {"description": "The server has no API keys."},
        404: {"description": "There is no such model."},
        409: {"description": "A model could not be opened or does not work; it goes on as it was."},
        503: {"description": "The server is shutting down."},
    }

    @router.post("/admin/reload", response_model=Reloaded, responses=refusals)
    async def reload(model: str | None = None) -> Reloaded:
        """Opens a model (by default every one) and its gallery again, and puts it in the place of the old one."""
        if not keys:
            raise Problem(403, "needs_keys", "start the server with CLF_API_KEYS to use this, or send it SIGHUP")
        outcomes = await service.reload(model)
        reloaded = [name for name, reason in outcomes.items() if reason is None]
        refused = [f"{name}: {reason}" for name, reason in outcomes.items() if reason is not None]
        if refused:
            raise Problem(409, "not_reloaded", f"{'; '.join(refused)}. Reloaded: {', '.join(reloaded) or 'nothing'}")
        return Reloaded(reloaded=reloaded)

    return router
