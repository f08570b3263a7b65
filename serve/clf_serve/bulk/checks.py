"""The conformance suite of engines for bulk embedding, for pytest and for the terminal."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clf.checks import Check, CheckState, Examination, Failed, Outcome, Skipped, in_order, not_conforming, with_needs
from clf_serve.bulk import check_failures, check_runs
from clf_serve.bulk.bench import Bench
from clf_serve.bulk.engine import BulkEngine, Options, load_engine
from clf_serve.stores.installed import reason_of

__all__ = ["CHECKS", "Check", "Conformance", "Outcome", "conformance", "run_checks"]

CHECKS: tuple[Check[Bench], ...] = in_order((*check_runs.CHECKS, *check_failures.CHECKS))


@dataclass(frozen=True)
class Conformance:
    """How all checks of an engine went."""

    engine: str
    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def conforms(self) -> bool:
        """Whether none failed. A skipped one says nothing."""
        return not not_conforming(self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [outcome.as_dict() for outcome in self.outcomes]
        return {"engine": self.engine, "conforms": self.conforms, "seconds": round(self.seconds, 3), "checks": checks}


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
    wanted = with_needs(only, CHECKS) if only else {check.name for check in CHECKS}
    kind, name = _found(engine)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clf-engine-", ignore_cleanup_errors=True) as folder:
        examination = _examine(kind, name, Path(folder), options)
        for check in CHECKS:
            if check.name in wanted:
                on_outcome(examination.outcome(check.name))
    return Conformance(name, examination.outcomes, time.monotonic() - start)


def conformance(engine: str | type[BulkEngine], options: Options | None = None) -> Callable[..., None]:
    """A test for pytest, one case for each check.

    The whole of a test file is::

        from clf_serve.bulk import conformance

        test_conformance = conformance("mine")

    Args:
        engine: the name of an installed engine, or its class.
        options: that it is made with.
    """
    import pytest

    examinations: list[Examination] = []

    @pytest.mark.parametrize("check", CHECKS, ids=[check.name.replace(" ", "_") for check in CHECKS])
    def test_conformance(check: Check[Bench], tmp_path_factory: pytest.TempPathFactory) -> None:
        __tracebackhide__ = True
        if not examinations:  # not while tests are collected
            examinations.append(_examine(*_found(engine), tmp_path_factory.mktemp("engine"), options))
        outcome = examinations[0].outcome(check.name)
        if outcome.state in ("skipped", "not run"):
            pytest.skip(outcome.text)
        if outcome.state == "failed":
            pytest.fail(f"{check.name}: {outcome.explain()}", pytrace=False)

    return test_conformance


def _found(engine: str | type[BulkEngine]) -> tuple[type[BulkEngine], str]:
    if isinstance(engine, str):
        return load_engine(engine), engine
    return engine, engine.__name__


def _examine(kind: type[BulkEngine], name: str, folder: Path, options: Options | None) -> Examination:
    """Args: folder: empty."""
    bench = Bench(kind, name, folder, options or Options())

    def judge(check: Check[Any]) -> tuple[CheckState, str]:
        try:
            return "passed", check.run(bench) or ""
        except Skipped as reason:
            return "skipped", str(reason)
        except Failed as reason:
            return "failed", str(reason)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # of the engine
            return "failed", reason_of(error)

    return Examination(CHECKS, judge)
