"""Plugins: listed from metadata alone, imported one at a time and only when asked for by name.

A plugin is somebody else's code, so each stage (import, registration, each hook, what the hook returns) is guarded:
whatever goes wrong becomes one :class:`PluginError` that names the plugin, its distribution, the stage and the remedy.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from clf import entrypoints, extras, foreign, hookspecs, single
from clf.catalogue import PluginInfo, find_plugin, list_plugins
from clf.errors import PluginError, did_you_mean, in_one_line
from clf.signals import Stopped
from clf.single import is_path

if TYPE_CHECKING:
    from clf.callbacks import Callback
    from clf.data import Source
    from clf.evaluators import Evaluator
    from clf.method import Method

__all__ = [
    "HOOKS",
    "Plugin",
    "PluginInfo",
    "find_plugin",
    "is_own_file",
    "is_path",
    "list_plugins",
    "load_method",
    "load_plugin",
    "method_of",
    "name_of",
    "remedy",
]

HOOKS = ("clf_methods", "clf_datasets", "clf_evaluators", "clf_callbacks")


@dataclass(frozen=True)
class Plugin:
    """A plugin that was imported and checked."""

    info: PluginInfo
    module: object = field(repr=False)
    methods: tuple[type[Method[Any]], ...] = ()
    datasets: tuple[Source, ...] = ()
    evaluators: tuple[type[Evaluator], ...] = ()
    callbacks: tuple[type[Callback], ...] = ()
    source: single.Source | None = field(default=None, repr=False)
    """Of a single file: what was read and imported."""


def load_plugin(name_or_path: str) -> Plugin:
    """Imports and checks one plugin: an installed one by name, or a single file such as ``./my_method.py``.

    What a plugin prints while it loads goes to standard error, so that standard output stays parseable.

    Raises:
        PluginError: it is unknown, unusable or broken.
        MissingExtraError: it needs an optional package of clf that is not installed.
    """
    if is_path(name_or_path):
        return _load_file(name_or_path)
    _check_name(name_or_path)
    info = find_plugin(name_or_path)
    assert info.offer is not None
    with _guard(info, "import"):
        module = info.offer.load()
    return _collect(info, module)


def load_method(name_or_path: str) -> type[Method[Any]]:
    """The method that ``clf train --plugin`` names. Raises as :func:`load_plugin` does."""
    return method_of(load_plugin(name_or_path))


def method_of(plugin: Plugin) -> type[Method[Any]]:
    """The method to train with: the one of the plugin's name, or the only one of a file.

    Raises:
        PluginError: there is none, or a file has several.
    """
    methods = plugin.methods
    if plugin.info.offer is not None:
        methods = tuple(method for method in methods if method.name == plugin.info.name)
    if len(methods) == 1:
        return methods[0]
    names = ", ".join(repr(method.name) for method in plugin.methods) or "none"
    wanted = f"one method named {plugin.info.name!r}" if plugin.info.offer else "exactly one method"
    raise _failure(plugin.info, "clf_methods", f"it must provide {wanted}, and provides {names}")


def name_of(function: object) -> str:
    """What a data source goes by: its attribute ``name``, or else the name of the function."""
    name = getattr(function, "name", None) or getattr(function, "__name__", "")
    return name if isinstance(name, str) else ""


def _load_file(name: str) -> Plugin:
    info = PluginInfo(name, name, "a single file", "")
    source = single.read(name)
    with _guard(info, "import"):
        module = single.load(source)
    if any(getattr(module, hook, None) for hook in HOOKS):
        return replace(_collect(info, module), source=source)
    return replace(_single(info, module), source=source)


def _check_name(name: str) -> None:
    """Explains a path that is none of a Python file.

    Raises:
        PluginError: it is one.
    """
    if "/" not in name and os.sep not in name:
        return
    path = Path(name).expanduser()
    if path.is_dir():
        single.read(name)
    file = path.with_name(path.name + ".py")
    hint = f" Did you mean {file}?" if file.is_file() else ""
    raise PluginError(f"plugin {name!r} is neither a plugin's name nor the path of a file that ends in .py.{hint}")


def _single(info: PluginInfo, module: ModuleType) -> Plugin:
    """A file without hooks offers what it defines: classes, and sources, which are functions of three known names."""
    from clf.callbacks import Callback
    from clf.evaluators import Evaluator
    from clf.method import Method

    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    classes = [value for value in own if inspect.isclass(value)]
    methods = tuple(each for each in classes if issubclass(each, Method))
    evaluators = tuple(each for each in classes if issubclass(each, Evaluator))
    callbacks = tuple(each for each in classes if issubclass(each, Callback))
    sources = tuple(value for value in own if inspect.isfunction(value) and _looks_like_a_source(value))
    if len(methods) > 1 or not (methods or evaluators or callbacks or sources):
        names = ", ".join(cls.__name__ for cls in methods) or "none"
        reason = f"it must define one subclass of clf.Method or a clf_methods hook; subclasses found: {names}"
        raise _failure(info, "clf_methods", reason)
    for method in methods:
        _checked_method(info, method)
    for evaluator in evaluators:
        _checked_evaluator(info, evaluator)
    return Plugin(info, module, methods, sources, evaluators, callbacks)


def _looks_like_a_source(function: Any) -> bool:
    return tuple(inspect.signature(function).parameters) == ("section", "seed", "progress")


def _collect(info: PluginInfo, module: object) -> Plugin:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    with _guard(info, "registration"):
        manager.register(module, info.name)
    _check_hooks(info, module, manager)
    methods = tuple(_checked_method(info, method) for method in _provided(info, manager, "clf_methods"))
    twice = [name for name, count in Counter(method.name for method in methods).items() if count > 1]
    if twice:
        raise _failure(info, "clf_methods", f"two methods are named {twice[0]!r}")
    datasets = _named(info, "clf_datasets", _provided(info, manager, "clf_datasets"))
    callbacks = tuple(_checked_callback(info, each) for each in _provided(info, manager, "clf_callbacks"))
    evaluators = tuple(_checked_evaluator(info, each) for each in _provided(info, manager, "clf_evaluators"))
    return Plugin(info, module, methods, datasets, evaluators, callbacks)


def _check_hooks(info: PluginInfo, module: object, manager: pluggy.PluginManager) -> None:
    callers = manager.get_hookcallers(module) or []
    for caller in callers:
        if not caller.has_spec() and not all(impl.optionalhook for impl in caller.get_hookimpls()):
            hint = did_you_mean(caller.name, HOOKS)
            raise _failure(info, "registration", f"there is no hook {caller.name!r}.{hint} Hooks: {', '.join(HOOKS)}")
    registered = {caller.name for caller in callers}
    for hook in HOOKS:
        if hook not in registered and callable(getattr(module, hook, None)):
            raise _failure(info, "registration", f"{hook}() is not marked: write @clf.hookimpl above it")
    if not registered.intersection(HOOKS):
        raise _failure(info, "registration", f"it has none of the hooks {', '.join(HOOKS)}")


def _provided(info: PluginInfo, manager: pluggy.PluginManager, hook: str) -> tuple[Any, ...]:
    caller = getattr(manager.hook, hook)
    if not caller.get_hookimpls():
        return ()
    with _guard(info, hook):
        results = caller()
    value = results[0] if results else None
    if not isinstance(value, (list, tuple)):
        found = f"the class {value.__name__}" if inspect.isclass(value) else f"a {type(value).__name__}"
        raise _failure(info, hook, f"it returned {found}, not a list")
    return tuple(value)


def _named(info: PluginInfo, hook: str, values: tuple[Any, ...]) -> tuple[Callable[..., Any], ...]:
    for value in values:
        if not callable(value) or not name_of(value):
            raise _failure(info, hook, f"{_show(value)} is not a function with a name")
    return values


def _checked_method(info: PluginInfo, method: Any) -> type[Method[Any]]:
    from clf.method import Method, MethodConfig

    def wrong(reason: str) -> PluginError:
        return _failure(info, "clf_methods", f"{_show(method)} {reason}")

    if not inspect.isclass(method) or not issubclass(method, Method):
        raise wrong("is not a subclass of clf.Method (return the class, not an instance)")
    if inspect.isabstract(method):
        raise wrong(f"does not define {', '.join(sorted(method.__abstractmethods__))}")
    if not isinstance(getattr(method, "name", None), str) or not method.name:
        raise wrong("has no name: set the class attribute name = '...'")
    config = getattr(method, "Config", None)
    if not inspect.isclass(config) or not issubclass(config, MethodConfig):
        raise wrong("has no Config: set the class attribute Config to a subclass of clf.MethodConfig")
    if not isinstance(method.defaults, Mapping):
        raise wrong("has defaults that are not a mapping of keys to values")
    return method


def _checked_callback(info: PluginInfo, callback: Any) -> type[Callback]:
    from clf.callbacks import Callback

    if not inspect.isclass(callback) or not issubclass(callback, Callback):
        reason = f"{_show(callback)} is not a subclass of clf.callbacks.Callback (return the class, not an instance)"
        raise _failure(info, "clf_callbacks", reason)
    return callback


def _checked_evaluator(info: PluginInfo, evaluator: Any) -> type[Evaluator]:
    from clf.evaluators import Evaluator

    def wrong(reason: str) -> PluginError:
        return _failure(info, "clf_evaluators", f"{_show(evaluator)} {reason}")

    if not inspect.isclass(evaluator) or not issubclass(evaluator, Evaluator):
        raise wrong("is not a subclass of clf.Evaluator (return the class, not an instance)")
    if inspect.isabstract(evaluator):
        raise wrong(f"does not define {', '.join(sorted(evaluator.__abstractmethods__))}")
    if not isinstance(getattr(evaluator, "name", None), str) or not evaluator.name:
        raise wrong("has no name: set the class attribute name = '...'")
    return evaluator


@contextmanager
def _guard(info: PluginInfo, stage: str) -> Iterator[None]:
    """Runs a plugin's code: its prints go to standard error, and whatever it raises becomes a :class:`PluginError`.

    Raises:
        Stopped: Ctrl-C came.
    """
    doing = f"importing {info}" if stage == "import" else f"in stage {stage} of {info}"
    try:
        with foreign.off_standard_output(), _slowness_told(info, doing):
            yield
    except KeyboardInterrupt as stop:
        raise Stopped(f"stopped by Ctrl-C while {doing}") from stop
    except PluginError:  # of a file that does not stand alone
        raise
    except BaseException as error:
        if isinstance(error, ImportError) and (missing := extras.explain(error, str(info))):
            raise missing from error
        absent = error.name if isinstance(error, ModuleNotFoundError) and info.offer is None else None
        raise _failure(info, stage, _reason(info, error), absent) from error


def _slowness_told(info: PluginInfo, doing: str) -> AbstractContextManager[None]:
    """Of a built-in plugin, which may wait long for torch on a busy machine, nothing is told."""
    return nullcontext() if info.builtin else foreign.told_when_slow(doing)


def _reason(info: PluginInfo, error: BaseException) -> str:
    """The exception in one line, with the place in the plugin where it came from."""
    if isinstance(error, ModuleNotFoundError) and error.name and info.value.partition(":")[0].startswith(error.name):
        return f"its module {error.name!r} does not exist"
    text = in_one_line(error) or "no message"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    frames = [frame for frame in frames if is_own_file(info, frame.filename)] or frames
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def is_own_file(info: PluginInfo, filename: str) -> bool:
    """Whether a file, as a traceback names it, belongs to the plugin's own code."""
    if info.offer is None:
        return Path(filename).absolute() == Path(info.value).expanduser().absolute()
    top = getattr(sys.modules.get(info.value.partition(":")[0].partition(".")[0]), "__file__", None) or ""
    place = Path(top)
    return Path(filename).is_relative_to(place.parent) if place.name == "__init__.py" else filename == top


def _is_machinery(filename: str) -> bool:
    machinery = (__file__, entrypoints.__file__, single.__file__, str(Path(pluggy.__file__).parent), "<frozen")
    return filename.startswith(machinery) or f"importlib{os.sep}" in filename


def remedy(info: PluginInfo, stage: str = "") -> str:
    """What to do about a plugin that fails."""
    if info.offer is None:
        return "Mend the file."
    if stage == "import":
        module = info.value.partition(":")[0]
        return f"For the traceback: python -c 'import {module}'; reinstalling {info.distribution} may mend it."
    return f"Tell the authors of {info.distribution}, or install another version of it."


def _failure(info: PluginInfo, stage: str, reason: str, absent: str | None = None) -> PluginError:
    """Of a file, ``absent`` is the module that it imports and that is not installed."""
    what = f"Install what has {absent!r}, or mend the file." if absent else remedy(info, stage)
    return PluginError(f"{info} is broken, stage {stage}: {reason.rstrip('.')}. {what}")


def _show(value: object) -> str:
    return value.__name__ if inspect.isclass(value) or inspect.isroutine(value) else f"a {type(value).__name__}"
