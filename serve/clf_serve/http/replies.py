"""Embeddings on their way out: JSON as OpenAI writes it, base64, .npy, or the bare numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import orjson
from starlette.responses import Response

from clf_serve.engine import Vectors
from clf_serve.problems import Problem

Kind = Literal["application/json", "application/x-npy", "application/octet-stream"]
KINDS: tuple[Kind, ...] = ("application/json", "application/x-npy", "application/octet-stream")
USAGE = {"prompt_tokens": 0, "total_tokens": 0}


class JsonReply(Response):
    """JSON of plain objects and float32 arrays. A float is written with the fewest digits that give it back exactly."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def refusal(problem: Problem, path: str = "") -> Response:
    """A Problem as ``path``'s callers expect it: OpenAI's envelope, or the one text of the Open Inference Protocol."""
    if path == "/v2" or path.startswith("/v2/"):
        return JsonReply({"error": problem.message}, problem.status, problem.headers)
    return JsonReply(problem.body, problem.status, problem.headers)


def check_dimensions(dimensions: int | None, dim: int) -> None:
    """Raises Problem 400 when a model of ``dim`` cannot give so many."""
    if dimensions is not None and not 1 <= dimensions <= dim:
        text = f"this model has {dim} dimensions and cannot give {dimensions}"
        raise Problem(400, "invalid_dimensions", text, param="dimensions")


def shortened(vectors: Vectors, dimensions: int | None) -> Vectors:
    """The first so many numbers of each vector, of unit length again: (n, D) -> (n, dimensions).

    Raises:
        Problem: 422 those of a vector are all zero.
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    first = vectors[:, :dimensions].astype(np.float64)
    norms = np.linalg.norm(first, axis=1, keepdims=True)
    if not norms.all():
        text = f"the first {dimensions} numbers of this embedding are all zero; ask for more dimensions"
        raise Problem(422, "no_embedding", text, param=f"input[{int(np.argmin(norms))}]")
    short: Vectors = (first / norms).astype(np.float32)
    return short


def accepted(header: str) -> Kind:
    """The kind of reply that an Accept header likes best; JSON on a tie, and when it likes none (RFC 9110, 12.5.1)."""
    ranges = [_range(part) for part in header.split(",") if part.strip()]

    def quality(kind: Kind) -> float:
        family = kind.partition("/")[0] + "/*"
        for wanted in (kind, family, "*/*"):  # the more specific range decides
            found = [q for name, q in ranges if name == wanted]
            if found:
                return max(found)
        return 0.0

    return max(KINDS, key=quality)  # the first of equals


def matches(headers: Sequence[str], tag: str) -> bool:
    """Whether If-None-Match knows the quoted ``tag``: one of a list, weak or not, or any (RFC 9110, section 13.1.2)."""
    known = {each.strip().removeprefix("W/") for header in headers for each in header.split(",")}
    return tag in known or "*" in known


def embeddings_reply(
    vectors: Vectors, model: str, kind: Kind, encoding: str = "float", headers: dict[str, str] | None = None
) -> Response:
    """n embeddings (n, D) as ``kind``."""
    headers = headers or {}
    if kind == "application/json":
        rows = vectors if encoding == "float" else [base64.b64encode(row).decode() for row in _little(vectors)]
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        reply = {"object": "list", "data": data, "model": model, "usage": USAGE}
        return JsonReply(reply, headers=headers)
    about = {"X-Shape": ",".join(map(str, vectors.shape)), "X-Dtype": "<f4", **headers}
    raw = npy(vectors) if kind == "application/x-npy" else _little(vectors).tobytes()
    return Response(raw, headers=about, media_type=kind)


def npy(vectors: Vectors) -> bytes:
    """A .npy file, version 1.0: little-endian float32, C order (NumPy's NEP 1)."""
    file = io.BytesIO()
    np.lib.format.write_array(file, _little(vectors), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _little(vectors: Vectors) -> Vectors:
    return np.ascontiguousarray(vectors, "<f4")


def _range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = float(parameter[2:])
            except ValueError:
                quality = 0.0
    return name, quality
