"""The URL of a gallery in Qdrant: ``qdrant://HOST[:6333][/PREFIX]/COLLECTION[?api_key=KEY&https=true&timeout=60]``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from clf.errors import GalleryError
from clf_serve.place import Place

FORM = "qdrant://HOST:6333/COLLECTION"
KEY_VARIABLE = "QDRANT_API_KEY"
_SETTINGS = ("api_key", "https", "timeout")
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_NO_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')  # letters that Qdrant takes in no name
_TIMEOUT = 60  # seconds
_MOST_SECONDS = 3600


@dataclass(frozen=True)
class Address:
    """Where a gallery is. Its key is in no text that is made of it."""

    server: str
    """``http://HOST:PORT[/PREFIX]``"""
    collection: str
    place: Place
    """For messages; hides the key."""
    timeout: int = _TIMEOUT
    """Seconds that one request may take."""
    key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str) -> Address:
        """Raises GalleryError."""
        place = Place.of(url)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise GalleryError(f"{place} names no gallery ({error}); write {FORM}") from None
        prefix, _, collection = parts.path.rstrip("/").rpartition("/")
        collection = unquote(collection)
        if not host or not collection or parts.username or parts.password or parts.fragment:
            raise GalleryError(f"{place} names no gallery in Qdrant; write {FORM}, a key as ?api_key=KEY")
        if collection in (".", "..") or _NO_NAME.search(collection) or len(collection) > 255:
            raise GalleryError(f"{place}: Qdrant has no collection of such a name; write {FORM}")
        settings = _settings(parts.query, place)
        key = settings.get("api_key") or os.environ.get(KEY_VARIABLE, "").strip() or None
        if key is not None and not (key.isascii() and key.isprintable()):  # what refuses to send it would show it
            raise GalleryError(f"{place}: the API key, of the URL or {KEY_VARIABLE}, holds letters that no key has")
        https = _flag(settings, "https", place, default=key is not None and not _is_this_machine(host))
        inside = f"[{host}]" if ":" in host else host
        server = f"{'https' if https else 'http'}://{inside}:{6333 if port is None else port}{prefix}"
        return cls(server, collection, place, _seconds(settings, place), key)


def _settings(query: str, place: Place) -> dict[str, str]:
    pairs = [part.partition("=") for part in query.split("&") if part]
    found = {unquote(name): unquote(value) for name, _, value in pairs}  # a plus in a key is a plus
    if strange := sorted(found.keys() - set(_SETTINGS)):
        raise GalleryError(f"{place}: there is no setting {strange[0]!r}; there are {', '.join(_SETTINGS)}")
    return found


def _flag(settings: dict[str, str], name: str, place: Place, *, default: bool) -> bool:
    if name not in settings:
        return default
    if (value := _FLAGS.get(settings[name].lower())) is None:
        raise GalleryError(f"{place}: {name} is true or false, not {settings[name]!r}")
    return value


def _seconds(settings: dict[str, str], place: Place) -> int:
    text = settings.get("timeout", str(_TIMEOUT))
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and 0 < int(text) <= _MOST_SECONDS):
        raise GalleryError(f"{place}: timeout is a whole number of seconds up to {_MOST_SECONDS}, not {text!r}")
    return int(text)


def _is_this_machine(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
