"""``clf plugins new``: a complete package for a method, from a template or from a built-in plugin's own files.

It is composed in memory, written into a folder beside the place where it will lie, and renamed when it is whole.
Nothing of a plugin is imported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.machinery import PathFinder
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal, TypeAlias

from packaging.version import Version

from clf import __version__
from clf.catalogue import list_plugins
from clf.entrypoints import DISTRIBUTION
from clf.errors import ConfigError, PluginError, did_you_mean
from clf.scaffold.derive import Names, names_of, new_names, rename
from clf.scaffold.naming import check_name

Licence: TypeAlias = Literal["mit", "apache-2.0", "bsd-3-clause", "none"]
SPDX = {"mit": "MIT", "apache-2.0": "Apache-2.0", "bsd-3-clause": "BSD-3-Clause"}
NOTICE = "LICENSE-clf"
"""The file with clf's own licence, in a package that starts from a built-in plugin."""
_CLF_HOLDER, _CLF_YEAR = "The clf developers", "2026"
_DOCSTRING = re.compile(r'\A"""(.*?)"""', re.DOTALL)


@dataclass(frozen=True)
class Written:
    """A package on the disk."""

    folder: Path
    """``clf-NAME``."""
    files: tuple[str, ...]
    """What lies in it, with forward slashes."""


def create(
    name: str,
    output: Path,
    *,
    base: str | None = None,
    licence: Licence = "mit",
    author: str = "",
) -> Written:
    """Writes ``clf-NAME`` into a folder, which is made if need be; all of it or nothing.

    Args:
        base: a built-in plugin to start from; default the template.
        author: as in ``Ada Lovelace <ada@example.org>``; the address may be left out.

    Raises:
        PluginError: the name cannot be used, the base is unknown, or the folder exists or cannot be written.
        ConfigError: the author cannot be written into the metadata.
    """
    check_name(name)
    content = compose(name, base=base, licence=licence, author=author)
    folder = output / f"clf-{name}"
    _write(folder, content)
    return Written(folder, tuple(sorted(content)))


def compose(
    name: str,
    *,
    base: str | None = None,
    licence: Licence = "mit",
    author: str = "",
) -> dict[str, str]:
    """The files of the package, by their paths in it."""
    names, sources = _derived(name, base) if base else _from_template(name)
    package = f"src/{names.module}"
    values = {
        "name": name,
        "distribution": f"clf-{name}",
        "module": names.module,
        "method": names.method,
        "config": names.config,
        "requirement": f"{DISTRIBUTION}[train]{bounds(__version__)}",
        "metadata": _metadata(licence, base, author),
        "code": f"`{package}/`" if len(sources) > 1 else f"`{package}/__init__.py`",
        "origin": f"\n{_origin(base)}; `{NOTICE}` has the licence of that code.\n" if base else "",
        "licence": f"\n## Licence\n\n{_licence_words(licence, base)}\n",
    }
    content = {
        "pyproject.toml": _fill("pyproject.toml", values),
        "README.md": _fill("README.md", values),
        ".gitignore": _fill("gitignore", values),
        ".github/workflows/ci.yml": _fill("ci.yml", values),
        f"tests/test_{name}.py": _fill(f"tests/{base or 'default'}.py", values),
        f"{package}/py.typed": "",
        **{f"{package}/{path}": text for path, text in sources.items()},
    }
    holder = _person(author)[0] or f"The authors of clf-{name}"
    if licence != "none":
        year = str(datetime.now(tz=UTC).year)
        content["LICENSE"] = _fill(f"licenses/{licence}", {"year": year, "holder": holder})
    if base:
        content[NOTICE] = _fill("licenses/mit", {"year": _CLF_YEAR, "holder": _CLF_HOLDER})
    return content


def bounds(version: str) -> str:
    """The versions that a plugin made with this one asks for: from it on, below the next that may break it.

    >>> bounds("0.1.3"), bounds("2.4.0"), bounds("0.3.0.dev1+local")
    ('>=0.1.3,<0.2', '>=2.4.0,<3', '>=0.3.0.dev1,<0.4')
    """
    found = Version(version)
    end = f"0.{found.minor + 1}" if found.major == 0 else f"{found.major + 1}"
    return f">={found.public},<{end}"


