"""Each wrong package is caught by its own check, by no other, and in words that name the place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conforming import CONFIG, GOOD, HEAD, HOOK, METHOD, Install, examined, faults, install_foo

from clf import plugins
from clf.testing import importing, packages

FIELD = "sharpness: float = Field(1.0, gt=0, description='of the loss')\n"


def after_head(statement: str) -> str:
    """The good plugin, with a statement that is run as it is imported."""
    return f"{HEAD}\n{statement}\n{CONFIG}{METHOD}{HOOK}"


def with_config(*lines: str) -> str:
    body = "\n".join(f"    {line}" for line in lines)
    return f"{HEAD}\nclass FooConfig(clf.MethodConfig):\n{body}\n{METHOD}{HOOK}"


def with_method(line: str) -> str:
    return f"{HEAD}{CONFIG}{METHOD}\n    {line}\n{HOOK}"


def test_a_good_package_passes_all(install: Install, tmp_path: Path) -> None:
    install_foo(install)
    outcomes = examined("foo", tmp_path)
    assert {name: outcome.state for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, "passed"), outcomes
    assert outcomes["loads"].text == "1 method"
    assert outcomes["name"].text == "foo = clf_foo"
    assert outcomes["requirement"].text in ("clf-vision<0.2,>=0.1", "clf-vision>=0.1,<0.2")
    assert "no py.typed" in outcomes["package"].text


@pytest.mark.parametrize("name", [row.name for row in plugins.list_plugins() if row.distribution == "clf-vision"])
def test_every_built_in_passes_all_that_apply(name: str, tmp_path: Path) -> None:
    outcomes = examined(name, tmp_path)
    assert not faults(outcomes)
    assert {each for each, outcome in outcomes.items() if outcome.state == "skipped"} == {"requirement", "package"}


def test_a_single_file_passes_all_that_apply(tmp_path: Path) -> None:
    path = tmp_path / "foo.py"
    path.write_text(GOOD.replace(HOOK, ""))
    outcomes = examined(str(path), tmp_path)
    skipped = {name: outcome.text for name, outcome in outcomes.items() if outcome.state == "skipped"}
    reason = "a single file has no packaging metadata"
    assert skipped == {"requirement": reason, "package": reason}
    assert not faults(outcomes)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (after_head("raise ValueError('no such luck')"), "ValueError: no such luck (clf_foo.py, line 9)"),
        (after_head("import sys; sys.exit(3)"), "SystemExit"),
        (after_head("import os; os._exit(3)"), "it ended the Python process, with exit code 3"),
        (after_head("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), "with signal 9"),
        (after_head("raise KeyboardInterrupt"), "which only the person at the terminal may cause"),
        (GOOD.replace("@clf.hookimpl", ""), "write @clf.hookimpl above it"),
        (GOOD.replace("[Foo]", "Foo"), "not a list"),
        (GOOD.replace("return [Foo]", "import os; os._exit(0)"), "with exit code 0"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_is_not_looked_at_further(
    install: Install, tmp_path: Path, source: str, words: str
) -> None:
    install_foo(install, source)
    outcomes = examined("foo", tmp_path)
    assert words in outcomes["loads"].text
    assert {outcome.state for name, outcome in outcomes.items() if name != "loads"} == {"not run"}
    assert outcomes["imports"].text == "it needs 'loads', which failed"


def test_an_import_that_never_ends(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "LIMIT", 0.5)
    install_foo(install, after_head("while True: print('still here')"))
    assert "it has not come back after" in faults(examined("foo", tmp_path))["loads"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (GOOD.replace('name = "foo"', 'name = "bar"'), "the entry point is named 'foo', and the methods 'bar'"),
        (GOOD.replace('name = "foo"', 'name = "Foo!"'), "'Foo!': a name is made of small letters"),
        (
            GOOD.replace("[Foo]", "[Foo, Bar]").replace(HOOK[:6], "class Bar(Foo):\n    name = 'bar'\n" + HOOK[:6]),
            "method 'bar' cannot be reached: clf-foo has no entry point of that name",
        ),
    ],
)
def test_names_that_disagree(install: Install, tmp_path: Path, source: str, words: str) -> None:
    install_foo(install, source)
    found = faults(examined("foo", tmp_path))
    assert set(found) == {"name"}
    assert words in found["name"]


NESTED = """
class Part(clf.MethodConfig):
    depth: int = 2

