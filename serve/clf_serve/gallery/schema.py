"""The tables of a gallery, the version of its format, and how an older one becomes this one."""

from __future__ import annotations

import os
from pathlib import PurePath
from sqlite3 import Connection

from clf_serve.gallery.faults import DamageError
from clf_serve.gallery.metadata import decode, facts

FORMAT = 2
APPLICATION = 0x636C6647  # "clfG"
# What is read by the row lies apart from what is large, so that listing a hundred thousand files reads few pages.
# `facts` holds the metadata once more, flat and in order of value, for filters; the module `metadata` names the kinds.
_TABLES = """
CREATE TABLE images (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    folder TEXT NOT NULL,
    uri TEXT NOT NULL,
    metadata TEXT NOT NULL
);
CREATE INDEX images_sha256 ON images (sha256);
CREATE INDEX images_folder ON images (folder);
CREATE TABLE vectors (id INTEGER PRIMARY KEY, vector BLOB NOT NULL, generation INTEGER NOT NULL);
CREATE INDEX vectors_generation ON vectors (generation);
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE facts (
    name INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    value NOT NULL,
    id INTEGER NOT NULL,
    PRIMARY KEY (name, kind, value, id)
) WITHOUT ROWID;
"""
_UNCHANGED = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE thumbnails (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE deleted (id INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
CREATE INDEX deleted_generation ON deleted (generation);
"""


def create(connection: Connection, meta: dict[str, str]) -> None:
    """All tables, in the transaction that the connection is in."""
    _run(connection, _UNCHANGED + _TABLES)
    connection.executemany("INSERT INTO meta VALUES (?, ?)", (meta | {"generation": "0", "floor": "0"}).items())
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")


def migrate(connection: Connection) -> None:
    """Format 1 becomes this one, in the transaction that the connection is in.

    Format 1 kept vectors among the rows, and knew no folders: each image is given its folder relative to the one that
    all have in common.
    """
    _run(connection, "ALTER TABLE images RENAME TO old; DROP INDEX images_generation;" + _TABLES)
    root = _common_folder([key for (key,) in connection.execute("SELECT key FROM old")])
    connection.create_function("folder_of", 1, lambda key: _folder_of(key, root))
    connection.execute(
        "INSERT INTO images (id, key, size, mtime_ns, sha256, width, height, folder, uri, metadata)"
        " SELECT id, key, size, mtime_ns, sha256, width, height, folder_of(key), uri, metadata FROM old ORDER BY id"
    )
    connection.execute("INSERT INTO vectors SELECT id, vector, generation FROM old ORDER BY id")
    for id_, metadata in connection.execute("SELECT id, metadata FROM old WHERE metadata != '{}'").fetchall():
        add_facts(connection, id_, metadata, {})
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'old'").fetchone()
    if last:  # ids of deleted images are not given out again
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'images'")
        connection.execute("INSERT INTO sqlite_sequence VALUES ('images', ?)", last)
    connection.execute("DROP TABLE old")
    connection.execute("INSERT INTO meta VALUES ('floor', '0')")
    connection.execute(f"PRAGMA user_version = {FORMAT}")


def add_facts(connection: Connection, id_: int, metadata: str, names: dict[str, int]) -> None:
    """Args: names: ids of names known in this transaction; filled. Raises DamageError."""
    rows = []
    for name, kind, value in facts(decode(metadata, id_)):
        if name not in names:
            connection.execute("INSERT OR IGNORE INTO names (name) VALUES (?)", (name,))
            names[name] = connection.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()[0]
        rows.append((names[name], kind, value, id_))
    connection.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?, ?, ?)", rows)


def remove_facts(connection: Connection, id_: int, metadata: str) -> None:
    """Args: metadata: as it was when they were added; where it is damaged, all facts are looked through."""
    try:
        found = [(*fact, id_) for fact in facts(decode(metadata, id_))]
    except DamageError:
        connection.execute("DELETE FROM facts WHERE id = ?", (id_,))
        return
    connection.executemany(
        "DELETE FROM facts WHERE name = (SELECT id FROM names WHERE name = ?) AND kind = ? AND value = ? AND id = ?",
        found,
    )


def _common_folder(keys: list[str]) -> PurePath | None:
    """Of the files that the keys name; None where they are no paths, or on several drives."""
    folders = {PurePath(key).parent for key in keys}
    try:
        return PurePath(os.path.commonpath([folder for folder in folders if folder.is_absolute()]))
    except ValueError:
        return None


def _folder_of(key: str, root: PurePath | None) -> str:
    """Relative to ``root``, with slashes; empty for what lies in it."""
    folder = PurePath(key).parent
    if root is None or folder == root or not folder.is_absolute():
        return ""
    return folder.relative_to(root).as_posix()


def _run(connection: Connection, script: str) -> None:
    for statement in script.split(";"):
        if statement.strip():
            connection.execute(statement)
