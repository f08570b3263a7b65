"""Names of clf in source files, found without running them."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from clf.testing import imports, sources


def used(tmp_path: Path, source: str) -> list[str]:
    path = tmp_path / "source.py"
    path.write_text(textwrap.dedent(source))
    return [f"{use.line} {use.name}" for use in imports.uses(path)]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import clf", ["1 clf"]),
        ("import clf.nn", ["1 clf.nn"]),
        ("import clf\nclf.nn.mlp(1)", ["1 clf", "2 clf.nn.mlp"]),
        ("import clf.nn\nclf.losses.unit", ["1 clf.nn", "2 clf.losses.unit"]),
        ("import clf as c\nc.Method", ["1 clf", "2 clf.Method"]),
        ("import clf.trainer as t\nt.Trainer", ["1 clf.trainer", "2 clf.trainer.Trainer"]),
        ("from clf import Method, nn as n\nn.mlp", ["1 clf.Method", "1 clf.nn", "2 clf.nn.mlp"]),
        ("from clf.trainer import *", ["1 clf.trainer"]),
        ("from . import clf\nclf.x", []),
        ("from .clf import x", []),
        ("import clf_other, numpy\nnumpy.clf.x", []),
        ("import importlib\nimportlib.import_module('clf.trainer')", ["2 clf.trainer"]),
        ("from importlib import import_module\nimport_module('clf.' + 'x'); import_module('os')", []),
        ("__import__('clf.trainer')", ["1 clf.trainer"]),
        ("def f():\n    from clf.runs import Run\n    return Run", ["2 clf.runs.Run"]),
        ("def f():\n    import clf\n    return clf.runs.Run\nclf.x", ["2 clf", "3 clf.runs.Run"]),
        ("from clf import losses\ndef f(losses):\n    return losses.append(1)", ["1 clf.losses"]),
        ("from clf import losses\ndef f():\n    losses = []\n    losses.append(1)", ["1 clf.losses"]),
        ("from clf import losses\ndef f():\n    return losses.unit", ["1 clf.losses", "3 clf.losses.unit"]),
        ("from clf import losses\ng = lambda losses: losses.append", ["1 clf.losses"]),
        ("from clf import losses\nlosses = []\nlosses.append(1)", ["1 clf.losses"]),
        ("import clf\n@clf.hookimpl\ndef f(a: clf.Batch = clf.x) -> clf.Y: ...",
         ["1 clf", "2 clf.hookimpl", "3 clf.Batch", "3 clf.Y", "3 clf.x"]),
        ("import clf\nclass A(clf.Method):\n    x = clf.y\n    def f(self): return clf.z",
         ["1 clf", "2 clf.Method", "3 clf.y", "4 clf.z"]),
        ("import clf\nclf.make().nn.mlp", ["1 clf", "2 clf.make"]),
        ("import clf\nasync def f(*clf): return clf.x", ["1 clf"]),
        ("try:\n    import clf\nexcept ImportError as clf:\n    pass\nclf.x", ["2 clf"]),
        ("if True:\n    from clf import nn\nnn.mlp", ["2 clf.nn", "3 clf.nn.mlp"]),
    ],
)  # fmt: skip
def test_uses(tmp_path: Path, source: str, names: list[str]) -> None:
    assert used(tmp_path, source) == names


def test_a_file_that_is_no_python(tmp_path: Path) -> None:
    with pytest.raises(SyntaxError):
        used(tmp_path, "def f(:")


def test_the_files_of_a_package_a_module_and_a_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["whole/__init__.py", "whole/part/deep.py", "whole/data.txt", "single.py", "shared/mine/__init__.py"]
    names += ["shared/mine/more.py", "shared/other/__init__.py", "shared/lone.py"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit")
    monkeypatch.syspath_prepend(str(tmp_path))

    def found(module: str) -> list[str]:
        return [str(file.relative_to(tmp_path)) for file in sources.module_files(module)]

    assert found("whole") == ["whole/__init__.py", "whole/part/deep.py"]
    assert found("whole.part.deep") == found("whole")
    assert found("single") == ["single.py"]
    assert found("shared.mine.more") == ["shared/mine/__init__.py", "shared/mine/more.py"]
    assert found("shared.lone") == ["shared/lone.py"]
    assert found("shared.gone") == found("nowhere") == found("math") == []


def test_the_digest_follows_content_and_names(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("x")
    two.write_text("x")
    first = sources.digest((one,))
    assert first != sources.digest((two,))
    assert first != sources.digest((one, two))
    one.write_text("y")
    assert first != sources.digest((one,))
