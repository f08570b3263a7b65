"""Commands of other packages, by the entry-point group ``clf.commands``: name -> a function with typer annotations, or
a ``typer.Typer`` whose commands become ``clf NAME COMMAND``.

The server's commands come this way, so that the engine never imports the server. A command that cannot be loaded is
still listed, with the reason, and hurts no other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any, Literal

import typer

from clf import extras
from clf.entrypoints import Offer, offers
from clf.errors import ClfError, PluginError

GROUP = "clf.commands"

Markup = Literal["markdown", "rich"] | None


def names() -> list[str]:
    """Names of all commands in the group, built-in ones first."""
    found = sorted(offers(GROUP), key=lambda offer: (not offer.builtin, offer.name))
    return list(dict.fromkeys(offer.name for offer in found))


def command(name: str, markup: Markup) -> Any | None:
    """The command of this name, ready for a typer group; ``None`` when nobody offers it."""
    claims = [offer for offer in offers(GROUP) if offer.name == name]
    if not claims:
        return None
    try:
        offer = _only(claims)
        return _to_command(name, _load(offer), markup)
    except ClfError as error:
        return _unavailable(name, error, markup)


def _only(claims: list[Offer]) -> Offer:
    """The one to use: ours, or else the single claim.

    Raises:
        PluginError: two other distributions claim the name.
    """
    claims = [offer for offer in claims if offer.builtin] or claims
    if len(claims) > 1:
        rivals = " and ".join(sorted(offer.distribution for offer in claims))
        raise PluginError(f"command {claims[0].name!r} is claimed by {rivals}: uninstall one of them")
    return claims[0]


def _load(offer: Offer) -> Callable[..., Any] | typer.Typer:
    where = f"command {offer.name!r} of {offer.distribution}"
    if offer.problem:
        raise PluginError(f"{where} cannot be read: {offer.problem}. Reinstall it.")
    try:
        with redirect_stdout(sys.stderr):
            found = offer.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ImportError) and (missing := extras.explain(error, f"clf {offer.name}")):
            raise missing from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{where} cannot be loaded: {reason}. Reinstall {offer.distribution}.") from error
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
