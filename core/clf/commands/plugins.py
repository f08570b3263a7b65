"""``clf plugins``."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clf import catalogue
from clf.commands import completion, plugins_check, plugins_contract, plugins_new
from clf.commands.output import print_json, print_table, print_text
from clf.errors import PluginError

if TYPE_CHECKING:
    from clf.describe import Description, MethodDescription

app = typer.Typer(no_args_is_help=True, help="List plugins, show what one of them offers, check it, and start one.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
COLUMNS = ("name", "state", "kind", "distribution", "version", "reason")


class Kind(StrEnum):
    """What an entry offers; the values of :data:`clf.catalogue.Kind`."""

    plugin = "plugin"
    command = "command"
    store = "store"
    engine = "engine"


class State(StrEnum):
    """Whether it can be used; the values of :data:`clf.catalogue.State`."""

    available = "available"
    disabled = "disabled"
    incompatible = "incompatible"
    conflict = "conflict"
    broken = "broken"


@app.command("list")
def list_(
    context: typer.Context,
    kind: Annotated[Kind | None, typer.Option(help="Only plugins, commands, vector stores or engines.")] = None,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    json: Json = False,
) -> None:
    """List what is installed: plugins, commands, vector stores and engines of bulk embedding, and whether each can be
    used. Imports none of them.

    With --json a list of objects: name, kind (plugin, command, store or engine), value (the entry point), distribution,
    version, builtin (true or false), state (available, disabled, incompatible, conflict or broken), and reason, which
    is empty for an available one.
    """
    own = getattr(context.find_root().command, "commands", {})
    rows = [
        row
        for row in catalogue.list_everything(own)
        if (kind is None or row.kind == kind) and (state is None or row.state == state)
    ]
    if json:
        print_json([row.as_dict() for row in rows])
    else:
        print_table(COLUMNS, [[getattr(row, column) or None for column in COLUMNS] for row in rows], wraps="reason")


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(help="A plugin's name, or the path of a Python file.", autocompletion=completion.all_plugins),
    ],
    json: Json = False,
) -> None:
    """Show a plugin: what it provides, its paper, every setting, where it comes from, and how its checks went.

    Of a plugin that cannot be used, shows what is known without importing it, and exits with 2. The keys of --json are
    the same for both: name, value, distribution, version, builtin, state, reason, about (summary, authors, home_page,
    license, requires_clf), text, methods (name, summary, paper, links, settings, defaults), datasets, reachable,
    evaluators, callbacks, and checks (the last result of clf plugins check, with outdated, a list of sentences; or
    null).
    """
    from clf.describe import describe, describe_unusable

    try:
        found = describe(name)
    except PluginError as error:
        unusable = describe_unusable(name, error)
        if unusable is not None:
            _tell(unusable, json)
        raise
    _tell(found, json)


app.command("check")(plugins_check.check)
app.command("new")(plugins_new.new)
app.command("contract")(plugins_contract.contract)


def _tell(plugin: Description, json: bool) -> None:
    if json:
        print_json(plugin)
        return
    print_text(f"{plugin.name} ({plugin.distribution} {plugin.version}".rstrip() + f", {plugin.value})")
    facts = {
        "state": plugin.state if plugin.reason else "",
        "summary": plugin.about.summary if not plugin.builtin else "",
        "authors": plugin.about.authors,
        "home page": plugin.about.home_page,
        "licence": plugin.about.license,
        "made for": plugin.about.requires_clf,
    }
    for key, value in facts.items():
        if value:
            print_text(f"{key + ':':<11}{value}")
    if plugin.text:
        print_text(f"\n{plugin.text}")
    for method in plugin.methods:
        _print_method(method)
    _print_uses(plugin)
    _print_checks(plugin)


def _print_method(method: MethodDescription) -> None:
    if method.paper:
        print_text("\n" + "\n".join([f"Paper: {method.paper}", *method.links]))
    if method.settings:
        print_text("")
        print_table(
            ["setting", "type", "default", "meaning"],
            [[each.key, each.type, each.default, each.description] for each in method.settings],
            wraps="meaning",
        )
    if method.defaults:
        print_text("\nRecommended settings of the engine, unless a file or the command line says otherwise:")
        print_table(["key", "value"], list(method.defaults.items()))


def _print_uses(plugin: Description) -> None:
    trained = plugin.methods if len(plugin.methods) == 1 else [m for m in plugin.methods if m.name == plugin.name]
    uses = [f"Method {method.name}: clf train --plugin {plugin.name}" for method in trained]
    uses += [
        f"Data source {source}: data.name={value}"
        for source, value in zip(plugin.datasets, plugin.reachable, strict=True)
    ]
    uses += [f"Evaluator {name}: clf evaluate RUN --evaluator {plugin.name}" for name in plugin.evaluators]
    uses += [f"Callback {name}: monitor.callbacks={plugin.name}" for name in plugin.callbacks]
    if uses:
        print_text("\n" + "\n".join(uses))


def _print_checks(plugin: Description) -> None:
    """The last result, in a sentence, and how to get a new one."""
    how = f"clf plugins check {plugin.name}"
    if plugin.checks is None:
        print_text(f"\nChecks: never run here; {how}")
        return
    result = plugin.checks
    print_text(f"\nChecks: {_verdict(result)} ({result['created'][:16].replace('T', ' ')} UTC)")
    for outcome in result["outcomes"]:
        if outcome["state"] == "failed":
            print_text(f"  failed: {outcome['check']}: {outcome['text']}")
    if result["outdated"]:
        print_text(f"  That may be true no more: {'; '.join(result['outdated'])}. Check again: {how}")


def _verdict(result: dict[str, Any]) -> str:
    states = [outcome["state"] for outcome in result["outcomes"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{'conforms' if result['conforms'] else 'does not conform'}: {counts}"
