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
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from clf import entrypoints, extras, hookspecs
from clf.catalogue import PluginInfo, find_plugin, list_plugins
from clf.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from clf.callbacks import Callback
    from clf.data import Source
    from clf.method import Method

__all__ = [
    "HOOKS",
    "Plugin",
    "PluginInfo",
    "find_plugin",
    "is_path",
    "list_plugins",
    "load_dataset",
    "load_method",
    "load_plugin",
    "name_of",
]

HOOKS = ("clf_methods", "clf_datasets", "clf_callbacks")


@dataclass(frozen=True)
class Plugin:
    """A plugin that was imported and checked."""

    info: PluginInfo
    module: object = field(repr=False)
    methods: tuple[type[Method[Any]], ...] = ()
    datasets: tuple[Source, ...] = ()
    callbacks: tuple[type[Callback], ...] = ()


def load_plugin(name_or_path: str) -> Plugin:
    """Imports and checks one plugin: an installed one by name, or a single file such as ``./my_method.py``.

    What a plugin prints while it loads goes to standard error, so that standard output stays parseable.

    Raises:
        PluginError: it is unknown, unusable or broken.
        MissingExtraError: it needs an optional package of clf that is not installed.
    """
    if is_path(name_or_path):
        return _load_file(Path(name_or_path))
    info = find_plugin(name_or_path)
    assert info.offer is not None
    with _guard(info, "import"):
        module = info.offer.load()
    return _collect(info, module)


def load_method(name_or_path: str) -> type[Method[Any]]:
    """The method that ``clf train --plugin`` names. Raises as :func:`load_plugin` does."""
    plugin = load_plugin(name_or_path)
    methods = plugin.methods
    if plugin.info.offer is not None:
        methods = tuple(method for method in methods if method.name == plugin.info.name)
    if len(methods) == 1:
        return methods[0]
    names = ", ".join(repr(method.name) for method in plugin.methods) or "none"
    wanted = f"one method named {plugin.info.name!r}" if plugin.info.offer else "exactly one method"
    raise _failure(plugin.info, "clf_methods", f"it must provide {wanted}, and provides {names}")


def load_dataset(name: str) -> Source:
    """The source that ``data.name`` names, from the plugin of the same name. Raises as :func:`load_plugin` does."""
    plugin = load_plugin(name)
    for source in plugin.datasets:
        if name_of(source) == name:
            return source
    raise _failure(plugin.info, "clf_datasets", f"it provides no data source named {name!r}")


def name_of(function: object) -> str:
    """What a data source goes by: its attribute ``name``, or else the name of the function."""
    name = getattr(function, "name", None) or getattr(function, "__name__", "")
    return name if isinstance(name, str) else ""


def is_path(name_or_path: str) -> bool:
    """Whether ``--plugin`` was given a Python file rather than a name."""
    return name_or_path.endswith(".py")


def _load_file(path: Path) -> Plugin:
    info = PluginInfo(str(path), str(path), "a single file", "")
    if not path.is_file():
        raise PluginError(f"plugin file {path} does not exist. A plugin that is installed is given by its name alone.")
    spec = spec_from_file_location(f"clf_plugin_file_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic and dataclasses look annotations up there
    try:
        with _guard(info, "import"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    if any(getattr(module, hook, None) for hook in HOOKS):
        return _collect(info, module)
    return _single(info, module)


def _single(info: PluginInfo, module: ModuleType) -> Plugin:
    """A file without hooks is its only method."""
    from clf.method import Method

    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(cls.__name__ for cls in found) or "none"
        reason = f"it must define one subclass of clf.Method or a clf_methods hook; subclasses found: {names}"
        raise _failure(info, "clf_methods", reason)
    return Plugin(info, module, methods=(_checked_method(info, found[0]),))


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
    return Plugin(info, module, methods, datasets, callbacks)


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


@contextmanager
def _guard(info: PluginInfo, stage: str) -> Iterator[None]:
    """Runs a plugin's code: its prints go to standard error, and whatever it raises becomes a :class:`PluginError`."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ImportError) and (missing := extras.explain(error, str(info))):
            raise missing from error
        raise _failure(info, stage, _reason(info, error)) from error


def _reason(info: PluginInfo, error: BaseException) -> str:
    """The exception in one line, with the place in the plugin where it came from."""
    if isinstance(error, ModuleNotFoundError) and error.name and info.value.partition(":")[0].startswith(error.name):
        return f"its module {error.name!r} does not exist"
    text = " ".join(str(error).split()) or "no message"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def _is_machinery(filename: str) -> bool:
    machinery = (__file__, entrypoints.__file__, str(Path(pluggy.__file__).parent), "<frozen")
    return filename.startswith(machinery) or f"importlib{os.sep}" in filename


def _failure(info: PluginInfo, stage: str, reason: str) -> PluginError:
    module = info.value.partition(":")[0]
    if info.offer is None:
        remedy = "Mend the file."
    elif stage == "import":
        remedy = f"For the traceback: python -c 'import {module}'; reinstalling {info.distribution} may mend it."
    else:
        remedy = f"Tell the authors of {info.distribution}, or install another version of it."
    return PluginError(f"{info} is broken, stage {stage}: {reason.rstrip('.')}. {remedy}")


def _show(value: object) -> str:
    return value.__name__ if inspect.isclass(value) or inspect.isroutine(value) else f"a {type(value).__name__}"
