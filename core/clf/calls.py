"""The engine's calls into a method: what goes wrong in the method's own code is told as the plugin's, with the place.

An exception counts as the method's when the call itself raised it (a wrong signature), when its traceback passes
through code of the method's own package, or when torch says that the method's loss has no way back. All others are the
engine's, and keep their traceback.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from clf import distributed, extras, plugins
from clf.errors import ClfError, PluginError, in_one_line
from clf.method import Method
from clf.plugins import Plugin
from clf.signals import Stopped

GRAPH = (
    (
        "modified by an inplace operation",
        "A tensor that the loss was computed from was changed in place afterwards: write x = x * 2 in place of x *= 2 "
        "or x.mul_(2); torch.autograd.set_detect_anomaly(True) in __init__ shows the line.",
    ),
    (
        "backward through the graph a second time",
        "The loss depends on a tensor that an earlier step or ctx.minimize has left: .detach() what is kept, and "
        "compute anew what two losses share.",
    ),
)
"""What torch says of a loss whose gradient cannot be computed, and what to do about it. A method's doing always."""
NO_MEMORY = ("out of memory", "can't allocate memory", "_ALLOC_FAILED")
"""In RuntimeErrors of torch: of a CUDA call, of the CPU's memory, of cuBLAS and cuDNN."""


class Calls:
    """``with calls("training_step"): ...`` round one call into a method; made once, so that it costs next to nothing.

    Args:
        who: the plugin, as in messages.
        moment: when the call is made, for example `` at step 7``.
        remedy: what to do, in a sentence or two.
    """

    def __init__(
        self,
        who: str,
        method: type[Method[Any]],
        remedy: Callable[[], str],
        moment: Callable[[], str] = lambda: "",
    ) -> None:
        self.who = who
        self.method = method
        self.remedy = remedy
        self.moment = moment
        classes = [each for each in method.__mro__ if issubclass(each, Method) and each is not Method]
        self._packages = {each.__module__.partition(".")[0] for each in classes} - {"clf"}

    def __call__(self, stage: str) -> _Call:
        return _Call(self, stage)

    def anywhere(self) -> _Call:
        """For work of the engine that calls into the method here and there; the stage is then found out."""
        return _Call(self, "")

    def during(self, remedy: Callable[[], str], moment: Callable[[], str]) -> Calls:
        """The same with other words about when, and what to do."""
        return Calls(self.who, self.method, remedy, moment)

    def failure(self, error: BaseException, raised: TracebackType | None, stage: str) -> ClfError | None:
        """The error to show instead; None where it is not the method's doing.

        Args:
            raised: the traceback from the frame that made the call.
            stage: what was called; empty where that is to be found out.
        """
        own = [each for each in _frames(raised) if self._is_own(each)]
        called = bool(stage) and raised is not None and _is_the_call(raised)
        hint = about_the_graph(error)
        if not own and not called and not hint:
            return None
        if isinstance(error, ImportError) and (missing := extras.explain(error, self.who)):
            return missing
        text = in_one_line(error) or "no message"
        place = f" ({_place(own[-1])})" if own else ""
        where = own[0].tb_frame.f_code.co_name if own and stage in ("", "build") else stage or "backward"
        message = f"{self.who} failed in {where}{self.moment()}: {type(error).__name__}: {text.rstrip('.')}{place}."
        found = PluginError(" ".join(filter(None, [message, hint, self.remedy()])))
        if own:
            found.details = "".join(traceback.format_exception(type(error), error, own[0]))
        return found

    def _is_own(self, each: TracebackType) -> bool:
        module = each.tb_frame.f_globals.get("__name__")
        return isinstance(module, str) and module.partition(".")[0] in self._packages


def calls_of(plugin: Plugin, method: type[Method[Any]]) -> Calls:
    """For calls into a method of a plugin."""
    return Calls(str(plugin.info), method, lambda: plugins.remedy(plugin.info))


class _Call:
    """One call; see :class:`Calls`."""

    __slots__ = ("_calls", "_stage")

    def __init__(self, calls: Calls, stage: str) -> None:
        self._calls = calls
        self._stage = stage

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, raised: TracebackType | None
    ) -> None:
        if error is None or _has_its_own_words(error):
            return
        if isinstance(error, KeyboardInterrupt):
            if self._stage and type(error) is KeyboardInterrupt:
                raise Stopped(f"stopped by Ctrl-C in {self._stage} of {self._calls.who}") from error
            return
        found = self._calls.failure(error, raised, self._stage)
        if found is not None:
            raise found from error


def _has_its_own_words(error: BaseException) -> bool:
    """Errors that are told as they are: ours, those of memory, and those of ranks that lost one another."""
    if isinstance(error, (ClfError, GeneratorExit, MemoryError, torch.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return distributed.is_of_peers(error) or any(words in in_one_line(error) for words in NO_MEMORY)


def about_the_graph(error: BaseException) -> str:
    """What to do where torch cannot go back through what the method computed; empty for every other error."""
    text = in_one_line(error) if isinstance(error, RuntimeError) else ""
    return next((hint for words, hint in GRAPH if words in text), "")


def _frames(raised: TracebackType | None) -> Iterator[TracebackType]:
    while raised is not None:
        yield raised
        raised = raised.tb_next


def _is_the_call(raised: TracebackType) -> bool:
    """Whether the call itself failed, before any code of the method ran: here, or in what the contract does for it."""
    last = list(_frames(raised))[-1]
    return last is raised or last.tb_frame.f_globals.get("__name__") == Method.__module__


def _place(each: TracebackType) -> str:
    path = Path(each.tb_frame.f_code.co_filename)
    name = f"{path.parent.name}/{path.name}" if path.name == "__init__.py" else path.name
    return f"{name}, line {each.tb_lineno}"
