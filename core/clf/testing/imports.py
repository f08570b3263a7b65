"""Which names of clf a source file uses, read from its syntax tree: nothing is imported or run."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LOADERS = ("import_module", "__import__")
OURS = "clf"


@dataclass(frozen=True)
class Use:
    """A dotted name of clf or of one of its plugins' packages, and where it is written."""

    name: str
    file: Path
    line: int


def uses(file: Path, packages: frozenset[str] = frozenset({OURS, "clf_serve"})) -> list[Use]:
    """Each name of these packages that a file imports or reaches by attributes, in the order of the file.

    ``import clf`` and then ``clf.nn.mlp`` is a use of ``clf.nn.mlp``. A name that is bound anew in a scope is not
    followed there. ``importlib.import_module("clf.nn")`` is a use too; a name that is put together at run time is not
    seen.

    Raises:
        SyntaxError, UnicodeDecodeError: the file is no Python.
    """
    tree = ast.parse(file.read_bytes(), str(file))
    found = {(name, line) for name, line in _Scope(packages, {}).read(tree.body, tree.body)}
    longest = [
        (line, name)
        for name, line in found
        if not any(other.startswith(f"{name}.") and where == line for other, where in found)
    ]
    return [Use(name, file, line) for line, name in sorted(longest)]


class _Scope:
    """One module, class or function: which of its names stand for which dotted names."""

    def __init__(self, packages: frozenset[str], outer: Mapping[str, str]) -> None:
        self._packages = packages
        self._outer = outer
        self._names: dict[str, str] = {}

    def read(
        self, body: list[ast.stmt], shown: list[ast.stmt] | list[ast.expr], rebound: set[str] | None = None
    ) -> Iterator[tuple[str, int]]:
        """The uses in the nodes ``shown``, where the statements of ``body`` bind the scope's names."""
        bound = _bound(body) | (rebound or set())
        known = {name: value for name, value in self._outer.items() if name not in bound}
        for node in _own_nodes(body):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                known |= {alias: name for alias, name in self._aliases(node) if alias not in bound}
        self._names = known
        for each in shown:
            yield from self._visit(each)

    def _visit(self, node: ast.AST) -> Iterator[tuple[str, int]]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in _imported(node):
                if self._is_ours(name):
                    yield name, node.lineno
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from self._function(node)
            return
        if isinstance(node, ast.Attribute) and (name := self._dotted(node)):
            yield name, node.lineno
            return
        if isinstance(node, ast.Call) and (loaded := _loaded(node)) and self._is_ours(loaded):
            yield loaded, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from self._visit(child)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Iterator[tuple[str, int]]:
        given = node.args
        for outside in (*getattr(node, "decorator_list", []), *given.defaults, *filter(None, given.kw_defaults)):
            yield from self._visit(outside)
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        for annotation in [a.annotation for a in arguments] + [getattr(node, "returns", None)]:
            if annotation is not None:
                yield from self._visit(annotation)
        names = {argument.arg for argument in arguments}
        inner = _Scope(self._packages, self._names)
        if isinstance(node, ast.Lambda):
            yield from inner.read([], [node.body], names)
        else:
            yield from inner.read(node.body, node.body, names)

    def _aliases(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
        """What an import binds, and to which dotted name."""
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                name = f"{node.module}.{alias.name}" if node.module and not node.level else ""
                bound = alias.asname or alias.name
            else:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                bound = alias.asname or name
            if self._is_ours(name):
                yield bound, name

    def _dotted(self, node: ast.expr) -> str:
        """The dotted name that a chain of attributes stands for; empty where it begins with anything else."""
        words: list[str] = []
        while isinstance(node, ast.Attribute):
            words.insert(0, node.attr)
            node = node.value
        start = self._names.get(node.id, "") if isinstance(node, ast.Name) else ""
        return ".".join([start, *words]) if start else ""

    def _is_ours(self, name: str) -> bool:
        return name.partition(".")[0] in self._packages


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The dotted names that an import asks for; a relative one asks for none of others."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.level or node.module is None:
        return []
    return [node.module if alias.name == "*" else f"{node.module}.{alias.name}" for alias in node.names]


def _loaded(call: ast.Call) -> str:
    """The literal of ``import_module("...")`` or ``__import__("...")``."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    first = call.args[0] if call.args else None
    literal = first.value if isinstance(first, ast.Constant) else None
    return literal if name in LOADERS and isinstance(literal, str) else ""


def _own_nodes(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes of a scope, without those of functions and classes in it."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def _bound(body: list[ast.stmt]) -> set[str]:
    """Names that a scope binds otherwise than by an import."""
    found: set[str] = set()
    for node in _own_nodes(body):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)):
            found.add(node.name or "")
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            found.update(node.names)
    return found
