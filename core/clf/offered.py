"""What plugins offer besides methods, by the words a person gives, and what goes wrong while it is used.

A word is a plugin's name or a Python file, and a part of it where it offers several: ``birds``, ``birds:small``,
``./birds.py``, ``./birds.py:small``.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from clf import plugins
from clf.errors import PluginError, did_you_mean, in_one_line
from clf.plugins import Plugin

if TYPE_CHECKING:
    from clf.callbacks import Callback
    from clf.data import Source
    from clf.evaluators import Evaluator

T = TypeVar("T")


@dataclass(frozen=True)
class Offered:
    """Something of a plugin, and which plugin it is of."""

    plugin: Plugin
    kind: str
    """``data source``, ``evaluator`` or ``callback``."""
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.plugin.info}"

    def origin(self) -> dict[str, str]:
        """For a manifest: the plugin, and its version or its file's SHA-256."""
        info = self.plugin.info
        if info.offer is not None:
            return {"name": self.name, "plugin": info.name, "distribution": info.distribution, "version": info.version}
        assert self.plugin.source is not None
        file, digest = self.plugin.source.path.name, self.plugin.source.sha256
        return {"name": self.name, "plugin": info.name, "file": file, "sha256": digest}

    def failed(self, error: BaseException, doing: str) -> str:
        """One sentence: what of whom failed at what, the exception, and the place in the plugin."""
        text = in_one_line(error).rstrip(".") or "no message"
        return f"{self} failed {doing}: {type(error).__name__}: {text}{self._place(error)}"

    def tell_traceback(self, error: BaseException) -> None:
        """The plugin's part of the traceback on standard error, for its author."""
        own = [trace for trace in _traces(error.__traceback__) if self._is_own(trace.tb_frame.f_code.co_filename)]
        lines = traceback.format_exception(type(error), error, own[0] if own else error.__traceback__)
        with suppress(OSError, ValueError):
            sys.stderr.write("".join(lines))

    def _place(self, error: BaseException) -> str:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if self._is_own(frame.filename)]
        return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""

    def _is_own(self, filename: str) -> bool:
        return plugins.is_own_file(self.plugin.info, filename)


def split(word: str) -> tuple[str, str | None]:
    """The plugin's name or path, and the part of it, None where none is named."""
    if word.endswith(".py"):
        return word, None
    file, is_file, part = word.rpartition(".py:")
    if is_file and part:
        return f"{file}.py", part
    name, _, part = word.partition(":")
    return name, part or None


def data_source(word: str) -> tuple[Source, Offered]:
    """The source that ``data.name`` names.

    ``birds`` is the source of that name in the plugin of that name, a file's only source needs no name.

    Raises:
        PluginError: the plugin cannot be used, or has no such source.
    """
    name, part = split(word)
    plugin = plugins.load_plugin(name)
    sources = {plugins.name_of(source): source for source in plugin.datasets}
    if part is None and plugin.info.offer is not None:
        part = name
    if part is None and len(sources) == 1:
        part = next(iter(sources))
    return _part(plugin, "data source", word, part, sources)


def evaluators(words: Sequence[str]) -> list[tuple[type[Evaluator], Offered]]:
    """The evaluators that words name; all of a plugin for its name alone. Each comes once.

    Raises:
        PluginError: a plugin cannot be used or has no such evaluator, or two evaluators have one name.
    """
    found: dict[type[Evaluator], Offered] = {}
    for word in words:
        name, part = split(word)
        plugin = plugins.load_plugin(name)
        known = {each.name: each for each in plugin.evaluators}
        for each in [part] if part or not known else known:
            evaluator, offered = _part(plugin, "evaluator", word, each, known)
            found.setdefault(evaluator, offered)
    names: dict[str, Offered] = {}
    for offered in found.values():
        rival = names.setdefault(offered.name, offered)
        if rival is not offered:
            raise PluginError(f"{rival} and that of {offered.plugin.info} have one name: ask for one at a time")
    return list(found.items())


def callbacks(words: Sequence[str], first: Plugin | None = None) -> list[tuple[type[Callback], Offered]]:
    """The callbacks of a plugin, and those of the plugins that words name. Each comes once.

    Raises:
        PluginError: a plugin cannot be used or offers no callback.
    """
    named = [_of_callbacks(word) for word in words]
    for word, plugin in zip(words, named, strict=True):
        if not plugin.callbacks:
            needed = "to define a subclass of clf.Callback" if plugin.source else "a clf_callbacks hook"
            raise PluginError(
                f"monitor.callbacks: {plugin.info} offers no callback. It needs {needed}; {word!r} can be left out"
            )
    found: dict[object, tuple[type[Callback], Offered]] = {}
    for plugin in ([first] if first else []) + named:
        for callback in plugin.callbacks:  # a run's copy of a file is another module than the file
            same = (plugin.source.sha256, callback.__name__) if plugin.source else callback
            found.setdefault(same, (callback, Offered(plugin, "callback", callback.__name__)))
    return list(found.values())


def _of_callbacks(word: str) -> Plugin:
    try:
        return plugins.load_plugin(word)
    except PluginError as error:
        raise PluginError(f"monitor.callbacks: {error}") from error


def _part(plugin: Plugin, kind: str, word: str, part: str | None, offers: Mapping[str, T]) -> tuple[T, Offered]:
    if part is not None and part in offers:
        return offers[part], Offered(plugin, kind, part)
    name, _ = split(word)
    listed = ", ".join(f"{name}:{each}" for each in offers)
    has = f"it offers {listed}" if offers else f"it offers no {kind}"
    wanted = f"no {kind} named {part!r}" if part else f"more than one {kind}" if offers else f"no {kind}"
    raise PluginError(f"{plugin.info} provides {wanted}: {has}.{did_you_mean(part or '', offers)}")


def _traces(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next
