"""Proof of the conformance suite: a plugin that is wrong in one way fails the check of that way, and no other.

``compile`` and ``export``, which take half of the time, look at the plugins that are wrong in that way, and at all of
them where the environment has ``CLF_EVERY_CHECK``: run that after a change of a check or of a wrong plugin.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wrong_methods import WRONG, good

from clf.checks import Check
from clf.testing.suite import CHECKS, Conformance, run_checks

Install = Callable[..., Path]
BY_NAME = {check.name: check for check in CHECKS}
SLOWEST = set() if "CLF_EVERY_CHECK" in os.environ else {"compile", "export"}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def needs(check: Check[Any]) -> set[str]:
    """The checks without which this one is not run, one through the other."""
    return set(check.needs).union(*(needs(BY_NAME[name]) for name in check.needs))


def looked_at(wrong: str) -> list[str]:
    """The checks that a plugin is tried by which is wrong in one."""
    return [check.name for check in CHECKS if check.name not in SLOWEST or check.name == wrong]


def told(found: Conformance) -> str:
    return "\n".join(f"{each.state}: {each.check.name}: {each.text}" for each in found.outcomes)


def test_every_check_has_a_wrong_plugin() -> None:
    assert {wrong.check for wrong in WRONG.values()} == set(BY_NAME)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plugin_fails_its_check_and_no_other(name: str, install: Install) -> None:
    wrong = WRONG[name]
    wrong.install(install)
    found = run_checks("mine", looked_at(wrong.check))
    assert [outcome.check.name for outcome in found.of("failed")] == [wrong.check], told(found)
    waiting = {name for name in looked_at(wrong.check) if wrong.check in needs(BY_NAME[name])}
    assert {outcome.check.name for outcome in found.of("not run")} == waiting, told(found)
    assert not found.of("skipped"), told(found)
    (outcome,) = found.of("failed")
    assert outcome.check.why in outcome.explain() and outcome.check.remedy in outcome.explain()


@pytest.mark.slow
def test_the_right_plugin_that_they_are_made_of_passes_all(install: Install) -> None:
    from wrong_methods import Wrong

    Wrong("", good()).install(install)
    found = run_checks("mine")
    assert {outcome.state for outcome in found.outcomes} == {"passed"}, told(found)
