"""The checks that train: right methods pass all of them, and each wrong one is told of by its check."""

from __future__ import annotations

import re
from pathlib import Path

import conformance_bodies as bodies
import plugins_to_verify as methods
import pytest
from plugins_to_verify import plugin_file

from clf.checks import Examination
from clf.testing import learning, steps, whole
from clf.testing.subject import Subject
from clf.testing.suite import CHECKS, examine

NAMES = [check.name for check in (*steps.CHECKS, *whole.CHECKS)]
SLOW = {"compile", "resume", "ranks", "export"}
"""Checks that take several seconds."""
WRONG = [
    pytest.param(name, body, words, id=f"{name} {i}", marks=pytest.mark.slow if name in SLOW else ())
    for name, cases in bodies.WRONG.items()
    for i, (body, words) in enumerate(cases)
]


def examination(folder: Path, body: str) -> Examination:
    inside = folder / "inside"
    inside.mkdir()
    return examine(Subject(plugin_file(folder, body), inside), CHECKS)


def test_each_check_has_a_wrong_method() -> None:
    assert list(bodies.WRONG) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("body", ["RICH", "PREPARED"])
def test_a_right_method_passes_every_check(body: str, tmp_path: Path) -> None:
    """One with a momentum encoder, a queue, a critic and chosen batches; one with a preparation and two players."""
    examined = examination(tmp_path, getattr(methods, body))
    found = {name: examined.outcome(name) for name in NAMES}
    assert {name: outcome.explain() for name, outcome in found.items() if outcome.state != "passed"} == {}


@pytest.mark.parametrize(("name", "body", "words"), WRONG)
def test_a_wrong_method_is_told_of_by_its_check(name: str, body: str, words: str, tmp_path: Path) -> None:
    examined = examination(tmp_path, body)
    outcome = examined.outcome(name)
    assert outcome.state == "failed", outcome.text
    assert re.search(words, outcome.text), outcome.text


def test_a_method_that_is_large_in_the_checks_hears_of_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's widths may take gigabytes and an hour there, and nothing else says why."""
    examined = examination(tmp_path, bodies.GOOD)
    assert "tiny" not in examined.outcome("trains").text
    monkeypatch.setattr(learning, "LARGE", 1)
    (tmp_path / "again").mkdir()
    text = examination(tmp_path / "again", bodies.GOOD).outcome("trains").text
    assert re.search(r"last; [\d,]+ MiB of weights and buffers: smaller values in the class's `tiny`", text)


@pytest.mark.parametrize("name", bodies.NOTHING_TO_SAY)
def test_a_check_that_says_nothing_of_a_method_says_why(name: str, tmp_path: Path) -> None:
    body, words = bodies.NOTHING_TO_SAY[name]
    outcome = examination(tmp_path, body).outcome(name.partition(",")[0])
    assert outcome.state == "skipped", outcome.text
    assert re.search(words, outcome.text), outcome.text
