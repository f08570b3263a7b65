"""Checks of a conformance suite, how they are run and how they went. Shared by the suites of plugins, of vector stores
and of engines for bulk embedding; needs no torch.

A module of checks is imported where tests are collected and where ``--help`` is printed, so it imports what is heavy
inside its functions; :func:`at` names a function of a module that imports it at the top.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from clf.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import pytest

S = TypeVar("S")
CheckState: TypeAlias = Literal["passed", "failed", "skipped", "not run"]


class Failed(Exception):  # noqa: N818 - the outcome of a check, not an error of the program
    """What is wrong with the subject, in a sentence with figures."""


class Skipped(Exception):  # noqa: N818
    """Why a check says nothing about this subject."""


@dataclass(frozen=True)
class Check(Generic[S]):
    """One property that a subject must have."""

    name: str
    """Lower-case words: ``--only "odd batch"``, ``pytest -k "odd_batch"``."""
    looks_at: str
    """What is done, in one sentence."""
    why: str
    """What goes wrong for users without it."""
    remedy: str
    run: Callable[[S], str | None] = field(repr=False)
    """Returns a fact worth showing, or nothing. Raises :class:`Failed` or :class:`Skipped`."""
    needs: tuple[str, ...] = ()
    """Names of the checks without whose success this one would only repeat their failure."""


@dataclass(frozen=True)
class Outcome:
    """How one check went."""

    check: Check[Any]
    state: CheckState
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


@dataclass(frozen=True)
class Conformance:
    """How the checks of a subject went."""

    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def conforms(self) -> bool:
        """Whether none failed. A skipped one says nothing."""
        return not not_conforming(self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [outcome.as_dict() for outcome in self.outcomes]
        return {"conforms": self.conforms, "seconds": round(self.seconds, 3), "checks": checks}


class Examination:
    """The checks of one subject, each run at most once, after those that it needs.

    Args:
        judge: runs a check on the subject; whatever the subject does there becomes a state and a text.
    """

    def __init__(self, checks: Sequence[Check[Any]], judge: Callable[[Check[Any]], tuple[CheckState, str]]) -> None:
        self._checks = {check.name: check for check in checks}
        self._judge = judge
        self._outcomes: dict[str, Outcome] = {}

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Those so far, in the order in which they were run."""
        return tuple(self._outcomes.values())

    def outcome(self, name: str) -> Outcome:
        """How a check went. Raises KeyError for a name that is none of the checks'."""
        if name not in self._outcomes:
            found = self._run(self._checks[name])
            self._outcomes[name] = found
        return self._outcomes[name]

    def failed(self) -> list[Outcome]:
        """The failures so far, those of needed checks too."""
        return [each for each in self._outcomes.values() if each.state == "failed"]

    def _run(self, check: Check[Any]) -> Outcome:
        for name in check.needs:
            needed = self.outcome(name)
            if needed.state == "skipped":
                return Outcome(check, "skipped", needed.text)
            if needed.state == "not run":
                return Outcome(check, "not run", needed.text)
            if needed.state == "failed":
                return Outcome(check, "not run", f"it needs {name!r}, which failed")
        started = time.monotonic()
        state, text = self._judge(check)
        return Outcome(check, state, text, time.monotonic() - started)


def judged(check: Check[S], subject: S, reason_of: Callable[[BaseException], str]) -> tuple[CheckState, str]:
    """What comes of a check. Whatever the subject raises is a failure, told by ``reason_of``; Ctrl-C ends the suite."""
    try:
        return "passed", check.run(subject) or ""
    except Skipped as reason:
        return "skipped", str(reason)
    except Failed as reason:
        return "failed", str(reason)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "failed", reason_of(error)


def run_all(
    name: str,
    checks: Sequence[Check[Any]],
    begin: Callable[[Path], Examination],
    only: Sequence[str] = (),
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[tuple[Outcome, ...], float]:
    """Runs checks in their order; one whose needs have failed is not run. The outcomes, and the seconds it took.

    Args:
        name: of the kind of subject, for a folder of that name.
        begin: makes the examination, in that folder, which is empty and removed afterwards.
        only: names of checks; those that they need are run too.
        on_outcome: called after each.

    Raises:
        ConfigError: there is no check of that name.
    """
    wanted = with_needs(only or [check.name for check in checks], checks)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"clf-{name}-", ignore_cleanup_errors=True) as folder:
        examination = begin(Path(folder))
        for check in checks:
            if check.name in wanted:
                on_outcome(examination.outcome(check.name))
    return examination.outcomes, time.monotonic() - start


def as_test(name: str, checks: Sequence[Check[S]], begin: Callable[[Path], Examination]) -> Callable[..., None]:
    """A test function for pytest, one case for each check; one whose needs have failed is skipped.

    Args:
        name: of the kind of subject, for a folder of that name.
        begin: makes the examination, in that folder, which is empty; not called while tests are collected.
    """
    import pytest

    examinations: list[Examination] = []

    @pytest.mark.parametrize("check", checks, ids=[check.name.replace(" ", "_") for check in checks])
    def test_conformance(check: Check[S], tmp_path_factory: pytest.TempPathFactory) -> None:
        __tracebackhide__ = True
        if not examinations:
            examinations.append(begin(tmp_path_factory.mktemp(name)))
        outcome = examinations[0].outcome(check.name)
        if outcome.state in ("skipped", "not run"):
            pytest.skip(outcome.text)
        if outcome.state == "failed":
            pytest.fail(f"{check.name}: {outcome.explain()}", pytrace=False)

    return test_conformance


def at(place: str) -> Callable[[Any], str | None]:
    """The function at ``"module:name"``, whose module is imported when the check runs."""
    module, _, name = place.partition(":")

    def run(subject: Any) -> str | None:
        found: str | None = getattr(import_module(module), name)(subject)
        return found

    return run


def named(name: str, checks: Sequence[Check[S]]) -> Check[S]:
    """The check of a name; ``odd_batch`` is ``odd batch``. Raises ConfigError."""
    names = {check.name: check for check in checks}
    wanted = name.strip().replace("_", " ")
    if wanted not in names:
        raise ConfigError(f"there is no check {name!r}.{did_you_mean(wanted, names)} Checks: {', '.join(names)}")
    return names[wanted]


def in_order(checks: Sequence[Check[S]]) -> tuple[Check[S], ...]:
    """Each after those that it needs."""
    left = {check.name: check for check in checks}
    ordered: dict[str, Check[S]] = {}
    while left:
        name = next(name for name, check in left.items() if all(need in ordered for need in check.needs))
        ordered[name] = left.pop(name)
    return tuple(ordered.values())


def with_needs(names: Sequence[str], checks: Sequence[Check[S]]) -> set[str]:
    """The names, and all that they need. Raises ConfigError."""
    wanted: set[str] = set()
    pending = list(names)
    while pending:
        check = named(pending.pop(), checks)
        if check.name not in wanted:
            wanted.add(check.name)
            pending += check.needs
    return wanted


def not_conforming(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that failed, or could not be run. A skipped one says nothing."""
    return [each for each in outcomes if each.state in ("failed", "not run")]
