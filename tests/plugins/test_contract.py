"""The page on the contract is what the code says."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import clf
from clf import catalogue, config, public
from clf.contract import contract_page
from clf.contract.markdown import first_line, prose
from clf.contract.source import read
from clf.method import Context, Method
from clf.plugins import HOOKS
from clf.testing.suite import CHECKS

FILE = Path(__file__).resolve().parents[2] / "plugins" / "CONTRACT.md"
PAGE = contract_page()


def test_the_page_in_the_repository_is_the_present_one() -> None:
    assert FILE.read_text(encoding="utf-8") == PAGE, "make it anew: clf plugins contract > plugins/CONTRACT.md"


def test_the_command_prints_it(run_cli: Callable[..., object]) -> None:
    done = run_cli("plugins", "contract")
    assert (done.code, done.out, done.err) == (0, PAGE, "")  # type: ignore[attr-defined]


def test_it_needs_no_torch(run_cli_process: Callable[..., object]) -> None:
    done = run_cli_process("plugins", "contract", before="import sys; sys.modules['torch'] = None")
    assert (done.code, done.out) == (0, PAGE)  # type: ignore[attr-defined]


def test_every_public_name_and_hook_and_check_is_on_it() -> None:
    for name in clf.__all__:
        assert f"| `clf.{name}` | " in PAGE
    for module in public.MODULES:
        for name in import_module(f"clf.{module}").__all__:
            assert f"| `{name}` | " in PAGE, f"clf.{module}.{name}"
    for hook in HOOKS:
        assert f"### `{hook}`" in PAGE
    for check in CHECKS:
        assert f"| {check.name} | " in PAGE
    for group in catalogue.GROUPS.values():
        assert f"| `{group}` | " in PAGE


def test_every_name_has_a_word_about_it() -> None:
    assert [line for line in PAGE.splitlines() if line.startswith("| `") and line.endswith("|  |")] == UNEXPLAINED


UNEXPLAINED = [
    f"| `{key}` | {config.describe_type(config.known_keys()[key])} | `{default}` |  |"
    for key, default in (("train.epochs", "100"), ("optimizer.name", "adamw"))
]
"""Keys that say it all."""


@pytest.mark.parametrize("owner", [Method, Context])
def test_every_method_that_an_author_may_write_or_call_is_on_it(owner: type) -> None:
    section = PAGE.partition(f"### `{owner.__name__}`\n")[2].partition("\n### ")[0]
    names = [name for name, value in vars(owner).items() if not name.startswith("_") and _is_own(value)]
    assert names
    for name in names:
        assert f"#### `{name}`" in section


def _is_own(value: object) -> bool:
    return inspect.isfunction(value) or isinstance(value, (property, classmethod))


def test_a_default_is_shown_as_it_is_written_and_other_bodies_are_not() -> None:
    assert (
        """
def next_batch(self, stream: BatchStream, ctx: Context) -> Batch:
    return stream.next()
"""
        in PAGE
    )
    assert "def redraw(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]: ..." in PAGE


def test_a_name_is_found_where_it_is_defined() -> None:
    home = read("clf.data").home("from_arrays")
    assert (home.name, "from_arrays" in home.definitions()) == ("clf.data.source", True)
    assert read("clf").home("Recipe").name == "clf.augment.recipe"


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("See :meth:`clf.Context.gather` and ``x``.", "See `gather` and `x`."),
        ("Args:\n    a, b: two\n        lines.\n    c: one.", "*Args:*\n\n- `a`, `b`: two lines.\n- `c`: one."),
        ("Returns:\n    (N,) int64,\n    rising.", "*Returns:* (N,) int64, rising."),
        ("Like this::\n\n    x = 1\n\n    y = 2\n\nEnd.", "Like this:\n\n```python\nx = 1\n\ny = 2\n```\n\nEnd."),
        ("Letters:\n\n    N  images", "Letters:\n\n    N  images"),
    ],
)
def test_docstrings_become_markdown(docstring: str, markdown: str) -> None:
    assert prose(docstring) == markdown


def test_a_loss_or_a_module_is_shown_with_its_arguments_and_a_function_without_what_is_defined_in_it() -> None:
    for module in ("losses", "nn"):
        for name in import_module(f"clf.{module}").__all__:
            assert f"### `{name}`\n\n```python\n" in PAGE, f"clf.{module}.{name}"
    assert "def mlp(*widths: int, batch_norm: bool = True" in PAGE
    assert "#### `test_conformance`" not in PAGE
    assert ":::" not in PAGE


def test_a_summary_is_one_line() -> None:
    assert first_line("Of two\nlines.\n\nMore.") == "Of two lines."
