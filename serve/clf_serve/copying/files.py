"""Galleries made of files: of an export or a backup, wherever the gallery is to be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from clf.errors import GalleryError
from clf_serve.copying.sides import About, FolderSide, Side, in_parts
from clf_serve.copying.work import SILENT, Copied, Steps, carry_over, command
from clf_serve.gallery import Identity
from clf_serve.gallery.faults import in_words
from clf_serve.gallery.schema import FORMAT
from clf_serve.gallery.vectors import Vectors
from clf_serve.moving import check_kind, connect, verify
from clf_serve.place import Place
from clf_serve.stores.rows import row_from
from clf_serve.stores.vector_store import Row
from clf_serve.transfer.export import Reader, check_part, opened
from clf_serve.transfer.plan import damaged
from clf_serve.transfer.whole import is_there

_META = ("model", "model_sha256", "dim")


def import_file(file: Path, place: Place, model: Path, steps: Steps = SILENT) -> Copied:
    """Makes a gallery of what ``clf gallery export`` wrote to a .parquet or .npz file, and compares it with that.

    Args:
        model: folder of the model that the vectors are of.

    Raises:
        DataError: the file is missing, damaged, not an export, or without vectors.
        GalleryError: the vectors are of another model; else as :func:`clf_serve.copying.copy`.
    """
    with opened(file, model) as (reader, own):
        side = ExportSide(file, reader, own, model)
        work = command("clf gallery import", file, "-o", place, "--model", model)
        return carry_over(side, place, work, steps, suffix="importing")


def restore_into(file: Path, place: Place, steps: Steps = SILENT) -> Copied:
    """Makes a gallery of what ``clf gallery backup`` wrote, and compares it with that.

    Raises:
        GalleryError: the file is missing, damaged, no backup, or of another version; else as
            :func:`clf_serve.copying.copy`.
    """
    with _backup(file) as side:
        return carry_over(side, place, command("clf gallery restore", file, "-o", place), steps, suffix="restoring")


@contextmanager
def _backup(file: Path) -> Iterator[Side]:
    if not (is_there(file) and file.is_file()):
        raise GalleryError(f"{file} does not exist; name a file that clf gallery backup wrote")
    verify(file)
    with in_words(file), closing(connect(file, "immutable=1")) as connection:
        if (version := check_kind(connection, file)) < FORMAT:
            raise GalleryError(
                f"{file} has format {version}: restore it to a folder, and copy that: clf gallery copy FOLDER URL"
            )
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        name, sha256, dim = (str(meta.get(each, "")) for each in _META)
        if not (name and sha256 and dim.isdecimal()):
            raise GalleryError(f"{file} is damaged (it names no model); use another backup")
        yield FolderSide(Place(file), connection, Identity(name, sha256, int(dim)))


class ExportSide(Side):
    """The images of an export."""

    def __init__(self, file: Path, reader: Reader, model: Identity, model_path: Path) -> None:
        self.place = Place(file)
        self.images = reader.about.images
        self._file, self._reader = file, reader
        self._model, self._model_path = model, model_path.resolve()
        self._last = 0

    @property
    def about(self) -> About:
        """``last_id`` is that of the rows that were read so far."""
        return About(self._model, self._model_path, self._last)

    @property
    def generation(self) -> int:
        return 0

    def rows(self) -> Iterator[list[Row]]:
        return in_parts(self._rows())

    def sample(self, n: int) -> list[Vectors]:
        """Of the first part only: what is searched for does not matter, what is found is of all."""
        for _, entries in self._reader.entries():
            return [entries[i * len(entries) // n].vector for i in range(min(n, len(entries)))]
        return []

    def _rows(self) -> Iterator[Row]:
        last = count = 0
        for ids, entries in self._reader.entries():
            check_part(self._file, [last, *ids], entries)
            last, count = ids[-1], count + len(ids)
            self._last = max(last, self._last)
            for id_, entry in zip(ids, entries, strict=True):
                yield row_from(id_, entry, entry.vector)
        if count != self.images:
            raise damaged(self._file, f"{count} images where it speaks of {self.images}")
