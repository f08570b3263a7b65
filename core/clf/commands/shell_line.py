"""The command line as the shell hands it over when TAB is pressed, through the variables of typer's own scripts.

bash splits words at ``=`` and ``:`` and replaces only what is behind the last of them, while zsh and fish hand over and
replace whole words. For typer and for what completes, a word is whole in all of them.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

ASKED = "_CLF_COMPLETE"
"""Set by the shell: ``complete_bash``, ``complete_zsh`` or ``complete_fish``."""
_SPECIAL = re.compile(r"([\s\"'\\$`&|;<>()*?!#])")


@dataclass(frozen=True)
class Line:
    """What was typed before the word that is being completed."""

    words: tuple[str, ...]

    def option(self, name: str) -> str | None:
        """The value that an option such as ``--plugin`` was given."""
        for word, following in zip(self.words, (*self.words[1:], None), strict=True):
            if word == name:
                return following
            if word.startswith(f"{name}="):
                return word.removeprefix(f"{name}=")
        return None

    def setting(self, key: str) -> str | None:
        """The value of a ``key=value`` word."""
        return next((word.removeprefix(f"{key}=") for word in self.words if word.startswith(f"{key}=")), None)

    def keys(self) -> set[str]:
        """The keys that have a value already."""
        return {word.partition("=")[0] for word in self.words if "=" in word}


def read() -> Line:
    """The line of this process."""
    if os.environ.get(ASKED) == "complete_bash":
        return Line(tuple(_split(os.environ.get("COMP_WORDS", ""))[: int(os.environ.get("COMP_CWORD", "0"))]))
    text = os.environ.get("_TYPER_COMPLETE_ARGS", "")
    words = _split(text)
    return Line(tuple(words if text.endswith(" ") else words[:-1]))


@contextmanager
def asked() -> Iterator[None]:
    """For the process in which typer answers a TAB; does nothing in any other.

    Nothing is said on standard error, which is the terminal in the middle of a line. bash's words are whole inside, and
    what is printed is cut to the part that bash replaces, its spaces escaped.
    """
    shell = os.environ.get(ASKED, "")
    if shell.startswith("complete_"):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if shell != "complete_bash":
        yield
        return
    word, kept = _join(os.environ)
    head = word[: word.index("=") + 1] if word.startswith("-") and "=" in word else ""  # typer answers with values
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            print(_SPECIAL.sub(r"\\\1", (head + line)[kept:]))


def _join(environment: MutableMapping[str, str]) -> tuple[str, int]:
    """Joins words, drops those behind the cursor, and says which is completed and how much of it bash keeps."""
    at = int(environment.get("COMP_CWORD", "0"))
    words: list[str] = []
    kept, before = "", ""
    for part in environment.get("COMP_WORDS", "").split("\n")[: at + 1]:
        if words and part and (_separates(part) or _separates(before)):
            kept = words[-1] + part if _separates(part) else words[-1]
            words[-1] += part
        else:
            kept = ""
            words.append(part)
        before = part
    environment.update({"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)})
    return "".join(_split(words[-1])), len("".join(_split(kept)))


def _separates(part: str) -> bool:
    return part != "" and set(part) <= {"=", ":"}


def _split(text: str) -> list[str]:
    """Words without their quotes; the last one may have a quote that is still open."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:
        words.append(lexer.token)
    return words
