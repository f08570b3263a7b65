"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clf.commands import completion

PluginName = Annotated[
    str | None,
    typer.Option(
        "--plugin",
        metavar="NAME",
        help="The method: a plugin's name, or a file such as ./my_method.py",
        autocompletion=completion.plugins,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file with the same keys, nested.",
        autocompletion=completion.config_files,
    ),
]
