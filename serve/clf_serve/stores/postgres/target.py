"""Which gallery of which database a URL names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from clf.errors import GalleryError
from clf_serve.place import Place

DEFAULT = "clf"
"""The gallery of a URL that names none."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")  # 63 bytes are all that PostgreSQL keeps of a name
_TAKEN = re.compile(r"pg_.*|information_schema|public")
_USUAL = {
    "connect_timeout": ("PGCONNECT_TIMEOUT", "10"),
    "fallback_application_name": ("", "clf"),
    "keepalives_idle": ("", "30"),
    "keepalives_interval": ("", "10"),
    "keepalives_count": ("", "3"),
}
"""libpq's settings: the variable that has them too, and what they are where nobody says."""


@dataclass(frozen=True)
class Target:
    """``settings`` are libpq's; the gallery lies in ``schema``."""

    place: Place
    schema: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, url: str) -> Target:
        """Everything but ``gallery=`` goes to libpq as it stands.

        Raises:
            GalleryError: no such name may be given to a gallery, or libpq does not understand the URL.
        """
        place = Place.of(url)
        address, _, query = url.partition("?")
        parts = [part for part in query.split("&") if part]
        names = [unquote(part.partition("=")[2]) for part in parts if part.partition("=")[0] == "gallery"]
        rest = "&".join(part for part in parts if part.partition("=")[0] != "gallery")
        if len(names) > 1:
            raise GalleryError(f"{place} names more than one gallery; write gallery= once")
        schema = names[0] if names else DEFAULT
        if not _NAME.fullmatch(schema) or _TAKEN.fullmatch(schema.lower()):
            raise GalleryError(
                f"{schema[:80]!r} in {place} is no name for a gallery, which is a schema of the database: up to 63 "
                "letters, digits, '_', '-' and '.', and not public or one of PostgreSQL's own"
            )
        try:
            given = conninfo_to_dict(f"{address}?{rest}" if rest else address)
        except (psycopg.ProgrammingError, UnicodeError) as error:
            raise GalleryError(f"{place} is no URL of PostgreSQL: {place.hide(str(error).strip())}") from None
        usual = {name: value for name, (variable, value) in _USUAL.items() if not os.environ.get(variable)}
        return cls(place, schema, {**usual, **given, "client_encoding": "utf8"})

    def require_own(self, schema: str | None) -> None:
        """Raises GalleryError: tables are looked for in another schema than was set when the connection was made."""
        if schema != self.schema:
            raise GalleryError(
                f"what answers at {self.place} gives one connection to several clients, so that one gallery could be "
                "taken for another; name the server itself, or a pooler whose pool_mode is session"
            )