class FooConfig(clf.MethodConfig):
    sharpness: float = Field(1.0, gt=0, description="of the loss")
    part: Part = Part()
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (with_config("sharpness: float = 1.0"), "method.sharpness has no description"),
        (with_config("sharpness: float = Field(1.0, description=' ')"), "method.sharpness has no description"),
        (with_config("model_config = {'frozen': False}", FIELD), "FooConfig is not frozen"),
        (with_config("model_config = {'extra': 'allow'}", FIELD), "FooConfig takes unknown keys"),
        (HEAD + NESTED + METHOD + HOOK, "method.part.depth has no description"),
    ],
)
def test_settings_that_are_not_frozen_or_not_described(
    install: Install, tmp_path: Path, source: str, words: str
) -> None:
    install_foo(install, source)
    found = faults(examined("foo", tmp_path, process=False))
    assert set(found) == {"config"}
    assert words in found["config"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (with_config("sharpness: float = Field(gt=0, description='x')"), "method.sharpness has no default"),
        (with_config("sharpness: float = Field(-1.0, gt=0, description='x')"), "sharpness is refused by its own"),
        (
            with_config(FIELD, "levels: object = Field((1, 2), description='x')"),
            "method.levels is another value after it was written to config.yaml and read again",
        ),
        (with_method("defaults = {'optimizer.nam': 'sgd'}"), "Foo.defaults is no valid configuration"),
        (with_method("defaults = {'run.dir': '/tmp'}"), "sets 'run.dir', which is the user's"),
        (with_method("tiny = {'method.sharpnes': 1}"), "Foo.tiny is no valid configuration"),
        (with_method("tiny = {'train.epochs': 0}"), "Foo.tiny is no valid configuration"),
        (
            with_method("recommended = classmethod(lambda cls, given: {'train.epochs': 'x'})"),
            "Foo.recommended({}) is no valid configuration",
        ),
        (with_method("recommended = classmethod(lambda cls, given: 1 / 0)"), "ZeroDivisionError"),
        (with_method("recommended = classmethod(lambda cls, given: None)"), "is a NoneType and not a mapping"),
    ],
)
def test_defaults_that_cannot_be_used(install: Install, tmp_path: Path, source: str, words: str) -> None:
    install_foo(install, source)
    found = faults(examined("foo", tmp_path, process=False))
    assert set(found) == {"defaults"}
    assert words in found["defaults"]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("from clf.trainer import Trainer", "clf.trainer.Trainer is not public"),
        ("from clf.method import Batch", "clf.method.Batch is not public. Write clf.Batch."),
        ("step = lambda: clf.trainer.Trainer", "clf.trainer.Trainer is not public"),
        ("import importlib; run = lambda: importlib.import_module('clf.trainer')", "clf.trainer is not public"),
        ("import clf.optim as o", "clf.optim is not public"),
    ],
)
def test_names_of_clf_that_are_not_public(install: Install, tmp_path: Path, statement: str, words: str) -> None:
    install_foo(install, after_head(statement))
    found = faults(examined("foo", tmp_path, process=False))
    assert set(found) == {"imports"}
    assert f"clf_foo.py, line 9: {words}" in found["imports"]


def test_another_plugins_names_are_told_and_allowed(install: Install, tmp_path: Path) -> None:
    install_foo(install, after_head("from clf_simclr import SimCLR"))
    outcomes = examined("foo", tmp_path)
    assert not faults(outcomes)
    assert "uses clf_simclr, whose names are not promised" in outcomes["imports"].text


