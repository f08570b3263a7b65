"""What a piece of code did to its process: files, sockets, processes, prints, and settings that are not its own.

Used in a process that is about to end: the audit hook of Python cannot be taken off again.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from clf.testing.sources import shown

STANDARD = str(Path(os.__file__).parent) + os.sep
MOST = 3
"""Events of one kind that are told."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
KINDS = {
    "os.mkdir": "makes the folder {0}",
    "os.remove": "removes {0}",
    "os.rename": "renames {0}",
    "os.rmdir": "removes the folder {0}",
    "os.truncate": "truncates {0}",
    "os.link": "makes the link {1}",
    "os.symlink": "makes the link {1}",
    "os.chmod": "changes the mode of {0}",
    "shutil.rmtree": "removes the folder {0}",
    "subprocess.Popen": "starts the program {0}",
    "os.system": "starts the program {0}",
    "os.exec": "becomes the program {0}",
    "os.posix_spawn": "starts the program {0}",
    "os.fork": "forks the process",
    "os.forkpty": "forks the process",
    "socket.connect": "connects to {1}",
    "socket.bind": "opens a socket at {1}",
    "socket.sendto": "sends to {1}",
    "socket.getaddrinfo": "looks up the host {0}",
    "socket.gethostbyname": "looks up the host {0}",
    "urllib.Request": "requests {0}",
    "builtins.input": "waits for input",
}
"""Audit events of Python that an import has no business with, in words."""


class Events:
    """What happened while :meth:`recorded`, each with the line of the plugin that led to it.

    Args:
        files: the plugin's own.
    """

    def __init__(self, files: set[str]) -> None:
        self.slept = 0.0
        self._files = files
        self._active = 0
        self._told: dict[str, list[str]] = {}
        self._set: dict[str, str] = {}
        sys.addaudithook(self._audit)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Records the events of this thread, naps, and who sets warnings and the environment."""
        with (
            patch.object(time, "sleep", self._nap),
            patch.object(warnings, "simplefilter", self._noting("warnings", warnings.simplefilter)),
            patch.object(warnings, "filterwarnings", self._noting("warnings", warnings.filterwarnings)),
        ):
            self._active = threading.get_ident()
            try:
                yield
            finally:
                self._active = 0

    def told(self) -> list[str]:
        """The events in words, a few of each kind."""
        sentences = []
        for kind, each in self._told.items():
            rest = len(each) - MOST
            sentences += each[:MOST] + ([f"and {rest} times more: {kind}"] if rest > 0 else [])
        return sentences

    def set_at(self, what: str) -> str:
        """The line of the plugin itself that set something; empty when a library did, or nobody was seen."""
        return self._set.get(what, "")

    def add(self, kind: str, sentence: str) -> None:
        """Notes an event of the code that is running now."""
        if self._active != threading.get_ident():
            return
        self._active = 0  # what looking does is no event
        try:
            told = f"{sentence}{self._place()}"
            if told not in self._told.setdefault(kind, []):
                self._told[kind].append(told)
        finally:
            self._active = threading.get_ident()

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._active != threading.get_ident():
            return
        if event == "open":
            path, mode, flags = arguments
            if _writes(mode, flags) and isinstance(path, (str, bytes, os.PathLike)) and path != os.devnull:
                self.add("writes files", f"opens {os.fsdecode(path)} for writing")
        elif event in KINDS:
            words = [_word(each) for each in arguments]
            self.add(event, KINDS[event].format(*words, "", ""))
        elif event in ("os.putenv", "os.unsetenv") and (place := self._own_place()):
            self._set[os.fsdecode(arguments[0])] = place

    def _nap(self, seconds: float) -> None:
        self.slept += max(0.0, float(seconds))  # noted, not waited for

    def _noting(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            if place := self._own_place():
                self._set[what] = place
            return function(*arguments, **named)

        return noted

    def _place(self) -> str:
        """The innermost line of the plugin itself, if there is one on the stack."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename in self._files:
                return f" ({shown(frame.f_code.co_filename)}, line {frame.f_lineno})"
            frame = frame.f_back
        return ""

    def _own_place(self) -> str:
        """The same, where no library is between: the standard library does not count as one."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if name in self._files:
                return f" ({shown(name)}, line {frame.f_lineno})"
            if name != __file__ and not _is_standard(name):
                return ""
            frame = frame.f_back
        return ""


class Recorder:
    """A text stream that keeps the first words written to it, and no more."""

    encoding = "utf-8"
    errors = "strict"

    def __init__(self, events: Events) -> None:
        self._events = events

    def write(self, text: str) -> int:
        if text.strip():
            line = " ".join(text[:500].split())
            self._events.add("prints", f"prints {line[:80]!r}")
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        return

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


@dataclass(frozen=True)
class Snapshot:
    """What belongs to the whole process and may differ after an import."""

    values: dict[str, Any]
    environment: dict[str, str]
    filters: list[Any]
    handlers: dict[str, Any]
    threads: frozenset[threading.Thread]
    names: dict[tuple[str, str], Any]
    """Of the modules and classes of clf and torch."""

    @classmethod
    def taken(cls) -> Snapshot:
        handlers = {each.name: signal.getsignal(each) for each in signal.Signals}
        environment, threads = dict(os.environ), frozenset(threading.enumerate())
        return cls(_values(), environment, list(warnings.filters), handlers, threads, dict(_names()))

    def changes(self, after: Snapshot, events: Events) -> list[str]:
        """What is different, in words. Of warnings and the environment only what the plugin's own code did."""
        found = [f"changes {what}" for what, value in self.values.items() if not _same(value, after.values[what])]
        if list(self.filters) != list(after.filters) and (place := events.set_at("warnings")):
            found.append(f"changes the warning filters of the process{place}")
        for key in sorted({*self.environment, *after.environment}):
            if self.environment.get(key) != after.environment.get(key) and (place := events.set_at(key)):
                found.append(f"changes the environment variable {key}{place}")
        found += [f"sets a handler of {name}" for name, value in self.handlers.items() if after.handlers[name] != value]
        found += [f"leaves the thread {each.name!r} running" for each in sorted(after.threads - self.threads, key=str)]
        replaced = [key for key, value in self.names.items() if after.names.get(key) is not value]
        return found + [f"replaces {owner}.{name}" for owner, name in replaced[:MOST]]


