"""Which vector stores are installed, from packaging metadata alone; and one of them, imported and checked.

A store is somebody else's code: whatever goes wrong while it is imported becomes one error that names the store, its
distribution, the stage and the remedy, as it does for plugins.
"""

from __future__ import annotations

import inspect
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from clf import entrypoints, extras
from clf.catalogue import PluginInfo, list_entries, the_usable
from clf.errors import PluginError, did_you_mean
from clf_serve.place import Place
from clf_serve.stores.vector_store import VectorStore


def list_stores() -> list[PluginInfo]:
    """All that are installed, by scheme, with what forbids their use. Imports none of them."""
    return list_entries("store")


def find_store(place: Place) -> PluginInfo:
    """The one usable store of a URL's scheme. Raises PluginError."""
    rows, scheme = list_stores(), place.scheme
    if named := [row for row in rows if row.name.lower() == scheme]:
        return the_usable(named)
    schemes = sorted({row.name for row in rows if row.state == "available"})
    known = f"Installed: {', '.join(each + '://' for each in schemes)}." if schemes else "No store is installed."
    raise PluginError(
        f"{place}: no installed package keeps galleries at {scheme}://.{did_you_mean(scheme, schemes)} {known} "
        "A folder is named by its plain path"
    )


def load_store(info: PluginInfo) -> type[VectorStore]:
    """Imports the class of a store, and checks that it is one.

    What it prints meanwhile goes to standard error, so that standard output stays parseable.

    Raises:
        PluginError: it cannot be imported, or is no store.
        MissingExtraError: it needs an optional package of clf that is not installed.
    """
    assert info.offer is not None
    try:
        with quiet():
            found = info.offer.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a SystemExit of theirs is no end of ours
        if isinstance(error, ImportError) and (missing := extras.explain(error, str(info))):
            raise missing from error
        raise _broken(info, "import", reason_of(error)) from error
    if not inspect.isclass(found) or not issubclass(found, VectorStore):
        raise _broken(info, "class", f"{info.value} is no subclass of clf_serve.stores.VectorStore")
    from clf_serve.stores.store_gallery import StoreGallery  # which imports this module

    if found.gallery is not None and not (inspect.isclass(found.gallery) and issubclass(found.gallery, StoreGallery)):
        raise _broken(info, "class", f"{found.__name__}.gallery is no subclass of clf_serve.stores.StoreGallery")
    if inspect.isabstract(found):
        missing_methods = ", ".join(sorted(found.__abstractmethods__))
        raise _broken(info, "class", f"{found.__name__} does not define {missing_methods}")
    return found


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
    own = (str(Path(__file__).parent), entrypoints.__file__, "<frozen")
    return filename.startswith(own) or "importlib" in Path(filename).parts


def _broken(info: PluginInfo, stage: str, reason: str) -> PluginError:
    module = info.value.partition(":")[0]
    if stage == "import":
        remedy = f"For the traceback: python -c 'import {module}'; reinstalling {info.distribution} may mend it."
    else:
        remedy = f"Tell the authors of {info.distribution}, or install another version of it."
    return PluginError(f"{info} is broken, stage {stage}: {reason.rstrip('.')}. {remedy}")
