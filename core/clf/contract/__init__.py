"""The contract with plugins as one Markdown page, generated from the source: ``clf plugins contract``.

Signatures, defaults and docstrings are copied from the source text and nothing is evaluated, so the page is the same
under every version of Python, and needs no torch.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from textwrap import indent

import clf
from clf import catalogue, config, public
from clf.contract.markdown import code, first_line, prose, table
from clf.contract.source import Definition, read
from clf.testing.suite import CHECKS

__all__ = ["contract_page"]

PREFACE = """\
# The contract

What `clf-vision` {version} promises to plugins: everything that a plugin may import, implement or return. This page is
the output of `clf plugins contract`; [the guide](README.md) leads through it with worked examples.

A name that is not public, here or as an attribute of what is, may change in any version. Within 0.x a minor version may
break a public name only after one minor version in which its use gave a `DeprecationWarning` that names the
replacement."""

PARTS: Sequence[tuple[str, str, Sequence[str]]] = (
    ("A method", "clf.method", ("Method", "MethodConfig", "DataSpec", "Batch", "Augmenter", "BatchStream", "Context")),
    ("", "clf.method", ("StepOutput", "Group")),
    ("Views", "clf.augment.recipe", ("Recipe", "simclr_recipe")),
    ("The network", "clf.backbones", ("Backbone",)),
    ("Losses", "clf.losses", ("nt_xent", "info_nce", "info_nce_logits", "dcl", "attraction_weights", "decouple")),
    ("", "clf.losses", ("decouple_views", "Decoupled", "unit")),
    ("Modules", "clf.nn", ("mlp", "Queue", "momentum_update", "split_batch_norm", "SplitBatchNorm")),
    ("What another run has learnt", "clf.saved", ("saved_method", "SavedMethod")),
    ("Hooks", "clf.hookspecs", ("clf_methods", "clf_datasets", "clf_evaluators", "clf_callbacks")),
    ("Callbacks", "clf.callbacks", ("Callback", "Training", "RunFolder")),
    ("Evaluators", "clf.evaluators", ("Evaluator", "Subject")),
    ("Data sources", "clf.data", ("Source", "DataSource", "Split", "Skipped", "ImageTable", "from_arrays")),
    ("", "clf.data", ("from_table", "read_options", "required_root")),
    ("", "clf.config", ("DataSection",)),
    ("Tests of a plugin", "clf.testing", ("conformance", "run_checks", "Conformance", "Outcome", "Check")),
    ("Vector stores", "clf_serve.stores", ("VectorStore", "Row", "State", "conformance")),
    ("Engines of bulk embedding", "clf_serve.bulk", ("BulkEngine", "Options", "Work", "Worker", "ShardReport")),
    ("", "clf_serve.bulk", ("Shard", "conformance")),
)
"""Title, module and names, in the order of the page; a part without a title goes on with the one before."""

INTRODUCED = ("A method", "Hooks", "Vector stores", "Engines of bulk embedding")
"""Parts that begin with the docstring of their module."""

GROUPS: Sequence[tuple[catalogue.Kind, str, str, str]] = (
    ("plugin", "the plugin's name", "a module with hooks", "what its hooks return"),
    ("command", "the command's name", "a function with typer annotations, or a `typer.Typer`", "`clf NAME`"),
    ("store", "the scheme", "a vector store", "`SCHEME://REST` wherever a gallery is named"),
    ("engine", "the engine's name", "an engine of bulk embedding", "`clf embed --engine NAME`"),
)

RECOMMENDED = ("backbone", "train", "optimizer", "schedule", "augment", "monitor")
"""Sections of the configuration of which a method may recommend values."""


def contract_page() -> str:
    """The whole page, with a line feed at its end."""
    sections = [PREFACE.format(version=clf.__version__), *_names(), *_parts(), _groups(), _keys(), _checks()]
    return "\n\n".join(sections) + "\n"


def _names() -> Iterator[str]:
    """Every public name with the first sentence about it."""
    yield "## Public names"
    yield table(["name", "what it is"], [(f"`clf.{name}`", _summary("clf", name)) for name in sorted(clf.__all__)])
    for module in [*(f"clf.{each}" for each in public.MODULES), *public.ELSEWHERE]:
        yield f"### `{module}`\n\n{first_line(read(module).docstring)}"
        yield table(["name", "what it is"], [(f"`{name}`", _summary(module, name)) for name in _exported(module)])


def _exported(module: str) -> list[str]:
    """The names in ``__all__``, as it is written."""
    statement, _ = read(module).assignments()["__all__"]
    names: Sequence[str] = ast.literal_eval(statement.partition("=")[2].strip())
    return sorted(names)


def _summary(module: str, name: str) -> str:
    home = read(module).home(name)
    if name in home.definitions():
        return first_line(home.definitions()[name].docstring)
    statement, said = home.assignments().get(name, ("", ""))
    return first_line(said) or (f"`{statement}`" if statement else "")


def _parts() -> Iterator[str]:
    for title, module, names in PARTS:
        if title:
            yield f"## {title}"
        if title in INTRODUCED:
            yield prose(read(module).docstring)
        for name in names:
            yield from _definition(read(module).home(name).definitions()[name])


def _definition(what: Definition) -> Iterator[str]:
    """Heading, signature and docstring, then the members of a class."""
    yield f"### `{what.name}`"
    yield code(what.head())
    if what.docstring:
        yield prose(what.docstring)
    listed = [f"- `{' '.join(statement.split())}`{_after(said)}" for statement, said in what.attributes()]
    if own := what.own():
        listed.append(f"- of an instance: {', '.join(f'`{name}`' for name in own)}")
    if listed:
        yield "\n".join(listed)
    for member in what.members():
        head = member.head(default=what.name == "Method")
        yield "\n\n".join(filter(None, [f"#### `{member.name}`", code(head), prose(member.docstring)]))


def _after(said: str) -> str:
    return f": {indent(prose(said), '  ').lstrip()}" if said else ""


def _groups() -> str:
    rows = [(f"`{catalogue.GROUPS[kind]}`", name, value, gives) for kind, name, value, gives in GROUPS]
    return "## Entry-point groups\n\n" + table(["group", "name", "value", "what it gives"], rows)


def _keys() -> str:
    rows = [
        (f"`{key}`", config.describe_type(info), f"`{_plain(info.default)}`", info.description or "")
        for key, info in config.known_keys().items()
        if key.partition(".")[0] in RECOMMENDED
    ]
    return (
        "## Keys of the engine\n\n"
        "What a method may recommend in `defaults` or by `recommended`; a file and the command line win. What to train "
        "on, with which seed and where the run lies (`data`, `seed`, `run`) is for the user to say.\n\n"
        + table(["key", "type", "default", "meaning"], rows)
    )


def _plain(value: object) -> str:
    """A default as it would be typed."""
    return str(list(value)) if isinstance(value, tuple) else value if isinstance(value, str) else json.dumps(value)


def _checks() -> str:
    rows = [(check.name, check.looks_at, check.why) for check in CHECKS]
    return (
        "## Conformance checks\n\n"
        "In the order of `clf plugins check NAME`, which says of each failure how to mend it.\n\n"
        + table(["check", "what is looked at", "why it matters"], rows)
    )
