"""What callers of ``/v1/galleries`` send, read with care; whatever is wrong with it becomes a Problem that names it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.datastructures import Headers

from clf_serve.engine import Vectors
from clf_serve.gallery.filters import FilterError, Where
from clf_serve.gallery.metadata import EntryError, encode
from clf_serve.http.forms import Form, Label, read_form
from clf_serve.http.inputs import (
    MORE_PARTS,
    MOST_VALUES,
    body_kind,
    check_values,
    read_json,
    unit_vector,
    urls_of,
    whole,
)
from clf_serve.http.shapes import Source, image_of
from clf_serve.limits import ServeLimits
from clf_serve.problems import Problem

MOST_IDS = 10_000
"""Of one order to delete."""
LONGEST_KEY = 1024
"""Characters of a key or a URI."""
_PER_IMAGE = 64  # values of JSON beyond its vector
_ITEM = frozenset({"key", "uri", "image", "vector", "metadata"})
_FORM = frozenset({"key", "uri", "metadata", "images", "urls"})


@dataclass(frozen=True)
class NewImage:
    """One entry to come: an image that may still have to be fetched, or a vector (D,)."""

    content: Source | Vectors
    key: str | None = None
    uri: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def parse_upsert(
    headers: Headers, query: Mapping[str, str], body: bytes, limits: ServeLimits, dim: int
) -> list[NewImage]:
    """Images of a request, in order: raw bytes, a form, or JSON.

    Raises:
        Problem: 400, 413, 415.
    """
    kind = body_kind(headers)
    check_names(query, {"key", "uri", "metadata"})
    if kind == "image":
        return [_described(body, _texts(query), "images[0]")]
    if kind == "form":
        return _of_form(read_form(headers["content-type"], body, 4 * limits.max_images + MORE_PARTS), limits)
    tree = read_json(body, max(MOST_VALUES, (dim + _PER_IMAGE) * limits.max_images))
    check_names(tree, {"images"})
    items = tree.get("images")
    if not isinstance(items, list) or not items:
        raise Problem(400, "no_images", "the field 'images' must be a list of at least one image", param="images")
    _check_number(items, limits)
    found = [_of_json(item, f"images[{place}]", limits, dim) for place, item in enumerate(items)]
    check_keys(found)
    return found


def parse_patch(body: bytes) -> dict[str, Any] | None:
    """The merge patch of an image's metadata; None where all of it is to go. Raises Problem 400."""
    tree = read_json(body)
    check_names(tree, {"metadata"})
    if "metadata" not in tree:
        raise Problem(400, "no_metadata", "the field 'metadata' is missing; nothing else can be changed")
    return None if tree["metadata"] is None else _metadata(tree["metadata"], "metadata")


@dataclass(frozen=True)
class Deletion:
    """One of ids and where is given."""

    ids: tuple[int, ...] = ()
    where: Where | None = None
    confirm: int = 0
    """How many images the caller expects to match."""


def parse_deletion(body: bytes) -> Deletion:
    """Raises Problem 400, 413."""
    tree = read_json(body)
    check_names(tree, {"ids", "where", "confirm"})
    if (tree.get("ids") is None) == (tree.get("where") is None):
        raise Problem(400, "one_selection", "give one of ids and where")
    if tree.get("where") is not None:
        confirm = whole(tree.get("confirm"))
        if confirm is None or confirm < 0:
            text = "confirm must be the number of images that you expect to match; a search or a listing tells it"
            raise Problem(400, "not_confirmed", text, param="confirm")
        return Deletion(where=parse_where(tree["where"]), confirm=confirm)
    ids = tree["ids"]
    if not isinstance(ids, list):
        raise Problem(400, "invalid_id", "ids must be a list of integers", param="ids")
    if len(ids) > MOST_IDS:
        raise Problem(413, "too_many_ids", f"{len(ids)} ids are more than the {MOST_IDS} of one request", param="ids")
    return Deletion(tuple(id_of(id_, f"ids[{place}]") for place, id_ in enumerate(ids)))


def parse_where(value: Any) -> Where | None:
    """A filter as JSON, or in a URL or a form as its text. Raises Problem 400, 413."""
    if value is None:
        return None
    if isinstance(value, str):
        check_values([value.encode()], MOST_VALUES)
    try:
        return Where.parse_text(value) if isinstance(value, str) else Where.parse(value)
    except FilterError as error:
        raise Problem(400, "invalid_filter", str(error), param="where") from error


def id_of(value: Any, param: str) -> int:
    number = whole(value)
    if number is None or not -(2**63) <= number < 2**63:
        raise Problem(400, "invalid_id", f"{param} must be an integer", param=param)
    return number


def check_names(tree: Mapping[str, Any], known: Collection[str], place: str = "") -> None:
    """A misspelt filter that is ignored would give, or delete, something else. Raises Problem 400."""
    for name in tree:
        if name not in known:
            where = f"{place}.{name}" if place else name
            text = f"the field {where[:80]!r} is not known here; there is {', '.join(sorted(known))}"
            raise Problem(400, "unknown_field", text, param=where[:80])


