"""``clf plugins new``."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clf.commands.output import print_text


class Licence(StrEnum):
    """What the package may be copied under."""

    mit = "mit"
    apache = "apache-2.0"
    bsd = "bsd-3-clause"
    none = "none"


def _built_ins(incomplete: str) -> list[str]:
    from clf.scaffold import built_in_names

    return [name for name in built_in_names() if name.startswith(incomplete)]


def new(
    name: Annotated[str, typer.Argument(help="What the method will be called: lower-case letters, digits, _.")],
    base: Annotated[
        str | None,
        typer.Option("--from", metavar="BUILT_IN", help="Start from a built-in plugin.", autocompletion=_built_ins),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder in which clf-NAME is written.")
    ] = Path(),
    licence: Annotated[Licence, typer.Option("--license", help="Licence of the package.")] = Licence.mit,
    author: Annotated[str, typer.Option(metavar="TEXT", help="A name, and an address in angle brackets.")] = "",
) -> None:
    """Write a package for a method of your own, which trains at once: clf-NAME."""
    from clf.scaffold import create

    written = create(name, output, base=base, licence=licence.value, author=author)
    where = shlex.quote(str(written.folder))
    print_text(f"Wrote {written.folder}:")
    for path in written.files:
        print_text(f"  {path}")
    code = f"{written.folder}/src/clf_{name}/__init__.py"
    print_text(
        f"\nThe method is {code}. Next:\n"
        f"  pip install -e {where} && clf train --plugin {name}\n"
        f"  clf plugins check {name}\n"
        f"  cd {where} && pip install -e '.[test]' && pytest"
    )
