"""The conformance suite of vector stores, for pytest and for the terminal."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clf.errors import ConfigError, did_you_mean
from clf_serve.place import Place
from clf_serve.stores import check_filters, check_kills, check_rows, check_searches
from clf_serve.stores.bench import Bench, Check, Failed, Outcome, Skipped, Url
from clf_serve.stores.installed import find_store, load_store, quiet, reason_of
from clf_serve.stores.vector_store import VectorStore

__all__ = ["CHECKS", "Check", "Conformance", "Outcome", "conformance", "run_checks"]


def _in_order(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Each after those that it needs."""
    left, ordered = {check.name: check for check in checks}, dict[str, Check]()
    while left:
        name = next(name for name, check in left.items() if all(need in ordered for need in check.needs))
        ordered[name] = left.pop(name)
    return tuple(ordered.values())


CHECKS = _in_order((*check_rows.CHECKS, *check_searches.CHECKS, *check_filters.CHECKS, *check_kills.CHECKS))


@dataclass(frozen=True)
class Conformance:
    """How all checks of a store went."""

    store: str
    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def conforms(self) -> bool:
        """Whether none failed. A skipped one says nothing."""
        return all(outcome.state in ("passed", "skipped") for outcome in self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [outcome.as_dict() for outcome in self.outcomes]
        return {"store": self.store, "conforms": self.conforms, "seconds": round(self.seconds, 3), "checks": checks}


def run_checks(
    store: str | type[VectorStore],
    url: Url | None = None,
    *,
    only: Sequence[str] = (),
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Conformance:
    """Runs the checks in order; one whose needs have failed is not run.

    Args:
        store: the scheme of one that is installed, or a class.
        url: where galleries may be made, as :func:`conformance` has it.
        only: names of checks; those that they need are run too.
        on_outcome: called after each.

    Raises:
        PluginError: the store is not installed or broken.
        ConfigError: there is no check of that name.
    """
    subject = _Subject(store, url)
    wanted = _with_needs(only) if only else {check.name for check in CHECKS}
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clf-store-", ignore_cleanup_errors=True) as folder:
        for check in CHECKS:
            if check.name in wanted:
                on_outcome(subject.outcome(check, Path(folder)))
    return Conformance(subject.name, tuple(subject.known.values()), time.monotonic() - start)


def conformance(store: str | type[VectorStore], url: Url | None = None) -> Callable[..., None]:
    """A test for pytest, one case for each check.

    The whole of a test file is::

        from clf_serve.stores import conformance

        test_conformance = conformance("mine")

    Args:
        store: the scheme of an installed store, or its class.
        url: called with an empty folder and a name that differs each time; gives the URL of a gallery that is not there
            yet. By default ``SCHEME://FOLDER/NAME``, which suits a store that keeps files; a class has to be given one.
    """
    import pytest

    subjects: list[_Subject] = []

    @pytest.mark.parametrize("check", CHECKS, ids=[check.name.replace(" ", "_") for check in CHECKS])
    def test_conformance(check: Check, tmp_path_factory: pytest.TempPathFactory) -> None:
        __tracebackhide__ = True
        if not subjects:  # not while tests are collected
            subjects.append(_Subject(store, url))
        outcome = subjects[0].outcome(check, tmp_path_factory.mktemp("store"))
        if outcome.state in ("skipped", "not run"):
            pytest.skip(outcome.text)
        if outcome.state == "failed":
            pytest.fail(f"{check.name}: {outcome.explain()}", pytrace=False)

    return test_conformance


class _Subject:
    """A store, and what is known of it so far."""

    def __init__(self, store: str | type[VectorStore], url: Url | None) -> None:
        self.known: dict[str, Outcome] = {}
        if isinstance(store, str):
            scheme = store
            info = find_store(Place.of(f"{scheme}://"))
            self._store, self.name = load_store(info), str(info)
            self._url = url or (lambda folder, name: f"{scheme}://{folder.as_posix()}/{name}")
        else:
            if url is None:
                raise ConfigError(f"say where {store.__name__} may make galleries: url=lambda folder, name: ...")
            self._store, self._url, self.name = store, url, f"store {store.__name__}"

    def outcome(self, check: Check, folder: Path) -> Outcome:
        """Runs what it needs, and then it, each once."""
        if check.name in self.known:
            return self.known[check.name]
        needed = [self.outcome(each, folder) for each in CHECKS if each.name in check.needs]
        unmet = [each.check.name for each in needed if each.state in ("failed", "not run")]
        if unmet:
            found = Outcome(check, "not run", f"it needs {', '.join(map(repr, unmet))}")
        else:
            start = time.monotonic()
            found = replace(self._run(check, folder), seconds=time.monotonic() - start)
        self.known[check.name] = found
        return found

    def _run(self, check: Check, folder: Path) -> Outcome:
        own = folder / check.name.replace(" ", "-")
        own.mkdir()
        bench = Bench(self._store, self.name, self._url, own)
        try:
            with quiet():
                return Outcome(check, "passed", check.run(bench) or "")
        except Skipped as reason:
            return Outcome(check, "skipped", str(reason))
        except Failed as reason:
            return Outcome(check, "failed", bench.hide(str(reason)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # of the store
            return Outcome(check, "failed", bench.hide(reason_of(error)))
        finally:
            bench.close()


def _with_needs(names: Sequence[str]) -> set[str]:
    """Raises ConfigError."""
    known = {check.name: check for check in CHECKS}
    wanted: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"there is no check {name!r}.{hint} Checks: {', '.join(known)}")
        if name not in wanted:
            wanted.add(name)
            pending += known[name].needs
    return wanted
