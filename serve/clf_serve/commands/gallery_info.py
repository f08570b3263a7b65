"""What ``clf gallery info`` and ``clf gallery optimize`` say of a gallery."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from clf.errors import ModelError
from clf.manifest import read_manifest
from clf_serve.commands.terminal import readable
from clf_serve.gallery import Gallery, Identity
from clf_serve.gallery.facts import in_utc
from clf_serve.index.vector_index import IndexInfo
from clf_serve.place import AnyPlace, Place
from clf_serve.stores import open_gallery

_SHOWN = 8
_WORTH = 16 << 20
"""Bytes of free pages for which the database is written anew, if they are a fifth of it too."""

Facts = dict[str, Any]
Lines = list[tuple[str, str]]


def facts_of(gallery_: AnyPlace) -> Facts:
    """Everything, as JSON. Raises GalleryError."""
    place = Place.of(gallery_)
    with open_gallery(place) as gallery:
        facts = gallery.facts()
        fields = gallery.fields()
        note, written = gallery.cache_note, gallery.written
    model = {"name": facts.model.name, "sha256": facts.model.sha256, "dim": facts.dim}
    return {
        "gallery": str(place),
        "images": facts.images,
        "model": {**model, "folder": str(facts.model_path), "state": model_state(facts.model_path, facts.model)},
        "format": facts.format,
        "generation": facts.generation,
        "bytes": facts.bytes,
        "written": written,
        "fields": {
            name: {
                "type": field.type,
                "entries": field.entries,
                "distinct": field.distinct,
                "values": [list(pair) for pair in field.values],
                "sampled": field.sampled,
            }
            for name, field in fields.items()
        },
        "index": index_facts(facts.index, place),
        "note": note,
    }


def lines_of(facts: Facts) -> Lines:
    """The same for people: names and values."""
    model = facts["model"]
    size = f", {readable(facts['bytes'])} on disk" if facts["bytes"] else ""
    state = {"there": "", "missing": " (not there any more)", "another": " (another model lies there now)"}
    lines = [
        ("gallery", f"{facts['gallery']}: {facts['images']} images{size}"),
        ("model", f"{model['name']} ({model['sha256'][:12]}), {model['dim']} numbers a vector"),
        ("model folder", model["folder"] + state[model["state"]]),
        ("written", f"{facts['written'] or 'never'}, format {facts['format']}, generation {facts['generation']}"),
    ]
    for name, field in facts["fields"].items():
        lines.append(("folders" if name == "@folder" else f"  {name}", _field(field)))
    return lines + index_lines(facts["index"]) + ([("note", facts["note"])] if facts["note"] else [])


def index_facts(info: IndexInfo, place: Place) -> Facts:
    """``saved``: when it was written, and its recall measured; null where it is not on the disk."""
    saved = place.folder / "index" / "index.json" if place.folder is not None else None
    return {**info.json(), "saved": in_utc(saved.stat().st_mtime) if saved and saved.exists() else None}


def index_lines(index: Facts) -> Lines:
    parameters = ", ".join(f"{name} {value}" for name, value in index["parameters"].items())
    size = f", {readable(index['bytes'])}" if index["bytes"] else ""
    lines = [("index", f"{index['kind']}{f' ({parameters})' if parameters else ''}{size}")]
    parts = f"{index['vectors']} vectors, {index['recent']} of them recent; {index['tombstones']} deleted or replaced"
    return [*lines, ("  why", index["why"]), ("  recall", _recall(index)), ("  holds", parts)]


def model_state(folder: Path, model: Identity) -> Literal["there", "missing", "another"]:
    """Whether the folder still holds the model that a gallery was made with."""
    try:
        found = Identity.of(read_manifest(folder))
    except ModelError:
        return "missing"
    return "there" if found.sha256 == model.sha256 else "another"


def compact(gallery: Gallery) -> int:
    """Gives what deleted images left in the database back to the disk, where it is much; how many bytes that were.

    Others may read meanwhile. Where there is no room for a second copy the gallery stays as it is.

    Args:
        gallery: open for writing, so that nobody else writes.
    """
    path = gallery.folder / "gallery.sqlite"
    before = _size(path)
    uri = f"{path.resolve().as_uri()}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, timeout=2, isolation_level=None)) as connection:
        free, pages, size = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("freelist_count", "page_count", "page_size")
        )
        try:
            if free * size >= _WORTH and free * 5 >= pages:
                connection.execute("VACUUM")
            connection.execute("PRAGMA optimize")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError:  # a full disk, or a reader that holds on to the log
            pass
    return max(0, before - _size(path))


def _size(path: Path) -> int:
    log = path.with_name(f"{path.name}-wal")
    return path.stat().st_size + (log.stat().st_size if log.exists() else 0)


def _field(field: Mapping[str, Any]) -> str:
    some = ", ".join(f"{value!r} {count}" for value, count in field["values"][:_SHOWN])
    more = ", ..." if field["distinct"] > _SHOWN else ""
    of = "a sample of " if field["sampled"] else ""
    return f"{field['type']}, {field['distinct']} different in {of}{field['entries']} images: {some}{more}"


def _recall(index: Facts) -> str:
    if index["exact"]:
        return "exact: every vector is compared"
    if index["recall"] is None:
        return "not measured"
    reached = "reached" if index["recall"] >= index["target"] else "NOT REACHED"
    measured = f"@{index['recall_k']} {index['recall']:.4f}, mean of {index['queries']} searches"
    when = f", saved {index['saved']}" if index["saved"] else ""
    return f"{measured}{when}, generation {index['generation']}; target {index['target']} {reached}"
