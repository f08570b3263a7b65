"""The conformance suite of vector stores, for pytest and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clf import checks
from clf.checks import Check, CheckState, Examination, Outcome, as_test, in_order, judged, run_all
from clf.errors import ConfigError
from clf_serve.installed import quiet, reason_of
from clf_serve.place import Place
from clf_serve.stores import check_filters, check_kills, check_rows, check_searches
from clf_serve.stores.bench import Bench, Url
from clf_serve.stores.installed import find_store, load_store
from clf_serve.stores.vector_store import VectorStore

__all__ = ["CHECKS", "Check", "Conformance", "Outcome", "conformance", "run_checks"]


CHECKS: tuple[Check[Bench], ...] = in_order(
    (*check_rows.CHECKS, *check_searches.CHECKS, *check_filters.CHECKS, *check_kills.CHECKS)
)


@dataclass(frozen=True)
class Conformance(checks.Conformance):
    """How all checks of a store went."""

    store: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"store": self.store, **super().as_dict()}


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
    outcomes, seconds = run_all("store", CHECKS, subject.examine, only, on_outcome)
    return Conformance(outcomes, seconds, subject.name)


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
    return as_test("store", CHECKS, lambda folder: _Subject(store, url).examine(folder))


class _Subject:
    """A store under test."""

    def __init__(self, store: str | type[VectorStore], url: Url | None) -> None:
        if isinstance(store, str):
            scheme = store
            info = find_store(Place.of(f"{scheme}://"))
            self._store, self.name = load_store(info), str(info)
            self._url = url or (lambda folder, name: f"{scheme}://{folder.as_posix()}/{name}")
        else:
            if url is None:
                raise ConfigError(f"say where {store.__name__} may make galleries: url=lambda folder, name: ...")
            self._store, self._url, self.name = store, url, f"store {store.__name__}"

    def examine(self, folder: Path) -> Examination:
        """Its checks. Args: folder: empty."""
        return Examination(CHECKS, lambda check: self._judged(check, folder))

    def _judged(self, check: Check[Bench], folder: Path) -> tuple[CheckState, str]:
        own = folder / check.name.replace(" ", "-")
        own.mkdir()
        bench = Bench(self._store, self.name, self._url, own)
        try:
            with quiet():
                state, text = judged(check, bench, reason_of)
            return state, bench.hide(text)
        finally:
            bench.close()
