"""One check and how it went.

A module of checks is imported where tests are collected and where ``clf plugins check --help`` is printed, so it
imports torch inside its functions; :func:`at` names a function of a module that imports it at the top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from clf.testing.subject import Subject

State: TypeAlias = Literal["passed", "failed", "skipped", "not run"]


class Failed(Exception):  # noqa: N818 - the outcome of a check, not an error of the program
    """What is wrong with the plugin, in a sentence with figures."""


class Skipped(Exception):  # noqa: N818
    """Why a check says nothing about this plugin."""


@dataclass(frozen=True)
class Check:
    """One property that a plugin must have."""

    name: str
    """Lower-case words: ``--only "odd batch"``, ``pytest -k "odd_batch"``."""
    looks_at: str
    """What is done, in one sentence."""
    why: str
    """What goes wrong for the users of a plugin without it."""
    remedy: str
    run: Callable[[Subject], str | None] = field(repr=False)
    """Returns a fact worth showing, or nothing. Raises :class:`Failed` or :class:`Skipped`."""
    needs: tuple[str, ...] = ()
    """Names of the checks without whose success this one would only repeat their failure."""


@dataclass(frozen=True)
class Outcome:
    """How one check went."""

    check: Check
    state: State
    text: str = ""
    """A fact of a passed check, what is wrong of a failed one, the reason of the others."""
    seconds: float = 0.0

    def explain(self) -> str:
        """What was found and, of a failure, why it matters and how to mend it."""
        if self.state != "failed":
            return self.text
        return f"{self.text}\nWhy it matters: {self.check.why}\nTo mend it: {self.check.remedy}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; a failure has what a person needs to mend it."""
        found = {"check": self.check.name, "state": self.state, "text": self.text, "seconds": round(self.seconds, 3)}
        if self.state == "failed":
            found |= {"why": self.check.why, "remedy": self.check.remedy}
        return found


def at(place: str) -> Callable[[Subject], str | None]:
    """The function at ``"module:name"``, whose module is imported when the check runs."""
    module, _, name = place.partition(":")

    def run(subject: Subject) -> str | None:
        found: str | None = getattr(import_module(module), name)(subject)
        return found

    return run
