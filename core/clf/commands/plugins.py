"""``clf plugins``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clf.commands.output import print_json, print_table, print_text

if TYPE_CHECKING:
    from clf.describe import Description

app = typer.Typer(no_args_is_help=True, help="List plugins, and show what one of them offers.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """List all installed plugins and whether each can be used. Imports none of them."""
    from clf.catalogue import list_plugins

    rows = list_plugins()
    if json:
        print_json([row.as_dict() for row in rows])
        return
    print_table(
        ["plugin", "state", "distribution", "version", "reason"],
        [[row.name, row.state, row.distribution, row.version, row.reason or None] for row in rows],
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A plugin's name, or the path of a Python file.")], json: Json = False
) -> None:
    """Show a plugin: its description, and every setting with type, default and meaning."""
    from clf.describe import describe

    found = describe(name)
    if json:
        print_json(found)
    else:
        _print(found)


def _print(plugin: Description) -> None:
    print_text(f"{plugin.name} ({plugin.distribution} {plugin.version}".rstrip() + f", {plugin.value})\n")
    if plugin.text:
        print_text(plugin.text + "\n")
    for method in plugin.methods:
        if method.settings:
            print_table(
                ["setting", "type", "default", "meaning"],
                [[each.key, each.type, each.default, each.description] for each in method.settings],
            )
        if method.defaults:
            print_text("\nRecommended settings of the engine, unless a file or the command line says otherwise:")
            print_table(["key", "value"], list(method.defaults.items()))
    if plugin.methods:
        print_text(f"\nUse it: clf train --plugin {plugin.name}")
    if plugin.datasets:
        _print_sources(plugin)


def _print_sources(plugin: Description) -> None:
    for name in plugin.reachable:
        print_text(f"Data source: data.name={name}")
    others = [name for name in plugin.datasets if name not in plugin.reachable]
    if others:
        print_text(
            f"Data sources that cannot be reached: {', '.join(others)} (data.name finds only the source that is named "
            "as its installed plugin, and a built-in one first)"
        )
