"""``clf plugins list`` and ``clf plugins show``: what they tell, also of what cannot be used."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import clf
from clf import catalogue, distributions
from clf.checks import Outcome
from clf.commands import plugins as commands
from clf.describe import describe, links
from clf.testing import record
from clf.testing.suite import CHECKS, Conformance

pty = pytest.importorskip("pty", reason="terminals are tested where there are any")

Cli = Callable[..., Any]
Install = Callable[..., Path]

PLUGIN = '''
"""What foo is."""
import clf
from clf.callbacks import Callback
from clf_simclr import SimCLR

class Foo(SimCLR):
    name = "foo"
    {paper}
    defaults = {{"optimizer.name": "sgd"}}

class Sharpness(clf.Evaluator):
    name = "sharpness"
    def measure(self, subject):
        return {{}}

class Logger(Callback):
    pass

def foo(section, seed, progress): ...
def more(section, seed, progress): ...

@clf.hookimpl
def clf_methods():
    return [Foo]

@clf.hookimpl
def clf_datasets():
    return [foo, more]

@clf.hookimpl
def clf_evaluators():
    return [Sharpness]

@clf.hookimpl
def clf_callbacks():
    return [Logger]
'''
PAPER = 'paper = "Foo, Bar, On foos, FOO 2020, arXiv:2001.01234, doi 10.1000/foo.7"'
METADATA = f"""Metadata-Version: 2.4
Name: clf-foo
Version: 1.0
Summary: Foos for everybody
Author-email: Ada <ada@example.org>
License-Expression: Apache-2.0
Project-URL: Changelog, https://example.org/changes
Project-URL: Homepage, https://example.org/foo
Requires-Dist: numpy
Requires-Dist: clf-vision>={clf.__version__},<99
"""


@pytest.fixture
def foo(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """``foo()`` installs the plugin above, with metadata as a published package has it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(source: str = PLUGIN.format(paper=PAPER), metadata: str = METADATA) -> Path:
        site = install("clf-foo", plugins={"foo": "clf_foo"}, modules={"clf_foo": source})
        (site / "clf_foo-1.0.dist-info" / "METADATA").write_text(metadata)
        return site

    return make


def listed(run_cli: Cli, *words: str) -> list[dict[str, Any]]:
    done = run_cli("plugins", "list", "--json", *words)
    assert done.code == 0
    rows: list[dict[str, Any]] = json.loads(done.out)
    return rows


def shown(run_cli: Cli, name: str, code: int = 0) -> dict[str, Any]:
    done = run_cli("plugins", "show", name, "--json")
    assert done.code == code
    found: dict[str, Any] = json.loads(done.out)
    return found


def of(rows: list[dict[str, Any]], distribution: str) -> list[tuple[str, str, str]]:
    return [(row["kind"], row["name"], row["state"]) for row in rows if row["distribution"] == distribution]


def three_kinds(plugin: str = "foo", command: str = "foo", store: str = "foo") -> str:
    groups = (("plugins", plugin), ("commands", command), ("indexes", store))
    return "\n".join(f"[clf.{group}]\n{name} = clf_foo:x" for group, name in groups)


def test_plugins_commands_and_stores_are_listed_with_their_kind(run_cli: Cli, install: Install) -> None:
    install("clf-foo", entry_points=three_kinds(), modules={"clf_foo": "raise SystemExit('imported')"})
    rows = listed(run_cli)
    assert of(rows, "clf-foo") == [(kind, "foo", "available") for kind in ("plugin", "command", "store")]
    assert {row["kind"] for row in rows if row["builtin"]} >= {"plugin", "command"}
    (row,) = [row for row in rows if row["distribution"] == "clf-foo" and row["kind"] == "store"]
    assert row == {
        "name": "foo",
        "value": "clf_foo:x",
        "distribution": "clf-foo",
        "version": "1.0",
        "state": "available",
        "reason": "",
        "builtin": False,
        "kind": "store",
    }
    plain = run_cli("plugins", "list").out.splitlines()
    assert plain[0].split() == ["name", "state", "kind", "distribution", "version", "reason"]
    assert ["foo", "available", "store", "clf-foo", "1.0", "-"] in [line.split() for line in plain]


