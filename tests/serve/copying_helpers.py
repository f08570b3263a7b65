"""Galleries to copy, in folders and in stores that misbehave in one way each; and all that a gallery holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from copies import entry
from shelf_store import Shelf

from clf_serve.copying import sides
from clf_serve.gallery import Gallery, Item
from clf_serve.gallery.database import Database
from clf_serve.stores import Row, open_gallery

N = 45
"""Images of a gallery that is copied."""


def everything(place: Path | str) -> list[tuple[Item, bytes, bytes]]:
    """Items, bytes of the vectors and thumbnails, by id, as the gallery itself gives them."""
    with open_gallery(place) as gallery:
        items = gallery.page(limit=100_000)
        vectors = gallery.vectors([item.id for item in items])
        pictures = [gallery.thumbnail(item.id) for item in items]
    return [
        (item, vector.tobytes(), picture.data if picture else b"")
        for item, vector, picture in zip(items, vectors, pictures, strict=True)
    ]


def next_id(place: Path | str) -> int:
    """That a new image would get; the gallery has it then."""
    with open_gallery(place, write=True) as gallery:
        return gallery.upsert([entry(5_000, gallery.model.dim)])[0]


def bend_a_vector(folder: Path) -> None:
    """As an older version may have kept it: of a length that is believed, and that rounding does not explain."""
    with Gallery(folder) as gallery:
        id_ = gallery.ids().tolist()[3]
        bent = gallery.vectors([id_])[0] * np.float32(1.0004)
    database = Database(folder, write=True)
    with database.changing() as connection:
        connection.execute("UPDATE vectors SET vector = ? WHERE id = ?", (bent.tobytes(), id_))
    database.close()


def small_parts(monkeypatch: pytest.MonkeyPatch, rows: int = 10) -> None:
    """So that a few images are several parts."""
    monkeypatch.setattr(sides, "ROWS", rows)


def install_store(install: Callable[..., Path], store: type[Shelf]) -> Path:
    """A store of this module, for ``shelf://``; the folder of its distribution."""
    return install("clf-shelf", entry_points=f"[clf.indexes]\nshelf = copying_helpers:{store.__name__}\n")


class Turned(Shelf):
    """Gives facts as PostgreSQL's jsonb would: names in another order, numbers with all their digits."""

    def rows(self, where: str, *values: Any) -> list[Row]:
        return [replace(row, facts=_turned(row.facts)) for row in super().rows(where, *values)]


def _turned(text: str) -> str:
    def value(of: Any) -> Any:
        if isinstance(of, dict):
            return {name: value(of[name]) for name in sorted(of, reverse=True)}
        if isinstance(of, list):
            return [value(each) for each in of]
        return int(of) if isinstance(of, float) and of.is_integer() else of

    return json.dumps(value(json.loads(text)), indent=1)


class Failing(Shelf):
    """The host goes away with the third write, once."""

    writes: ClassVar[int] = 0

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        Failing.writes += 1
        if Failing.writes == 3:
            raise ConnectionError("the host is gone")
        super().write(put, delete, about, at=at)


class Rounding(Shelf):
    """Changes the last bit of one number, which nobody would see."""

    def write(self, put: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], *, at: int) -> None:
        super().write([_rounded(row) if row.id == 7 else row for row in put], delete, about, at=at)


def _rounded(row: Row) -> Row:
    vector = row.vector.copy()
    vector.view(np.uint32)[0] ^= 1
    return replace(row, vector=vector)


class Forgetful(Shelf):
    """Never finds the nearest."""

    def search(self, vector: Any, k: int, allowed: Any, *, exact: bool) -> list[int]:
        found: list[int] = super().search(vector, k + 1, allowed, exact=exact)
        return found[1:]
