"""The filter as a form, made from what the gallery's metadata holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape

from clf_serve.gallery import FieldFacts

_CHOICES = 30
_FIELDS = 12


def filter_form(fields: Mapping[str, FieldFacts]) -> str:
    """A control for each name worth one, the most common names first: choices, a range, or a text to look for."""
    useful = [(name, facts) for name, facts in fields.items() if facts.entries and _says_something(name, facts)]
    useful.sort(key=lambda pair: (pair[0] != "@folder", -pair[1].entries))
    rows = [_control(name, facts, i) for i, (name, facts) in enumerate(useful[:_FIELDS])]
    left = len(useful) - len(rows)
    note = f'<p class="clf-hint">{left} more names can be used in the JSON below.</p>' if left else ""
    sampled = any(facts.sampled for _, facts in useful)
    sample = '<p class="clf-hint">The choices are those of a sample of the gallery.</p>' if sampled else ""
    return "".join(rows) + note + sample


def _says_something(name: str, facts: FieldFacts) -> bool:
    """Whether a choice would leave anything out; nothing can be chosen where all images agree."""
    return facts.distinct > 1 or (name != "@folder" and facts.distinct == 1)


def _control(name: str, facts: FieldFacts, i: int) -> str:
    label = "Folder" if name == "@folder" else name
    head = f'<label for="clf-f{i}">{escape(label)}</label>'
    data = f'id="clf-f{i}" data-name="{escape(name)}"'
    if facts.type == "number" and facts.distinct > 8:
        title = escape(label)
        return (
            f'<div class="clf-field" data-name="{escape(name)}" data-kind="range">'
            f'<span class="clf-label">{title}</span><span class="clf-range">'
            f'<input type="number" step="any" data-end="$gte" placeholder="from" aria-label="{title}, from">'
            f'<input type="number" step="any" data-end="$lte" placeholder="to" aria-label="{title}, to"></span></div>'
        )
    if facts.type == "text" and facts.distinct > len(facts.values) and facts.distinct > _CHOICES * 4:
        field = f'<input type="search" {data} data-kind="contains" placeholder="contains…">'
        return f'<div class="clf-field">{head}{field}</div>'
    kind = "member" if facts.type == "list" else "value"
    options = "".join(
        f'<option value="{escape(json.dumps(value))}">{escape(_shown(value))} ({count:,})</option>'
        for value, count in facts.values[: _CHOICES * 4]
    )
    return (
        f'<div class="clf-field">{head}<select {data} data-kind="{kind}">'
        f'<option value="">any</option>{options}</select></div>'
    )


def _shown(value: str | int | float | bool) -> str:
    if value == "":
        return "(top)"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 48 else text[:47] + "…"
