"""``clf quickstart``."""

from __future__ import annotations

from typing import Annotated

import typer


def quickstart(
    serve: Annotated[bool, typer.Option(help="Open the search page at the end.")] = True,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the search page.")] = None,
) -> None:
    """Train, evaluate, export, index, search and serve an embedded image set, in a few minutes on a laptop."""
    from clf.quickstart import quickstart as run

    run(serve=serve, port=port)
