"""multipart/form-data that is in memory already, read without copying it about: RFC 7578.

A parser that takes a stream in pieces, as Starlette's does, spends most of its time on the pieces; a request's body is
bounded and whole before it is looked at, so finding its boundaries is all there is to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from python_multipart.multipart import parse_options_header

from clf_serve.problems import Problem

_LONGEST_HEADERS = 2048  # bytes of one part's headers; reading parameters takes time with the square of their length


class Label(NamedTuple):
    """What a form says of one of its files."""

    field: str
    filename: str
    content_type: str


@dataclass
class Form:
    files: list[bytes] = field(default_factory=list)
    """Parts with a file name or an image's Content-Type, in order, whatever they are called."""
    labels: list[Label] = field(default_factory=list)
    """Of each file."""
    fields: dict[str, list[str]] = field(default_factory=dict)
    """All other parts, by name."""

    def last(self) -> dict[str, str]:
        """The last value of each field."""
        return {name: values[-1] for name, values in self.fields.items()}


def read_form(content_type: str, body: bytes, most: int) -> Form:
    """The parts of a form.

    Args:
        content_type: the header, with its boundary.
        most: parts that it may have, empty ones included.

    Raises:
        Problem: 400 the form is not well-formed; 413 it has too many parts.
    """
    options = parse_options_header(content_type)[1] if len(content_type) <= _LONGEST_HEADERS else {}
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise _invalid("Content-Type names no boundary")
    form = Form()
    for number, (start, end) in enumerate(_parts(body, boundary)):
        if number == most:
            raise Problem(413, "too_many_parts", f"the form has more than the {most} parts that it may")
        if end > start:
            _add(form, body, start, end)
    return form


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Where each part starts and ends, headers included; a part without even headers ends where it starts."""
    delimiter = b"--" + boundary
    if not body.startswith(delimiter):
        found = body.find(b"\r\n" + delimiter)  # a preamble is allowed, and ignored
        if found < 0:
            raise _invalid("its boundary is not in the body")
        at = found + 2
    else:
        at = 0
    at += len(delimiter)
    while body[at : at + 2] != b"--":
        line = body.find(b"\r\n", at, at + 80)
        if line < 0 or body[at:line].strip(b" \t"):
            raise _invalid("a boundary is not followed by a new line")
        end = body.find(b"\r\n" + delimiter, line)
        if end < 0:
            raise _invalid("it ends without its boundary")
        yield line + 2, max(line + 2, end)
        at = end + 2 + len(delimiter)


def _add(form: Form, body: bytes, start: int, end: int) -> None:
    split = body.find(b"\r\n\r\n", start, min(end, start + _LONGEST_HEADERS))
    if split < 0:
        raise _invalid("a part has no headers, or too many")
    disposition = _header(body[start:split], b"content-disposition")
    if disposition is None:
        raise _invalid("a part has no Content-Disposition")
    _, options = parse_options_header(disposition)
    if b"name" not in options:
        raise _invalid("a part has no name")
    value = body[split + 4 : end]
    kind = _header(body[start:split], b"content-type") or ""
    if b"filename" in options or kind.startswith(("image/", "application/octet-stream")):
        form.files.append(value)
        form.labels.append(Label(_text(options[b"name"]), _text(options.get(b"filename", b"")), kind))
        return
    try:
        form.fields.setdefault(options[b"name"].decode(), []).append(value.decode())
    except UnicodeDecodeError:
        raise _invalid("a field is not UTF-8; a file needs a filename") from None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _header(lines: bytes, name: bytes) -> str | None:
    for line in lines.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().decode("latin-1")
    return None


def _invalid(reason: str) -> Problem:
    return Problem(400, "invalid_form", f"the form cannot be read: {reason}")
