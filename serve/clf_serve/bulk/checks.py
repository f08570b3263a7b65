"""The conformance suite of engines for bulk embedding, for pytest and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clf import checks
from clf.checks import Check, Examination, Outcome, as_test, in_order, judged, run_all
from clf_serve.bulk import check_failures, check_runs
from clf_serve.bulk.bench import Bench
from clf_serve.bulk.engine import BulkEngine, Options, load_engine
from clf_serve.installed import reason_of

__all__ = ["CHECKS", "Check", "Conformance", "Outcome", "conformance", "run_checks"]

CHECKS: tuple[Check[Bench], ...] = in_order((*check_runs.CHECKS, *check_failures.CHECKS))


@dataclass(frozen=True)
class Conformance(checks.Conformance):
    """How all checks of an engine went."""

    engine: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"engine": self.engine, **super().as_dict()}


def run_checks(
    engine: str | type[BulkEngine],
    options: Options | None = None,
    *,
    only: Sequence[str] = (),
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Conformance:
    """Runs the checks in order; one whose needs have failed is not run.

    Args:
        engine: the name of one that is installed, or a class.
        options: that it is made with.
        only: names of checks; those that they need are run too.
        on_outcome: called after each.

    Raises:
        PluginError: the engine is not installed or broken.
        ConfigError: there is no check of that name.
    """
    kind, name = _found(engine)
    outcomes, seconds = run_all(
        "engine", CHECKS, lambda folder: _examine(kind, name, folder, options), only, on_outcome
    )
    return Conformance(outcomes, seconds, name)


def conformance(engine: str | type[BulkEngine], options: Options | None = None) -> Callable[..., None]:
    """A test for pytest, one case for each check.

    The whole of a test file is::

        from clf_serve.bulk import conformance

        test_conformance = conformance("mine")

    Args:
        engine: the name of an installed engine, or its class.
        options: that it is made with.
    """
    return as_test("engine", CHECKS, lambda folder: _examine(*_found(engine), folder, options))


def _found(engine: str | type[BulkEngine]) -> tuple[type[BulkEngine], str]:
    if isinstance(engine, str):
        return load_engine(engine), engine
    return engine, engine.__name__


def _examine(kind: type[BulkEngine], name: str, folder: Path, options: Options | None) -> Examination:
    """Args: folder: empty."""
    bench = Bench(kind, name, folder, options or Options())
    return Examination(CHECKS, lambda check: judged(check, bench, reason_of))
