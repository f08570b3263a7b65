"""``clf plugins new``: what it writes trains, is typed and tested; names are checked; nothing is half-written."""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from small_settings import SMALL

from clf import __version__, config, plugins, training
from clf.catalogue import list_plugins
from clf.errors import ConfigError, PluginError
from clf.runs import Run
from clf.scaffold import NOTICE, bounds, compose, create
from clf.scaffold.derive import Names, names_of, rename
from clf.scaffold.naming import class_name

BUILT_INS = ("simclr", "moco", "nnclr", "dcl", "ebclr", "batch_curation", "hard_sample_gen")
ROOT = Path(__file__).resolve().parents[2]
Cli = Callable[..., Any]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """``installed("my_idea", base="moco")``: scaffolds, and puts the package on the path with its entry point."""
    made: list[str] = []

    def make(name: str, **how: Any) -> Path:
        folder = create(name, tmp_path, **how).folder
        info = folder / "src" / f"clf_{name}-0.1.0.dist-info"
        info.mkdir()
        needs = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
        needs = "".join(f"Requires-Dist: {each}\n" for each in needs)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: clf-{name}\nVersion: 0.1.0\n{needs}")
        (info / "entry_points.txt").write_text(f"[clf.plugins]\n{name} = clf_{name}\n")
        monkeypatch.syspath_prepend(str(folder / "src"))
        made.append(f"clf_{name}")
        return folder

    yield make
    for module in [each for each in sys.modules if each.partition(".")[0] in made]:
        del sys.modules[module]


def trained(name: str, folder: Path, **changes: Any) -> Run:
    values = {"plugin": name, **SMALL, "train.max_steps": 3, "monitor.knn_every": 0, "monitor.log_every": 1}
    values |= {"run.dir": str(folder), "run.name": name, **changes}
    return training.train(config.build([config.Layer("test", values)])[0], callbacks=None)


def losses_of(run: Run) -> list[float]:
    return [record["loss"] for record in run.metrics() if record["kind"] == "train"]


