"""Where a plugin's code lies, found without importing it."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from clf import catalogue, plugins
from clf.catalogue import PluginInfo
from clf.errors import PluginError


def info(name_or_path: str) -> PluginInfo:
    """What is known of a plugin without importing it.

    Raises:
        PluginError: it is unknown, cannot be used, or is a file that does not exist.
    """
    if not plugins.is_path(name_or_path):
        return catalogue.find_plugin(name_or_path)
    if not Path(name_or_path).is_file():
        raise PluginError(f"plugin file {name_or_path} does not exist")
    return PluginInfo(name_or_path, name_or_path, "a single file", "")


def source_files(name_or_path: str) -> tuple[Path, ...]:
    """The Python files of a plugin: the single file, or all of the package or module that its entry point names.

    Empty where the module cannot be found. Raises as :func:`info` does.
    """
    found = info(name_or_path)
    if plugins.is_path(name_or_path):
        return (Path(name_or_path),)
    return module_files(found.value.partition(":")[0].strip())


def module_files(module: str) -> tuple[Path, ...]:
    """The Python files of the outermost regular package, or of the module, that a dotted name leads to."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    if spec.origin is not None:
        return _files(Path(spec.origin))
    for folder in map(Path, spec.submodule_search_locations or ()):  # a namespace, which several share
        if found := _below(folder, rest):
            return found
    return ()


def digest(files: tuple[Path, ...]) -> str:
    """SHA-256 of the contents; of nothing but their order and their names besides."""
    sha256 = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        sha256.update(f"{file.name} {len(content)}\n".encode() + content)
    return sha256.hexdigest()


def shown(file: Path | str) -> str:
    """A file of a package with the folder it lies in: ``clf_foo/__init__.py``."""
    path = Path(file)
    return f"{path.parent.name}/{path.name}" if (path.parent / "__init__.py").is_file() else path.name


def _files(origin: Path) -> tuple[Path, ...]:
    if origin.name == "__init__.py":
        return tuple(sorted(origin.parent.rglob("*.py")))
    return (origin,) if origin.suffix == ".py" else ()


def _below(folder: Path, names: list[str]) -> tuple[Path, ...]:
    for name in names:
        folder /= name
        if (folder / "__init__.py").is_file():
            return _files(folder / "__init__.py")
        if folder.with_suffix(".py").is_file():
            return (folder.with_suffix(".py"),)
    return ()
