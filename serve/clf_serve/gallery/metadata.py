"""Metadata of an image: what may be kept, how it is changed, and the flat facts that filters look at."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from clf.errors import GalleryError
from clf_serve.gallery.faults import DamageError

MAX_BYTES = 256 * 1024
"""Of one image's metadata, as JSON."""
MAX_DEPTH = 16

NULL, BOOL, NUMBER, TEXT, OBJECT, LIST = range(6)
MEMBER = 8
"""Added to the kind of a value that is a member of a list."""

Fact = tuple[str, int, str | int | float]
"""Dotted name, kind, value; objects, lists and null have the value "" ."""


class EntryError(GalleryError):
    """An entry that a gallery cannot keep; the text names the place in it."""


def encode(metadata: Mapping[str, Any]) -> str:
    """As JSON text.

    Raises:
        EntryError: it is no JSON object, or too large or deep a one, or holds what SQLite or JSON cannot.
    """
    if not isinstance(metadata, Mapping):
        raise EntryError(f"metadata must be an object of names and values, not {type(metadata).__name__}")
    _check(metadata, "metadata", 0)
    text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=dict)
    if len(text.encode()) > MAX_BYTES:
        raise EntryError(f"metadata: {len(text.encode())} bytes of JSON, more than the {MAX_BYTES} that are kept")
    return text


def decode(text: Any, id_: int) -> dict[str, Any]:
    """The metadata that an image is stored with. Raises DamageError."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DamageError(f"the metadata of image {id_} is no JSON object")
    return found


def _check(value: Any, place: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise EntryError(f"{place[:200]}: objects or lists lie in each other deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        check_text(value, place)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise EntryError(f"{place}: a name must be text, not {name!r}")
            check_text(name, place)
            _check(inner, f"{place}.{name[:60]}", depth + 1)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check(inner, f"{place}[{i}]", depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise EntryError(f"{place}: {value} is no number of JSON; leave it out, or write null")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise EntryError(f"{place}: the number does not fit into 64 bits; write it as text")
    elif value is not None:
        raise EntryError(f"{place}: {type(value).__name__} is not of JSON; write text, numbers, lists or objects")


def check_text(text: str, place: str) -> None:
    """Raises EntryError for text that UTF-8 or SQLite cannot hold whole."""
    if "\0" in text:
        raise EntryError(f"{place}: the text holds a NUL; leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise EntryError(f"{place}: {text[:60]!r} is no valid Unicode (half a surrogate pair)") from None


def merged(old: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """JSON merge patch (RFC 7396): named ones change, None deletes a name, objects merge."""
    new = dict(old)
    for name, value in patch.items():
        if value is None:
            new.pop(name, None)
        elif isinstance(value, Mapping):
            inner = new.get(name)
            new[name] = merged(inner if isinstance(inner, dict) else {}, value)
        else:
            new[name] = value
    return new


def facts(metadata: Mapping[str, Any], prefix: str = "") -> Iterator[Fact]:
    """Every name with its value: ``{"a": {"b": 1}}`` is an object ``a`` and a number ``a.b``."""
    for name, value in metadata.items():
        path = prefix + name
        if isinstance(value, Mapping):
            yield path, OBJECT, ""
            yield from facts(value, f"{path}.")
        elif isinstance(value, list):
            yield path, LIST, ""
            for member in value:
                if (fact := scalar(member)) is not None:
                    yield path, MEMBER + fact[0], fact[1]
        elif (fact := scalar(value)) is not None:
            yield path, *fact


def scalar(value: Any) -> tuple[int, str | int | float] | None:
    """Kind and value; None for what is no scalar, or (of an old gallery) no number that SQLite can hold."""
    if value is None:
        return NULL, ""
    if isinstance(value, bool):
        return BOOL, int(value)
    if isinstance(value, str):
        return TEXT, value
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    if isinstance(value, int | float) and math.isfinite(value):
        return NUMBER, value
    return None
