"""A built-in plugin's package under another name.

Names are replaced where Python's own tokenizer finds them: the package and the classes named after the method as
identifiers, the method's name in strings. Prose stays, so that a docstring still names the paper's method.
"""

from __future__ import annotations

import ast
import io
import re
import token
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clf.scaffold.naming import class_name

_PROSE = (token.STRING, token.COMMENT, getattr(token, "FSTRING_MIDDLE", -1))
_ROLE = re.compile(r":\w+:`[^`]+`")


@dataclass(frozen=True)
class Names:
    """What a plugin calls its things."""

    plugin: str
    module: str
    method: str
    """What the names of its classes begin with: the method's own class has no more, its configuration ``Config``."""

    @property
    def config(self) -> str:
        return f"{self.method}Config"


def names_of(plugin: str, module: str, sources: Mapping[str, str]) -> Names:
    """Those of an existing package, from its one class ``SomethingConfig``."""
    (config,) = [name for name in _classes(sources) if name.endswith("Config")]
    return Names(plugin, module, config.removesuffix("Config"))


def new_names(name: str, sources: Mapping[str, str], old: Names | None = None) -> Names:
    """Names for a plugin, none of which means something else in the sources that will have them."""
    found = {each.string for text in sources.values() for each in _tokens(text) if each.type == token.NAME}
    own = {each for each in found if old is not None and each.startswith(old.method)}
    return Names(name, f"clf_{name}", class_name(name, found - own))


def rename(sources: Mapping[str, str], old: Names, new: Names) -> dict[str, str]:
    """The sources with one plugin's names in place of another's; imports are in alphabetical order again."""
    classes = {each: new.method + each.removeprefix(old.method) for each in _classes(sources) if _is_of(each, old)}
    identifiers = {old.module: new.module, **classes}
    return {path: _sort_imports(_renamed(text, old, new, identifiers)) for path, text in sources.items()}


def _is_of(name: str, names: Names) -> bool:
    return name.startswith(names.method)


def _classes(sources: Mapping[str, str]) -> list[str]:
    """Names of all classes at the top of the files."""
    return [node.name for text in sources.values() for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]


def _tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(text).readline)


def _renamed(text: str, old: Names, new: Names, identifiers: Mapping[str, str]) -> str:
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    docstrings = _docstrings(text)
    pieces, done = [], 0
    for each in _tokens(text):
        start, end = (starts[row - 1] + column for row, column in (each.start, each.end))
        if each.type == token.NAME:
            piece = identifiers.get(each.string, each.string)
        elif each.type in _PROSE:
            is_prose = each.type == token.COMMENT or each.start in docstrings
            piece = _in_text(text[start:end], old, new, identifiers, is_prose)
        else:
            continue
        pieces += [text[done:start], piece]
        done = end
    return "".join([*pieces, text[done:]])


def _docstrings(text: str) -> set[tuple[int, int]]:
    """Line and column of each string that stands alone as a statement."""
    return {
        (node.lineno, node.col_offset)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def _in_text(text: str, old: Names, new: Names, identifiers: Mapping[str, str], is_prose: bool) -> str:
    """A docstring, a comment or a string. In the first two a word such as SimCLR is the paper's, except in a role."""
    text = _words(text, {old.module: new.module})
    if is_prose:
        return _ROLE.sub(lambda role: _words(role[0], identifiers), text)
    return _words(text, {**identifiers, old.plugin: new.plugin})


def _words(text: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), text)


def _sort_imports(text: str) -> str:
    """The imports of clf's packages at the top of a file in alphabetical order, modules before names of modules."""
    block = [node for node in ast.parse(text).body if _imports_clf(node)]
    if not block:
        return text
    lines = text.splitlines(keepends=True)
    first, last = block[0].lineno - 1, block[-1].end_lineno
    segments = ["".join(lines[node.lineno - 1 : node.end_lineno]) for node in block]
    if segments and "".join(segments) != "".join(lines[first:last]):
        return text  # something stands between them
    ordered = [segment for _, segment in sorted(zip(map(_place, block), segments, strict=True))]
    return "".join([*lines[:first], *ordered, *lines[last:]])


def _imports_clf(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom) and _module(node).partition(".")[0].partition("_")[0] == "clf"


def _module(node: ast.Import | ast.ImportFrom) -> str:
    return node.names[0].name if isinstance(node, ast.Import) else node.module or ""


def _place(node: ast.stmt) -> tuple[bool, str]:
    assert isinstance(node, ast.Import | ast.ImportFrom)
    return isinstance(node, ast.ImportFrom), _module(node)
