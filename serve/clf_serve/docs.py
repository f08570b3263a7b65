"""A page about the API. FastAPI's own loads its script from a third party; this one loads nothing."""

from __future__ import annotations

from html import escape
from typing import Any

from clf_serve.style import PALETTE, VIEWPORT

_CSS = """
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 760px; margin: 0 auto; padding: 40px 20px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
  margin: 12px 0; }
h1 { font-size: 22px; } h2 { font: 600 15px/1.4 ui-monospace, monospace; margin: 0; }
h2 b { color: var(--accent); margin-right: 8px; } p { margin: 6px 0 0; color: var(--soft); } a { color: var(--accent); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 10px 0 0; font: 13px/1.5 ui-monospace, monospace; }
"""
_EXAMPLES = {
    "/v1/embeddings": [
        "curl -F image=@photo.jpg {base}/v1/embeddings",
        "curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' {base}/v1/embeddings",
    ],
    "/search": [
        "curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' '{base}/search?k=5'",
        "curl -d '{{\"id\": 1, \"k\": 5}}' -H 'Content-Type: application/json' {base}/search",
    ],
}


def docs_page(openapi: dict[str, Any], base: str) -> str:
    """HTML of all routes, with examples for the server at ``base``."""
    sections = [
        _section(method.upper(), path, operation.get("description", ""), base)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        f'<!doctype html><html lang="en"><head>{VIEWPORT}<title>clf · API</title>'
        f"<style>{PALETTE}{_CSS}</style></head><body><main>"
        f'<h1>clf API</h1><p>Machine-readable: <a href="openapi.json">openapi.json</a></p>{"".join(sections)}'
        "</main></body></html>"
    )


def _section(method: str, path: str, text: str, base: str) -> str:
    examples = "".join(f"<pre>{escape(line.format(base=base))}</pre>" for line in _EXAMPLES.get(path, ()))
    return f"<section><h2><b>{method}</b>{escape(path)}</h2><p>{escape(text)}</p>{examples}</section>"
