"""Images of a gallery that are there more than once, in three levels; each pair in the strongest one that holds.

- **same bytes**: the files have one SHA-256.
- **same picture**: re-encoded, resized, in another format or orientation flag, with other metadata. Pictures are
  compared as pixels (:mod:`clf_serve.duplicates.pictures`), not as vectors: no encoder can call two pictures one.
- **near**: alike to the encoder, to at least a cosine. What the stronger levels leave is grouped so that every two of a
  group reach it (:func:`clf_serve.duplicates.pairs.complete_link`).

An image is in at most one group. Nothing is ever deleted: of each group one image is proposed to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clf_serve.duplicates.groups import File, Group, Level, Member, Pictures, Progress
from clf_serve.duplicates.near import Near, near_pictures, sampled
from clf_serve.duplicates.pairs import Vectors
from clf_serve.duplicates.pictures import same_pictures
from clf_serve.duplicates.threshold import Chance
from clf_serve.gallery import Where
from clf_serve.gallery.store import Hit
from clf_serve.stores import AnyGallery

__all__ = ["File", "Found", "Group", "Level", "Member", "Progress", "default_threshold", "find", "fold"]

_PAGE = 5000
_BLOCK = 64  # results that are compared with all leads at a time


@dataclass(frozen=True)
class Found:
    images: int
    """That were looked at."""
    groups: tuple[Group, ...]
    """Strongest level first, then by bytes that could be freed."""
    near: Near | None = None
    """None when that level was not asked for, or there are fewer than two pictures."""

    def others(self, level: Level) -> list[Member]:
        """Those that could go at a level: as many as ``find`` at that level would name beyond the stronger ones."""
        return [member for group in self.groups for member in group.others if member.spare is level]

    def freed(self, level: Level) -> int:
        """Their bytes."""
        return sum(member.file.size for member in self.others(level))


def find(
    gallery: AnyGallery,
    level: Level = Level.near,
    *,
    threshold: float | None = None,
    where: Where | None = None,
    progress: Progress | None = None,
) -> Found:
    """Groups of images that are there more than once, up to and including ``level``.

    Time grows with the square of the number of pictures (matrix products), memory linearly: the vectors, 4 D bytes for
    an image, and about 1.5 KiB beside. Images that come or go meanwhile are missed, not mistaken.

    Args:
        threshold: cosine of the near level; by default what :class:`Chance` derives from the gallery.
        where: only images that it lets through.

    Raises:
        GalleryError: the database is damaged.
        ValueError: a threshold outside (0, 1].
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"a threshold is a cosine above 0 and up to 1, got {threshold}")
    progress = progress or Progress()
    pictures = Pictures(list(_files(gallery, where, progress)))
    pictures.join(list(pictures.same_bytes()))
    if level is not Level.bytes:
        kept = pictures.kept()
        found = same_pictures([pictures.files[p] for p in kept], lambda id_: _thumbnail(gallery, id_), progress)
        pictures.join([[kept[k] for k in positions] for positions in found])
    if level is not Level.near or len(pictures.kept()) < 2:
        return Found(len(pictures.files), tuple(pictures.groups({})))
    near = near_pictures(pictures, gallery.batches(), threshold, progress)
    pictures.join_near(near.groups)
    return Found(len(pictures.files), tuple(pictures.groups(near.cosines)), near.facts)


def fold(hits: Sequence[Hit], vectors: Vectors, sha256s: Sequence[str], threshold: float) -> list[list[int]]:
    """Search results with near duplicates folded under the best of them: lists of positions, each led by its best.

    A result goes under the first lead that has its bytes, or that it is alike to at least ``threshold``; so whatever is
    folded away resembles what is shown in its place.

    Args:
        hits: n results, best first.
        vectors: (n, D), unit, in the same order.
        sha256s: (n,); an empty one is like no other.
    """
    n = len(hits)
    folded: list[list[int]] = []
    leads = np.empty_like(vectors)
    by_bytes: dict[str, int] = {}  # leads
    block = np.zeros((_BLOCK, vectors.shape[1]), np.float32)  # of one size, so that rounding is that of a shorter list
    for start in range(0, n, _BLOCK):
        part = vectors[start : start + _BLOCK]
        block[: len(part)] = part
        before = len(folded)
        alike = block @ leads[:before].T >= threshold  # (_BLOCK, before)
        near = np.where(alike.any(axis=1), alike.argmax(axis=1), n) if before else np.full(_BLOCK, n)
        within = block @ block.T >= threshold
        fresh: list[int] = []  # rows of the block that lead
        for row, sha256 in enumerate(sha256s[start : start + _BLOCK]):
            beside = np.flatnonzero(within[row, fresh])
            under = min(int(near[row]), by_bytes.get(sha256, n), before + int(beside[0]) if len(beside) else n)
            if under < n:
                folded[under].append(start + row)
                continue
            leads[len(folded)] = vectors[start + row]
            if sha256:
                by_bytes[sha256] = len(folded)
            fresh.append(row)
            folded.append([start + row])
    return folded


def default_threshold(gallery: AnyGallery) -> float:
    """The cosine from which two images of a gallery count as near, from a sample of two thousand."""
    ids = gallery.ids()
    if len(ids) < 2:
        return Chance(len(ids)).threshold
    return Chance.of(gallery.vectors(ids[sampled(len(ids))].tolist()), len(ids)).threshold


def _files(gallery: AnyGallery, where: Where | None, progress: Progress) -> Iterator[File]:
    progress.begin("reading", gallery.count(where), "images")
    after = 0
    while items := gallery.page(after=after, limit=_PAGE, where=where):
        for item in items:
            yield File(item.id, item.uri, item.key, item.sha256, item.width, item.height, item.size, item.mtime_ns)
        after = items[-1].id
        progress.advance(len(items))


def _thumbnail(gallery: AnyGallery, id_: int) -> bytes:
    stored = gallery.thumbnail(id_)
    return stored.data if stored else b""
