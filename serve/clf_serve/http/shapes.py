"""The many shapes in which clients put images into JSON, all brought to one list.

OpenAI and infinity: strings. Jina: ``{"image": ...}``. vLLM and OpenAI's chat: ``messages`` with ``image_url`` parts.
OpenAI's responses: ``input_image``. Voyage: ``{"content": [{"type": "image_base64", ...}]}``. Text has no meaning to an
image encoder and is refused wherever it stands, never ignored.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from clf_serve.problems import Problem

INPUTS = ("input", "inputs", "images", "image", "messages")
"""Fields that may hold the images; one of them does."""

PLACES = ("image", "image_url", "input_image", "image_base64", "url", "base64", "bytes")
"""Where an object has its image."""
_TEXT = ("text", "input_text")
_SHORTEST = 24  # bytes; no image is smaller, but many a word is valid base64
_CHUNK = 2**18  # characters decoded at a time, a multiple of 4; other threads may run in between


@dataclass(frozen=True)
class Url:
    """An image that is still to be fetched."""

    address: str
    param: str


Source: TypeAlias = bytes | Url


def images_of(tree: dict[str, Any], most: int, urls: bool) -> list[Source]:
    """The images of a JSON request, in order.

    Args:
        most: images that a request may hold.
        urls: whether images may be named by URL.

    Raises:
        Problem: 400 there is none, or text, or a URL, or no valid base64; 413 too many.
    """
    given = [name for name in INPUTS if tree.get(name) is not None]
    if not given:
        raise Problem(400, "no_images", "the field 'input' is missing: an image in base64, or a list", param="input")
    if len(given) > 1:
        raise Problem(400, "invalid_input", f"give one of {', '.join(given)}", param=given[1])
    name = given[0]
    if tree.get("modality") in ("text", "audio"):
        raise _no_text(name, f"modality is {tree['modality']}")
    if tree.get("modality") not in (None, "image"):
        raise Problem(400, "invalid_modality", "modality must be 'image'", param="modality")
    items = _parts_of_messages(tree[name]) if name == "messages" else _items(tree[name], name)
    found: list[Source] = []
    for item, param in items:
        if len(found) == most:
            text = f"the request holds more images than the {most} that it may"
            raise Problem(413, "too_many_images", text, param=name)
        found.append(image_of(item, param, urls))
    return found


def image_of(value: Any, param: str, urls: bool) -> Source:
    """One image, in any of the shapes.

    Raises:
        Problem: 400, as :func:`images_of`.
    """
    if isinstance(value, str):
        return _string(value, param, urls, bare=True)
    if isinstance(value, dict) and "content" in value:
        parts = [part for part, _ in _parts(value["content"], param)]
        if len(parts) != 1:
            text = f"{param} must hold one image, as each item gets one embedding; it holds {len(parts)}"
            raise Problem(400, "invalid_input", text, param=param)
        value = parts[0]
    if isinstance(value, dict):
        return _string(_inside(value, param), param, urls, bare=False)
    raise _invalid(param)


def _items(value: Any, name: str) -> Iterator[tuple[Any, str]]:
    if not isinstance(value, list):
        yield value, name
        return
    if value and all(type(item) in (int, list) for item in value):
        why = "it holds token numbers (LangChain: check_embedding_ctx_length=False)"
        raise _no_text(name, why)
    for index, item in enumerate(value):
        yield item, f"{name}[{index}]"


def _parts_of_messages(messages: Any) -> Iterator[tuple[Any, str]]:
    """Each image of a conversation is one; who said it does not matter."""
    if not isinstance(messages, list):
        raise Problem(400, "invalid_input", "messages must be a list", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise Problem(400, "invalid_input", "a message must be an object", param=f"messages[{index}]")
        yield from _parts(message.get("content"), f"messages[{index}]")


def _parts(content: Any, param: str) -> Iterator[tuple[Any, str]]:
    """The image parts of ``content``. Empty text is nothing; other text is refused."""
    param += ".content"
    for index, part in enumerate(content if isinstance(content, list) else [content]):
        where = f"{param}[{index}]" if isinstance(content, list) else param
        if isinstance(part, str):
            part = {"text": part}
        if not isinstance(part, dict):
            raise _invalid(where)
        if _text_of(part, where) is not None:
            yield part, where


def _text_of(part: dict[str, Any], param: str) -> dict[str, Any] | None:
    """None for a part that is empty text and nothing else."""
    texts = [part[name] for name in _TEXT if name in part]
    if any(text is not None and (not isinstance(text, str) or text.strip()) for text in texts):
        raise _no_text(param, "it holds text")
    return None if texts and not any(part.get(name) is not None for name in PLACES) else part


def _inside(value: dict[str, Any], param: str) -> str:
    """The text that stands for the image in an object, at most one object deeper."""
    for _ in range(2):
        if _text_of(value, param) is None:
            raise _no_text(param, "it holds no image")
        given = [name for name in PLACES if value.get(name) is not None]
        if len(given) != 1:
            break
        inner = value[given[0]]
        if isinstance(inner, str):
            return inner
        if not isinstance(inner, dict):
            break
        value = inner
    raise _invalid(param)


def _string(text: str, param: str, urls: bool, *, bare: bool) -> Source:
    """A data URI, a URL, or base64.

    Args:
        bare: it stands where other servers take text, so a short word is not taken for base64.
    """
    head = text[:64].lower()
    if head.startswith(("http://", "https://")) and urls:
        return Url(text, param)
    if head.startswith(("http:", "https:", "file:", "ftp:", "s3:", "gs:")):
        words = f"{param} is a URL; this server fetches nothing, send the image itself in base64"
        if urls:
            words = f"{param} is a URL of a kind that is not fetched; use https"
        raise Problem(400, "url_input", words, param=param)
    if head.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise Problem(400, "invalid_data_uri", f"{param} must be data:image/...;base64,...", param=param)
        return _base64(text, param)
    blob = _base64(text, param)
    if bare and len(blob) < _SHORTEST:
        raise _no_text(param, "it is too short for an image")
    return blob


def _base64(text: str, param: str) -> bytes:
    """Line breaks and missing padding are forgiven."""
    if "\n" in text or "\r" in text:
        text = text.replace("\n", "").replace("\r", "")
    last = max(0, len(text) - 1) // _CHUNK * _CHUNK
    end = text[last:].rstrip("=")  # of the end alone, as a large text is not copied for it
    end += "=" * (-len(end) % 4)
    try:
        if not last:
            return binascii.a2b_base64(end, strict_mode=True)
        pieces = chain((text[start : start + _CHUNK] for start in range(0, last, _CHUNK)), (end,))
        return b"".join(binascii.a2b_base64(piece, strict_mode=True) for piece in pieces)
    except (binascii.Error, ValueError) as error:
        words = f"{param} is neither base64 nor a data URI ({error}); this model embeds images, not text"
        raise Problem(400, "invalid_base64", words, param=param) from error


def _no_text(param: str, why: str) -> Problem:
    words = f"this model embeds images, not text: {why}; send images in base64, as data URIs or as files"
    return Problem(400, "text_input", words, param=param)


def _invalid(param: str) -> Problem:
    text = f'{param} must be an image in base64, a data URI, or an object that holds one, as {{"image": ...}}'
    return Problem(400, "invalid_input", text, param=param)
