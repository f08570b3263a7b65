"""``clf gallery export`` and ``clf gallery import``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from clf.errors import DataError, GalleryError, did_you_mean
from clf.manifest import read_manifest
from clf_serve.gallery import Entry, Gallery, Identity, Where
from clf_serve.gallery.vectors import is_unit
from clf_serve.place import AnyPlace
from clf_serve.transfer.lines import write_csv, write_jsonl
from clf_serve.transfer.npz import NpzReader, write_npz
from clf_serve.transfer.parquet import ParquetReader, load_pyarrow, write_parquet
from clf_serve.transfer.plan import About, Parts, Progress, damaged
from clf_serve.transfer.snapshot import Snapshot, snapshot
from clf_serve.transfer.whole import is_there, refuse_existing, whole

_WRITERS: Mapping[str, Callable[[Path, Snapshot, Parts, Progress], None]] = {
    ".parquet": write_parquet,
    ".npz": write_npz,
    ".jsonl": write_jsonl,
    ".csv": write_csv,
}


class Reader(Protocol):
    """Of a file: what it says of itself, and ids and entries in parts, from the beginning each time."""

    about: About

    def entries(self) -> Iterator[tuple[list[int], list[Entry]]]: ...
    def close(self) -> None: ...


_READERS: Mapping[str, Callable[[Path], Reader]] = {".parquet": ParquetReader, ".npz": NpzReader}


def export_gallery(
    gallery: AnyPlace,
    output: Path,
    parts: Parts,
    where: Where | None = None,
    *,
    begin: Callable[[int], None] = lambda total: None,
    progress: Progress = lambda done: None,
) -> int:
    """Writes a gallery's images, in one state of it, to a file in the format of its suffix; how many.

    Memory does not grow with the gallery, but for a few numbers of each image with thumbnails in .npz.

    Args:
        begin: called once with the number of images.

    Raises:
        DataError: an unknown suffix, or the file cannot be written; an earlier one is kept.
        GalleryError: the gallery is missing or damaged; one in a store was written to meanwhile.
        MissingExtraError: .parquet without pyarrow.
    """
    write = _WRITERS.get(output.suffix)
    if write is None:
        known = ", ".join(_WRITERS)
        raise DataError(f"{output} must end in one of {known}.{did_you_mean(output.suffix, _WRITERS)}")
    if parts.thumbnails and write is write_csv:
        raise DataError(".csv holds no pictures; leave --thumbnails out, or name a .parquet, .npz or .jsonl file")
    if write is write_parquet:
        load_pyarrow()
    with snapshot(gallery, where) as images, whole(output) as draft:
        begin(len(images))
        write(draft, images, parts, progress)
        return len(images)


def import_gallery(
    file: Path,
    output: Path,
    model: Path,
    *,
    begin: Callable[[int], None] = lambda total: None,
    progress: Progress = lambda done: None,
    building: Callable[[str, float], None] = lambda stage, done: None,
) -> int:
    """Makes a gallery of what :func:`export_gallery` wrote to a .parquet or .npz file; how many images it has.

    Ids, keys, metadata and vectors come back as they were; thumbnails if they were exported.

    Args:
        output: a folder that does not exist yet.
        model: folder of the model that the vectors are of.
        building: called with a stage of building the search index and the share of it that is done.

    Raises:
        DataError: the file is missing, damaged, not an export, without vectors, or ``output`` cannot be written.
        GalleryError: the vectors are of another model, or ``output`` exists.
        ModelError: the model's folder is incomplete.
    """
    refuse_existing(output)
    with opened(file, model) as (reader, own):
        about = reader.about
        begin(about.images)
        with whole(output, folder=True) as draft, Gallery.open_or_create(draft, own, model) as gallery:
            last = 0
            for ids, entries in reader.entries():
                check_part(file, [last, *ids], entries)
                gallery.upsert(entries, ids=ids)
                last = ids[-1]
                progress(len(ids))
            if len(gallery) != about.images:
                raise damaged(file, f"{len(gallery)} images where it speaks of {about.images}")
            gallery.save_index(progress=building)
    return about.images


@contextmanager
def opened(file: Path, model: Path) -> Iterator[tuple[Reader, Identity]]:
    """A file that :func:`export_gallery` wrote with its vectors, and the model they are of.

    Raises as :func:`import_gallery`.
    """
    own = Identity.of(read_manifest(model))
    with closing(_open(file)) as reader:
        about = reader.about
        if (about.model.sha256, about.model.dim) != (own.sha256, own.dim):
            raise GalleryError(
                f"{file} holds vectors of model {about.model}, not of {own}; import it with its own model, "
                "then embed the images again with this one: clf gallery reembed GALLERY MODEL -o NEW"
            )
        if not about.parts.vectors:
            raise DataError(f"{file} holds no vectors; export it again without --no-vectors")
        yield reader, own


def _open(file: Path) -> Reader:
    if file.suffix not in _READERS:
        raise DataError(f"{file}: a gallery is made of {' and '.join(_READERS)} files that clf gallery export wrote")
    if not (is_there(file) and file.is_file()):
        raise DataError(f"{file} does not exist; give a file that clf gallery export wrote")
    return _READERS[file.suffix](file)


def check_part(file: Path, ids: list[int], entries: list[Entry]) -> None:
    """Raises DataError unless ids rise, keys differ within the part, and vectors are of unit length."""
    if any(one >= other for one, other in pairwise(ids)) or len({entry.key for entry in entries}) < len(entries):
        raise damaged(file, "an id or a key comes twice")
    wrong = ~is_unit(np.array([entry.vector for entry in entries]))
    if wrong.any():
        raise damaged(file, f"the vector of image {ids[1 + int(wrong.argmax())]} is not of unit length")
