"""Modules of this distribution as they are written: nothing is imported, and annotations are not evaluated."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent, indent
from typing import TypeAlias

Node: TypeAlias = ast.ClassDef | ast.FunctionDef

_SHORT = 3  # lines at most, of a body that is shown whole
_SPECIAL = ("__init__", "__call__", "__len__", "__getitem__")


@dataclass(frozen=True)
class Definition:
    """A class or function and the text that it stands in."""

    node: Node
    text: str

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.node) or ""

    def segment(self, node: ast.AST) -> str:
        """A part of the definition as it is written, without remarks."""
        code = ast.get_source_segment(self.text, node) or ""
        return re.sub(r"  #.*", "", dedent(" " * getattr(node, "col_offset", 0) + code))

    def head(self, *, default: bool = False) -> str:
        """Decorators and signature; with ``default`` also the body of a function, where it is short."""
        node = self.node
        marks = [f"@{self.segment(each)}" for each in node.decorator_list]
        if isinstance(node, ast.ClassDef):
            return "\n".join([*marks, self._class(node)])
        body = self._short_body(node) if default else ""
        return "\n".join([*marks, self._signature(node) + (f"\n{indent(body, '    ')}" if body else " ...")])

    def attributes(self) -> Iterator[tuple[str, str]]:
        """What a class body assigns or annotates: the statement, and the text under it."""
        body = self.node.body if isinstance(self.node, ast.ClassDef) else []
        for node, said in _with_text(body):
            if is_shown(_target(node)):
                yield self.segment(node), said

    def own(self) -> list[str]:
        """Attributes that ``__init__`` gives to an instance and the class body does not name."""
        made = [node for each in self.node.body if getattr(each, "name", "") == "__init__" for node in ast.walk(each)]
        names = [node.attr for node in made if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
        return [name for name in dict.fromkeys(names) if not name.startswith("_")]

    def members(self) -> list[Definition]:
        """Methods and properties of a class that are not private; a function has none."""
        body = self.node.body if isinstance(self.node, ast.ClassDef) else []
        inner = [node for node in body if isinstance(node, ast.FunctionDef)]
        return [Definition(node, self.text) for node in inner if is_shown(node.name)]

    def _class(self, node: ast.ClassDef) -> str:
        named = [f"{each.arg}={self.segment(each.value)}" for each in node.keywords]
        bases = ", ".join([*map(self.segment, node.bases), *named])
        return f"class {node.name}({bases})" if bases else f"class {node.name}"

    def _short_body(self, node: ast.FunctionDef) -> str:
        body = node.body[1:] if self.docstring else node.body
        code = "\n".join(map(self.segment, body))
        whole = body and code != "..." and not isinstance(body[-1], ast.Raise) and len(code.splitlines()) <= _SHORT
        return code if whole else ""

    def _signature(self, node: ast.FunctionDef) -> str:
        """From ``def`` to the colon, which is the last one before the body."""
        lines = self.text.splitlines()[node.lineno - 1 : node.body[0].lineno]
        lines[-1] = lines[-1].encode()[: node.body[0].col_offset].decode()
        code = re.sub(r"  #.*", "", dedent("\n".join(lines)))
        return code[: code.rindex(":") + 1]


@dataclass(frozen=True)
class Module:
    """A module of this distribution, by its text."""

    name: str
    tree: ast.Module
    text: str

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.tree) or ""

    def definitions(self) -> dict[str, Definition]:
        """Classes and functions by name."""
        found = [node for node in self.tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
        return {node.name: Definition(node, self.text) for node in found}

    def assignments(self) -> dict[str, tuple[str, str]]:
        """What is assigned by name: the statement, and the text under it."""
        return {
            _target(node): (ast.get_source_segment(self.text, node) or "", said)
            for node, said in _with_text(self.tree.body)
            if _target(node)
        }

    def home(self, name: str) -> Module:
        """The module that defines a name which this one has, perhaps by an import; itself when none does."""
        if name in self.definitions() or name in self.assignments():
            return self
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module and any(each.name == name for each in node.names):
                return read(node.module).home(name)
        return self


@cache
def read(name: str) -> Module:
    """A module of clf or clf_serve by its dotted name."""
    top, *rest = name.split(".")
    spec = find_spec(top)
    assert spec is not None and spec.origin is not None, f"{top} is part of this distribution"
    place = Path(spec.origin).parent.joinpath(*rest)
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = file.read_text(encoding="utf-8")
    return Module(name, ast.parse(text), text)


def is_shown(name: str) -> bool:
    """Whether a name of a class is its users' business."""
    return bool(name) and (not name.startswith("_") or name in _SPECIAL)


def _target(node: ast.stmt) -> str:
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) else ""


def _with_text(body: Sequence[ast.stmt]) -> Iterator[tuple[ast.stmt, str]]:
    """Each statement with the string that stands under it."""
    for node, after in zip(body, [*body, None][1:], strict=True):
        value = after.value if isinstance(after, ast.Expr) else None
        said = value.value if isinstance(value, ast.Constant) else ""
        yield node, cleandoc(said) if isinstance(said, str) else ""
