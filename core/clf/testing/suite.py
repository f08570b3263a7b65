"""All checks in the order of the report, and running them on a plugin."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import clf
from clf.checks import Check, CheckState, Examination, Failed, Outcome, Skipped, named, not_conforming
from clf.errors import ClfError
from clf.testing import packages, record, steps, whole
from clf.testing.isolation import TookTooLong, explained, isolated
from clf.testing.subject import NONE, Subject

CHECKS: tuple[Check[Subject], ...] = (*packages.CHECKS, *steps.CHECKS, *whole.CHECKS)


@dataclass(frozen=True)
class Conformance:
    """What the checks found of one plugin."""

    plugin: str
    distribution: str
    version: str
    clf_version: str
    outcomes: tuple[Outcome, ...]
    seconds: float
    created: str
    """ISO 8601, UTC."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys that were set over the tiny configuration."""

    @property
    def conforms(self) -> bool:
        """Whether no check failed and each was run or has a reason not to be."""
        return not not_conforming(self.outcomes)

    def of(self, state: CheckState) -> list[Outcome]:
        """The outcomes of one state."""
        return [outcome for outcome in self.outcomes if outcome.state == state]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.version,
            "clf_version": self.clf_version,
            "conforms": self.conforms,
            "seconds": round(self.seconds, 2),
            "created": self.created,
            "settings": dict(self.settings),
            "outcomes": [outcome.as_dict() for outcome in self.outcomes],
        }


def examine(subject: Subject, checks: Sequence[Check[Subject]] = CHECKS) -> Examination:
    """The checks of one plugin, to be run."""
    return Examination(checks, lambda check: _judged(check, subject))


def run_checks(
    name_or_path: str,
    only: Sequence[str] = (),
    settings: Mapping[str, Any] = NONE,
    *,
    on_start: Callable[[Check[Any]], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> Conformance:
    """Checks a plugin: an installed one by name, or a single file such as ``./my_method.py``.

    Args:
        only: names of checks; what they need is run too, and told where it fails. All when empty, and then the result
            is kept for ``clf plugins show``.
        settings: dotted keys over the tiny configuration, such as ``{"method.queue_size": 64}``.
        on_start: called before each check.
        on_outcome: called after each check.

    Raises:
        ConfigError: a check or a setting that does not exist.
        PluginError: the plugin is unknown, or cannot be used here.
    """
    chosen = [named(name, CHECKS) for name in only] or list(CHECKS)
    started, created = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="clf-check-", ignore_cleanup_errors=True) as folder:
        subject = Subject(name_or_path, Path(folder), settings)
        info, examination, outcomes = subject.info, examine(subject), []
        for check in chosen:
            if on_start is not None:
                on_start(check)
            outcome = examination.outcome(check.name)
            unasked = [each for each in examination.failed() if each.check not in chosen and each not in outcomes]
            for each in (*unasked, outcome):
                outcomes.append(each)
                if on_outcome is not None:
                    on_outcome(each)
    found = Conformance(
        plugin=info.name,
        distribution=info.distribution,
        version=info.version,
        clf_version=clf.__version__,
        outcomes=tuple(outcomes),
        seconds=time.monotonic() - started,
        created=created,
        settings=dict(settings),
    )
    if not only:
        record.keep(name_or_path, found.as_dict())
    return found


def _judged(check: Check[Subject], subject: Subject) -> tuple[CheckState, str]:
    """Whatever the plugin does in a check becomes an outcome; only Ctrl-C ends the suite."""
    try:
        with isolated():
            return "passed", check.run(subject) or ""
    except Skipped as reason:
        return "skipped", str(reason)
    except (Failed, ClfError, TookTooLong) as reason:
        return "failed", str(reason)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "failed", explained(error, subject.source_files)