def built_in_names() -> list[str]:
    """What a package can start from."""
    return [row.name for row in list_plugins() if row.builtin]


def _from_template(name: str) -> tuple[Names, dict[str, str]]:
    plain = {"name": "a", "module": "clf_a", "method": "A", "config": "AConfig"}
    names = new_names(name, {path: _fill(path, plain) for path in ("method.py", "tests/default.py")})
    values = {"name": name, "module": names.module, "method": names.method, "config": names.config}
    return names, {"__init__.py": _fill("method.py", values)}


def _derived(name: str, base: str) -> tuple[Names, dict[str, str]]:
    """A built-in's own files, renamed, under a new header."""
    found = {row.name: row for row in list_plugins() if row.builtin}
    if base not in found:
        choices = ", ".join(found)
        raise PluginError(f"there is no built-in plugin {base!r} to start from.{did_you_mean(base, found)} {choices}")
    module = found[base].value
    spec = PathFinder.find_spec(module)
    if spec is None or spec.origin is None:
        raise PluginError(f"the files of the built-in plugin {base!r} cannot be found: reinstall {DISTRIBUTION}")
    folder = Path(spec.origin).parent
    paths = sorted(folder.rglob("*.py"))
    sources = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    old = names_of(base, module, sources)
    plain = {"name": "a", "module": "clf_a", "method": old.method, "config": old.config}
    names = new_names(name, {**sources, "tests": _fill(f"tests/{base}.py", plain)}, old)
    renamed = rename(sources, old, names)
    renamed["__init__.py"] = _DOCSTRING.sub(lambda told: _header(name, base, told[1]), renamed["__init__.py"], count=1)
    return names, renamed


def _header(name: str, base: str, told: str) -> str:
    places = f"{name}: say in one sentence what is new.\n\nTitle. Authors. Venue and year, arXiv number."
    source = f"{_origin(base)}, whose own file says, and whose README is plugins/{base}/README.md there:"
    return f'"""{places}\n\n{source}\n\n{told.strip()}\n"""'


def _origin(base: str) -> str:
    return f"Derived from {base} of {DISTRIBUTION} {__version__} (MIT License)"


def _metadata(licence: Licence, base: str | None, author: str) -> str:
    """Lines of ``[project]``: licence and authors."""
    lines = []
    if licence != "none":
        terms = [SPDX[licence], *(["MIT"] if base and licence != "mit" else [])]
        lines.append(f'license = "{" AND ".join(terms)}"')
    kept = [*(["LICENSE"] if licence != "none" else []), *([NOTICE] if base else [])]
    lines.append(f"license-files = {json.dumps(kept)}")
    person, address = _person(author)
    told = {"name": person, "email": address}
    if pairs := [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in told.items() if value]:
        lines.append(f"authors = [{{ {', '.join(pairs)} }}]")
    return "\n".join(lines)


def _licence_words(licence: Licence, base: str | None) -> str:
    own = f"{SPDX[licence]}, see `LICENSE`." if licence != "none" else "Not chosen yet: until then nobody may copy it."
    return f"{own} Parts are of clf, see `{NOTICE}`." if base else own


def _person(author: str) -> tuple[str, str]:
    """Name and address of ``Ada Lovelace <ada@example.org>``."""
    if not author.isprintable():
        raise ConfigError(f"--author {author!r} has characters that cannot be printed: give a name in one line")
    found = re.fullmatch(r"\s*(.*?)\s*(?:<([^<>@\s]+@[^<>@\s]+)>)?\s*", author)
    assert found is not None
    return found[1], found[2] or ""


def _fill(path: str, values: dict[str, str]) -> str:
    text = (files("clf") / "templates" / "plugin" / f"{path}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(values).rstrip("\n") + "\n"


def _write(folder: Path, content: dict[str, str]) -> None:
    """All files, or none: they are written beside the folder, which then gets its name."""
    if os.path.lexists(folder):
        raise PluginError(f"{folder} exists already: move it away, choose another name or another --output")
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        whole = temporary / folder.name
        for path, text in content.items():
            file = whole / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
        whole.rename(folder)
    except OSError as error:
        raise PluginError(f"{folder} cannot be written: {error.strerror or error}. Give another --output") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
