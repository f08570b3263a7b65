"""Ray: a cluster of one's own on this machine's loopback, which leaves nothing behind, or one that runs already.

Ray reads its settings from the environment when it is imported, so they are set before.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from clf.errors import ClfError
from clf_serve.processes import Claim, abandoned

_PLACE, _PREFIX = Path("/tmp"), "clf-"  # short, for the paths of sockets
MARK = "CLF_RAY_FOLDER"
"""The variable by which processes of a cluster are known."""
_PATIENCE = 5.0  # seconds that they may take to end


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for a cluster of one's own. With the block it goes, and so do all processes of the cluster.

    What an earlier command has left because it was killed is removed first, processes included.
    """
    place = _PLACE if _PLACE.is_dir() else Path(tempfile.gettempdir())
    for left in abandoned(place, _PREFIX):
        _remove(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    claim = None
    try:
        claim = Claim(folder)
        yield folder
    finally:
        _remove(folder)
        if claim is not None:
            claim.release()


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment for the time of the block, after which all are as they were."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def own_settings(folder: Path) -> dict[str, str]:
    """The environment of every process of a cluster of one's own: no telemetry, loopback only, a secret."""
    return {
        MARK: str(folder),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _secret(),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system it says: this machine only, on 127.0.0.1
    }


@contextmanager
def started(kind: type[ClfError], library: str, folder: Path, **options: Any) -> Iterator[Any]:
    """Ray on this machine, which ends with the block. Entered within :func:`environment` of :func:`own_settings`.

    Args:
        kind: of the error.
        library: of Ray's, that is to be used: ``ray.data``.
        folder: by :func:`own_folder`.
        options: of ``ray.init``.

    Raises:
        ClfError: of that kind; Ray could not be started.
    """
    ray = _quiet_ray(library)
    options = {"address": "local", "include_dashboard": False, "_temp_dir": str(folder / "r"), **options}
    with explained("Ray could not be started", kind), _hushed():
        _start(ray, options)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def joined(kind: type[ClfError], library: str, address: str, hint: str = "", **options: Any) -> Iterator[Any]:
    """A cluster that runs and goes on running.

    Args:
        hint: what may be the matter if it cannot be joined.

    Raises:
        ClfError: of that kind; it cannot be joined.
    """
    ray = _quiet_ray(library)
    with explained(f"the Ray cluster {address} cannot be joined{hint}", kind), _hushed():
        _init(ray, {"address": address, **options})
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def explained(what: str, kind: type[ClfError]) -> Iterator[None]:
    """Raises an error of that kind with the cause in a sentence, for whatever Ray raises."""
    try:
        yield
    except ClfError:
        raise
    except Exception as error:
        raise kind(f"{what}: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """The last line of what may be pages, which is where Ray puts the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__


def _start(ray: Any, options: Mapping[str, Any], tries: int = 3) -> None:
    """Ray gives itself 30 s to start, which a busy machine may exceed once."""
    try:
        _init(ray, options)
    except Exception as error:
        ray.shutdown()
        if tries == 1 or "timed out during startup" not in str(error):
            raise
        _start(ray, options, tries - 1)


def _init(ray: Any, options: Mapping[str, Any]) -> None:
    ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)


def _quiet_ray(library: str) -> Any:
    """The module; what it and a library of it log goes to the folder of the session."""
    ray = importlib.import_module("ray")
    importlib.import_module(library)
    for name in ("ray", library, "ray._private"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
    worker: Any = importlib.import_module("ray._private.worker")
    if hasattr(worker, "print_to_stdstream"):  # Ray prints what happens to its processes whatever one asks for
        worker.print_to_stdstream = lambda *_, **__: None
    return ray


@contextmanager
def _hushed() -> Iterator[None]:
    """What Ray's core writes to standard error, past Python, goes nowhere. What it raises comes through."""
    if sys.stderr is not None:  # as it is where the command was started without one
        sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@cache
def _secret() -> str:
    """One for the whole process: Ray's core reads it only once."""
    return secrets.token_hex(32)


def _remove(folder: Path) -> None:
    """A folder and what runs there: Ray's agents look for a cluster that was ended while it started for another minute,
    and would make the folder again."""
    deadline = time.monotonic() + _PATIENCE
    while _killed(folder) and time.monotonic() < deadline:  # one of them may have started another meanwhile
        time.sleep(0.01)
    shutil.rmtree(folder, ignore_errors=True)


def _killed(folder: Path) -> bool:
    """Whether there were processes of its cluster, which are killed."""
    found, mark = False, f"{MARK}={folder}\0".encode()
    for file in Path("/proc").glob("[0-9]*/environ"):  # on Linux
        pid = int(file.parent.name)
        with suppress(OSError):  # it has ended, or is another user's
            if pid != os.getpid() and mark in file.read_bytes():
                os.kill(pid, signal.SIGKILL)
                found = True
    return found
