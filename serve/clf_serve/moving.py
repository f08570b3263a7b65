"""Galleries that are backed up, restored, and told that their photos lie elsewhere."""

from __future__ import annotations

import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from clf.errors import DataError, GalleryError
from clf_serve.gallery import Gallery
from clf_serve.gallery.faults import has_database
from clf_serve.gallery.lock import WriteLock
from clf_serve.gallery.schema import APPLICATION, FORMAT
from clf_serve.gallery.store import Item, Moved
from clf_serve.place import AnyPlace, Place
from clf_serve.stores import AnyGallery, open_gallery
from clf_serve.transfer.whole import is_there, refuse_existing, remove, whole

_DATABASE = "gallery.sqlite"
_OPCODES = 50_000  # of SQLite's virtual machine between two looks at whether Ctrl-C was pressed


class Copied(NamedTuple):
    """A gallery that was copied whole."""

    images: int
    bytes: int


def backup(folder: Path, file: Path) -> Copied:
    """Copies a gallery to one file, of one state, while others read and write it.

    ``VACUUM INTO`` reads under one transaction of SQLite's write-ahead log: what is committed when it begins is in the
    copy, what comes later is not; writers are not held up, and never make it begin again, as the online backup of pages
    in steps would. The log is not cut back meanwhile, so it grows by what is written. Deleted images are not copied.
    The index is not copied either: it is built from the vectors when the file is restored. The copy is checked before
    it takes its name.

    Raises:
        GalleryError: the gallery is missing or damaged.
        DataError: ``file`` cannot be written, an earlier one is kept; or it is in a gallery.
    """
    source = folder / _DATABASE
    if not has_database(folder):
        raise GalleryError(f"{folder} is not a gallery; name the folder that clf index made")
    if file.name == _DATABASE or file.resolve().parent == folder.resolve():
        raise DataError(f"{file} may be a gallery's own file; name another one, such as {folder.name}.backup")
    with whole(file) as draft:
        mode = "mode=ro" if os.access(folder, os.W_OK) else "immutable=1"
        with _explained(source, draft), closing(connect(source, mode)) as connection:
            check_kind(connection, source)
            connection.execute("VACUUM INTO ?", (str(draft.absolute()),))
        images = verify(draft)
        return Copied(images, draft.stat().st_size)


def restore(
    file: Path,
    folder: Path,
    *,
    replace: bool = False,
    progress: Callable[[str, float], None] = lambda stage, done: None,
) -> Copied:
    """Makes a gallery of a file that :func:`backup` wrote, and builds its index.

    Args:
        replace: ``folder`` may be a gallery, sound or damaged, that nobody writes to: it is kept until the new one is
            whole, and then removed. Who reads it goes on with the old one until it is opened again.
        progress: called with the stage of building the index and the share of it that is done.

    Raises:
        GalleryError: the file is damaged, no backup, or of a later version; ``folder`` exists; or it is being written.
        DataError: ``folder`` cannot be written.
    """
    if not (is_there(file) and file.is_file()):
        raise GalleryError(f"{file} does not exist; name a file that clf gallery backup wrote")
    if replace:
        folder = folder.resolve()  # where a link leads
    if not replace or not folder.exists():
        refuse_existing(folder)
    elif not has_database(folder):
        raise GalleryError(f"{folder} is not a gallery, and is not replaced; name another folder")
    images = verify(file)
    with _set_aside(folder), whole(folder, folder=True) as draft:
        draft.mkdir()
        shutil.copyfile(file, draft / _DATABASE)
        _make_own(draft / _DATABASE)
        with Gallery(draft, write=True) as gallery:
            if len(gallery) != images:
                raise GalleryError(f"{file} was changed while it was read; run this again")
            gallery.optimize(progress=progress)
        if folder.exists():
            folder.rename(_aside(folder))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Copied(images, size)


def verify(file: Path) -> int:
    """Whether a file is a whole database of a gallery; how many images it holds.

    Raises:
        GalleryError: it is not.
    """
    with _explained(file), closing(connect(file, "immutable=1")) as connection:
        version = check_kind(connection, file)
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise _damaged(file, found)
        images = int(connection.execute("SELECT count(*) FROM images").fetchone()[0])
        table = "images" if version == 1 else "images JOIN vectors USING (id)"
        right = connection.execute(
            f"SELECT count(*) FROM {table} WHERE length(vector) = 4 * (SELECT value FROM meta WHERE key = 'dim')"
        ).fetchone()[0]
    if images != right:
        raise _damaged(file, f"{images} images and {right} vectors of the right size")
    return images


