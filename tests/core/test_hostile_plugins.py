"""Ten hostile or broken plugins beside damaged metadata, all installed at once: nothing else is hurt by any of them,
and each, asked for by name, says what is wrong with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_settings import SMALL

from clf.runs import Run

Cli = Callable[..., Any]
Install = Callable[..., Path]

GOOD = """
import clf
from clf import losses

class Config(clf.MethodConfig):
    temperature: float = 0.5

class Good(clf.Method[Config]):
    name = "NAME"
    Config = Config

    def training_step(self, batch, ctx):
        a, b = (self.backbone(view) for view in batch.views)
        return losses.nt_xent(a, b, self.config.temperature, gather=ctx.gather, rank=ctx.rank)

@clf.hookimpl
def clf_methods():
    return [Good]
"""
PRINTS = """
import os, sys
print("printed")
os.write(1, b"written\\n")
os.system("echo said by a child")
sys.__stdout__.write("to the real one\\n")
"""
LOOPS = """
import clf, sys

@clf.hookimpl
def clf_methods():
    print("in the loop", flush=True)
    while True:
        pass
"""
FAILS = (
    GOOD.replace("        a, b =", "        if ctx.step == 7:\n            self.fail(batch)\n        a, b =")
    + """
def fail(self, batch):
    raise ValueError("no good at seven")

Good.fail = fail
"""
)
HANGS = GOOD.replace(
    "        a, b =",
    """        import os, sys
        while ctx.step == 5 and "CLF_TEST_HANG" in os.environ:
            print("in a step that does not end", file=sys.stderr, flush=True)
            import time; time.sleep(0.2)
        a, b =""",
)

SOURCES = {
    "needy": "import a_package_that_nobody_has",
    "quitter": "import sys\nsys.exit('bye')",
    "garbled": "def f(:",
    "hooker": GOOD.replace("def clf_methods", "def clf_method"),
    "future": GOOD,
    "slow": "import time\ntime.sleep(60)\n" + GOOD,
    "noisy": PRINTS + GOOD,
    "failing": FAILS,
    "looping": LOOPS,
    "hanging": HANGS,
}
SAID = {
    "needy": "plugin 'needy' (clf-needy 1.0) is broken, stage import: ModuleNotFoundError: No module named 'a_package",
    "quitter": "plugin 'quitter' (clf-quitter 1.0) is broken, stage import: SystemExit: bye (clf_quitter.py, line 2)",
    "garbled": "plugin 'garbled' (clf-garbled 1.0) is broken, stage import: SyntaxError: invalid syntax",
    "hooker": "plugin 'hooker' (clf-hooker 1.0) is broken, stage registration: there is no hook 'clf_method'. Did",
    "future": "plugin 'future' (clf-future 1.0) cannot be used, state incompatible: it needs clf-vision>=999",
    "clf_rubble-1.0.dist-info": "cannot be used, state broken: its metadata is damaged",
}


@pytest.fixture
def path(install: Install, monkeypatch: pytest.MonkeyPatch) -> str:
    """All of them installed, for this process; the value is PYTHONPATH for others."""
    sites = [install("clf-thief", plugins={"simclr": "clf_thief"}, modules={"clf_thief": "raise SystemExit(0)"})]
    for name, source in SOURCES.items():
        module = f"clf_{name}"
        needs = ["clf-vision>=999"] if name == "future" else []
        source = source.replace("NAME", name)
        sites.append(install(f"clf-{name}", plugins={name: module}, modules={module: source}, requires=needs))
    sites.append(install("clf-rubble", entry_points="[clf.plugins]\nno equals sign here\n"))
    joined = os.pathsep.join(map(str, sites))
    monkeypatch.setenv("PYTHONPATH", joined)
    return joined


@dataclass
class Child:
    """A command in a process of its own, whose standard error is read while it runs."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    def wait_for(self, words: str, times: int = 1) -> None:
        """Until standard error has the words so often; the end of the process is an error."""
        deadline = time.monotonic() + 180
        while self.err.count(words) < times:
            assert self.process.poll() is None and time.monotonic() < deadline, self.err
            time.sleep(0.05)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)


@contextmanager
def running(folder: Path, *words: str, **environment: str) -> Iterator[Child]:
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        program = (
            "import signal\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
            "from clf.cli import main\nmain()"
        )
        command = [sys.executable, "-c", program, *words]
        environment = {**os.environ, **environment}
        with subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err) as process:
            try:
                yield Child(process, folder)
            finally:
                process.kill()


def words_for(plugin: str, name: str) -> list[str]:
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    return ["train", "--plugin", plugin, *settings, "monitor.knn_every=0", f"run.name={name}"]


def test_all_else_goes_on_working_in_processes_of_its_own(path: str, run_cli_process: Cli, tmp_path: Path) -> None:
    listed = run_cli_process("plugins", "list", "--json")
    rows = {row["distribution"]: row for row in json.loads(listed.out)}
    assert (listed.code, listed.err) == (0, "")
    assert {f"clf-{name}" for name in SOURCES} | {"clf-thief", "clf-vision"} <= set(rows)
    assert (rows["clf-thief"]["name"], rows["clf-thief"]["state"]) == ("simclr", "conflict")
    assert rows["clf-future"]["state"] == "incompatible"
    assert [row["reason"][:23] for row in rows.values() if row["state"] == "broken"] == ["its metadata is damaged"]
    for words in (["--help"], ["search", "--help"], ["runs", "list", "--json"]):
        done = run_cli_process(*words)
        assert (done.code, "Traceback" in done.err) == (0, False), done.err
    completed = run_cli_process(
        env={"_CLF_COMPLETE": "complete_bash", "COMP_WORDS": "clf\ntrain\n--plugin\nsim", "COMP_CWORD": "3"}
    )
    assert (completed.out.split(), completed.err) == (["simclr"], "")