def test_the_list_by_kind_and_by_state(run_cli: Cli, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("clf-foo", entry_points=three_kinds())
    monkeypatch.setenv("CLF_DISABLE_PLUGINS", "clf-foo")
    assert of(listed(run_cli, "--kind", "command", "--state", "disabled"), "clf-foo") == [
        ("command", "foo", "disabled")
    ]
    assert {row["kind"] for row in listed(run_cli, "--kind", "plugin")} == {"plugin"}
    assert of(listed(run_cli, "--state", "available"), "clf-foo") == []
    assert listed(run_cli, "--state", "broken") == []
    assert run_cli("plugins", "list", "--kind", "no-such").code == 2


def test_the_filters_know_every_kind_and_state() -> None:
    from typing import get_args

    assert [each.value for each in commands.Kind] == list(get_args(catalogue.Kind))
    assert [each.value for each in commands.State] == list(get_args(catalogue.State))


def test_conflicts_of_every_kind(run_cli: Cli, install: Install) -> None:
    install("clf-foo", entry_points=three_kinds("both", "both", "both"))
    install("clf-bar", entry_points=three_kinds("both", "both", "both"))
    install("clf-thief", entry_points=three_kinds("simclr", "train"))
    rows = listed(run_cli)
    for name, rival in (("clf-foo", "clf-bar"), ("clf-bar", "clf-foo")):
        assert of(rows, name) == [(kind, "both", "conflict") for kind in ("plugin", "command", "store")]
        assert all(f"also claimed by {rival}" in row["reason"] for row in rows if row["distribution"] == name)
    assert of(rows, "clf-thief")[:2] == [("plugin", "simclr", "conflict"), ("command", "train", "conflict")]
    assert "'train' is reserved by clf-vision" in next(row["reason"] for row in rows if row["name"] == "train")
    assert ("plugin", "simclr", "available") in of(rows, "clf-vision")


def test_an_incompatible_command_is_refused_with_the_reason(run_cli: Cli, install: Install) -> None:
    source = {"clf_foo": "raise SystemExit('imported')"}
    install("clf-foo", commands={"greet": "clf_foo:f"}, modules=source, requires=["clf-vision>=999"])
    done = run_cli("greet")
    assert done.code == 2
    assert "command 'greet' (clf-foo 1.0) cannot be used, state incompatible: it needs clf-vision>=999" in done.err


def on_terminal(columns: int, *words: str) -> list[str]:
    """The lines that a command prints on a terminal so wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "clf", *words],
        stdout=theirs,
        stderr=theirs,
        env={**env, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(theirs)
    printed = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when nobody holds the other end
            break
        if not part:
            break
        printed += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return printed.decode().splitlines()


def test_a_long_reason_is_readable_on_a_terminal(install: Install) -> None:
    install("clf-foo", plugins={"foo": "clf_foo"}, requires=["clf-vision>=999"])
    install("clf-with-quite-a-long-name-of-a-distribution", plugins={"bar": "bar"}, requires=["clf-vision>=999"])
    reason = f"it needs clf-vision>=999, and this is {clf.__version__}"
    narrow, wide = on_terminal(100, "plugins", "list"), on_terminal(200, "plugins", "list")
    assert f"  foo: {reason}" in [line.rstrip() for line in narrow]
    (row,) = [line.split() for line in narrow if line.startswith("foo ")]
    assert row == ["foo", "incompatible", "plugin", "clf-foo", "1.0"]
    assert any(line.startswith("foo ") and line.rstrip().endswith(reason) for line in wide)
    assert max(len(line) for line in narrow[1:]) <= 100


def test_show_tells_everything(run_cli: Cli, foo: Callable[..., Path]) -> None:
    foo()
    found = shown(run_cli, "foo")
    assert (found["name"], found["state"], found["reason"], found["text"]) == ("foo", "available", "", "What foo is.")
    assert found["about"] == {
        "summary": "Foos for everybody",
        "authors": "Ada <ada@example.org>",
        "home_page": "https://example.org/foo",
        "license": "Apache-2.0",
        "requires_clf": f"clf-vision<99,>={clf.__version__}",
    }
    (method,) = found["methods"]
    assert method["links"] == ["https://arxiv.org/abs/2001.01234", "https://doi.org/10.1000/foo.7"]
    assert method["defaults"] == {"optimizer.name": "sgd"}
    temperature = method["settings"][0]
    assert (temperature["key"], temperature["type"], temperature["default"]) == (
        "method.temperature",
        "float, above 0",
        0.5,
    )
    assert (found["datasets"], found["reachable"]) == (["foo", "more"], ["foo", "foo:more"])
    assert (found["evaluators"], found["callbacks"], found["checks"]) == (["sharpness"], ["Logger"], None)

    out = run_cli("plugins", "show", "foo").out
    for part in (
        "foo (clf-foo 1.0, clf_foo)",
        "home page: https://example.org/foo",
        "licence:   Apache-2.0",
        "made for:  clf-vision<99,>=",
        "Paper: Foo, Bar, On foos, FOO 2020",
        "https://arxiv.org/abs/2001.01234",
        "method.temperature",
        "optimizer.name",
        "clf train --plugin foo",
        "data.name=foo:more",
        "clf evaluate RUN --evaluator foo",
        "monitor.callbacks=foo",
        "Checks: never run here; clf plugins check foo",
    ):
        assert part in out


def test_the_paper_of_another_packages_method_is_not_that_of_its_child(foo: Callable[..., Path]) -> None:
    foo(PLUGIN.format(paper=""))
    (method,) = describe("foo").methods
    assert (method.paper, method.links) == ("", ())


def test_every_built_in_method_names_its_paper() -> None:
    for row in catalogue.list_plugins():
        if row.builtin:
            (method,) = describe(row.name).methods
            assert len(method.links) >= 1, row.name
            assert method.links[0].rpartition("/")[2] in describe(row.name).text


@pytest.mark.parametrize(
    ("paper", "addresses"),
    [
        ("", ()),
        ("Nobody, Unpublished", ()),
        ("A, T, arXiv 1911.05722; B, U, arXiv:2003.04297v2", ("1911.05722", "2003.04297")),
        ("A, T, ARXIV: cs/0112017", ("cs/0112017",)),
    ],
)
def test_addresses_of_papers(paper: str, addresses: tuple[str, ...]) -> None:
    assert links(paper) == tuple(f"https://arxiv.org/abs/{each}" for each in addresses)


@pytest.mark.parametrize(
    ("lines", "known"),
    [
        ("License: MIT", {"license": "MIT"}),
        ("License: UNKNOWN", {}),
        ("Classifier: License :: OSI Approved :: MIT License", {"license": "MIT License"}),
        ("Home-page: https://example.org", {"home_page": "https://example.org"}),
        ("Project-URL: Source, https://example.org/git", {"home_page": "https://example.org/git"}),
        ("Requires-Dist: clf-vision>=0.1; python_version < '3'", {}),
        ("Requires-Dist: rubbish !!", {}),
    ],
)
def test_metadata_as_older_tools_write_it(foo: Callable[..., Path], lines: str, known: dict[str, str]) -> None:
    foo(metadata=f"Metadata-Version: 2.1\nName: clf-foo\nVersion: 1.0\n{lines}\n")
    assert distributions.about("clf-foo") == distributions.About(**known)


def test_metadata_of_nobody() -> None:
    assert distributions.about("clf-that-nobody-has") == distributions.About()


@pytest.mark.parametrize(
    ("source", "environment", "state", "reason"),
    [
        ("1 / 0", "", "broken", "stage import: ZeroDivisionError"),
        ("raise SystemExit(0)", "", "broken", "stage import: SystemExit"),
        (PLUGIN.format(paper=PAPER), "foo", "disabled", "blocked by CLF_DISABLE_PLUGINS"),
    ],
)
def test_of_a_plugin_that_cannot_be_used_the_metadata_is_shown(
    run_cli: Cli,
    foo: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    environment: str,
    state: str,
    reason: str,
) -> None:
    foo(source)
    monkeypatch.setenv("CLF_DISABLE_PLUGINS", environment)
    found = shown(run_cli, "foo", code=2)
    assert (found["state"], found["about"]["license"], found["methods"]) == (state, "Apache-2.0", [])
    assert reason in found["reason"]
    done = run_cli("plugins", "show", "foo")
    assert done.code == 2
    assert f"state:     {state}" in done.out and "home page: https://example.org/foo" in done.out
    assert done.err.startswith("error: plugin 'foo' (clf-foo 1.0)") and reason in done.err


def test_a_plugin_that_nobody_has_is_one_sentence(run_cli: Cli) -> None:
    for name in ("simclir", "./gone.py"):
        done = run_cli("plugins", "show", name)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: ")


def test_a_method_whose_recommendations_fail_is_told_as_the_plugins_fault(
    run_cli: Cli, foo: Callable[..., Path]
) -> None:
    recommended = "@classmethod\n    def recommended(cls, given):\n        raise KeyError('gone')"
    foo(PLUGIN.format(paper=recommended))
    done = run_cli("plugins", "show", "foo")
    assert done.code == 2
    assert "plugin 'foo' (clf-foo 1.0)" in done.err and "recommended" in done.err and "KeyError" in done.err


def test_the_last_result_of_the_checks(run_cli: Cli, foo: Callable[..., Path]) -> None:
    site = foo()
    outcomes = (Outcome(CHECKS[0], "passed"), Outcome(CHECKS[1], "failed", "7 of 9 were wrong"))
    result = Conformance("foo", "clf-foo", "1.0", clf.__version__, outcomes, 1.0, "2025-01-02T03:04:05+00:00")
    record.keep("foo", result.as_dict())
    found = shown(run_cli, "foo")["checks"]
    assert (found["conforms"], found["outdated"]) == (False, [])
    out = run_cli("plugins", "show", "foo").out
    assert "Checks: does not conform: 1 passed, 1 failed (2025-01-02 03:04 UTC)" in out
    assert f"  failed: {CHECKS[1].name}: 7 of 9 were wrong" in out
    assert "no more" not in out

    module = site / "clf_foo.py"
    module.write_text(module.read_text() + "\n# changed\n")
    out = run_cli("plugins", "show", "foo").out
    assert "true no more: the source has changed since. Check again: clf plugins check foo" in out
    record.keep("foo", replace(result, version="0.9", clf_version="0.0.1").as_dict())
    outdated = shown(run_cli, "foo")["checks"]["outdated"]
    assert outdated == ["it was of clf-foo 0.9", "it was with clf-vision 0.0.1"]
