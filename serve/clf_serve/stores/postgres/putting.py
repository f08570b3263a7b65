"""One write: everything that it sends is made ready before anything is locked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg import sql

from clf_serve.gallery.metadata import MEMBER, NUMBER, TEXT
from clf_serve.gallery.metadata import facts as facts_of
from clf_serve.stores.postgres import binary
from clf_serve.stores.postgres.binary import Int8s, Uuids, copied, digest, integer, long, short
from clf_serve.stores.postgres.filters import exact
from clf_serve.stores.postgres.lines import Line
from clf_serve.stores.vector_store import ConflictError, Row

KEPT_WRITES = 10_000
"""Tokens that are remembered: a writer asks for its own within seconds."""
_COLUMNS = {
    "images": "id, digest, key, facts, uri, folder, sha256, size, mtime_ns, width, height, thumbnail",
    "vectors": "id, vector",
    "facts": "name, kind, number, text, id",
}
_REMOVE = """
WITH gone AS (SELECT unnest(%s) AS id),
    facts AS (DELETE FROM facts USING gone WHERE facts.id = gone.id),
    vectors AS (DELETE FROM vectors USING gone WHERE vectors.id = gone.id)
DELETE FROM images USING gone WHERE images.id = gone.id
"""
_FINISH = """
WITH token AS (INSERT INTO writes VALUES (%s, %s)), old AS (DELETE FROM writes WHERE generation <= %s)
UPDATE clf_gallery SET generation = %s, images = %s, about = %s
"""
_Fact = tuple[bytes, int, Decimal | None, bytes | None, int]
"""Name, kind, number, text, id."""


class Put:
    """What a write changes, in the format that is sent.

    Args:
        token: differs from write to write.

    Raises:
        ValueError: a row cannot be kept.
    """

    def __init__(self, rows: Sequence[Row], delete: Sequence[int], about: Mapping[str, str], token: UUID) -> None:
        listed = list(rows)
        self.count = len(listed)
        self.about = dict(about)
        self.token = token
        self.in_doubt = False
        """Whether a COMMIT was sent that nothing was heard of."""
        self._gone = Int8s(sorted({*map(int, delete), *(row.id for row in listed)}))
        self._any_gone = bool(delete or listed)
        parsed = [_parsed(row.facts) for row in listed]
        self._images = copied(_image(row, facts) for row, facts in zip(listed, parsed, strict=True))
        self._vectors = binary.copied_vectors([row.id for row in listed], [row.vector for row in listed])
        self._facts = [
            fact for row, facts in zip(listed, parsed, strict=True) for fact in _facts(row.id, facts.get("metadata"))
        ]

    def carry_out(self, line: Line, at: int) -> None:
        """In one transaction, which is committed when this returns; nothing, if it is there already.

        Raises:
            ConflictError: somebody else has written since the generation ``at``.
        """
        self.in_doubt = False
        with line.transaction():
            text = "SELECT generation, images, about, current_schema()::text FROM clf_gallery FOR UPDATE"
            [(generation, images, about, own)] = line.execute(text).fetchall()
            line.target.require_own(own)
            if generation != at:
                if self._is_there(line, at + 1):
                    return
                raise ConflictError(f"the generation is {generation} and not {at}")
            about = json.dumps(json.loads(about) | self.about)
            if self._any_gone:
                images -= self._remove(line)
            if self.count:
                self._add(line)
            line.execute(_FINISH, (at + 1, self.token, at + 1 - KEPT_WRITES, at + 1, images + self.count, about))
            self.in_doubt = True
        self.in_doubt = False

    def _is_there(self, line: Line, generation: int) -> bool:
        """Whether that generation is this write: its COMMIT came through, and the answer did not."""
        row = line.execute("SELECT token FROM writes WHERE generation = %s", (generation,)).fetchone()
        return row is not None and row[0] == self.token

    def _remove(self, line: Line) -> int:
        return line.execute(_REMOVE, (self._gone,)).rowcount

    def _add(self, line: Line) -> None:
        _copy(line, "images", self._images)
        _copy(line, "vectors", self._vectors)
        if not self._facts:
            return
        numbers = _numbers(line, {name for name, *_ in self._facts})
        rows = (
            (integer(numbers[name]), short(kind), None if number is None else binary.numeric(number), text, long(id_))
            for name, kind, number, text, id_ in self._facts
        )
        _copy(line, "facts", copied(rows))


def _copy(line: Line, table: str, data: bytes) -> None:
    command = sql.SQL(f"COPY {table} ({_COLUMNS[table]}) FROM STDIN (FORMAT binary)")
    with line.cursor() as cursor, cursor.copy(command) as copy:
        copy.write(data)


def _numbers(line: Line, names: set[bytes]) -> dict[bytes, int]:
    """Of metadata names; new ones get theirs. Nobody else gives any out while the gallery's row is locked."""
    by_digest = {digest(name): name for name in names}
    known = _known(line, list(by_digest))
    if new := [each for each in by_digest if each not in known]:
        line.execute(
            "INSERT INTO names (digest, name) SELECT * FROM unnest(%s, %s::bytea[])",
            (Uuids(new), [by_digest[each] for each in new]),
        )
        known |= _known(line, new)
    return {name: known[each] for each, name in by_digest.items()}


def _known(line: Line, digests: list[bytes]) -> dict[bytes, int]:
    found = line.execute("SELECT digest, number FROM names WHERE digest = ANY(%s)", (Uuids(digests),))
    return {each.bytes: number for each, number in found}


def _parsed(text: str) -> dict[str, Any]:
    """Facts that are no JSON object are kept, and no filter finds anything in them."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _image(row: Row, facts: Mapping[str, Any]) -> tuple[bytes | None, ...]:
    if "\0" in row.key or "\0" in row.facts:
        raise ValueError(f"the key or the facts of row {row.id} hold a NUL, which PostgreSQL does not keep")
    texts = (facts.get(name) for name in ("uri", "folder", "sha256"))
    numbers = (facts.get(name) for name in ("size", "mtime_ns", "width", "height"))
    return (
        long(row.id),
        digest(row.key),
        row.key.encode(),
        row.facts.encode(),
        *(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else None for text in texts),
        *map(long, numbers),
        bytes(row.thumbnail),
    )


def _facts(id_: int, metadata: Any) -> Iterator[_Fact]:
    """Each name, kind and value once."""
    if not isinstance(metadata, Mapping):
        return
    for name, kind, value in dict.fromkeys(facts_of(metadata)):
        own = kind % MEMBER
        text = value.encode("utf-8", "surrogatepass") if own == TEXT and isinstance(value, str) else None
        number = exact(value) if own <= NUMBER and not isinstance(value, str) else None
        yield name.encode("utf-8", "surrogatepass"), kind, number, text, id_
