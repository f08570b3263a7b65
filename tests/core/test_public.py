"""Which names a plugin may use, and how one of them goes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import clf
from clf import losses, public


@pytest.mark.parametrize("module", [name for name in public.MODULES if name != "testing"])
def test_a_public_module_says_what_it_promises(module: str) -> None:
    found = import_module(f"clf.{module}")
    assert found.__all__ == sorted(found.__all__, key=lambda name: (not name.isupper(), name))
    for name in found.__all__:
        assert getattr(found, name) is not None
        assert public.is_public(f"clf.{module}.{name}")


@pytest.mark.parametrize(
    "name",
    [
        "clf",
        "clf.Method",
        "clf.Method.training_step",
        "clf.__version__",
        "clf.Callback",
        "clf.Evaluator",
        "clf.DataError",
        "clf.callbacks.Training",
        "clf.data.read_options",
        "clf.evaluators.Subject",
        "clf.losses",
        "clf.losses.Decoupled.positive",
        "clf.nn.mlp",
        "clf_serve.stores",
        "torch.nn._reduction",
        "clf_simclr.SimCLR",
    ],
)
def test_public_names(name: str) -> None:
    assert public.is_public(name)


@pytest.mark.parametrize(
    "name",
    [
        "clf.trainer",
        "clf.trainer.Trainer",
        "clf.method.Method",
        "clf._EXPORTS",
        "clf.Method._modules",
        "clf.nn._norm",
        "clf.nn.torch",
        "clf.losses.math",
        "clf.data.load_source",
        "clf.data.source.from_arrays",
        "clf.callbacks.Watcher",
        "clf.nothing",
        "clf_serve.api",
        "clf_serve",
    ],
)
def test_private_names(name: str) -> None:
    assert not public.is_public(name)


def test_importing_the_package_imports_no_torch() -> None:
    program = (
        "import sys, clf, clf.public\nclf.__all__, clf.public.is_public('clf.Method')\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_old_name_gives_the_new_one_and_names_the_line_that_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(clf._DEPRECATED, "ntxent", ("clf.losses.nt_xent", "0.1", "0.3"))
    with pytest.warns(DeprecationWarning) as caught:
        assert clf.ntxent is losses.nt_xent
    (warning,) = caught
    assert str(warning.message) == (
        "clf.ntxent is deprecated since clf-vision 0.1 and gone in 0.3: use clf.losses.nt_xent"
    )
    assert Path(warning.filename) == Path(__file__)
    with pytest.warns(DeprecationWarning, match="use clf.losses.nt_xent") as caught:
        from clf import ntxent  # noqa: F401
    assert {Path(warning.filename) for warning in caught} == {Path(__file__)}
    assert public.is_public("clf.ntxent")
    assert public.replacement("clf.ntxent") == "clf.losses.nt_xent"
    assert "ntxent" not in dir(clf)


def test_names_that_stay_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in clf.__all__:
            assert getattr(clf, name) is not None
            assert public.replacement(f"clf.{name}") is None
    with pytest.raises(AttributeError, match="no attribute 'ntxent'"):
        clf.ntxent  # noqa: B018


def test_what_is_deprecated_is_gone_when_its_time_has_come() -> None:
    version = tuple(map(int, clf.__version__.split(".")[:2]))
    for name, (new, since, gone) in clf._DEPRECATED.items():
        first, last = (tuple(map(int, text.split(".")[:2])) for text in (since, gone))
        assert first < last, f"clf.{name} is to be deprecated for one minor version at least"
        assert version < last, f"clf.{name} was to be gone in {gone}"
        assert public.is_public(new)
