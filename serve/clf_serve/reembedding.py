"""The images of one gallery in the vectors of another encoder.

The work is done batch by batch, in a folder beside the new one or in an unfinished gallery of a store, and is there for
others when every image was tried. So a process that is killed loses one batch, the same command goes on from there, and
nothing half done is ever served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clf import images
from clf.errors import DataError, GalleryError, ImageError
from clf.manifest import sha256_file
from clf_serve.copying import drafts
from clf_serve.copying.drafts import drafting
from clf_serve.copying.sides import About
from clf_serve.copying.work import command
from clf_serve.engine import Engine, Pixels, Skipped, Vectors
from clf_serve.gallery import Entry, Identity, Item
from clf_serve.place import AnyPlace, Place
from clf_serve.stores import AnyGallery, open_gallery
from clf_serve.sync.thumbnails import thumbnail
from clf_serve.transfer.whole import is_there

_SUFFIX = "reembedding"
_PAGE = 10_000
_NO_VECTOR: Vectors = np.empty(0, np.float32)


@dataclass
class Reembedded:
    """What became of the images, in numbers."""

    images: int = 0
    """In the new gallery."""
    resumed: int = 0
    """Of them, embedded by an earlier run that was stopped."""
    from_thumbnails: int = 0
    """Of them, embedded now from the stored thumbnail, as the file is gone or unreadable."""
    changed: int = 0
    """Of them, embedded now from a file that differs from the one in the old gallery."""
    skipped: list[Skipped] = field(default_factory=list)
    """Not in the new gallery."""


def reembed(
    gallery: AnyPlace,
    engine: Engine,
    output: AnyPlace,
    *,
    from_thumbnails: bool = False,
    batch_size: int = 32,
    begin: Callable[[int], None] = lambda total: None,
    progress: Callable[[int], None] = lambda done: None,
    building: Callable[[str, float], None] = lambda stage, done: None,
) -> Reembedded:
    """Makes the gallery ``output`` of the same images, ids, keys and metadata, with the vectors of ``engine``.

    A file is looked for by its key, then by its URI.

    Args:
        output: a folder that does not exist yet, or the URL of a store where there is no gallery.
        from_thumbnails: embed the stored thumbnail (256 pixels at most, JPEG) of a file that cannot be read. The vector
            differs a little from the file's own.
        begin: called with the number of images still to embed.
        building: called with a stage of building the search index and the share of it that is done.

    Raises:
        GalleryError: ``output`` exists, is being made by another process, or was begun from another gallery or model;
            or the gallery is of this model already.
        DataError: not one image can be read; ``output`` is not made, or is left unfinished in a store.
    """
    place, new_place = Place.of(gallery), Place.of(output)
    model = Identity.of(engine.manifest)
    with open_gallery(place) as old:
        if old.model.sha256 == model.sha256:
            raise GalleryError(f"{place} is of model {model} already; to copy it: clf gallery copy {place} NEW")
        work = command("clf gallery reembed", place, engine.folder, "-o", new_place)
        about = About(model, engine.folder.resolve(), 0)
        with drafting(new_place, about, work, suffix=_SUFFIX, note=note_of(old, model)) as draft:
            with draft.gallery() as new:
                report = _Run(old, new, engine, from_thumbnails, batch_size).carry_out(begin, progress)
                if not report.images and report.skipped:
                    raise _unreadable(report.skipped, place)
                new.save_index(progress=building)
            draft.publish()
    return report


def _unreadable(skipped: list[Skipped], place: Place) -> DataError:
    return DataError(
        f"none of the {len(skipped)} images can be read: {skipped[0].reason}. If the photos lie elsewhere now, run "
        f"clf gallery move {place} OLD NEW; --from-thumbnails embeds the stored pictures"
    )


def work_folder(output: Path) -> Path:
    """Where the work is done until it is whole, for a new gallery in a folder."""
    return drafts.work_folder(output, _SUFFIX)


def note_of(old: AnyGallery, model: Identity) -> dict[str, str]:
    """By which the work of an earlier run is known again."""
    place = old.place.identity if old.place.folder is not None else str(old.place)  # without its password
    return {"gallery": place, "of": old.model.sha256, "model": model.sha256}


class _Loaded(NamedTuple):
    entry: Entry
    """Without its vector."""
    id: int
    from_thumbnail: bool
    changed: bool


class _Run:
    def __init__(
        self, old: AnyGallery, new: AnyGallery, engine: Engine, from_thumbnails: bool, batch_size: int
    ) -> None:
        self._old, self._new, self._engine = old, new, engine
        self._from_thumbnails = from_thumbnails
        self._batch_size = batch_size
        self._unread: set[str] = set()
        self._report = Reembedded()

    def carry_out(self, begin: Callable[[int], None], progress: Callable[[int], None]) -> Reembedded:
        report = self._report
        pending = self._agree()
        report.resumed = len(self._new)
        begin(len(pending))
        while pending:  # again for what was added to the old gallery meanwhile
            for items in _pages(self._old, pending):
                self._embed(items, progress)
            pending = self._agree()
        report.images = len(self._new)
        return report

    def _agree(self) -> set[int]:
        """Removes what the old gallery has no more; the ids that it has and the new one still lacks."""
        known, done = self._old.listing(), self._new.listing()
        gone = [entry.id for key, entry in done.items() if key not in known or known[key].id != entry.id]
        if gone:
            self._new.delete(gone)
        there = {key for key, entry in done.items() if key in known and known[key].id == entry.id}
        return {entry.id for key, entry in known.items() if key not in there and key not in self._unread}

    def _embed(self, items: list[Item], progress: Callable[[int], None]) -> None:
        by_name = {Path(str(item.id)): item for item in items}  # the engine streams names; keys need not be paths
        for chunk in self._engine.stream(by_name, lambda name: self._load(by_name[name]), self._batch_size):
            entries = [replace(one.entry, vector=row) for one, row in zip(chunk.items, chunk.vectors, strict=True)]
            self._new.upsert(entries, ids=[one.id for one in chunk.items])
            self._report.from_thumbnails += sum(one.from_thumbnail for one in chunk.items)
            self._report.changed += sum(one.changed for one in chunk.items)
            for name, reason in chunk.skipped:
                item = by_name[name]
                self._unread.add(item.key)
                self._report.skipped.append(Skipped(_path(item), reason.replace(f"{name} has", f"{item.uri} has")))
            progress(len(chunk.items) + len(chunk.skipped))

    def _load(self, item: Item) -> tuple[Pixels, _Loaded]:
        """Raises ImageError."""
        try:
            return self._from_file(item, _path(item))
        except ImageError:
            stored = self._old.thumbnail(item.id) if self._from_thumbnails else None
            if stored is None:
                raise
            entry = replace(_entry(item), thumbnail=stored.data)
            return self._pixels(images.decode(stored.data)), _Loaded(entry, item.id, True, False)

    def _from_file(self, item: Item, path: Path) -> tuple[Pixels, _Loaded]:
        picture = images.decode(path)
        try:
            stat, digest = path.stat(), sha256_file(path)
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}") from error
        pixels = self._pixels(picture)
        width, height = picture.size
        stored = self._old.thumbnail(item.id)
        same = digest == item.sha256
        small = stored.data if stored is not None and same else thumbnail(picture)
        facts: dict[str, Any] = {
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "sha256": digest,
            "width": width,
            "height": height,
        }
        return pixels, _Loaded(replace(_entry(item), thumbnail=small, **facts), item.id, False, not same)

    def _pixels(self, picture: Image.Image) -> Pixels:
        return images.resize(picture, self._engine.image_size)


def _pages(gallery: AnyGallery, wanted: set[int]) -> Iterator[list[Item]]:
    after = 0
    while page := gallery.page(after=after, limit=_PAGE):
        after = page[-1].id
        if kept := [item for item in page if item.id in wanted]:
            yield kept


def _path(item: Item) -> Path:
    """Where the file should be."""
    by_key, by_uri = Path(item.key), Path(item.uri)
    return by_key if by_key.is_absolute() and (is_there(by_key) or not is_there(by_uri)) else by_uri


def _entry(item: Item) -> Entry:
    names = ("key", "uri", "size", "mtime_ns", "sha256", "width", "height", "metadata", "folder")
    return Entry(vector=_NO_VECTOR, **{name: getattr(item, name) for name in names})
