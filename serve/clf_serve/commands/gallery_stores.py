"""``clf gallery check-store``. Heavy packages are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clf.errors import ConfigError
from clf_serve.commands.options import AsJson
from clf_serve.commands.terminal import console, print_json
from clf_serve.place import Place

if TYPE_CHECKING:
    from clf_serve.stores import Outcome

_FAILED = 1
_NAME = "{name}"


def check_store(
    scheme: Annotated[str, typer.Argument(help="Of an installed store's URLs, such as mine.", show_default=False)],
    url: Annotated[
        str | None,
        typer.Option(
            help="Where test galleries may be made; {name} becomes a new name for each. By default in a folder that is "
            "removed again: SCHEME://FOLDER/{name}.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Names of checks, with commas.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Try whether a vector store does what a gallery needs of it: for those who write one.

    Exit status: 0 it conforms, 1 it does not, 2 a mistake in what was given.
    """
    from clf_serve.stores import run_checks

    if url is not None and _NAME not in url:
        raise ConfigError(f"--url {Place.of(url)} needs {_NAME}, which becomes a new name for each gallery")

    def place(folder: Path, name: str) -> str:
        assert url is not None
        return url.replace(_NAME, f"{folder.parent.name}-{folder.name}-{name}")

    names = [name.strip() for name in only.split(",")] if only else []
    tell = (lambda outcome: None) if as_json else _tell
    found = run_checks(scheme.partition("://")[0], None if url is None else place, only=names, on_outcome=tell)
    if as_json:
        print_json(found.as_dict())
    else:
        counts = {
            state: sum(each.state == state for each in found.outcomes)
            for state in ("passed", "failed", "skipped", "not run")
        }
        verdict = "conforms" if found.conforms else "does not conform"
        told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        console().print(f"{found.store} {verdict}: {told} ({found.seconds:.1f} s)")
    raise typer.Exit(0 if found.conforms else _FAILED)


def _tell(outcome: Outcome) -> None:
    terminal = console()
    terminal.print(f"{outcome.check.name:<14} {outcome.state:<8} {outcome.text}".rstrip())
    if outcome.state == "failed":
        terminal.print(f"{'':<15}why: {outcome.check.why}")
        terminal.print(f"{'':<15}mend: {outcome.check.remedy}")
