"""Where a gallery is: in a folder, or in a vector store that is named by a URL. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from clf.errors import GalleryError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+._-]+)://")
_LOGIN = re.compile(r"(?<=://)([^/?#:]*:)(.*)(?=@)")  # up to the last @: a password may hold any letter
_SETTING = re.compile(
    r"([?&;#](?:[^=&;#]*(?:pass|pwd|token|secret|credential|signature)[^=&;#]*|[^=&;#]*key|auth|sig)=)([^&]+)",
    re.IGNORECASE,
)
_SHORT = 4  # letters; a shorter secret stands in many words by chance


@dataclass(frozen=True, repr=False)
class Place:
    """``SCHEME://REST`` names a store, everything else a folder. Its text hides what looks like a password."""

    folder: Path | None
    url: str = ""
    """As it was given, password included; the scheme in small letters. Never to be shown."""

    @classmethod
    def of(cls, named: AnyPlace) -> Place:
        if isinstance(named, Place):
            return named
        if isinstance(named, str) and (scheme := _URL.match(named)):
            return cls(None, scheme[0].lower() + named[scheme.end() :])
        return cls(Path(named))

    def __str__(self) -> str:
        if self.folder is not None:
            return str(self.folder)
        return _SETTING.sub(r"\1***", _LOGIN.sub(r"\1***", self.url))

    def __repr__(self) -> str:
        return f"Place({str(self)!r})"

    def hide(self, text: str) -> str:
        """What somebody else says of this place, without the passwords of its URL."""
        if not self.url:
            return text
        text = text.replace(self.url, str(self))
        found = [match[2] for pattern in (_LOGIN, _SETTING) for match in pattern.finditer(self.url)]
        for secret in sorted({*found, *map(unquote, found)}, key=len, reverse=True):
            if len(secret) >= _SHORT:
                text = text.replace(secret, "***")
        return text

    @property
    def scheme(self) -> str:
        """Of the URL; empty for a folder."""
        return self.url.partition("://")[0]

    @property
    def identity(self) -> str:
        """Equal for two names of one folder. Never to be shown or kept: that of a store holds its password."""
        return str(self.folder.resolve()) if self.folder is not None else self.url

    @property
    def name(self) -> str:
        """The last part of the path."""
        if self.folder is not None:
            return self.folder.resolve().name
        host, _, path = re.split(r"[?#]", str(self).partition("://")[2])[0].rstrip("/").partition("/")
        return path.rpartition("/")[2] or host.rpartition("@")[2] or self.scheme

    @property
    def notes(self) -> Path:
        """A local folder for what may be lost: the gallery's own, or one in the user's cache for a store."""
        if self.folder is not None:
            return self.folder
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "clf" / "stores" / hashlib.sha256(str(self).encode("utf-8", "surrogateescape")).hexdigest()[:24]

    def require_folder(self, purpose: str) -> Path:
        """Args: purpose: the command, which works on the files of a gallery. Raises GalleryError for a store."""
        if self.folder is None:
            raise GalleryError(
                f"{purpose} is for galleries in folders, and {self} is kept by the store {self.scheme!r}; "
                f"use the store's own tools, or a copy in a folder: clf gallery copy {self} FOLDER"
            )
        return self.folder


AnyPlace: TypeAlias = Place | Path | str
"""What functions take."""
