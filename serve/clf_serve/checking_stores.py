"""Whether a gallery in a vector store is sound, asked through the store's own methods."""

from __future__ import annotations

from collections.abc import Callable

from clf.errors import GalleryError
from clf_serve.checking import Finding, count, decodes, model_of, pictured, searched
from clf_serve.place import Place
from clf_serve.stores import AnyGallery, open_gallery

_PAGE = 1_000
_KEYS = 200  # images that are looked for by their keys
_MEND = "restore what the store's own tools have kept, or index the images into a new gallery"

_Progress = Callable[[str, float], None]


def check_store(place: Place, *, all_pictures: bool, progress: _Progress) -> list[Finding]:
    """Reads a gallery from beginning to end. Raises GalleryError, PluginError: it cannot be opened."""
    with open_gallery(place) as gallery:
        before = gallery.generation
        findings = [
            _told("rows", lambda: _rows(gallery, progress)),
            _told("vectors", lambda: _vectors(gallery, progress)),
            _told("thumbnails", lambda: _pictures(gallery, all_pictures, progress)),
            _told("search", lambda: _search(gallery, progress)),
        ]
        if gallery.generation != before and not all(finding.sound for finding in findings):
            note = "the gallery was written to meanwhile; check it again"
            findings = [Finding(f.part, f.sound, f.what, "" if f.sound else note) for f in findings]
        return [*findings, model_of(gallery)]


def _told(part: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except GalleryError as error:
        return Finding(part, False, str(error), _MEND)


def _rows(gallery: AnyGallery, progress: _Progress) -> Finding:
    total, after, seen = len(gallery), 0, 0
    keys: dict[str, int] = {}
    twice = []
    while items := gallery.page(after=after, limit=_PAGE):
        twice += [item.id for item in items if keys.setdefault(item.key, item.id) != item.id]
        after, seen = items[-1].id, seen + len(items)
        progress("rows", min(1.0, seen / max(1, total)))
    if twice:
        return Finding("rows", False, f"{count(twice)} with a key that another has", _MEND)
    lost = [item.id for item in gallery.sample(_KEYS) if getattr(gallery.find(item.key), "id", None) != item.id]
    if lost:
        return Finding("rows", False, f"{count(lost)} not found by their own keys", _MEND)
    if seen != total:
        return Finding("rows", False, f"{seen} images where the store speaks of {total}", _MEND)
    return Finding("rows", True, f"{seen} images, each with a key of its own")


def _vectors(gallery: AnyGallery, progress: _Progress) -> Finding:
    total, seen = len(gallery), 0
    for ids, _ in gallery.batches(_PAGE):  # which looks at their length
        seen += len(ids)
        progress("vectors", min(1.0, seen / max(1, total)))
    return Finding("vectors", True, f"{seen} of {gallery.model.dim} numbers, each of unit length")


def _pictures(gallery: AnyGallery, every: bool, progress: _Progress) -> Finding:
    ids = gallery.ids().tolist()
    some = pictured(ids, every)
    wrong, there = [], 0
    for done, id_ in enumerate(some, 1):
        stored = gallery.thumbnail(id_)
        there += stored is not None
        if stored is not None and not decodes(stored.data):
            wrong.append(id_)
        progress("thumbnails", done / len(some))
    if wrong:
        remedy = f"delete them and index the images again: clf gallery delete {gallery.place} --id {wrong[0]}"
        return Finding("thumbnails", False, f"{count(wrong)} whose picture is damaged", remedy)
    looked = "all looked at" if len(some) == len(ids) else f"of {len(some)} images, evenly spread; --all looks at each"
    return Finding("thumbnails", True, f"{there} ({looked})")


def _search(gallery: AnyGallery, progress: _Progress) -> Finding:
    found, wrong = searched(gallery, lambda part, done: progress("search", done))
    return Finding("search", not wrong, wrong or found, _MEND if wrong else "")
