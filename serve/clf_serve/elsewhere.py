"""A class under test in another process, for checks in which that gets a signal."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from typing import Any

from clf.checks import Skipped


def place_of(kind: type) -> str:
    """Where another process finds a class: ``module:name``. Raises Skipped: it cannot import it."""
    place = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__ == "__main__" or "<locals>" in place:
        raise Skipped(f"another process cannot import {place}; define the class in a module")
    return place


def class_at(place: str) -> Any:
    """The class that :func:`place_of` has told of, in the other process."""
    module, _, name = place.partition(":")
    return reduce(getattr, name.split("."), import_module(module))


@contextmanager
def another_process(program: str, *words: str, patience: float, stderr: int) -> Iterator[subprocess.Popen[str]]:
    """Runs Python code that can import what this process can, and kills it at the end of the block.

    Args:
        words: its arguments.
        patience: seconds after which it is killed in any case.
        stderr: as for ``subprocess.Popen``.
    """
    path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH", "")]))
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as child:
        watch = threading.Timer(patience, child.kill)
        watch.start()
        try:
            yield child
        finally:
            watch.cancel()
            child.kill()
