"""What PostgreSQL says when something fails, as a sentence with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from clf.errors import ClfError, GalleryError
from clf_serve.stores.postgres.target import Target


@contextmanager
def in_words(target: Target, purpose: str) -> Iterator[None]:
    """Raises GalleryError for what a user or an administrator can mend; everything else stays as it is.

    Args:
        purpose: what was to be done, as a verb.
    """
    try:
        yield
    except ClfError:
        raise
    except psycopg.Error as error:
        if (known := explained(error, target, purpose)) is None:
            raise
        raise known from error


def explained(error: psycopg.Error, target: Target, purpose: str) -> GalleryError | None:
    place, schema, cause = target.place, target.schema, _cause(error)
    if isinstance(error, errors.QueryCanceled):
        text = (
            f"{place}: the server broke off ({cause}) what was to {purpose}; a longer limit is set by "
            "?options=-cstatement_timeout%3D10min in the URL, or an index found by clf gallery optimize"
        )
    elif isinstance(error, errors.LockNotAvailable):
        text = f"{place}: others held what was needed to {purpose} too long ({cause}); try again later"
    elif isinstance(error, errors.ReadOnlySqlTransaction):
        text = f"{place} is read-only ({cause}): name the primary server, or a role that may write, to {purpose}"
    elif isinstance(error, errors.InsufficientPrivilege):
        text = (
            f"{place}: the role may not {purpose} ({cause}). Its owner can allow it: "
            f'GRANT USAGE ON SCHEMA "{schema}" TO ROLE; GRANT SELECT ON ALL TABLES IN SCHEMA "{schema}" TO ROLE; '
            "to write, it has to be the owner or a member of that role"
        )
    elif isinstance(error, errors.DiskFull | errors.OutOfMemory | errors.TooManyConnections):
        text = f"{place}: the server has not enough room to {purpose} ({cause})"
    elif isinstance(error, errors.UndefinedTable):
        return GalleryError(f"there is no gallery {schema!r} any more at {place}")
    elif isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        text = (
            f"{place} cannot be reached to {purpose}: {cause}. See whether the server runs there, and whether "
            "database, user and password are right (a password may stand in ~/.pgpass or PGPASSWORD)"
        )
    else:
        return None
    return GalleryError(place.hide(text))


def _cause(error: psycopg.Error) -> str:
    """One line, without a full stop, and without libpq's guess that the server does not run."""
    text = error.diag.message_primary or " ".join(str(error).split()) or type(error).__name__
    return text.partition(" Is the server running ")[0].rstrip(".")
