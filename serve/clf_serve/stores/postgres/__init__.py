"""Galleries in PostgreSQL with the extension pgvector: ``postgresql://USER@HOST/DATABASE?gallery=NAME``.

A gallery is a schema of the database; ``NAME`` is ``clf`` where it is left out. ``DROP SCHEMA "NAME" CASCADE`` removes
it, ``pg_dump -n '"NAME"'`` backs it up, and ``GRANT`` says who may read it.

Each connection is set up for one gallery, so a pooler in between has to be in session mode; another one is refused.
"""

import logging

from clf_serve.stores.postgres.store import PostgresStore

logging.getLogger("psycopg").addHandler(logging.NullHandler())  # or its warnings stand beside our errors

__all__ = ["PostgresStore"]
