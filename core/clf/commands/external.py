"""Commands of other packages, by the entry-point group ``clf.commands``: name -> a function with typer annotations, or
a ``typer.Typer`` whose commands become ``clf NAME COMMAND``.

The server's commands come this way, so that the engine never imports the server. A command that cannot be used is still
listed, with the reason, and hurts no other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any, Literal

import typer

from clf import extras
from clf.catalogue import PluginInfo, list_entries, the_usable
from clf.errors import ClfError, PluginError

Markup = Literal["markdown", "rich"] | None


def names() -> list[str]:
    """Names of all commands in the group, built-in ones first."""
    return list(dict.fromkeys(row.name for row in list_entries("command")))


def command(name: str, markup: Markup) -> Any | None:
    """The command of this name, ready for a typer group; ``None`` when nobody offers it."""
    rows = [row for row in list_entries("command") if row.name == name]
    if not rows:
        return None
    try:
        return _to_command(name, _load(the_usable(rows)), markup)
    except ClfError as error:
        return _unavailable(name, error, markup)


def _load(row: PluginInfo) -> Callable[..., Any] | typer.Typer:
    assert row.offer is not None
    where = f"command {row.name!r} of {row.distribution}"
    try:
        with redirect_stdout(sys.stderr):
            found = row.offer.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ImportError) and (missing := extras.explain(error, f"clf {row.name}")):
            raise missing from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{where} cannot be loaded: {reason}. Reinstall {row.distribution}.") from error
    if not callable(found):
        raise PluginError(f"{where} is a {type(found).__name__}, not a function. Tell the authors.")
    return found


def _to_command(name: str, found: Callable[..., Any] | typer.Typer, markup: Markup) -> Any:
    parent = typer.Typer(add_completion=False, rich_markup_mode=markup, pretty_exceptions_enable=False)
    try:
        if isinstance(found, typer.Typer):
            parent.add_typer(found, name=name)
            return typer.main.get_group(parent).commands[name]
        parent.command(name)(found)
        return typer.main.get_command(parent)
    except Exception as error:
        raise PluginError(f"command {name!r} has a signature that typer does not accept: {error}") from error


def _unavailable(name: str, error: ClfError, markup: Markup) -> Any:
    """A row in the help that says why, and a command that fails with the same words whatever it is given."""

    def explain(words: list[str] = typer.Argument(None, hidden=True)) -> None:
        raise error

    single = typer.Typer(add_completion=False, rich_markup_mode=markup, pretty_exceptions_enable=False)
    single.command(name, help=f"Unavailable: {error}", context_settings={"ignore_unknown_options": True})(explain)
    return typer.main.get_command(single)
