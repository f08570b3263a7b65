"""What an author sees of the checks: on the terminal, as JSON, and as tests of pytest."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conforming import GOOD, HEAD, HOOK, Install, install_foo

from clf.checks import Check, Outcome
from clf.commands import plugins_check
from clf.testing import packages, suite
from clf.testing.subject import Subject

RunCli = Callable[..., Any]
PRIVATE = GOOD.replace(HEAD, HEAD + "from clf.trainer import Trainer\n")
TESTS = """
from clf.testing import conformance

test_conformance = conformance({arguments})
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes among the user's caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite without the checks that train."""
    monkeypatch.setattr(suite, "CHECKS", packages.CHECKS)


@pytest.mark.usefixtures("static")
def test_a_line_for_each_check_and_what_to_do_about_a_failure(install: Install, run_cli: RunCli) -> None:
    install_foo(install, PRIVATE, requires=())
    done = run_cli("plugins", "check", "foo")
    assert done.code == 1
    lines = done.out.splitlines()
    states = [line[:9].strip() for line in lines if not line.startswith(" ")][:-1]
    expected = {"imports": "failed", "requirement": "failed"}
    assert states == [expected.get(check.name, "passed") for check in packages.CHECKS]
    place = next(i for i, line in enumerate(lines) if line.startswith("failed   imports"))
    told = [line.strip() for line in lines[place + 1 : place + 4]]
    assert told[0].startswith("clf_foo.py, line ") and told[0].endswith("clf.trainer.Trainer is not public.")
    assert told[1].startswith("Why it matters: Names that are not public change")
    assert told[2].startswith("To mend it: Use the names of clf.__all__")
    assert lines[-1].startswith("foo (clf-foo 1.0) does not conform: 6 passed, 2 failed, in ")
    assert lines[-1].endswith("Failed: imports, requirement")


@pytest.mark.usefixtures("static")
def test_json_has_every_outcome_and_nothing_else(install: Install, run_cli: RunCli) -> None:
    install_foo(install, PRIVATE)
    done = run_cli("plugins", "check", "foo", "--json", "method.sharpness=2")
    found = json.loads(done.out)
    assert (done.code, found["conforms"], found["settings"]) == (1, False, {"method.sharpness": 2})
    (failed,) = [each for each in found["outcomes"] if each["state"] == "failed"]
    assert set(failed) == {"check", "state", "text", "seconds", "why", "remedy"}
    assert [each["check"] for each in found["outcomes"]] == [check.name for check in packages.CHECKS]


def test_only_some_checks(run_cli: RunCli) -> None:
    done = run_cli("plugins", "check", "simclr", "--only", "imports,config")
    assert done.code == 0
    assert [line.split()[:2] for line in done.out.splitlines()[:2]] == [["passed", "imports"], ["passed", "config"]]
    assert done.out.splitlines()[2].startswith("simclr (clf-vision 0.1.0) conforms: 2 passed, in ")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("simclr", "--only", "odd bach"), "there is no check 'odd bach'. Did you mean 'odd batch'?"),
        (("simclr", "method.temperatur"), "is not of the form key=value"),
        (("simclr", "data.name=cifar10"), "data.name cannot be set here"),
        (("simclrr",), "Did you mean 'simclr'?"),
        (("./gone.py",), "does not exist"),
    ],
)
def test_mistakes_end_with_2(run_cli: RunCli, words: tuple[str, ...], text: str) -> None:
    done = run_cli("plugins", "check", *words)
    assert (done.code, done.out) == (2, "")
    assert text in " ".join(done.err.split())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_running_check_is_shown_and_then_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(subject: Subject) -> None:
        return

    check = Check("slow one", "Something.", "It matters.", "Mend it.", run)
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    lines = plugins_check._Lines(8)
    lines.start(check)
    before = screen.getvalue()
    assert "slow one ..." in before and "\n" not in before
    lines.outcome(Outcome(check, "passed", "a [b] fact", 1.0))
    assert screen.getvalue().removeprefix(before).startswith("\x1b[K")
    assert "a [b] fact" in screen.getvalue()


def run_pytest(folder: Path, arguments: str, *words: str, path: str = "", more: str = "") -> tuple[int, str]:
    folder.mkdir(exist_ok=True)
    (folder / "test_it.py").write_text(TESTS.format(arguments=arguments) + more)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-W", "error", *words, "test_it.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([path, *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_three_lines_are_one_test_for_each_check_and_collecting_them_imports_no_torch(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    look = "import sys\n\n\ndef pytest_collection_finish():\n    print('torch' in sys.modules)\n"
    (folder / "conftest.py").write_text(look)
    code, out = run_pytest(folder, "'simclr'", "--collect-only")
    assert code == 0
    ids = [line.partition("::")[2] for line in out.splitlines() if "::" in line]
    assert ids == [f"test_conformance[{check.name.replace(' ', '_')}]" for check in suite.CHECKS]
    assert "False" in out.splitlines()


@pytest.mark.slow
def test_failures_in_pytest_say_what_to_do_and_show_no_traceback(install: Install, tmp_path: Path) -> None:
    """A plugin with two faults, one without, a file that cannot be loaded and one that nobody knows."""
    site = install_foo(install, PRIVATE.replace(HOOK, HOOK + "\nprint('loud')\n"))
    path = tmp_path / "bar.py"
    path.write_text("raise SystemExit\n")
    others = f"\ntest_file = conformance({str(path)!r})\ntest_gone = conformance('simcl')\n"
    others += "test_built_in = conformance('simclr')\n"
    foo = "test_conformance and (config or imports or quiet)"
    chosen = f"({foo}) or (test_file and requirement) or (test_gone and loads) or (test_built_in and requirement)"
    code, out = run_pytest(
        tmp_path / "tests", "'foo', sharpness=2.0", "-rs", "-n", "2", "-k", chosen, path=str(site), more=others
    )
    assert code == 1
    assert "4 failed, 1 passed, 1 skipped" in out
    assert "clf.trainer.Trainer is not public." in out and "prints 'loud' (clf_foo.py, line " in out
    assert out.count("Why it matters: ") == out.count("To mend it: ") == 2
    assert "not run: it needs 'loads', which failed" in out
    assert "Did you mean 'simclr'?" in out
    assert "it is part of clf-vision" in out
    assert "Traceback" not in out