DEEDS = [
    ("print('hello')", "prints 'hello' LINE"),
    ("import os; os.write(1, b'hello')", "writes 5 bytes to the output of the process: 'hello'"),
    ("open('{tmp}/x', 'w').close()", "/x for writing LINE"),
    ("import os; os.makedirs('{tmp}/made')", "makes the folder {tmp}/made"),
    ("import os; os.mkdir('{tmp}/one')", "makes the folder {tmp}/one"),
    ("import subprocess; subprocess.run(['true'])", "starts the program true LINE"),
    ("import os; os.system('true')", "starts the program true LINE"),
    ("import socket; s = socket.socket(); s.connect_ex(('127.0.0.1', 9))", "connects to ('127.0.0.1', 9)"),
    ("import threading as t; t.Thread(target=t.Event().wait, args=(99,), name='beat', daemon=True).start()", "'beat'"),
    ("torch.manual_seed(0)", "changes the random state of torch"),
    ("x = torch.randn(3)", "changes the random state of torch"),
    ("import random; random.seed(0)", "changes the random state of Python"),
    ("import numpy; numpy.random.rand()", "changes the random state of numpy"),
    ("torch.set_default_dtype(torch.float64)", "changes torch's default dtype"),
    ("torch.set_num_threads(7)", "changes torch's number of threads"),
    ("torch.set_grad_enabled(False)", "changes whether torch computes gradients"),
    ("torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark", "changes torch.backends.cudnn"),
    ("import warnings; warnings.filterwarnings('ignore')", "changes the warning filters of the process LINE"),
    ("import os; os.environ['FOO_MODE'] = '1'", "changes the environment variable FOO_MODE LINE"),
    ("import signal; signal.signal(signal.SIGTERM, print)", "sets a handler of SIGTERM"),
    ("import logging; logging.basicConfig()", "changes the handlers of the root logger"),
    ("import sys; sys.path.insert(0, '/nowhere')", "changes sys.path"),
    ("import os; os.chdir('/')", "changes the working folder"),
    ("losses.unit = lambda x: x", "replaces clf.losses.unit"),
    ("clf.Method.after_step = lambda self, ctx: None", "replaces clf.method.Method.after_step"),
    ("torch.nn.Module.train = lambda self, mode=True: self", "replaces torch.nn.Module.train"),
]
"""Statements, and what is told of each."""


def test_what_an_import_has_no_business_with(install: Install, tmp_path: Path) -> None:
    """All of it in one plugin; each is told with the line where it is written, as far as Python says who does it."""
    first = len(HEAD.splitlines()) + 2
    statements = "\n".join(statement for statement, _ in DEEDS).replace("{tmp}", str(tmp_path))
    install_foo(install, after_head(statements))
    found = importing.probe("foo", tmp_path)
    assert not found.error
    missing = []
    for line, (_, words) in enumerate(DEEDS, first):
        expected = words.replace("{tmp}", str(tmp_path)).replace("LINE", f"(clf_foo.py, line {line})")
        if not any(expected in deed for deed in found.deeds):
            missing.append(expected)
    assert not missing, "\n".join(found.deeds)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("print('hello')", "importing it prints 'hello' (clf_foo.py, line 9)"),
        ("torch.manual_seed(0)", "importing it changes the random state of torch"),
        ("import time; time.sleep(0.5)", "importing it sleeps 0.5 s"),
    ],
)
def test_one_such_deed_is_enough_and_no_other_check_minds(
    install: Install, tmp_path: Path, statement: str, words: str
) -> None:
    install_foo(install, after_head(statement))
    assert faults(examined("foo", tmp_path)) == {"import is quiet": words}


