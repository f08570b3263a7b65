"""What the shell offers at TAB beyond the names of commands and options; see ``clf --install-completion``.

A function here is the ``autocompletion`` of an option or argument. It returns whole words, and nothing when something
goes wrong: the shell then completes file names, as it would without us. A plugin is imported only for settings of the
method that the line names, and for the sources of a plugin that is written out; everything else is fast.

A shell closes the only word on offer with a space, which would be wrong behind ``train.epochs=``; so the only key is
offered together with its values, and the shell completes to what they have in common.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from clf.commands import shell_line
from clf.errors import ClfError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from clf.config import Config

Offer: TypeAlias = str | tuple[str, str]
"""A word, or a word and what it means."""
Complete: TypeAlias = Callable[[str], list[Offer]]

PATIENCE = 20.0
"""Seconds that the import of a plugin may take before the shell gets no answer."""
DEVICES = ("auto", "cpu", "cuda", "mps")


def _quietly(find: Callable[[str], Iterable[Offer]]) -> Complete:
    @wraps(find)
    def complete(incomplete: str) -> list[Offer]:
        try:
            return list(find(incomplete))
        except Exception:  # there is nobody to tell in the middle of a line
            return []

    return complete


@_quietly
def plugins(incomplete: str) -> Iterator[Offer]:
    """Plugins that can be used, or files of Python when a path is begun."""
    if _is_path(incomplete):
        yield from _paths(incomplete, ".py")
    else:
        yield from _plugins("available")


@_quietly
def all_plugins(incomplete: str) -> Iterator[Offer]:
    """Plugins in whatever state, or files of Python."""
    yield from _paths(incomplete, ".py") if _is_path(incomplete) else _plugins()


@_quietly
def evaluators(incomplete: str) -> Iterator[Offer]:
    """Plugins of others that may have evaluators, separated by commas, and behind ``PLUGIN:`` its evaluators."""
    yield from _listed(incomplete, lambda last: _parts(last, "evaluators"))


@_quietly
def checks(incomplete: str) -> Iterator[Offer]:
    """Names of conformance checks, separated by commas."""
    from clf.testing.suite import CHECKS

    yield from _listed(incomplete, lambda last: [(check.name, check.looks_at) for check in CHECKS])


@_quietly
def config_files(incomplete: str) -> Iterator[Offer]:
    yield from _paths(incomplete, ".yaml", ".yml")


@_quietly
def sources(incomplete: str) -> Iterator[Offer]:
    """Values of ``data.name``."""
    yield from _sources(incomplete)


@_quietly
def runs(incomplete: str) -> Iterator[Offer]:
    """Runs by name inside ``--runs``, or by path."""
    yield from _runs(incomplete, shell_line.read().option("--runs") or "runs")


@_quietly
def resumable(incomplete: str) -> Iterator[Offer]:
    """Runs inside ``run.dir``, and ``auto``."""
    yield "auto", "the newest unfinished run"
    yield from _runs(incomplete, shell_line.read().setting("run.dir") or "runs")


@_quietly
def settings(incomplete: str) -> Iterator[Offer]:
    """``key=value`` words of a training: keys of the engine, those of the plugin on the line, and their values."""
    from clf.config import known_keys

    known = {key: info for key, info in known_keys().items() if key != "method"}
    line = shell_line.read()
    if _plugin_of(line):
        known.pop("plugin")
    if len(incomplete) > 1 and incomplete[:7] == "method."[: len(incomplete)]:
        known |= _method_keys(line)
    elif "method".startswith(incomplete) and _plugin_of(line):
        yield "method.", "settings of the method"
    yield from _settings(incomplete, known, line)


@_quietly
def data_settings(incomplete: str) -> Iterator[Offer]:
    """``data.key=value`` words."""
    from clf.config import known_keys

    known = {key: info for key, info in known_keys().items() if key.startswith("data.")}
    yield from _settings(incomplete, known, shell_line.read())


def _settings(incomplete: str, known: dict[str, FieldInfo], line: shell_line.Line) -> Iterator[Offer]:
    key, equals, begun = incomplete.partition("=")
    if equals:
        if key in known:
            yield from _values(key, known[key], begun)
        return
    given = line.keys()
    keys = [name for name in known if name.startswith(incomplete) and name not in given]
    for name in keys:
        yield f"{name}=", known[name].description or ""
    if len(keys) == 1:
        yield from _values(keys[0], known[keys[0]], "")


def _values(key: str, info: FieldInfo, begun: str) -> Iterator[Offer]:
    """Words ``key=value``: of a choice all, of other settings the default."""
    from clf.commands.setting_values import choices, default

    special: dict[str, Callable[[], Iterable[Offer]]] = {
        "plugin": lambda: _paths(begun, ".py") if _is_path(begun) else _plugins("available"),
        "data.name": lambda: _sources(begun),
        "data.root": lambda: _paths(begun),
        "train.device": lambda: DEVICES,
        "monitor.callbacks": lambda: _listed(begun, _others),
    }
    found: list[Offer] = list(special[key]()) if key in special else [*choices(info)]
    usual = default(info)
    if usual and usual not in [_word(each) for each in found] and key != "data.root":
        found.append((usual, "the default"))
    for each in found:
        yield (f"{key}={each}", "") if isinstance(each, str) else (f"{key}={each[0]}", each[1])


def _method_keys(line: shell_line.Line) -> dict[str, FieldInfo]:
    """The ``method.*`` keys of the plugin that the line names; imports it."""
    name = _plugin_of(line)
    if name is None:
        return {}
    from clf.config import known_keys

    with _patience():
        from clf.plugins import load_method

        return known_keys(load_method(name).Config, "method.")


def _plugin_of(line: shell_line.Line) -> str | None:
    """The plugin of a training: of ``--plugin``, ``plugin=``, the configuration file, the run to resume or a check."""
    from clf import config

    if line.words[1:3] == ("plugins", "check"):
        return next((word for word in line.words[3:] if not word.startswith("-")), None)
    if named := line.option("--plugin") or line.setting("plugin"):
        return named
    with suppress(ClfError):  # a file or a run that cannot be read names none
        if file := line.option("--config"):
            return str(config.read_file(Path(file)).values.get("plugin") or "") or None
        if name := line.option("--resume"):
            return _resumed(name, line.setting("run.dir") or "runs").plugin
    return None


def _resumed(name: str, folder: str) -> Config:
    from clf.runs import newest_unfinished, open_run

    return (newest_unfinished(folder) if name == "auto" else open_run(name, folder)).config()


def _plugins(state: str = "", *, builtin: bool | None = None) -> Iterator[Offer]:
    from clf.catalogue import list_plugins

    for row in list_plugins():
        if state in ("", row.state) and builtin in (None, row.builtin):
            yield row.name, f"{row.distribution} {row.version}" + (f", {row.state}" if row.reason else "")


def _sources(begun: str) -> Iterator[Offer]:
    if ":" not in begun and not _is_path(begun):
        from clf.sources import BUILT_IN

        yield from BUILT_IN
    yield from _parts(begun, "datasets")


def _others(begun: str) -> Iterable[Offer]:
    """Plugins of others, of which any may offer more than a method, and files."""
    return _paths(begun, ".py") if _is_path(begun) else _plugins("available", builtin=False)


def _parts(begun: str, kind: str) -> Iterator[Offer]:
    """The same, and behind ``PLUGIN:`` or ``FILE:`` what it offers of a kind."""
    named, colon, _ = begun.partition(":")
    if not colon:
        yield from _others(begun)
        return
    with _patience():
        from clf.plugins import load_plugin, name_of

        yield from [f"{named}:{name_of(part)}" for part in getattr(load_plugin(named), kind)]


def _runs(incomplete: str, folder: str) -> Iterator[Offer]:
    from clf.runs import list_runs

    names = [(run.name, run.state()) for run in list_runs(folder)]
    yield from names
    if not any(name.startswith(incomplete) for name, _ in names):
        yield from _paths(incomplete, run=True)


def _listed(incomplete: str, offered: Callable[[str], Iterable[Offer]]) -> Iterator[Offer]:
    """Words separated by commas, each at most once."""
    head, comma, last = incomplete.rpartition(",")
    taken = head.split(",")
    for each in offered(last):
        if _word(each) not in taken:
            yield (head + comma + _word(each), "" if isinstance(each, str) else each[1])


def _word(each: Offer) -> str:
    return each if isinstance(each, str) else each[0]


def _is_path(text: str) -> bool:
    return "/" in text or text.startswith((".", "~"))


def _paths(begun: str, *suffixes: str, run: bool = False) -> Iterator[str]:
    """Files with a suffix, or run folders, and folders on the way to them; of the only folder its content too."""
    if begun.startswith("~"):  # the shell knows whose
        return
    folder, slash, start = begun.rpartition("/")
    found = list(_entries(folder + slash, start, suffixes, run=run))
    yield from found
    if len(found) == 1 and found[0].endswith("/"):
        yield from _entries(found[0], "", suffixes, run=run)


def _entries(folder: str, start: str, suffixes: tuple[str, ...], *, run: bool) -> Iterator[str]:
    for path in sorted(Path(folder or ".").iterdir()):
        if not path.name.startswith(start) or (path.name.startswith(".") and not start):
            continue
        if path.is_dir():
            yield folder + path.name + ("" if run and (path / "config.yaml").is_file() else "/")
        elif not run and (not suffixes or path.suffix in suffixes):
            yield folder + path.name


@contextmanager
def _patience() -> Iterator[None]:
    """For somebody else's code: when its import hangs, the process ends without an answer."""
    timer = threading.Timer(PATIENCE, os._exit, (1,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
