"""Threads that compute give way; the others keep their priority."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from serve_helpers import write_model

from clf_serve.deployment import Folders
from clf_serve.priority import NICENESS, apart, give_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")


def niceness(thread: int | None = None) -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id() if thread is None else thread)


def threads() -> dict[int, int]:
    """The niceness of each of this process."""
    found = {}
    for path in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            found[int(path.name)] = niceness(int(path.name))
    return found


def test_only_the_thread_that_computes_gives_way() -> None:
    before = niceness()
    assert apart(niceness) == min(before + NICENESS, 19)
    assert niceness() == before


def test_a_thread_gives_way_once() -> None:
    def again() -> int:
        give_way()
        return apart(niceness)

    assert apart(again) == min(niceness() + NICENESS, 19)


def test_the_threads_of_a_model_give_way(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    before = threads()
    opened = Folders(folder, provider="cpu", threads=3).open()
    try:
        made = threads().keys() - before.keys()
        now = threads()  # one that only helped to open has gone
        assert made & now.keys() and {now[thread] for thread in made & now.keys()} == {min(niceness() + NICENESS, 19)}
    finally:
        opened.close()
