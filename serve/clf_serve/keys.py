"""API keys from a file, so that they are in no process list, no environment and no shell history."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from clf.errors import ServeError

_MOST = 2**20  # bytes of a file of keys; more is another file
_KEY = re.compile(r"[\x21-\x7e]+")


def split_keys(texts: Sequence[str]) -> list[str]:
    """The keys in ``--api-key`` or CLF_API_KEYS, where commas separate them.

    Raises:
        ServeError: one of them no HTTP header can carry. The message never shows it.
    """
    keys = [key.strip() for text in texts for key in text.split(",") if key.strip()]
    if not all(map(_KEY.fullmatch, keys)):
        text = "has a blank or a character outside of printable ASCII, which no header can carry"
        raise ServeError(f"a key of --api-key or CLF_API_KEYS {text}")
    return list(dict.fromkeys(keys))


def read_keys(path: Path) -> list[str]:
    """The keys in a file: one on each line; empty lines and lines that begin with ``#`` count for nothing.

    Raises:
        ServeError: the file cannot be read, holds no key (which must not mean that none is asked for), or holds a line
            that no HTTP header can carry. The message names the line and never shows it.
    """
    option = f"--api-key-file {path}"
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1)
    except OSError as error:
        raise ServeError(f"{option} cannot be read: {error.strerror}") from error
    if len(data) > _MOST:
        raise ServeError(f"{option} is larger than 1 MiB; give a file with one key on each line")
    keys = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").decode("latin-1").split("\n"), 1):
        key = line.strip(" \t\r")
        if not key or key.startswith("#"):
            continue
        if not _KEY.fullmatch(key):
            text = "has a blank or a character outside of printable ASCII within its key, which no header can carry"
            raise ServeError(f"line {number} of {option} {text}")
        keys.append(key)
    if not keys:
        raise ServeError(f"{option} holds no key; write one on each line, or leave the option out to ask for none")
    return list(dict.fromkeys(keys))
