"""Brings a gallery in line with a folder of images: new and changed files are embedded, gone ones removed.

Work is committed batch by batch, so a process that is killed loses one batch, and the next run goes on from there.
Files with the bytes of an image that the gallery has are not embedded: a renamed one keeps its entry, a copy takes the
vector.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clf import images
from clf.errors import DataError
from clf_serve.stores import AnyGallery
from clf_serve.sync.syncing import Advance, IndexReport, Settings, Sync
from clf_serve.sync.thumbnails import THUMBNAIL, thumbnail

if TYPE_CHECKING:
    from clf_serve.engine import Engine

__all__ = ["THUMBNAIL", "IndexReport", "Settings", "index_images", "list_images", "thumbnail"]


def list_images(path: Path) -> list[Path]:
    """One image file, or all images below a folder.

    Raises:
        DataError: nothing is there, or no image.
        ImageError: the folder, or one below it, cannot be read.
    """
    if not images.is_folder(path):
        if path.is_file():
            return [path]
        raise DataError(f"{path} does not exist; give an image or a folder of images")
    found = images.find_images(path)
    if not found:
        raise DataError(f"{path} holds no images ({', '.join(sorted(images.SUFFIXES))})")
    return found


def index_images(
    gallery: AnyGallery,
    engine: Engine | Callable[[], Engine],
    source: Path,
    settings: Settings | None = None,
    *,
    batch_size: int | None = None,
    begin: Callable[[int], None] = lambda total: None,
    progress: Advance = lambda done: None,
) -> IndexReport:
    """Brings ``gallery`` in line with the file or folder ``source``, and saves its index.

    A file counts as unchanged when its size and time of modification are. Entries of other folders stay.

    Args:
        gallery: opened for writing.
        engine: or what makes it, which is called when there is something to embed.
        begin: called with the number of files to embed, if there are any.
        progress: called with the number of files done since the last call.

    Raises:
        DataError: ``source`` does not exist or holds no images; the metadata file cannot be used.
        ImageError: a folder cannot be read; nothing is changed.
        GalleryError: the gallery cannot be written.
    """
    settings = settings or Settings()
    if batch_size is not None:
        settings = replace(settings, batch_size=batch_size)
    embedding = False

    def began(stage: str, total: int) -> None:
        nonlocal embedding
        embedding = stage == "embedding"
        if embedding:
            begin(total)

    def advanced(done: int) -> None:
        if embedding:
            progress(done)

    writing = lambda: nullcontext(gallery)  # noqa: E731
    report = Sync(gallery, writing, engine, source, settings, begin=began, advance=advanced).run()
    gallery.save_index()
    return report
