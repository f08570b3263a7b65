"""The shape of the house: who may import whom, and what lies where."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import clf
from clf import public

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "core" / "clf").rglob("*.py"))
SERVE = sorted((ROOT / "serve" / "clf_serve").rglob("*.py"))
PLUGINS = sorted(path for path in (ROOT / "plugins").glob("*/clf_*") if path.is_dir())
PLUGIN_FILES = [file for folder in PLUGINS for file in sorted(folder.rglob("*.py"))]

TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "core", "plugins", "serve", "tests", "configs"}
TRAINING_ONLY = {"torch", "torchvision", "timm", "onnx", "onnxscript", "sklearn", "matplotlib"}
SERVING_ONLY = {"faiss", "fastapi", "gradio", "uvicorn", "starlette"}
TORCH_FREE = {
    "clf",
    "clf.catalogue",
    "clf.checks",
    "clf.config",
    "clf.decoding",
    "clf.entrypoints",
    "clf.errors",
    "clf.extras",
    "clf.images",
    "clf.manifest",
}
PLUGIN_MODULES = set(public.MODULES)
BUILDS_ON = {  # methods of this distribution that are defined on top of others
    "clf_dcl": {"clf_simclr", "clf_moco", "clf_nnclr"},
    "clf_batch_curation": {"clf_simclr"},
    "clf_hard_sample_gen": {"clf_simclr", "clf_moco"},
}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports anywhere; ``from clf import x`` is ``clf.x``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write it out"
            assert node.module is not None
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_there_is_something_to_check() -> None:
    assert len(CORE) > 10
    assert len(SERVE) > 1
    assert [folder.name for folder in PLUGINS][-1:] != []


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_the_engine_knows_no_server_and_no_paper(path: Path) -> None:
    strangers = {name for name in roots(path) if name.startswith("clf_")} | roots(path) & SERVING_ONLY
    assert not strangers
    assert "onnxruntime" not in roots(path) or path.name in ("onnx_session.py", "quantize.py")
    assert "pluggy" not in roots(path) or path.name in ("plugins.py", "hookspecs.py")


@pytest.mark.parametrize("path", PLUGIN_FILES, ids=relative)
def test_a_plugin_uses_the_public_names_of_the_engine_only(path: Path) -> None:
    own = path.relative_to(ROOT / "plugins").parts[1]
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "clf" and rest:
            first = rest.partition(".")[0]
            assert first in PLUGIN_MODULES | set(clf.__all__), f"{name} is private to the engine"
        allowed = {own} | BUILDS_ON.get(own, set())
        assert not top.startswith("clf_") or top in allowed, f"{name} belongs to another package"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "clf":
            assert node.attr in PLUGIN_MODULES | set(clf.__all__), f"clf.{node.attr} is private to the engine"


@pytest.mark.parametrize("path", SERVE, ids=relative)
def test_the_server_needs_no_training_code(path: Path) -> None:
    assert not roots(path) & TRAINING_ONLY
    for name in imports(path):
        if name.partition(".")[0] == "clf":
            module = ".".join(name.split(".")[:2])
            public = name.removeprefix("clf.") in ("__version__", "ClfError")
            assert module in TORCH_FREE or public, f"{name} may need torch"
        assert not name.startswith("clf_") or name.startswith("clf_serve"), f"{name}: the server knows no plugin"


def test_the_torch_free_modules_are_torch_free() -> None:
    names = sorted(TORCH_FREE | {"clf.cli", "clf.plugins", "clf.describe", "clf.settings", "clf.runs", "clf.hookspecs"})
    program = f"import sys, {', '.join(names)}\nprint(sorted(set(sys.modules) & {TRAINING_ONLY | SERVING_ONLY!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_of_the_engine_exists() -> None:
    assert set(clf.__all__) == {*clf._EXPORTS, "__version__"}
    for name in clf.__all__:
        assert getattr(clf, name) is not None
    assert dir(clf) == sorted(clf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clf.nothing  # noqa: B018


def test_source_roots_are_no_packages() -> None:
    for folder in (ROOT / "core", ROOT / "serve", ROOT / "plugins", *(path.parent for path in PLUGINS)):
        assert not (folder / "__init__.py").exists()


def test_packaging_names_every_package() -> None:
    project = pyproject()
    found = {relative(folder) for folder in PLUGINS}
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == sorted({"core/clf", "serve/clf_serve"} | found)
    names = sorted(path.rpartition("/")[2] for path in packages)
    assert sorted(project["tool"]["mypy"]["packages"]) == names
    assert sorted(project["tool"]["mypy"]["mypy_path"]) == sorted({path.rpartition("/")[0] for path in packages})
    assert sorted(project["tool"]["coverage"]["run"]["source_pkgs"]) == names


def test_every_plugin_has_an_entry_point_of_its_name_and_a_readme() -> None:
    entries = pyproject()["project"]["entry-points"]["clf.plugins"]
    assert entries == {folder.parent.name: folder.name for folder in PLUGINS}
    for folder in PLUGINS:
        assert folder.name == f"clf_{folder.parent.name}"
        assert (folder.parent / "README.md").is_file()


def test_the_version_is_told_once_more_in_the_package() -> None:
    assert pyproject()["project"]["version"] == clf.__version__


def test_typed_packages_say_so() -> None:
    for folder in (ROOT / "core" / "clf", ROOT / "serve" / "clf_serve", *PLUGINS):
        assert (folder / "py.typed").is_file(), f"{relative(folder)} has no py.typed"


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_top_level_holds_only_what_it_should() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.partition("/")[0] for line in listing.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL
