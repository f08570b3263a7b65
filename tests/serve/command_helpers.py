"""Commands as a user types them, and what they say of a mistake."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""``run("search", gallery, image, "--json")``: exit status, standard output, standard error."""


def one_error(outcome: tuple[int, str, str]) -> str:
    """The sentence after ``error:`` of a command that ended with a user's mistake, and with nothing else to say."""
    code, _, err = outcome
    lines = err.strip().splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), outcome
    return lines[0]
