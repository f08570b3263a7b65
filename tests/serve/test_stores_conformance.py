"""The suite for stores proves itself: the example conforms, and each wrong store fails the right check only."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import Run, one_error
from shelf_store import Shelf
from store_helpers import install_shelf, shelf_url
from wrong_stores import WRONG, LosesThumbnails

from clf.errors import ConfigError, PluginError
from clf_serve.gallery import Where
from clf_serve.stores import Row, VectorStore, conformance, run_checks
from clf_serve.stores.checks import CHECKS
from clf_serve.stores.matching import lets_through
from clf_serve.stores.rows import item_of

test_shelf = conformance(Shelf, shelf_url)

_SLOW = "killed writer"  # starts processes
_QUICK = tuple(check.name for check in CHECKS if check.name != _SLOW)


@pytest.mark.parametrize("store", WRONG, ids=lambda store: store.__name__)
def test_a_wrong_store_fails_the_right_check_and_no_other(store: Any) -> None:
    found = run_checks(store, shelf_url, only=(_SLOW,) if store.finds == _SLOW else _QUICK)
    failed = {outcome.check.name: outcome for outcome in found.outcomes if outcome.state == "failed"}
    assert list(failed) == [store.finds]
    assert not found.conforms
    told = failed[store.finds].explain()
    assert "Why it matters: " in told and "To mend it: " in told


def test_every_check_finds_a_wrong_store_or_is_of_the_whole() -> None:
    assert {store.finds for store in WRONG} | {"ties", "another model", "reopening", "history"} == {
        c.name for c in CHECKS
    }
    for check in CHECKS:
        assert check.name == check.name.lower() and all(
            text.endswith((".", ")")) for text in (check.looks_at, check.why, check.remedy)
        )


def test_what_a_store_raises_is_told_with_its_place_and_what_needs_it_is_not_run() -> None:
    class Broken(Shelf):
        def read(self, ids: Any, *, vectors: bool, thumbnails: bool) -> Any:
            raise SystemExit("no such table")

    found = run_checks(Broken, shelf_url, only=("scan",))
    states = {outcome.check.name: (outcome.state, outcome.text) for outcome in found.outcomes}
    assert states["create"][0] == "passed"
    assert states["round trip"][0] == "failed" and states["round trip"][1].startswith(
        "SystemExit: no such table (test_"
    )
    assert states["scan"] == ("not run", "it needs 'round trip', which failed")
    assert json.loads(json.dumps(found.as_dict()))["conforms"] is False


def test_a_store_that_no_other_process_can_import_is_not_killed() -> None:
    class Local(Shelf):
        pass

    found = run_checks(Local, shelf_url, only=("killed writer",))
    assert found.outcomes[-1].state == "skipped" and "define the class in a module" in found.outcomes[-1].text
    assert found.conforms


class Unusual(Shelf):
    """Right, and unlike the example: it finds few neighbours until it is asked to be exact, tells numbers with all
    their digits, filters by itself, must not be closed twice, and lets threads in by a lock of its own."""

    approximate = concurrent = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.turn, self.closed = threading.RLock(), 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("state", "write", "find", "read", "scan", "search", "ids"):
            return found

        def alone(*args: Any, **named: Any) -> Any:
            with self.turn:
                return found(*args, **named)

        return alone

    def search(self, vector: Any, k: int, allowed: Any, *, exact: bool) -> list[int]:
        found = super().search(vector, k, allowed, exact=exact)
        return found if exact else found[::3]

    def rows(self, where: str, *values: Any) -> list[Row]:
        return [
            replace(row, facts=row.facts.replace("1e+300", f"1{300 * '0'}")) for row in super().rows(where, *values)
        ]

    def ids(self, where: Where | None) -> Any:
        every = [item_of(row) for row in super().rows("TRUE ORDER BY id")]
        return np.array([item.id for item in every if where is None or lets_through(where, item)], np.int64)

    def close(self) -> None:
        self.closed += 1
        assert self.closed == 1
        super().close()


def test_a_right_but_unusual_store_conforms() -> None:
    found = run_checks(Unusual, shelf_url, only=_QUICK)
    assert {o.check.name: o.text for o in found.outcomes if o.state != "passed"} == {}
    told = {outcome.check.name: outcome.text for outcome in found.outcomes}
    assert told["filters"].startswith(f"{(n := int(told['filters'].split()[0]))} of {n} ") and n > 90


def test_a_store_that_guesses_or_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Guessing(Shelf):
        approximate = True

        def search(self, vector: Any, k: int, allowed: Any, *, exact: bool) -> list[int]:
            return super().search(vector if exact else -vector, k, allowed, exact=exact)

    class Hanging(Shelf):
        def write(self, put: Any, delete: Any, about: Any, *, at: int) -> None:
            if threading.current_thread() is not threading.main_thread():
                threading.Event().wait(20)
            super().write(put, delete, about, at=at)

    class Softening(Shelf):
        def rows(self, where: str, *values: Any) -> list[Row]:
            return [replace(row, facts=row.facts.replace("true", "1")) for row in super().rows(where, *values)]

    monkeypatch.setattr("clf_serve.stores.bench._PATIENCE", 0.5)
    for store, check, said in (
        (Guessing, "search", "of 100 ids that search gave with exact=False 0 are among the 10 best"),
        (Hanging, "conflict", "3 of 3 threads that used the store had not come back"),
        (Softening, "odd values", "the facts of row"),
    ):
        outcome = run_checks(store, shelf_url, only=(check,)).outcomes[-1]
        assert (outcome.check.name, outcome.state) == (check, "failed") and said in outcome.text


def test_a_failure_does_not_tell_the_password_of_the_url() -> None:
    class Refusing(Shelf):
        @classmethod
        def open(cls, url: str, *, write: bool, create: Any = None) -> Any:
            raise OSError(f"cannot reach {url}")

    [outcome] = run_checks(Refusing, lambda folder, name: f"shelf://me:s3cret@host/{name}", only=("create",)).outcomes
    assert outcome.state == "failed" and "shelf://me:***@host/g1" in outcome.text and "s3cret" not in outcome.text


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no check 'scam'\. Did you mean 'scan'\?"):
        run_checks(Shelf, shelf_url, only=("scam",))
    with pytest.raises(ConfigError, match="say where Shelf may make galleries"):
        run_checks(Shelf)
    with pytest.raises(PluginError, match="no installed package keeps galleries at nowhere://"):
        run_checks("nowhere")


def test_a_failure_in_pytest_says_what_why_and_how_to_mend_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    test: Any = conformance(LosesThumbnails, shelf_url)
    cases = {check.name: check for check in CHECKS}
    with pytest.raises(pytest.skip.Exception, match="it needs 'round trip'"):  # which is run for it, and fails
        test(cases["scan"], tmp_path_factory)
    with pytest.raises(pytest.fail.Exception) as failed:
        test(cases["round trip"], tmp_path_factory)
    told = str(failed.value)
    assert told.startswith("round trip: after a write: the thumbnail of row 1")
    assert "Why it matters: What a gallery shows" in told and "To mend it: Keep id, key" in told
    assert failed.value.pytrace is False
    test(cases["create"], tmp_path_factory)


def test_on_the_terminal(run: Run, install: Callable[..., Path], tmp_path: Path) -> None:
    install_shelf(install)
    code, out, _ = run("gallery", "check-store", "shelf", "--only", "scan", "--json")
    told = json.loads(out)
    assert (
        code == 0 and told["conforms"] and [row["check"] for row in told["checks"]] == ["create", "round trip", "scan"]
    )
    code, out, _ = run(
        "gallery", "check-store", "shelf://", "--url", f"shelf://{tmp_path}/{{name}}", "--only", "create"
    )
    assert code == 0 and "store 'shelf' (clf-shelf 1.0) conforms: 1 passed" in out
    assert len(list(tmp_path.glob("clf-store-*create-g1"))) == 1
    assert "{name}" in one_error(run("gallery", "check-store", "shelf", "--url", "shelf:///x"))
    assert "Did you mean 'shelf'?" in one_error(run("gallery", "check-store", "shelv"))


def test_on_the_terminal_a_failure_has_its_remedy(run: Run, install: Callable[..., Path]) -> None:
    install("clf-wrong", entry_points="[clf.indexes]\nshelf = wrong_stores:ScansByKey\n")
    code, out, _ = run("gallery", "check-store", "shelf", "--only", "scan")
    assert code == 1 and "does not conform: 2 passed, 1 failed" in out
    assert "why: Listings, duplicates" in out and "mend: ORDER BY id" in out


def test_the_abstract_class_names_what_is_missing() -> None:
    assert VectorStore.__abstractmethods__ == {"open", "state", "write", "find", "read", "scan", "search"}
