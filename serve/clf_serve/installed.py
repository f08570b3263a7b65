"""Classes of other packages, named by entry points: imported, checked, and kept from harm.

Such a class is somebody else's code: whatever goes wrong while it is imported becomes one error that names it, its
distribution, the stage and the remedy, as it does for plugins.
"""

from __future__ import annotations

import inspect
import sys
import threading
import traceback
from abc import ABCMeta
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from clf import checks, entrypoints, extras
from clf.catalogue import PluginInfo
from clf.errors import PluginError

_OURS = (str(Path(__file__).parent / "stores"), __file__, checks.__file__, entrypoints.__file__, "<frozen")
"""Between them and their callers lies what other packages do."""


def load_class(info: PluginInfo, base: ABCMeta, fault: Callable[[Any], str] = lambda found: "") -> type[Any]:
    """Imports the class of an entry, and checks that it is a subclass of ``base`` that can be made.

    What it prints meanwhile goes to standard error, so that standard output stays parseable.

    Args:
        fault: what else is wrong with a subclass; empty for nothing.

    Raises:
        PluginError: it cannot be imported, or is no such class.
        MissingExtraError: it needs an optional package of clf that is not installed.
    """
    assert info.offer is not None
    try:
        with quiet():
            found: Any = info.offer.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a SystemExit of theirs is no end of ours
        if isinstance(error, ImportError) and (missing := extras.explain(error, str(info))):
            raise missing from error
        raise _broken(info, "import", reason_of(error)) from error
    if not inspect.isclass(found) or not issubclass(found, base):
        public = f"{base.__module__.rpartition('.')[0]}.{base.__name__}"
        raise _broken(info, "class", f"{info.value} is no subclass of {public}")
    if reason := fault(found):
        raise _broken(info, "class", reason)
    if inspect.isabstract(found):
        raise _broken(info, "class", f"{found.__name__} does not define {', '.join(sorted(found.__abstractmethods__))}")
    return found


def _broken(info: PluginInfo, stage: str, reason: str) -> PluginError:
    module = info.value.partition(":")[0]
    if stage == "import":
        remedy = f"For the traceback: python -c 'import {module}'; reinstalling {info.distribution} may mend it."
    else:
        remedy = f"Tell the authors of {info.distribution}, or install another version of it."
    return PluginError(f"{info} is broken, stage {stage}: {reason.rstrip('.')}. {remedy}")


@contextmanager
def quiet() -> Iterator[None]:
    """What is printed goes to standard error. Elsewhere than in the main thread prints stay where they go: standard
    output belongs to the process, and threads that turn it round and back at the same time would lose it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def reason_of(error: BaseException) -> str:
    """An exception in one line, with the place in somebody else's code where it came from."""
    text = " ".join(str(error).split()) or "no message"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OURS) or "importlib" in Path(filename).parts
