"""Does a plugin keep its promises? Checks for authors of methods, in a test file or on the terminal.

    from clf.testing import conformance

    test_conformance = conformance("my_method")

is a whole test file for pytest; ``clf plugins check my_method`` does the same on the terminal, and :func:`run_checks`
in a program.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clf.checks import Check, Outcome
    from clf.testing.pytest_conformance import conformance
    from clf.testing.suite import Conformance, run_checks

__all__ = ["Check", "Conformance", "Outcome", "conformance", "run_checks"]

_EXPORTS = {
    "Check": "clf.checks",
    "Conformance": "clf.testing.suite",
    "Outcome": "clf.checks",
    "conformance": "clf.testing.pytest_conformance",
    "run_checks": "clf.testing.suite",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'clf.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
