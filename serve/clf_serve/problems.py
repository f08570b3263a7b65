"""Refusals of the HTTP API, in the shape OpenAI's clients read: {"error": {message, type, param, code}}."""

from __future__ import annotations

from typing import Any

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Problem(Exception):  # noqa: N818 - the word of RFC 9457
    """A request that is refused, and why. ``code`` is for programs and for the metrics; ``param`` names the field."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}


def overloaded(retry_after: int) -> Problem:
    message = f"the server is busy; try again in {retry_after} s"
    return Problem(429, "overloaded", message, retry_after=retry_after)


def draining() -> Problem:
    return Problem(503, "shutting_down", "the server is shutting down; try another or again later", retry_after=5)


def broken() -> Problem:
    return Problem(503, "model_stopped", "the server has to be restarted; see its log", retry_after=5)


def too_late(seconds: float) -> Problem:
    return Problem(503, "deadline_exceeded", f"no answer within {seconds:.3g} s; try again later", retry_after=1)
