"""Values of a setting that can be written out: choices, yes and no, and the default."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo


def choices(info: FieldInfo) -> list[str]:
    """All values of a choice or a boolean, as they are typed; nothing for a number or a text."""
    return list(dict.fromkeys(_choices(info.annotation)))


def default(info: FieldInfo) -> str | None:
    """The default as it is typed; ``None`` for a setting that must be given."""
    if info.is_required():
        return None
    value = info.get_default(call_default_factory=True)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def _choices(annotation: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from _choices(arguments[0])
    elif origin is Literal:
        yield from (each if isinstance(each, str) else json.dumps(each) for each in arguments)
    elif origin in (typing.Union, types.UnionType):
        for each in arguments:
            yield from _choices(each)
    elif annotation is bool:
        yield from ("true", "false")
    elif annotation is type(None):
        yield "null"