def test_the_package_is_whole(tmp_path: Path) -> None:
    written = create("my_idea", tmp_path, author="Ada Lovelace <ada@example.org>")
    assert written.folder == tmp_path / "clf-my_idea"
    assert set(written.files) == {
        *("pyproject.toml", "README.md", "LICENSE", ".gitignore", ".github/workflows/ci.yml"),
        *("src/clf_my_idea/__init__.py", "src/clf_my_idea/py.typed", "tests/test_my_idea.py"),
    }
    found = {path.relative_to(written.folder).as_posix() for path in written.folder.rglob("*") if path.is_file()}
    assert found == set(written.files)
    project = tomllib.loads((written.folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "clf-my_idea"
    assert project["entry-points"] == {"clf.plugins": {"my_idea": "clf_my_idea"}}
    assert project["dependencies"] == [f"clf-vision[train]{bounds(__version__)}"]
    assert project["authors"] == [{"name": "Ada Lovelace", "email": "ada@example.org"}]
    assert "Ada Lovelace" in (written.folder / "LICENSE").read_text()
    assert "$" not in "".join(text for path, text in compose("my_idea").items() if not path.endswith("ci.yml"))
    assert "${{ matrix.python }}" in (written.folder / ".github/workflows/ci.yml").read_text()


def test_the_method_is_read_in_one_sitting() -> None:
    """The loss is written out, in ten lines or so, each of which makes a tensor whose shape it tells."""
    text = compose("my_idea")["src/clf_my_idea/__init__.py"]
    (loss,) = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == "contrast"]
    body = text.splitlines()[loss.body[1].lineno - 1 : loss.end_lineno]
    assert len(body) <= 10
    assert all("# (" in line for line in body[1:-1])
    assert "nt_xent" not in text and "info_nce(" not in text
    assert len(text.splitlines()) < 80


def test_it_trains_without_an_edit(installed: Callable[..., Path], tmp_path: Path) -> None:
    installed("my_idea")
    (row,) = [row for row in list_plugins() if row.name == "my_idea"]
    assert (row.state, row.distribution) == ("available", "clf-my_idea")
    assert len(losses_of(trained("my_idea", tmp_path))) == 3
    method = plugins.load_method("my_idea")
    assert method.Config.model_config["frozen"]
    assert all(field.description for field in method.Config.model_fields.values())


@pytest.mark.slow
@pytest.mark.parametrize("base", ["simclr", "dcl", "nnclr"])
def test_a_derived_package_trains_as_the_built_in_bit_for_bit(
    installed: Callable[..., Path], tmp_path: Path, base: str
) -> None:
    installed("my_copy", base=base)
    assert losses_of(trained("my_copy", tmp_path)) == losses_of(trained(base, tmp_path))


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One package from the template and one from each built-in, with names that disturb the order of imports."""
    folder = tmp_path_factory.mktemp("every")
    create("a", folder)
    create("tensor", folder)
    for base in BUILT_INS:
        create(f"{base[0]}z_{base[:4].strip('_')}", folder, base=base)
    create("hard_sample_gen_of_my_own_28", folder, base="hard_sample_gen")
    return folder


@pytest.mark.slow
def test_ruff_finds_nothing(every: Path) -> None:
    for folder in every.iterdir():
        done = subprocess.run([sys.executable, "-m", "ruff", "check"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    for name in ("clf-a", "clf-tensor"):
        done = subprocess.run([sys.executable, "-m", "ruff", "format", "--check"], cwd=every / name, check=False)
        assert done.returncode == 0


@pytest.mark.slow
def test_mypy_finds_nothing(every: Path, tmp_path: Path) -> None:
    """In one process for all, which reads the types of torch once: the settings of all are the same."""
    folders = sorted(every.iterdir())
    settings = [tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["mypy"] for folder in folders]
    assert all(each == settings[0] for each in settings)
    paths = [str(folder / each) for folder in folders for each in settings[0]["files"]]
    sources = os.pathsep.join(str(folder / settings[0]["mypy_path"]) for folder in folders)
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), *paths]
    environment = {**os.environ, "MYPYPATH": sources}
    done = subprocess.run(mypy, cwd=folders[0], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    checked = sum(len(list(Path(path).rglob("*.py"))) for path in paths)
    assert f"no issues found in {checked} source files" in done.stdout


@pytest.mark.slow
def test_their_tests_of_the_loss_pass(every: Path) -> None:
    """In one process for all, and without the checks of conformance, each of which is a training."""
    paths = [str(path) for path in sorted(every.glob("*/tests/test_*.py"))]
    sources = os.pathsep.join(str(path) for path in every.glob("*/src"))
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull, "--rootdir", str(every)]
    command = [sys.executable, "-m", "pytest", *words, "-k", "not conformance", *paths]
    path = os.pathsep.join([sources, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f" {4 + 4 + 2 * 7 + 2} passed" in f" {done.stdout.splitlines()[-1]}", done.stdout


@pytest.mark.parametrize("base", BUILT_INS)
def test_no_name_of_the_built_in_stays_but_in_what_it_says_of_itself(base: str) -> None:
    content = compose("quite_other", base=base)
    sources = {path: text for path, text in content.items() if path.endswith(".py")}
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            assert not isinstance(node, ast.Constant) or node.value != base, path
            names = [getattr(node, "id", ""), getattr(node, "module", ""), getattr(node, "name", "")]
            assert not any(str(each).partition(".")[0] == f"clf_{base}" for each in names), path
    text = content["src/clf_quite_other/__init__.py"]
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring is not None
    original = ast.get_docstring(ast.parse(Path(importlib.import_module(f"clf_{base}").__file__ or "").read_text()))
    assert original is not None and docstring.endswith(original), "the citation is kept"
    assert f"Derived from {base} of clf-vision {__version__}" in docstring


def test_clfs_own_licence_goes_with_its_code() -> None:
    licence = (ROOT / "LICENSE").read_text()
    for own, terms in (("mit", "MIT"), ("apache-2.0", "Apache-2.0 AND MIT"), ("none", None)):
        content = compose("my_idea", base="moco", licence=own)  # type: ignore[arg-type]
        assert content[NOTICE] == licence
        project = tomllib.loads(content["pyproject.toml"])["project"]
        assert project.get("license") == terms
        assert set(project["license-files"]) == set(content) & {"LICENSE", NOTICE}
        assert f"`{NOTICE}`" in content["README.md"]
    assert NOTICE not in compose("my_idea")


@pytest.mark.parametrize(
    ("licence", "first"),
    [("mit", "MIT License"), ("apache-2.0", "Apache License"), ("bsd-3-clause", "BSD 3-Clause License"), ("none", "")],
)
def test_licences(licence: Any, first: str) -> None:
    content = compose("my_idea", licence=licence)
    assert ("LICENSE" in content) == bool(first)
    assert content.get("LICENSE", "").strip().splitlines()[:1] == [first][: bool(first)] or first in content["LICENSE"]


RENAMED = '''"""Old: the paper's method. See :class:`OldThing` and :mod:`clf_old.part`."""
import clf
from clf_old.part import f
from clf_simclr import SimCLR

class OldConfig(clf.MethodConfig): ...

class Old(SimCLR):  # Old is the paper's word
    name = "old"
    older = "bold old, OldThing"
    text = f"of old {OldConfig.__name__} {SimCLR}"

class OldThing:
    "Old words, as the :class:`Old` has."
    pair: tuple["Old", 'Older']

x = Old.name
'''
EXPECTED = '''"""Old: the paper's method. See :class:`NewThing` and :mod:`clf_zeta.part`."""
import clf
from clf_simclr import SimCLR
from clf_zeta.part import f

class NewConfig(clf.MethodConfig): ...

class New(SimCLR):  # Old is the paper's word
    name = "zeta"
    older = "bold zeta, NewThing"
    text = f"of zeta {NewConfig.__name__} {SimCLR}"

class NewThing:
    "Old words, as the :class:`New` has."
    pair: tuple["New", 'Older']

x = New.name
'''


def test_names_are_replaced_where_they_are_names() -> None:
    old = names_of("old", "clf_old", {"__init__.py": RENAMED})
    assert old == Names("old", "clf_old", "Old")
    assert rename({"a.py": RENAMED}, old, Names("zeta", "clf_zeta", "New")) == {"a.py": EXPECTED}


@pytest.mark.parametrize("name", ["none", "exception", "tensor", "batch", "callable", "field", "queue_config"])
def test_a_class_takes_no_name_that_means_something(name: str) -> None:
    text = compose(name)[f"src/clf_{name}/__init__.py"]
    tree = ast.parse(text)
    config_class, method = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    bound = {alias.asname or alias.name for n in tree.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert not {config_class, method} & (bound | set(dir(builtins)))
    compile(text, name, "exec")


def test_class_names() -> None:
    assert class_name("my_idea2", ()) == "MyIdea2"
    assert class_name("true", ()) == "TrueMethod"
    assert class_name("some", {"SomeConfig"}) == "SomeMethod"
    assert "class GeneratorMethodConfig" in compose("generator", base="hard_sample_gen")["src/clf_generator/config.py"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("my-idea", "try 'my_idea'"),
        ("MyIdea", "try 'my_idea'"),
        ("clf-my-idea", "try 'my_idea'"),
        ("clf_idea", "try 'idea'"),
        ("my__idea", "try 'my_idea'"),
        ("_idea", "try 'idea'"),
        ("3d", "a letter first"),
        ("", "a letter first"),
        ("../idea", "try 'idea'"),
        ("idée", "lower-case letters"),
        ("idea\n", "try 'idea'"),
        ("lambda", "keyword"),
        ("x" * 29, "29 letters"),
        ("simclr", "taken: it is a built-in plugin"),
        ("serve", "a package clf_serve is installed"),
    ],
)
def test_names_that_cannot_be(name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        create(name, tmp_path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_an_installed_plugin_has_is_told_with_its_owner(install: Callable[..., Path]) -> None:
    install("clf-birds", plugins={"flock": "clf_birds"}, version="2.1")
    with pytest.raises(PluginError, match=r"'flock' is taken: it is of clf-birds 2\.1, which is installed"):
        compose_checked("flock")


def compose_checked(name: str) -> None:
    create(name, Path("never made"))


def test_an_unknown_base_gets_the_nearest_one_and_the_list(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"no built-in plugin 'moko' to start from\. Did you mean 'moco'\? .*simclr"):
        create("my_idea", tmp_path, base="moko")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["folder", "file", "dangling link"])
def test_what_is_there_is_left_as_it_is(tmp_path: Path, what: str) -> None:
    place = tmp_path / "clf-my_idea"
    if what == "folder":
        place.mkdir()
    elif what == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    before = place.lstat()
    with pytest.raises(PluginError, match=r"clf-my_idea exists already"):
        create("my_idea", tmp_path)
    assert (place.lstat().st_ino, place.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    write = Path.write_text

    def fail(self: Path, *rest: Any, **more: Any) -> int:
        if self.name == "README.md":
            raise error
        return write(self, *rest, **more)

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises((PluginError, KeyboardInterrupt)) as caught:
        create("my_idea", tmp_path)
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value) and "--output" in str(caught.value)


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PluginError, match=r"cannot be written: .*Give another --output"):
        create("my_idea", tmp_path / "file")


def test_folders_can_be_read_by_others_as_far_as_the_user_allows(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        folder = create("my_idea", tmp_path / "new" / "place").folder
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_an_author_is_written_as_it_is_or_refused() -> None:
    project = tomllib.loads(compose("my_idea", author='Åse "O\\" <x>')["pyproject.toml"])["project"]
    assert project["authors"] == [{"name": 'Åse "O\\" <x>'}]
    assert "authors" not in tomllib.loads(compose("my_idea")["pyproject.toml"])["project"]
    with pytest.raises(ConfigError, match="in one line"):
        compose("my_idea", author="a\nb")


def test_the_command_tells_what_it_wrote_and_what_comes_next(
    run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_cli("plugins", "new", "my_idea", "--from", "simclr", "-o", "some where", "--license", "bsd-3-clause")
    assert done.code == 0
    for path in create("my_idea", tmp_path, base="simclr").files:
        assert f"  {path}\n" in done.out
    assert "pip install -e 'some where/clf-my_idea' && clf train --plugin my_idea" in done.out
    assert "clf plugins check my_idea" in done.out and "pytest" in done.out
    again = run_cli("plugins", "new", "my_idea", "-o", "some where")
    assert again.code == 2 and "exists already" in again.err and again.out == ""


def test_it_needs_no_torch(run_cli_process: Cli, tmp_path: Path) -> None:
    check = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    done = run_cli_process("plugins", "new", "my_idea", "--from", "dcl", before=check)
    assert done.code == 0 and done.out.endswith("False\n")


def test_every_template_is_used() -> None:
    """And each is in the wheel, which holds whatever lies in the package."""
    folder = files("clf") / "templates" / "plugin"
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {f"{name}.txt" for name in ("README.md", "ci.yml", "gitignore", "method.py", "pyproject.toml")}
    tests = {path.name for path in (folder / "tests").iterdir()}
    assert tests == {f"{name}.py.txt" for name in ("default", *BUILT_INS)}
    assert set(BUILT_INS) == {row.name for row in list_plugins() if row.builtin}