def test_a_slow_import_is_told_in_seconds_of_the_processor(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "SLOW", 0.5)
    busy = "import time\nstart = time.process_time()\nwhile time.process_time() - start < 0.6: pass"
    install_foo(install, after_head(busy))
    found = faults(examined("foo", tmp_path))
    assert set(found) == {"import is quiet"}
    assert "s of the processor beyond clf and torch" in found["import is quiet"]


def test_a_library_may_set_its_own_warnings_and_environment(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ)  # restores what the import in this process sets
    monkeypatch.delenv("LIB_MODE", raising=False)
    library = "import os, warnings\nwarnings.filterwarnings('ignore', module='lib')\nos.environ['LIB_MODE'] = '1'\n"
    install("lib", modules={"lib_of_foo": library})
    install_foo(install, after_head("import lib_of_foo"))
    assert not faults(examined("foo", tmp_path))
    os.environ.pop("LIB_MODE", None)


@pytest.mark.parametrize(
    ("requires", "words"),
    [
        ((), "clf-foo does not require clf-vision"),
        (("torch>=2",), "clf-foo does not require clf-vision"),
        (("clf-vision",), "'clf-vision' has no lower bound"),
        (("clf-vision<0.2",), "'clf-vision<0.2' has no lower bound"),
        (("clf_vision>=0.1",), "'clf_vision>=0.1' has no upper bound"),
        (("clf-vision>=0.1,!=0.3",), "has no upper bound"),
        (('clf-vision>=0.1,<0.2; extra == "train"',), 'requires clf-vision only where extra == "train"'),
    ],
)
def test_requirements_without_bounds(install: Install, tmp_path: Path, requires: tuple[str, ...], words: str) -> None:
    install_foo(install, requires=requires)
    found = faults(examined("foo", tmp_path, process=False))
    assert set(found) == {"requirement"}
    assert words in found["requirement"]


@pytest.mark.parametrize("text", ["clf-vision~=0.1", "clf-vision==0.1.*", "clf-vision[train]>=0.1,<0.2"])
def test_requirements_with_bounds(install: Install, tmp_path: Path, text: str) -> None:
    install_foo(install, requires=(text,))
    assert not faults(examined("foo", tmp_path, process=False))


@pytest.mark.parametrize("name", ["tests/__init__.py", "clf/losses.py", "clf_simclr/__init__.py"])
def test_files_beside_the_package(install: Install, tmp_path: Path, name: str) -> None:
    site = install_foo(install)
    (site / "clf_foo-1.0.dist-info" / "RECORD").write_text(f"clf_foo.py,,\n{name},,\n")
    found = faults(examined("foo", tmp_path, process=False))
    assert found == {"package": f"clf-foo installs {name.partition('/')[0]!r} beside its package 'clf_foo'"}


def test_a_version_that_cannot_be_compared(install: Install, tmp_path: Path) -> None:
    install_foo(install, version="newest")
    assert faults(examined("foo", tmp_path, process=False)) == {
        "package": "'newest' is no version that pip can compare"
    }


def test_a_package_that_is_typed(install: Install, tmp_path: Path) -> None:
    site = install_foo(install)
    (site / "clf_foo").mkdir()
    (site / "clf_foo.py").rename(site / "clf_foo" / "__init__.py")
    (site / "clf_foo" / "py.typed").touch()
    assert examined("foo", tmp_path, process=False)["package"].text == "version 1.0"


def test_a_plugin_without_a_method_is_judged_by_what_it_has(install: Install, tmp_path: Path) -> None:
    source = (
        "import clf\n\ndef foo(section, seed, progress): ...\n\n@clf.hookimpl\ndef clf_datasets():\n    return [foo]\n"
    )
    install_foo(install, source)
    outcomes = examined("foo", tmp_path)
    assert not faults(outcomes)
    assert {name for name, outcome in outcomes.items() if outcome.state == "skipped"} == {"config", "defaults"}
    assert outcomes["config"].text == "the plugin provides no method"
