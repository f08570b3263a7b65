"""What a connection finds out about its server, and how it is set up, in one round trip."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clf.errors import GalleryError

if TYPE_CHECKING:
    from clf_serve.stores.postgres.lines import Line
    from clf_serve.stores.postgres.target import Target

OLDEST = 130000
"""The oldest server, as server_version_num has it."""
STORED = 16_000
"""Dimensions of pgvector's type ``vector``; HNSW takes up to 2,000 of them, and 4,000 as ``halfvec``."""
HNSW, HNSW_HALF = 2_000, 4_000

_GREETING = """
WITH extension AS (
    SELECT extversion, nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector'
)
SELECT
    current_setting('server_version_num')::int, getdatabaseencoding()::text, pg_is_in_recovery(),
    current_setting('default_transaction_read_only') = 'on', current_database()::text,
    coalesce((SELECT extversion FROM extension), ''),
    EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
            WHERE nspname = %(schema)s AND relname = 'clf_gallery'),
    EXTRACT(epoch FROM set_config('statement_timeout', CASE current_setting('statement_timeout')
        WHEN '0' THEN %(statement)s ELSE current_setting('statement_timeout') END, false)::interval)::float8,
    set_config('lock_timeout', CASE current_setting('lock_timeout')
        WHEN '0' THEN %(lock)s ELSE current_setting('lock_timeout') END, false),
    set_config('search_path', concat_ws(', ', quote_ident(%(schema)s), (SELECT quote_ident(nspname) FROM extension)),
        false),
    set_config('jit', 'off', false),
    CASE WHEN %(read_only)s THEN set_config('default_transaction_read_only', 'on', false) END
"""  # jit: an exact search is costly enough to be compiled, which takes longer than the search


@dataclass(frozen=True)
class Server:
    """The database a connection leads to."""

    version: int = 0
    encoding: str = "UTF8"
    standby: bool = False
    read_only: bool = False
    """By its own setting, or that of the role."""
    database: str = ""
    extension: str = ""
    """pgvector's version; empty where it is not installed in this database."""
    there: bool = False
    """Whether the gallery is."""
    limit: float = 0.0
    """Seconds that a statement may take; 0 for no limit."""

    @property
    def features(self) -> tuple[int, int]:
        """The first two numbers of the extension's version."""
        found = [int(number) for number in re.findall(r"\d+", self.extension)[:2]]
        return (found[0], found[1]) if len(found) == 2 else (0, 0)

    def index_type(self, dim: int) -> str:
        """``vector`` or ``halfvec``, for an HNSW index over so many dimensions; empty where there can be none."""
        if self.features >= (0, 5) and dim <= HNSW:
            return "vector"
        return "halfvec" if self.features >= (0, 7) and dim <= HNSW_HALF else ""

    def no_index(self, dim: int) -> str:
        """Why there can be none, in one clause."""
        if self.features < (0, 5):
            return f"pgvector {self.extension} has no HNSW, 0.5 has"
        if dim > HNSW_HALF:
            return f"HNSW takes up to {HNSW_HALF:,} dimensions, and these are {dim:,}"
        return (
            f"HNSW of pgvector {self.extension} takes up to {HNSW:,} dimensions, and these are {dim:,}; 0.7 takes them"
        )

    def require(self, target: Target, *, write: bool) -> None:
        """Raises GalleryError: galleries cannot be kept there, or not be written."""
        if self.version < OLDEST:
            old, least = self.version // 10000, OLDEST // 10000
            raise GalleryError(f"{target.place} is PostgreSQL {old}, and galleries need {least} or newer")
        if self.encoding != "UTF8":
            raise GalleryError(
                f"the database {self.database} of {target.place} has the encoding {self.encoding}, which cannot hold "
                "every file name; make one by: CREATE DATABASE NAME ENCODING 'UTF8' TEMPLATE template0"
            )
        if write and self.standby:
            raise GalleryError(
                f"{target.place} is a standby server, where galleries can be read and not be written; name the primary"
            )
        if write and self.read_only:
            raise GalleryError(
                f"{target.place} is read-only for this role (default_transaction_read_only is on); name one that may "
                "write"
            )


def greet(line: Line, schema: str, *, read_only: bool, seconds: tuple[float, float]) -> Server:
    """Args: seconds: that a statement and the wait for a lock may take where nothing is set."""
    statement, lock = (f"{int(each)}s" for each in seconds)
    named = {"schema": schema, "statement": statement, "lock": lock, "read_only": read_only}
    row = line.execute(_GREETING, named).fetchone()
    assert row is not None
    return Server(*row[:8])