def move(gallery_: AnyPlace, old: Path, new: Path, *, missing_too: bool = False) -> tuple[int, int]:
    """Tells a gallery that its photos below ``old`` lie below ``new`` now: all of them, or an error and none.

    Keys and URIs change; ids, vectors, thumbnails and metadata stay, and no photo is touched or read.

    Args:
        missing_too: even if not one of the files is at its new place.

    Returns:
        How many entries changed, and how many of their files are not at their new place.

    Raises:
        GalleryError: nothing lies below ``old``, something does at a new place already, none of the files is there, or
            the gallery cannot be written.
    """
    place = Place.of(gallery_)
    with open_gallery(place, write=True) as gallery:
        moves = [moved for item in _all(gallery) if (moved := _moved(item, old, new))]
        if not moves:
            raise GalleryError(f"no image of {place} lies below {old}; {_where_they_lie(gallery)}")
        missing = sum(not is_there(Path(moved.key)) for moved in moves)
        if missing == len(moves) and not missing_too:
            raise GalleryError(
                f"none of the {len(moves)} files is below {new} ({moves[0].key} does not exist); "
                "move them first, or add --missing-too"
            )
        ids = {moved.id for moved in moves}
        for moved in moves:
            there = gallery.find(moved.key)
            if there is not None and there.id not in ids:
                raise GalleryError(f"{moved.key} is in {place} already (image {there.id}); delete that entry first")
        return gallery.relocate(moves), missing


def _all(gallery: AnyGallery) -> Iterator[Item]:
    after = 0
    while page := gallery.page(after=after, limit=10_000):
        yield from page
        after = page[-1].id


def _moved(item: Item, old: Path, new: Path) -> Moved | None:
    """Keys are absolute paths without links but the last part; a URI is the path as it was given."""
    for prefix in dict.fromkeys((str(old.resolve()), str(old.absolute()))):
        below = prefix.rstrip(os.sep) + os.sep
        if item.key.startswith(below):
            tail = item.key.removeprefix(below)
            uri = str(new / tail) if item.uri == tail or item.uri.endswith(os.sep + tail) else item.uri
            return Moved(item.id, str(new.resolve() / tail), uri, item.size, item.mtime_ns, item.folder)
    return None


def _where_they_lie(gallery: AnyGallery) -> str:
    some = gallery.sample(1)
    return f"one of them is {some[0].key}" if some else "it is empty"


@contextmanager
def _set_aside(folder: Path) -> Iterator[None]:
    """Keeps writers away from a gallery that is to be replaced, and removes what is left of it at the end."""
    aside = _aside(folder)
    if aside.exists():
        raise GalleryError(f"{aside} is left from a restore that was stopped; look into it, then move or delete it")
    if not folder.exists():
        yield
        return
    with closing(WriteLock(folder)):
        try:
            yield
        except BaseException:
            if aside.exists() and not folder.exists():
                aside.rename(folder)
            raise
    remove(aside)


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.replaced")


def _make_own(database: Path) -> None:
    """A restored gallery goes its own way from here, so no index of the one it came from may be taken for its own."""
    with _explained(database), closing(connect(database, "mode=rw")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("UPDATE meta SET value = ? WHERE key = 'uuid'", (uuid.uuid4().hex,))


def connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=10, isolation_level=None)
    connection.set_progress_handler(_look, _OPCODES)
    return connection


def _look() -> int:
    """Called in the middle of long statements, where Python could not see Ctrl-C otherwise."""
    return 0


def check_kind(connection: sqlite3.Connection, path: Path) -> int:
    """The format. Raises GalleryError for another kind of database, or a later format."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise GalleryError(f"{path} is not a gallery of clf; name a file that clf gallery backup wrote")
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > FORMAT:
        raise GalleryError(f"{path} has format {version}, this clf reads up to {FORMAT}; use the clf that wrote it")
    return version


@contextmanager
def _explained(path: Path, output: Path | None = None) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "interrupted" in text:
            raise KeyboardInterrupt from None
        if output is not None and any(words in text for words in ("full", "unable to open", "disk I/O")):
            raise OSError(text) from error
        if "locked" in text or "busy" in text:
            raise GalleryError(f"{path} is locked: another process is writing; try again later") from error
        raise _damaged(path, text) from error


def _damaged(path: Path, reason: str) -> GalleryError:
    return GalleryError(f"{path} is damaged ({reason}); use another backup: clf gallery restore FILE -o GALLERY")
