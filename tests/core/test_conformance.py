"""Running the checks: what needs what, what a plugin may do in one, what is kept, printed and tested."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conforming import GOOD, HEAD, HOOK, Install, install_foo

from clf import testing
from clf.checks import Check, Failed, Outcome, Skipped, at
from clf.errors import ConfigError, PluginError
from clf.testing import isolation, packages, record, suite
from clf.testing.subject import Subject
from clf.testing.suite import CHECKS, examine, run_checks

RunCli = Callable[..., object]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes among the user's caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite without the checks that train."""
    monkeypatch.setattr(suite, "CHECKS", packages.CHECKS)


def check(run: Callable[[Subject], str | None], name: str = "own", needs: tuple[str, ...] = ()) -> Check[Subject]:
    return Check(name, "Something.", "It matters.", "Mend it.", run, needs)


def judged(run: Callable[[Subject], str | None], tmp_path: Path) -> Outcome:
    return examine(Subject("simclr", tmp_path), [check(run)]).outcome("own")


def test_every_check_has_its_words_and_what_it_needs_comes_before_it() -> None:
    seen: set[str] = set()
    for each in CHECKS:
        assert each.name == each.name.strip() and each.name not in seen
        assert set(each.needs) <= seen
        for words in (each.looks_at, each.why, each.remedy):
            assert words.endswith(".") and "\n" not in words
        seen.add(each.name)


def test_a_check_that_trains_waits_for_a_plugin_that_can_be_configured() -> None:
    trains = next(each for each in CHECKS if each.name == "trains")
    assert "defaults" in trains.needs


def raising(error: BaseException) -> Callable[[Subject], str | None]:
    def run(subject: Subject) -> str | None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (Failed("2 of 3 are wrong"), "failed", "2 of 3 are wrong"),
        (Skipped("nothing to see"), "skipped", "nothing to see"),
        (ConfigError("no such key"), "failed", "no such key"),
        (ValueError("bad\nvalue"), "failed", "ValueError: bad value (test_conformance.py, line "),
        (SystemExit(3), "failed", "SystemExit: 3 ("),
        (GeneratorExit(), "failed", "GeneratorExit: no message ("),
    ],
)
def test_whatever_a_plugin_raises_is_an_outcome(tmp_path: Path, error: BaseException, state: str, text: str) -> None:
    outcome = judged(raising(error), tmp_path)
    assert outcome.state == state
    assert outcome.text.startswith(text)


def test_ctrl_c_ends_the_suite(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        judged(raising(KeyboardInterrupt()), tmp_path)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no alarm")
@pytest.mark.parametrize(("limit", "unit", "nap"), [("LIMIT", "s", 1000.0), ("CPU_LIMIT", "s of the processor", 0.0)])
def test_a_check_that_does_not_end_is_ended(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    limit: str,
    unit: str,
    nap: float,
) -> None:
    monkeypatch.setattr(isolation, limit, 0.3)

    def endless(subject: Subject) -> str | None:
        while True:
            try:
                print("and on")
                time.sleep(nap)
            except Exception:
                continue

    outcome = judged(endless, tmp_path)
    assert (outcome.state, outcome.text) == ("failed", f"it was not done after 0.3 {unit}, and was ended")
    assert capfd.readouterr().out == ""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no alarm")
def test_the_alarm_of_others_goes_on() -> None:
    rung: list[int] = []
    before = signal.getitimer(signal.ITIMER_REAL)
    handler = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 5000)
        with isolation.isolated():
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= isolation.LIMIT
        assert 4000 < signal.getitimer(signal.ITIMER_REAL)[0] <= 5000
        signal.setitimer(signal.ITIMER_REAL, 20)
        with isolation.isolated():
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 20
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)


def test_a_check_leaves_the_process_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def careless(subject: Subject) -> str | None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        torch.set_grad_enabled(False)
        os.chdir("/")
        sys.path.insert(0, "/nowhere")
        print("loud")
        print("loud", file=sys.stderr)
        warnings.warn("loud", stacklevel=1)
        return "done"

    def state() -> list[object]:
        drawn = [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]
        switches = [torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()]
        return [*drawn, *switches, Path.cwd(), list(sys.path)]

    before = state()
    assert judged(careless, tmp_path).state == "passed"
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_a_check_waits_for_those_it_needs_and_each_runs_once(tmp_path: Path) -> None:
    ran: list[str] = []

    def noted(name: str, error: BaseException | None = None) -> Callable[[Subject], str | None]:
        def run(subject: Subject) -> str | None:
            ran.append(name)
            if error:
                raise error
            return None

        return run

    checks = [
        check(noted("good"), "good"),
        check(noted("bad", Failed("no")), "bad"),
        check(noted("not for this", Skipped("because")), "not for this"),
        check(noted("a"), "a", ("good", "bad")),
        check(noted("b"), "b", ("a",)),
        check(noted("c"), "c", ("not for this",)),
        check(noted("d"), "d", ("good",)),
    ]
    examination = examine(Subject("simclr", tmp_path), checks)
    found = {name: examination.outcome(name) for name in "dcba"}
    assert {name: outcome.state for name, outcome in found.items()} == {
        "a": "not run", "b": "not run", "c": "skipped", "d": "passed",
    }  # fmt: skip
    assert found["b"].text == found["a"].text == "it needs 'bad', which failed"
    assert found["c"].text == "because"
    assert sorted(ran) == ["bad", "d", "good", "not for this"]