def _values() -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {
        "the random state of Python": random.getstate(),
        "the random state of numpy": [repr(each) for each in np.random.get_state(legacy=True)],
        "the random state of torch": torch.get_rng_state(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": str(torch.get_default_device()),
        "torch's number of threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch's choice of deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's precision of matrix products": torch.get_float32_matmul_precision(),
        "torch.backends.cudnn": (cudnn.benchmark, cudnn.deterministic, cudnn.enabled),
        "whether torch computes gradients": torch.is_grad_enabled(),
        "torch's anomaly detection": torch.is_anomaly_enabled(),
        "whether CUDA is initialised": torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
        "the working folder": os.getcwd(),  # noqa: PTH109 - a string to compare
        "sys.path": list(sys.path),
        "sys.excepthook": sys.excepthook,
        "the handlers of the root logger": list(logging.getLogger().handlers),
        "the recursion limit": sys.getrecursionlimit(),
    }


def _names() -> Iterator[tuple[tuple[str, str], Any]]:
    """Every name of the modules of clf, of its classes, and of the parts of torch that are patched most."""
    ours = [name for name in sys.modules if name == "clf" or name.startswith("clf.")]
    for owner in (*ours, "torch", "torch.nn", "torch.nn.functional", "torch.optim"):
        module = sys.modules.get(owner)
        if not isinstance(module, ModuleType):
            continue
        for name, value in list(vars(module).items()):
            if (owner, name) == ("torch", "Storage"):  # follows the default dtype
                continue
            yield (owner, name), value
            if isinstance(value, type) and value.__module__ == owner:
                yield from (((f"{owner}.{name}", each), of) for each, of in list(vars(value).items()))
    for owner, cls in (("torch.Tensor", torch.Tensor), ("torch.nn.Module", torch.nn.Module)):
        yield from (((owner, name), value) for name, value in vars(cls).items())


def _word(argument: Any) -> str:
    text = os.fsdecode(argument) if isinstance(argument, bytes) else str(argument)
    return " ".join(text.split())[:100]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & WRITING)


def _is_standard(filename: str) -> bool:
    return filename.startswith(("<frozen", STANDARD)) and "site-packages" not in filename
