"""clf-shelf: each gallery is one SQLite file; a search compares the query with every vector."""

import json
import sqlite3
from pathlib import Path

import numpy as np

from clf_serve.stores import ConflictError, NoGalleryError, Row, State, VectorStore

ABOUT = "CREATE TABLE about (name TEXT PRIMARY KEY, text TEXT NOT NULL)"
ROWS = "CREATE TABLE rows (id INTEGER PRIMARY KEY, key TEXT UNIQUE, facts TEXT, vector BLOB, thumbnail BLOB)"
AMONG = "IN (SELECT value FROM json_each(?))"


class Shelf(VectorStore):
    """shelf:///folder/file.db"""

    def __init__(self, path):
        self.path = path
        self.db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)

    @classmethod
    def open(cls, url, *, write, create=None):
        path = Path(url.removeprefix("shelf://"))
        if create is None and not (path.exists() and path.stat().st_size):
            raise NoGalleryError
        store = cls(path)
        if create is not None:
            with store.db:  # commits, or rolls back where something is raised
                store.db.execute("BEGIN IMMEDIATE")
                if not store.db.execute("SELECT 1 FROM sqlite_schema").fetchone():
                    store.db.execute(ABOUT)
                    store.db.execute(ROWS)
                    store.db.executemany("INSERT INTO about VALUES (?, ?)", {**create, "generation": "0"}.items())
            store.db.execute("PRAGMA journal_mode = WAL")  # whoever reads waits for nobody
        return store

    def state(self):
        about = dict(self.db.execute("SELECT name, text FROM about UNION ALL SELECT 'images', count(*) FROM rows"))
        images, generation = int(about.pop("images")), int(about.pop("generation"))
        return State(generation, images, about, bytes=self.path.stat().st_size)

    def write(self, put, delete, about, *, at):
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            if self.state().generation != at:
                raise ConflictError
            gone = [*delete, *(row.id for row in put)]
            self.db.execute(f"DELETE FROM rows WHERE id {AMONG}", (json.dumps(gone),))
            values = ((row.id, row.key, row.facts, row.vector.tobytes(), row.thumbnail) for row in put)
            self.db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", values)
            texts = {**about, "generation": str(at + 1)}
            self.db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", texts.items())

    def find(self, keys):
        return dict(self.db.execute(f"SELECT key, id FROM rows WHERE key {AMONG}", (json.dumps(keys),)))

    def read(self, ids, *, vectors, thumbnails):
        return self.rows(f"id {AMONG}", json.dumps(ids))

    def scan(self, after, limit, *, vectors, thumbnails):
        return self.rows("id > ? ORDER BY id LIMIT ?", after, limit)

    def rows(self, where, *values):
        found = self.db.execute(f"SELECT id, key, facts, vector, thumbnail FROM rows WHERE {where}", values)
        return [Row(id_, key, facts, np.frombuffer(v, np.float32), jpeg) for id_, key, facts, v, jpeg in found]

    def search(self, vector, k, allowed, *, exact):
        found = self.db.execute("SELECT id, vector FROM rows").fetchall()
        ids = np.array([id_ for id_, _ in found], np.int64)
        scores = np.frombuffer(b"".join(blob for _, blob in found), np.float32).reshape(-1, len(vector)) @ vector
        if allowed is not None:
            ids, scores = ids[np.isin(ids, allowed)], scores[np.isin(ids, allowed)]
        return ids[np.argsort(-scores)[:k]].tolist()

    def close(self):
        self.db.close()
