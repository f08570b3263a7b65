"""The tables of a gallery, made at first use, and the version of their format."""

from __future__ import annotations

import json
from collections.abc import Mapping

from psycopg import errors, sql

from clf.errors import GalleryError
from clf_serve.stores.postgres.lines import Line
from clf_serve.stores.postgres.server import STORED, Server, greet
from clf_serve.stores.postgres.target import Target

FORMAT = 1
"""Of the tables."""
HEAD = 64
"""Bytes of a text that are in an index; what is longer is compared with the row."""
PLAIN = 1_950
"""Dimensions up to which a vector lies in its row, where an exact search reads it without a detour."""

# Texts are bytes of UTF-8, in which order, prefixes and parts are those of the letters, and which hold a NUL where JSON
# has one. `facts` has the metadata once more, flat, as in a gallery's folder; the module clf_serve.gallery.metadata
# names the kinds. `writes` tells a writer that lost its connection whether its transaction was the one that came.
_TABLES = """
CREATE TABLE clf_gallery (
    here boolean PRIMARY KEY DEFAULT true CHECK (here),
    format integer NOT NULL,
    generation bigint NOT NULL,
    images bigint NOT NULL,
    dim integer NOT NULL,
    about text NOT NULL,
    index text NOT NULL DEFAULT '{{}}'
);
CREATE TABLE writes (generation bigint PRIMARY KEY, token uuid NOT NULL);
CREATE TABLE images (
    id bigint PRIMARY KEY,
    digest uuid NOT NULL UNIQUE,
    key text COLLATE "C" NOT NULL,
    facts text COLLATE "C" NOT NULL,
    uri bytea,
    folder bytea,
    sha256 bytea,
    size bigint,
    mtime_ns bigint,
    width bigint,
    height bigint,
    thumbnail bytea NOT NULL
);
ALTER TABLE images ALTER thumbnail SET STORAGE EXTERNAL;
CREATE INDEX images_folder ON images (substring(folder from 1 for {head}), id);
CREATE TABLE vectors (id bigint PRIMARY KEY, vector vector({dim}) NOT NULL);
ALTER TABLE vectors ALTER vector SET STORAGE {storage};
CREATE TABLE names (
    number integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY, digest uuid NOT NULL UNIQUE, name bytea NOT NULL
);
CREATE TABLE facts (name integer NOT NULL, kind smallint NOT NULL, number numeric, text bytea, id bigint NOT NULL);
CREATE INDEX facts_values ON facts (name, kind, number, substring(text from 1 for {head}), id);
CREATE INDEX facts_id ON facts (id);
"""


def create(line: Line, target: Target, about: Mapping[str, str]) -> Server:
    """An empty gallery, unless one is there; two that come at once make one. Raises GalleryError.

    Returns the server as it is then: with the extension."""
    dim = about.get("dim", "")
    if not (dim.isascii() and dim.isdecimal() and 0 < int(dim) <= STORED):
        raise GalleryError(f"pgvector keeps vectors of 1 to {STORED:,} dimensions, and those of this model have {dim}")
    with line.transaction():
        line.execute("SELECT pg_advisory_xact_lock(hashtextextended('clf gallery', 0))")
        server = greet(line, target.schema, read_only=False, seconds=(120, 30))
        if server.there:
            return server
        if not server.extension:
            _extend(line, target, server)
            server = greet(line, target.schema, read_only=False, seconds=(120, 30))
        _make_schema(line, target, server)
        storage = "PLAIN" if int(dim) <= PLAIN else "EXTERNAL"
        for statement in _TABLES.format(dim=int(dim), storage=storage, head=HEAD).split(";\n"):
            if statement.strip():
                line.execute(statement)
        line.execute(
            "INSERT INTO clf_gallery (format, generation, images, dim, about) VALUES (%s, 0, 0, %s, %s)",
            (FORMAT, int(dim), json.dumps(dict(about))),
        )
    return server


def _extend(line: Line, target: Target, server: Server) -> None:
    administrator = f"an administrator makes it available in the database {server.database} by: CREATE EXTENSION vector"
    try:
        line.execute("CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public")
    except (errors.InsufficientPrivilege, errors.InvalidSchemaName):
        raise GalleryError(
            f"{target.place} lacks the extension pgvector, which this role may not create; {administrator}"
        ) from None
    except (errors.UndefinedFile, errors.FeatureNotSupported):
        raise GalleryError(
            f"pgvector is not installed on the server of {target.place}; install it there (Debian's package "
            f"postgresql-{server.version // 10000}-pgvector, or https://github.com/pgvector/pgvector), then "
            f"{administrator}"
        ) from None


def _make_schema(line: Line, target: Target, server: Server) -> None:
    """Raises GalleryError: it may not be made, or holds something else."""
    found = line.execute(
        "SELECT EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid) FROM pg_namespace n WHERE nspname = %s",
        (target.schema,),
    ).fetchone()
    if found is not None and found[0]:
        raise GalleryError(
            f"the schema {target.schema!r} of {target.place} holds other things than a gallery; name another one by "
            "?gallery=NAME"
        )
    if found is None:
        try:
            line.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(target.schema)))
        except errors.InsufficientPrivilege:
            raise GalleryError(
                f"this role may not create the schema of a gallery at {target.place}; an administrator makes one by: "
                f'CREATE SCHEMA "{target.schema}" AUTHORIZATION ROLE, in the database {server.database}'
            ) from None


def require_format(line: Line, target: Target) -> int:
    """Dimensions of the vectors. Raises GalleryError: a newer clf has made the tables."""
    text = "SELECT format, dim FROM {}.clf_gallery"  # by its whole name, or a schema that is closed is just not seen
    row = line.execute(sql.SQL(text).format(sql.Identifier(target.schema))).fetchone()
    if row is None:
        raise GalleryError(f"the gallery at {target.place} has lost its own row; restore it from a backup")
    if row[0] > FORMAT:
        text = f"the tables of {target.place} have format {row[0]}, this clf reads up to {FORMAT}; use the clf that "
        raise GalleryError(text + "made them")
    return int(row[1])