def check_keys(images: Sequence[NewImage]) -> None:
    """Raises Problem 400 when one key is given to two images."""
    seen: set[str] = set()
    for place, image in enumerate(images):
        if image.key is not None and image.key in seen:
            text = f"images[{place}] has the key of another image of this request: {image.key[:80]!r}"
            raise Problem(400, "duplicate_key", text, param=f"images[{place}].key")
        if image.key is not None:
            seen.add(image.key)


def _of_json(item: Any, place: str, limits: ServeLimits, dim: int) -> NewImage:
    if not isinstance(item, dict):
        raise Problem(400, "invalid_input", f'{place} must be an object, as {{"image": ...}}', param=place)
    check_names(item, _ITEM, place)
    if (item.get("image") is None) == (item.get("vector") is None):
        raise Problem(400, "invalid_input", f"{place} must have one of image and vector", param=place)
    content: Source | Vectors
    if item.get("vector") is not None:
        content = unit_vector(item["vector"], dim, f"{place}.vector")
    else:
        content = image_of(item["image"], f"{place}.image", limits.allow_urls)
    return _described(content, item, place)


def _of_form(form: Form, limits: ServeLimits) -> list[NewImage]:
    """Files, each with the values at its place of the fields key, uri and metadata, or of the list ``images`` in JSON.

    Files and fields may come in any order.
    """
    fields = {name: list(values) for name, values in form.fields.items()}
    files: list[tuple[Source, Label | None]] = []
    for blob, label in zip(form.files, form.labels, strict=True):
        kind = label.content_type.partition(";")[0].strip().lower()
        if kind == "application/json" and label.field in ("images", "metadata"):
            fields.setdefault(label.field, []).append(blob.decode("utf-8", "replace"))
        else:
            files.append((blob, label))
    files += [(url, None) for url in urls_of(form, limits)]
    if not files:
        raise Problem(400, "no_images", "the form holds no file", param="images")
    _check_number(files, limits)
    check_names(fields, _FORM)
    texts = (text.encode() for name in ("images", "metadata") for text in fields.get(name, ()))
    check_values(texts, max(MOST_VALUES, _PER_IMAGE * limits.max_images))
    about = _about(fields, len(files))
    found = []
    for place, ((content, about_file), given) in enumerate(zip(files, about, strict=True)):
        check_names(given, _ITEM - {"image", "vector"}, f"images[{place}]")
        name = about_file.filename.rpartition("/")[2].rpartition("\\")[2] if about_file else ""
        default = {"uri": name[:LONGEST_KEY]} if _is_text(name[:LONGEST_KEY]) else {}
        found.append(_described(content, default | given, f"images[{place}]"))
    check_keys(found)
    return found


def _about(fields: Mapping[str, list[str]], n: int) -> list[dict[str, Any]]:
    """What is said of each of n files."""
    if "images" in fields:
        listed = _json(fields["images"][-1], "images")
        listed = [listed] if isinstance(listed, dict) else listed
        if not isinstance(listed, list) or len(listed) != n or not all(isinstance(each, dict) for each in listed):
            text = f"images must be a list of {n} JSON objects, one for each file in their order"
            raise Problem(400, "invalid_form", text, param="images")
        return listed
    about: list[dict[str, Any]] = [{} for _ in range(n)]
    for name in ("key", "uri", "metadata"):
        values = fields.get(name, [])
        if values and len(values) != n:
            text = f"{name} is there {len(values)} times for {n} files; give it once for each, or not at all"
            raise Problem(400, "invalid_form", text, param=name)
        for given, value in zip(about, values, strict=False):
            given[name] = _json(value, name) if name == "metadata" else value
    return about


def _texts(query: Mapping[str, str]) -> dict[str, Any]:
    """What a URL says of an image that is the whole body."""
    given: dict[str, Any] = {name: query[name] for name in ("key", "uri") if name in query}
    return given | ({"metadata": _json(query["metadata"], "metadata")} if "metadata" in query else {})


def _described(content: Source | Vectors, given: Mapping[str, Any], place: str) -> NewImage:
    texts: dict[str, str | None] = {}
    for name in ("key", "uri"):
        value = given.get(name)
        if value is not None and not _is_text(value):
            text = f"{place}.{name} must be text of 1 to {LONGEST_KEY} characters without control characters"
            raise Problem(400, f"invalid_{name}", text, param=f"{place}.{name}")
        texts[name] = value
    metadata = given.get("metadata")
    about = {} if metadata is None else _metadata(metadata, f"{place}.metadata")
    return NewImage(content, texts["key"], texts["uri"], about)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_KEY:
        return False
    return not any(letter < " " or letter == "\x7f" or "\ud800" <= letter <= "\udfff" for letter in value)


def _metadata(value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Problem(400, "invalid_metadata", f"{param} must be a JSON object", param=param)
    try:
        encode(value)
    except EntryError as error:
        raise Problem(400, "invalid_metadata", f"{param}: {error}", param=param) from error
    return value


def _json(text: str, param: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "invalid_json", f"{param} is not valid JSON: {error}", param=param) from error


def _check_number(items: Sequence[Any], limits: ServeLimits) -> None:
    if len(items) > limits.max_images:
        text = f"{len(items)} images are more than the {limits.max_images} a request may hold"
        raise Problem(413, "too_many_images", text, param="images")


def finite(value: Any, least: float, most: float) -> float | None:
    """A JSON number within bounds, or None."""
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
        return None
    return float(value)