def test_a_built_in_method_trains_on_a_built_in_source(path: str, run_cli: Cli, tmp_path: Path) -> None:
    """The stolen name stays ours."""
    words = ["data.name=digits", "data.limit=64", "data.image_size=null", "train.max_steps=2", f"run.dir={tmp_path}"]
    settings = [word for word in words_for("simclr", "ours") if not word.startswith("data.")]
    done = run_cli(*settings, *words)
    assert done.code == 0, done.err
    assert Run(tmp_path / "ours").manifest()["plugin_source"]["distribution"] == "clf-vision"
    assert "clf_thief" not in sys.modules


@pytest.mark.parametrize("name", SAID)
def test_each_says_by_name_what_is_wrong(path: str, run_cli: Cli, tmp_path: Path, name: str) -> None:
    for words in (["plugins", "show", name], ["train", "--plugin", name], ["verify", "resume", "--plugin", name]):
        done = run_cli(*words)
        assert done.code == 2
        assert SAID[name] in done.err and "Traceback" not in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_is_printed_at_import_stays_off_standard_output(path: str, run_cli_process: Cli) -> None:
    """By print, by a file descriptor, by a child process and by the interpreter's own stream."""
    done = run_cli_process("plugins", "show", "noisy", "--json")
    assert done.code == 0
    assert json.loads(done.out)["name"] == "noisy"
    assert {"printed", "written", "said by a child", "to the real one"} <= set(done.err.splitlines())


def test_a_method_that_fails_at_step_7_keeps_its_checkpoint_and_goes_on_once_mended(
    path: str, run_cli: Cli, tmp_path: Path
) -> None:
    run = Run(tmp_path / "failing")
    failed = run_cli(*words_for("failing", "failing"), f"run.dir={tmp_path}", "train.checkpoint_minutes=0")
    assert failed.code == 2
    file = tmp_path / "site-clf-failing" / "clf_failing.py"
    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if "no good at seven" in text)
    last = run.checkpoints / "step-000000007.pt"
    assert failed.err.rstrip().splitlines()[-1] == (
        "error: plugin 'failing' (clf-failing 1.0) failed in training_step at step 7: ValueError: no good at seven "
        f"(clf_failing.py, line {line}). The last checkpoint is {last}; once the plugin is mended, go on with "
        f"clf train --resume {run.path}"
    )
    traceback = failed.err.partition("Traceback (most recent call last):\n")[2]
    assert traceback.splitlines()[0].endswith("in training_step")
    assert "trainer.py" not in traceback and "ValueError: no good at seven" in traceback
    assert last.is_file() and run.state() == "failed"
    file.write_text(file.read_text().replace("ctx.step == 7", "False"))
    del sys.modules["clf_failing"]
    assert run_cli("train", "--resume", str(run.path)).code == 0
    assert run.state() == "complete"


@pytest.mark.parametrize(
    ("plugin", "sign", "sentence"),
    [
        (
            "looping",
            "in the loop",
            "stopped by Ctrl-C while in stage clf_methods of plugin 'looping' (clf-looping 1.0)",
        ),
        (
            "slow",
            "still importing plugin 'slow' (clf-slow 1.0) after 5 s; Ctrl-C ends it",
            "stopped by Ctrl-C while importing plugin 'slow' (clf-slow 1.0)",
        ),
    ],
)
def test_control_c_ends_a_hook_and_an_import_that_do_not_end(
    path: str, tmp_path: Path, plugin: str, sign: str, sentence: str
) -> None:
    with running(tmp_path, "train", "--plugin", plugin) as child:
        child.wait_for(sign)
        child.interrupt()
        assert child.process.wait(60) == 130
    assert child.out == ""
    assert child.err.splitlines()[-1] == sentence and "Traceback" not in child.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_second_control_c_ends_a_step_that_does_not_end(path: str, run_cli: Cli, tmp_path: Path) -> None:
    words = [*words_for("hanging", "stuck"), "train.checkpoint_minutes=0"]
    with running(tmp_path, *words, CLF_TEST_HANG="yes") as child:
        child.wait_for("in a step that does not end")
        child.interrupt()
        child.wait_for("Ctrl-C: finishing the step in hand, then saving a checkpoint. Ctrl-C again ends at once")
        child.wait_for("in a step", child.err.count("in a step") + 2)
        child.interrupt()
        assert child.process.wait(60) == 130
    assert child.out == ""
    run = Run(tmp_path / "runs" / "stuck")
    assert child.err.splitlines()[-1] == (
        "stopped by Ctrl-C in training_step of plugin 'hanging' (clf-hanging 1.0) at step 5 (epoch 0.83), which is not "
        "finished and not saved: the last checkpoint is runs/stuck/checkpoints/step-000000005.pt; continue with "
        "clf train --resume runs/stuck"
    )
    assert "Traceback" not in child.err and run.state() == "interrupted"
    assert run_cli("train", "--resume", str(run.path)).code == 0
    assert (run.state(), run.metrics()[-1]["step"]) == ("complete", 12)
