"""A page about the API. FastAPI's own loads its script from a third party; this one loads nothing."""

from __future__ import annotations

from html import escape
from typing import Any
from urllib.parse import quote

from clf_serve.http.doc_examples import examples
from clf_serve.style import PALETTE, VIEWPORT

_CSS = """
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 820px; margin: 0 auto; padding: 40px 20px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
  margin: 12px 0; }
h1 { font-size: 22px; } h2 { font: 600 15px/1.4 ui-monospace, monospace; margin: 0; overflow-wrap: anywhere; }
h2 b { color: var(--accent); margin-right: 8px; } p { margin: 6px 0 0; color: var(--soft); } a { color: var(--accent); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 10px 0 0; font: 13px/1.5 ui-monospace, monospace; }
table { border-collapse: collapse; margin: 8px 0 0; font-size: 13px; } summary { color: var(--soft); cursor: pointer; }
td { padding: 2px 12px 2px 0; vertical-align: top; } td:first-child { font-family: ui-monospace, monospace; }
details { margin: 8px 0 0; }
"""


def docs_page(openapi: dict[str, Any], base: str) -> str:
    """HTML of all routes, with examples for the server at ``base``."""
    model = next(iter(openapi["components"]["schemas"]["EmbeddingsRequest"]["properties"]["model"]["enum"]))
    named = openapi["paths"]["/v1/galleries/{gallery}"]["get"]["parameters"][0]["schema"]
    gallery = quote(next(iter(named.get("enum", ())), "GALLERY"), safe="")
    sections = [
        _section(method.upper(), path, operation, examples(path, base, model, gallery, method.upper()))
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        f'<!doctype html><html lang="en"><head>{VIEWPORT}<title>clf · API</title>'
        f"<style>{PALETTE}{_CSS}</style></head><body><main>"
        f'<h1>clf API</h1><p>Machine-readable: <a href="openapi.json">openapi.json</a></p>{"".join(sections)}'
        "</main></body></html>"
    )


def _section(method: str, path: str, operation: dict[str, Any], lines: list[str]) -> str:
    shown = "".join(f"<pre>{escape(line)}</pre>" for line in lines)
    return (
        f"<section><h2><b>{method}</b>{escape(path)}</h2><p>{escape(operation['description'])}</p>"
        f"{shown}{_parameters(operation)}{_answers(operation)}</section>"
    )


def _parameters(operation: dict[str, Any]) -> str:
    rows = [
        (each["name"], f"{each['in']}: {each.get('description') or each['schema'].get('description', '')}")
        for each in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {})
    return _table("takes", [*rows, *((kind, "body") for kind in body)])


def _answers(operation: dict[str, Any]) -> str:
    rows = [
        (status, f"{answer['description']} {' · '.join(answer.get('content', {}))}")
        for status, answer in sorted(operation["responses"].items())
    ]
    return _table("answers", rows)


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f"<details><summary>{title}</summary><table>{cells}</table></details>"
