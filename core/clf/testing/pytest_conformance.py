"""The checks as tests of pytest: one test for each, in any process of pytest-xdist."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clf.errors import ClfError
from clf.testing.subject import NONE

if TYPE_CHECKING:
    import pytest

    from clf.checks import Check, Examination
    from clf.testing.subject import Subject


def conformance(
    name_or_path: str | Path, settings: Mapping[str, Any] = NONE, /, **method_settings: Any
) -> Callable[..., None]:
    """A test function with one test for every check of a plugin.

    The whole of a test file is::

        from clf.testing import conformance

        test_conformance = conformance("my_method")

    ``pytest -k odd_batch`` runs one check. A failure says what is wrong, why it matters and how to mend it.

    Args:
        name_or_path: an installed plugin by name, or a single file.
        settings: dotted keys over the tiny configuration, such as ``{"backbone.norm": "group"}``.
        method_settings: keys of ``method.``, such as ``queue_size=64``.
    """
    import pytest

    from clf.testing.suite import CHECKS

    given = {**settings, **{f"method.{key}": value for key, value in method_settings.items()}}
    examination: list[Examination] = []

    @pytest.mark.parametrize("check", [pytest.param(each, id=each.name.replace(" ", "_")) for each in CHECKS])
    def test_conformance(check: Check[Subject], request: pytest.FixtureRequest) -> None:
        try:
            if not examination:
                examination.append(_begun(str(name_or_path), given, request))
            outcome = examination[0].outcome(check.name)
        except ClfError as error:
            pytest.fail(str(error), pytrace=False)
        if outcome.state == "failed":
            pytest.fail(outcome.explain(), pytrace=False)
        if outcome.state == "skipped":
            pytest.skip(outcome.text)
        if outcome.state == "not run":
            pytest.fail(f"not run: {outcome.text}", pytrace=False)

    return test_conformance


def _begun(name_or_path: str, settings: Mapping[str, Any], request: pytest.FixtureRequest) -> Examination:
    from clf.testing.subject import Subject
    from clf.testing.suite import examine

    folder = tempfile.TemporaryDirectory(prefix="clf-check-", ignore_cleanup_errors=True)
    request.config.add_cleanup(folder.cleanup)
    subject = Subject(name_or_path, Path(folder.name), settings)
    _ = subject.info  # a plugin that is unknown, told once and not by every check in its own words
    return examine(subject)
