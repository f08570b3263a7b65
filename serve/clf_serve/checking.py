"""Whether a gallery is sound: its database, its vectors and pictures, and its index against them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clf.errors import GalleryError, ModelError
from clf.manifest import read_manifest
from clf_serve.gallery import Gallery, Identity
from clf_serve.gallery.database import Database
from clf_serve.gallery.faults import has_database
from clf_serve.gallery.vectors import is_unit
from clf_serve.index import VectorIndex
from clf_serve.index.vector_index import Stamp
from clf_serve.place import AnyPlace, Place
from clf_serve.stores import AnyGallery
from clf_serve.transfer.snapshot import ROWS

PICTURES = 10_000
"""Thumbnails that are decoded unless all are asked for."""
QUERIES = 200
"""Vectors that are searched for by the index and by comparing all."""
_SHOWN = 5
_TRIES = 3
_LOST = 50  # an approximate index may lose one vector in so many, and is sound
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Finding:
    """What one part of a gallery is like."""

    part: str
    """database, vectors, thumbnails, index or model; of a store rows and search for the first and the fourth."""
    sound: bool
    what: str
    """In a sentence."""
    remedy: str = ""
    """What to do, where it is not sound."""


def check(
    gallery: AnyPlace, *, all_pictures: bool = False, progress: Callable[[str, float], None] = lambda part, done: None
) -> list[Finding]:
    """Reads a gallery from beginning to end; others may read and write it meanwhile.

    Args:
        all_pictures: decode every thumbnail, not :data:`PICTURES` of them evenly spread.
        progress: called with the part that is read and the share of it that is done.

    Raises:
        GalleryError: there is no gallery.
    """
    place = Place.of(gallery)
    if place.folder is None:
        from clf_serve.checking_stores import check_store

        return check_store(place, all_pictures=all_pictures, progress=progress)
    return _check_folder(place.folder, all_pictures, progress)


def _check_folder(folder: Path, all_pictures: bool, progress: Callable[[str, float], None]) -> list[Finding]:
    if not has_database(folder):
        raise GalleryError(f"{folder} is not a gallery; name the folder that clf index made")
    again = f"restore a backup: clf gallery restore FILE -o {folder} --replace; or index the images into a new folder"
    try:
        with closing(Database(folder, write=False)) as database, database.reading() as connection:
            dim = database.dim(connection)
            progress("database", 0)
            findings = [_database(connection, again)]
            findings.append(_vectors(connection, dim, folder, progress))
            findings.append(_pictures(connection, folder, all_pictures, progress))
        with Gallery(folder) as gallery:
            if findings[0].sound and findings[1].sound:  # else there is nothing to compare the index with
                findings.append(_index(gallery, progress))
            findings.append(model_of(gallery))
    except GalleryError as error:
        return [Finding("database", False, str(error), again)]
    return findings


def _database(connection: Connection, again: str) -> Finding:
    said = [row[0] for row in connection.execute("PRAGMA integrity_check(20)")]
    if said != ["ok"]:
        return Finding("database", False, f"damaged ({'; '.join(said[:_SHOWN])})", again)
    for table, other in (("images", "vectors"), ("vectors", "images"), ("thumbnails", "images")):
        alone = [row[0] for row in connection.execute(f"SELECT id FROM {table} EXCEPT SELECT id FROM {other}")]
        if alone:
            return Finding("database", False, f"{count(alone)} in {table} and not in {other}", again)
    wrong = [row[0] for row in connection.execute("SELECT id FROM images WHERE NOT json_valid(metadata)")]
    if wrong:
        return Finding("database", False, f"the metadata of {count(wrong)} cannot be read", again)
    images = connection.execute("SELECT count(*) FROM images").fetchone()[0]
    return Finding("database", True, f"{images} images; SQLite's integrity check holds")


def _vectors(connection: Connection, dim: int, folder: Path, progress: Callable[[str, float], None]) -> Finding:
    total = max(1, connection.execute("SELECT count(*) FROM vectors").fetchone()[0])
    rows = connection.execute("SELECT id, vector FROM vectors ORDER BY id")
    wrong: list[int] = []
    done = 0
    while part := rows.fetchmany(ROWS):
        sized = [(id_, blob) for id_, blob in part if isinstance(blob, bytes) and len(blob) == 4 * dim]
        wrong += sorted({id_ for id_, _ in part} - {id_ for id_, _ in sized})
        vectors = np.frombuffer(b"".join(blob for _, blob in sized), "<f4").reshape(-1, dim)
        wrong += [sized[i][0] for i in np.flatnonzero(~is_unit(vectors))]
        done += len(part)
        progress("vectors", done / total)
    if wrong:
        what = f"{count(wrong)} with a vector that is not {dim} numbers of unit length"
        return Finding("vectors", False, what, _delete_and_index(folder, wrong))
    return Finding("vectors", True, f"{done} of {dim} numbers, each of unit length")


def _pictures(connection: Connection, folder: Path, every: bool, progress: Callable[[str, float], None]) -> Finding:
    ids = [row[0] for row in connection.execute("SELECT id FROM thumbnails WHERE length(data) ORDER BY id")]
    some = pictured(ids, every)
    wrong = []
    for done, id_ in enumerate(some, 1):
        if not decodes(connection.execute("SELECT data FROM thumbnails WHERE id = ?", (id_,)).fetchone()[0]):
            wrong.append(id_)
        if done % 100 == 0 or done == len(some):
            progress("thumbnails", done / len(some))
    if wrong:
        return Finding(
            "thumbnails", False, f"{count(wrong)} whose picture is damaged", _delete_and_index(folder, wrong)
        )
    looked = "all decoded" if len(some) == len(ids) else f"{len(some)} decoded, evenly spread; --all decodes each"
    return Finding("thumbnails", True, f"{len(ids)} ({looked})")


def pictured(ids: list[int], every: bool) -> list[int]:
    """The images whose thumbnails are decoded: all, or :data:`PICTURES` of them evenly spread."""
    return ids if every or len(ids) <= PICTURES else [ids[i * len(ids) // PICTURES] for i in range(PICTURES)]


def decodes(jpeg: Any) -> bool:
    """Whether a thumbnail is a picture."""
    try:
        with Image.open(io.BytesIO(jpeg)) as picture:
            picture.load()
    except Exception:  # decoders meet corrupt bytes with errors of any type
        return False
    return True


def _index(gallery: Gallery, progress: Callable[[str, float], None]) -> Finding:
    """Whether the saved index holds each image once, and finds what comparing every vector finds."""
    progress("index", 0)
    state, wrong = _saved(gallery)
    if not wrong:
        found, wrong = searched(gallery, progress)
        state = f"{state}; {found}"
    remedy = f"build it anew: clf gallery optimize {gallery.folder}"
    return Finding("index", False, wrong, remedy) if wrong else Finding("index", True, state)


def _saved(gallery: Gallery) -> tuple[str, str]:
    """What the saved index is like, and what is wrong with it."""
    with closing(Database(gallery.folder, write=False)) as database:
        for _ in range(_TRIES):
            with database.reading() as connection:
                generation = database.number("generation", connection)
                stamp = Stamp(database.meta("uuid", connection), gallery.model.dim, generation)
                ids = np.array([row[0] for row in connection.execute("SELECT id FROM vectors ORDER BY id")], np.int64)
            index, reason = VectorIndex.open(gallery.folder / "index", stamp)
            if gallery.generation == generation or not reason:
                break  # else it may have been saved since, and only seem too new
    if reason:
        return "not saved, and built when it is needed", "" if reason == "missing" else f"the saved index is {reason}"
    if index.generation < generation:
        return f"saved at generation {index.generation} of {generation}, and caught up when it is opened", ""
    if not len(index) and not len(ids):
        return "of no images", ""
    held = np.sort(index.search(_any_vector(stamp.dim), len(index), exact=True).ids) if len(index) else ids[:0]
    lost, twice = np.setdiff1d(ids, held), held[1:][held[1:] == held[:-1]]
    strange = np.setdiff1d(held, ids)
    for some, what in ((lost, "not in it"), (twice, "in it twice"), (strange, "in it and not in the database")):
        if len(some):
            return "", f"{count(some.tolist())} {what}"
    return "holds each image once", ""


def searched(gallery: AnyGallery, progress: Callable[[str, float], None]) -> tuple[str, str]:
    """What searches for some vectors of the gallery find, and what is wrong with that."""
    gallery.load_index()
    if gallery.cache_note:
        return "", gallery.cache_note
    lost, found, wanted = [], 0, 0
    sample = gallery.sample(QUERIES)
    for done, item in enumerate(sample, 1):
        vector = gallery.vector(item.id)
        if vector is None:  # deleted meanwhile
            continue
        near = gallery.search(vector, _NEIGHBOURS)
        exact = gallery.search(vector, _NEIGHBOURS, exact=True)
        if exact and not (near and _same(near[0].score, exact[0].score)):
            lost.append(item.id)
        found += len({hit.id for hit in near} & {hit.id for hit in exact})
        wanted += len(exact)
        progress("index", done / len(sample))
    if len(lost) * _LOST > len(sample):
        return "", f"{count(lost)} not found by their own vectors"
    return f"recall@{_NEIGHBOURS} {found / wanted:.4f} of {len(sample)} searches" if wanted else "empty", ""


def _any_vector(dim: int) -> NDArray[np.float32]:
    vector = np.zeros(dim, np.float32)
    vector[0] = 1
    return vector


def _same(one: float, other: float) -> bool:
    return abs(one - other) < 1e-4


def model_of(gallery: AnyGallery) -> Finding:
    """Whether the model that a gallery was made with is still there."""
    folder = gallery.model_path
    remedy = "name the folder where it lies now with --model, or export it again; searches by image need it"
    try:
        manifest = read_manifest(folder)
    except ModelError as error:
        return Finding("model", False, str(error), remedy)
    if Identity.of(manifest).sha256 != gallery.model.sha256:
        embed = f"clf gallery reembed {gallery.place} {folder} -o NEW"
        return Finding("model", False, f"{folder} holds another model than {gallery.model}", f"{remedy}; or {embed}")
    return Finding("model", True, f"{gallery.model} in {folder}")


def count(ids: Sequence[int]) -> str:
    """How many images, and some of their ids."""
    some = ", ".join(map(str, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
    return f"{len(ids)} image{'s' if len(ids) > 1 else ''} (id {some})"


def _delete_and_index(folder: Path, ids: Sequence[int]) -> str:
    where = json.dumps({"@id": {"$in": list(ids[:1000])}}) if len(ids) > 1 else None
    which = f"--where '{where}'" if where else f"--id {ids[0]}"
    return f"delete them and index the images again: clf gallery delete {folder} {which}"
