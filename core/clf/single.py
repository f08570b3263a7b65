"""A plugin in a single file: ``--plugin ./my_method.py``.

The file is read once, and what is imported are the bytes that were read: their SHA-256 is that of the code that runs,
and no cached byte code of an earlier version gets in between.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from clf.errors import PluginError

PREFIX = "clf_plugin_file_"


@dataclass(frozen=True)
class Source:
    """A plugin's file as it was read."""

    path: Path
    content: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def module(self) -> str:
        """A name in ``sys.modules`` that only this file with this content has."""
        place = os.fsencode(self.path.absolute())
        digest = hashlib.sha256(place + b"\0" + self.content).hexdigest()[:12]
        return PREFIX + re.sub(r"\W", "_", self.path.stem) + "_" + digest


def is_path(name_or_path: str) -> bool:
    """Whether ``--plugin`` was given a Python file rather than a name."""
    return name_or_path.endswith(".py")


def read(name: str) -> Source:
    """The file of a plugin.

    Raises:
        PluginError: it is missing, a folder, empty, no text or not readable.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise PluginError(
            f"plugin {name} is a folder: give a single Python file. A package is installed with pip install -e {path}, "
            "and then given by its plugin's name"
        )
    if not path.is_file():
        raise PluginError(
            f"plugin file {name} does not exist. A plugin that is installed is given by its name alone; a run that was "
            "trained with a file keeps it in its folder, under plugin/"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PluginError(f"plugin file {name} cannot be read ({error.strerror}): check its permissions") from error
    if not content.strip():
        raise PluginError(f"plugin file {name} is empty: write a subclass of clf.Method into it")
    _check_text(name, content)
    return Source(path, content)


def _check_text(name: str, content: bytes) -> None:
    """Python takes UTF-8, or what the first lines declare."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise PluginError(
            f"plugin file {name} is not text in {error.encoding} (line {line}): save it as UTF-8, or declare its "
            "encoding in the first line, for example # -*- coding: latin-1 -*-"
        ) from error
    except SyntaxError as error:  # an encoding that is not known, or a first line that is no UTF-8
        raise PluginError(f"plugin file {name} is not text ({error.msg}): save it as UTF-8") from error


def load(source: Source) -> ModuleType:
    """Imports the file; the same file with the same content is one module in a process. Raises what the file raises."""
    name = source.module
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_loader(name, _Loader(name, source))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # pydantic and dataclasses look annotations up there
    try:
        with _standing_alone(source):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _Loader(SourceFileLoader):
    """Compiles the bytes that were read, and neither reads nor writes byte code."""

    def __init__(self, name: str, source: Source) -> None:
        super().__init__(name, str(source.path))
        self._source = source

    def get_data(self, path: str | bytes) -> bytes:
        return self._source.content

    def path_stats(self, path: str | bytes) -> dict[str, float]:
        raise OSError("byte code of a plugin's file is not kept")


@contextmanager
def _standing_alone(source: Source) -> Iterator[None]:
    """Explains an import from beside the file, which a run does not keep.

    Raises:
        PluginError: the module that is missing lies beside the file.
    """
    before = set(sys.modules)
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name and name != source.path.stem and _beside(source.path, name):
            raise PluginError(f"plugin {source.path} imports {name!r} from beside it. {_ALONE}") from error
        raise
    own = source.path.absolute().parent
    found = {name.partition(".")[0] for name in set(sys.modules) - before if _lies_in(name, own)}
    found -= {name for name in found if name.startswith(PREFIX)}
    if found and os.environ.get("RANK", "0") == "0":
        names = " and ".join(repr(name) for name in sorted(found))
        with suppress(OSError, AttributeError):
            said = f"plugin {source.path} imports {names} from beside it, which its runs do not keep. {_ALONE}"
            print(said, file=sys.stderr)


_ALONE = (
    "A single file stands alone, because a run keeps it and nothing else: put both into one file, or make a package "
    "of them with clf plugins new NAME"
)


def _beside(path: Path, name: str) -> bool:
    return path.with_name(f"{name}.py").is_file() or path.with_name(name).is_dir()


def _lies_in(module: str, folder: Path) -> bool:
    """Whether a top-level module was found in the folder itself."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not isinstance(file, str) or "." in module:
        return False
    place = Path(file).absolute()
    return (place.parent.parent if place.name == "__init__.py" else place.parent) == folder