def test_a_function_named_by_its_place(tmp_path: Path) -> None:
    assert at("clf.testing.packages:name")(Subject("simclr", tmp_path)) == "simclr = clf_simclr"


def test_an_outcome_explains_a_failure_only() -> None:
    failed = Outcome(check(raising(Failed(""))), "failed", "1 of 2 is wrong", 0.5)
    assert failed.explain() == "1 of 2 is wrong\nWhy it matters: It matters.\nTo mend it: Mend it."
    assert failed.as_dict()["remedy"] == "Mend it."
    passed = replace(failed, state="passed", text="2 of 2")
    assert passed.explain() == "2 of 2"
    assert "remedy" not in passed.as_dict()


def test_settings_that_are_not_the_users(tmp_path: Path) -> None:
    for key in ("run.name", "data.name", "plugin"):
        with pytest.raises(ConfigError, match=key):
            Subject("simclr", tmp_path, {key: "x"})


@pytest.mark.usefixtures("static")
def test_run_checks_tells_as_it_goes_and_keeps_the_result(install: Install, cache: Path) -> None:
    install_foo(install)
    started: list[str] = []
    ended: list[Outcome] = []
    found = run_checks("foo", on_start=lambda each: started.append(each.name), on_outcome=ended.append)
    assert found.conforms and (found.plugin, found.distribution, found.version) == ("foo", "clf-foo", "1.0")
    assert started == [each.check.name for each in ended] == [each.name for each in packages.CHECKS]
    last = record.read_last("foo")
    assert last == {**found.as_dict(), "source_sha256": last and last["source_sha256"], "outdated": []}
    assert [path.name for path in (cache / "clf" / "checks").iterdir()] == ["foo.json"]


def test_a_failure_that_keeps_chosen_checks_from_running_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import a_package_that_nobody_has\n")
    told: list[Outcome] = []
    found = run_checks(str(path), ["name", "config"], on_outcome=told.append)
    assert [(each.check.name, each.state) for each in told] == [
        ("loads", "failed"),
        ("name", "not run"),
        ("config", "not run"),
    ]
    assert tuple(told) == found.outcomes and not found.conforms
    assert "a_package_that_nobody_has" in told[0].explain()


def test_some_checks_only_keep_nothing(cache: Path) -> None:
    found = run_checks("simclr", ["imports", "config"])
    assert [(each.check.name, each.state) for each in found.outcomes] == [("imports", "passed"), ("config", "passed")]
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("simclr", ["imprts"]), ConfigError, "there is no check 'imprts'. Did you mean 'imports'?"),
        (("simcl", ["imports"]), PluginError, "Did you mean 'simclr'?"),
        (("./gone.py", ["imports"]), PluginError, "does not exist"),
        (("simclr", ["imports"], {"run.dir": "x"}), ConfigError, "run.dir"),
    ],
)
def test_mistakes_in_what_is_given(arguments: tuple[object, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        run_checks(*arguments)  # type: ignore[arg-type]
    assert words in str(raised.value)


@pytest.mark.usefixtures("static")
def test_the_last_result_says_when_it_may_no_longer_be_true(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "foo.py"
    path.write_text(GOOD)
    assert record.read_last(str(path)) is None
    run_checks(str(path))
    last = record.read_last(str(path))
    assert last is not None and last["conforms"] and last["outdated"] == []
    path.write_text(GOOD + "# more\n")
    last = record.read_last(str(path))
    assert last is not None and last["outdated"] == ["the source has changed since"]
    (kept,) = (cache / "clf" / "checks").iterdir()
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "clf_version": "0.0.1"}))
    last = record.read_last(str(path))
    assert last is not None and last["outdated"][1] == "it was with clf-vision 0.0.1"
    path.unlink()
    last = record.read_last(str(path))
    assert last is not None and last["outdated"] == ["the plugin cannot be used now"]
    kept.write_text('{"outcomes": 3}')
    assert record.read_last(str(path)) is None


@pytest.mark.usefixtures("static")
def test_the_result_of_another_version(install: Install) -> None:
    site = install_foo(install)
    run_checks("foo")
    (site / "clf_foo-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: clf-foo\nVersion: 2.0\n")
    last = record.read_last("foo")
    assert last is not None and last["outdated"] == ["it was of clf-foo 1.0"]


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert record.keep("simclr", {"outcomes": []}) is None
    assert record.read_last("simclr") is None


def test_reading_the_last_result_imports_no_torch() -> None:
    program = "import sys; from clf.testing.record import read_last; read_last('simclr'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"False\n"


def test_the_public_names() -> None:
    assert all(getattr(testing, name).__doc__ for name in testing.__all__)
    assert dir(testing) == sorted(testing.__all__)
    with pytest.raises(AttributeError):
        _ = testing.nothing


def test_head_and_hook_are_part_of_the_good_plugin() -> None:
    assert GOOD.startswith(HEAD) and GOOD.endswith(HOOK)
