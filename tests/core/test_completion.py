"""What the shell offers at TAB: by the protocol of typer's scripts in processes of their own, and in real shells."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clf.config import Config, known_keys
from clf.sources import BUILT_IN

pty = pytest.importorskip("pty", reason="terminals are tested where there are any")

Cli = Callable[..., Any]
Ask = Callable[..., list[str]]
Install = Callable[..., Path]

METHOD = """
import os, sys
import clf
from pydantic import Field
from typing import Literal

print("noise")
os.write(1, b"more noise\\n")
os.write(2, b"and more\\n")

class FooConfig(clf.MethodConfig):
    sharpness: float = Field(2.0, description="how sharp it is")
    form: Literal["round", "square"] = Field("round", description="of the foo")
    depth: int = Field(description="has no default")

class Foo(clf.Method[FooConfig]):
    name = "foo"
    Config = FooConfig
    def training_step(self, batch, ctx):
        return self.backbone(batch.views[0]).sum()

def birds(section, seed, progress):
    return None

@clf.hookimpl
def clf_methods():
    return [Foo]

@clf.hookimpl
def clf_datasets():
    return [birds]
"""


PATIENT = "from clf.commands import completion; completion.PATIENCE = 600.0"
"""Importing torch takes long on a busy machine."""


def bash_words(line: str) -> list[str]:
    """As bash hands words over, with the default COMP_WORDBREAKS."""
    words = [part for word in line.split() for part in re.findall(r"[=:]+|[^=:]+", word)]
    return [*words, ""] if line.endswith(" ") else words


@pytest.fixture
def ask(run_cli_process: Cli) -> Ask:
    """``ask("clf train --plugin ")``: what is offered, whole lines as they are printed."""

    def run(line: str, shell: str = "bash", **more: Any) -> list[str]:
        env = {"_CLF_COMPLETE": f"complete_{shell}", **more.pop("env", {})}
        if shell == "bash":
            words = bash_words(line)
            env |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
        else:
            env |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        done = run_cli_process(env=env, before=f"{PATIENT}\n{more.pop('before', '')}", **more)
        assert done.err == ""
        assert done.code == 0
        return str(done.out).split("\n")[:-1] if done.out.strip() else []

    return run


IN_BASH = {
    "clf train train.ep": ["train.epochs=", "train.epochs=100"],
    "clf doctor train.ep": ["train.epochs=", "train.epochs=100"],
    "clf verify ranks --plugin simclr train.ep": ["train.epochs=", "train.epochs=100"],
    "clf plugins check simclr train.ep": ["train.epochs=", "train.epochs=100"],
    "clf train optimizer.name=": ["adamw", "adam", "sgd", "lars"],
    "clf train optimizer.name=sg": ["sgd"],
    "clf train schedule.name=linear optimizer.name=s": ["sgd"],
    "clf train monitor.stop_on_collapse=": ["true", "false"],
    "clf train train.channels_last=": ["true", "false", "null"],
    "clf train augment.flip=": ["null"],
    "clf train data.name=": list(BUILT_IN),
    "clf train data.name=d": ["digits"],
    "clf evaluate some-run data.name=d": ["digits"],
    "clf evaluate some-run --on d": ["digits"],
    "clf evaluate some-run train.e": [],
    "clf train --config gone.yaml train.ep": ["train.epochs=", "train.epochs=100"],
    "clf train --resume gone train.ep": ["train.epochs=", "train.epochs=100"],
    "clf train no.such.key": [],
    "clf train no.such=": [],
    "clf train method.": [],
    "clf train plugin=sim": ["simclr"],
    "clf train --plugin sim": ["simclr"],
    "clf train --plugin=sim": ["simclr"],
    "clf plugins show sim": ["simclr"],
    "clf plugins check sim": ["simclr"],
    "clf plugins list --state dis": ["disabled"],
    "clf plugins new mine --from sim": ["simclr"],
    "clf plugi": ["plugins"],
    "clf runs li": ["list"],
}
MANY = """
import json, os, sys
from clf.cli import main

for words in json.loads(sys.argv.pop()):
    os.environ |= {"COMP_WORDS": "\\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    print("@", flush=True)
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
"""


def test_in_bash(tmp_path: Path) -> None:
    """One process answers all, because starting one takes longer than the answer."""
    words = json.dumps([bash_words(line) for line in IN_BASH])
    env = {**os.environ, "_CLF_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", MANY, words]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    answers = [[each for each in answer.splitlines() if each] for answer in done.stdout.split("@\n")[1:]]
    assert dict(zip(IN_BASH, answers, strict=True)) == IN_BASH
    assert done.stderr == ""


def test_every_key_is_offered_once_and_not_when_it_has_a_value(ask: Ask) -> None:
    keys = {f"{key}=" for key in known_keys(Config) if key != "method"}
    assert set(ask("clf train ")) == keys
    assert set(ask("clf train --plugin simclr train.epochs=3 ")) == keys - {"plugin=", "train.epochs="} | {"method."}
    assert set(ask("clf evaluate some-run ")) == {key for key in keys if key.startswith("data.")}


def test_plugins_are_offered_without_torch(ask: Ask) -> None:
    report = "import atexit, sys; atexit.register(lambda: sys.stdout.write(f'LOADED {\"torch\" in sys.modules}\\n'))"
    for line in ("clf train --plugin ", "clf train train.ep", "clf train data.name=sh", "clf plugins check --only "):
        assert ask(line, before=report)[-1] == "LOADED False"


@pytest.mark.slow
def test_settings_of_the_method_that_the_line_names(ask: Ask, install: Install, tmp_path: Path) -> None:
    site = install("clf-foo", plugins={"foo": "clf_foo"}, modules={"clf_foo": METHOD})
    env = {"PYTHONPATH": str(site)}
    keys = ["method.sharpness=", "method.form=", "method.depth="]
    assert ask("clf train --plugin foo method.", env=env) == keys
    (tmp_path / "my.yaml").write_text("plugin: foo\n")
    assert ask("clf train --config my.yaml meth", env=env) == keys
    assert ask("clf train plugin=foo method.form=", env=env) == ["round", "square"]
    assert ask("clf train data.name=foo:", env=env) == ["birds"]


def test_a_single_file(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(METHOD)
    (tmp_path / "code" / "notes.txt").write_text("")
    assert ask("clf train --plugin ./co") == ["./code/", "./code/mine.py"]
    assert ask("clf train --plugin ./code/mine.py method.fo") == [
        "method.form=",
        "method.form=round",
        "method.form=square",
    ]


@pytest.mark.parametrize("source", ["raise SystemExit(3)", "import gone", "1 / 0", "def f(:", "x = 1"])
def test_a_broken_plugin_offers_nothing_and_says_nothing(ask: Ask, install: Install, source: str) -> None:
    site = install("clf-foo", plugins={"foo": "clf_foo"}, modules={"clf_foo": source})
    assert ask("clf train --plugin foo method.", env={"PYTHONPATH": str(site)}) == []


def test_a_plugin_that_hangs_is_given_up(run_cli_process: Cli, install: Install) -> None:
    site = install("clf-foo", plugins={"foo": "clf_foo"}, modules={"clf_foo": "import time\ntime.sleep(600)"})
    env = {"_CLF_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "clf train --plugin foo method."}
    impatient = "from clf.commands import completion; completion.PATIENCE = 1.0"
    done = run_cli_process(env={**env, "PYTHONPATH": str(site)}, before=impatient)
    assert (done.code, done.out, done.err) == (1, "", "")


def test_a_command_that_cannot_be_loaded_makes_no_noise(ask: Ask, install: Install) -> None:
    site = install("clf-more", commands={"greet": "clf_more:f"}, modules={"clf_more": "print('noise')\nimport gone"})
    offered = ask("clf ", env={"PYTHONPATH": str(site)})
    assert "greet" in offered and "serve" in offered and not any("noise" in each for each in offered)


def test_options_of_commands_that_come_by_entry_point(ask: Ask) -> None:
    assert "--allow-removals" in ask("clf index --allow")
    assert ask("clf index --index fl") == ["flat"]


@pytest.mark.slow
def test_runs(ask: Ask, tmp_path: Path) -> None:
    for folder, name, state in (("runs", "one", "complete"), ("runs", "two", "running"), ("old", "three", "complete")):
        run = tmp_path / folder / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("plugin: simclr\n")
        (run / "manifest.json").write_text(json.dumps({"state": state}))
    assert ask("clf evaluate ") == ["one", "two"]
    assert ask("clf report o") == ["one"]
    assert ask("clf export --runs old th") == ["three"]
    assert ask("clf runs show old/") == ["old/three"]
    assert ask("clf compare one t") == ["two"]
    assert ask("clf train --resume ") == ["auto", "one", "two"]
    assert ask("clf train run.dir=old --resume t") == ["three"]
    assert ask("clf train --resume two method.temp") == ["method.temperature=", "method.temperature=0.5"]
    assert "two\trunning" in ask("clf evaluate ", shell="fish")


def test_configuration_files(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "configs" / "deep").mkdir(parents=True)
    for name in ("a.yaml", "b.yml", "c.txt", ".hidden.yaml"):
        (tmp_path / "configs" / name).write_text("")
    (tmp_path / "my run.yaml").write_text("")
    assert ask("clf train --config con") == ["configs/", "configs/a.yaml", "configs/b.yml", "configs/deep/"]
    assert ask("clf train --config configs/b") == ["configs/b.yml"]
    assert ask("clf train --config m") == [r"my\ run.yaml"]
    assert ask("clf train data.root=configs/c") == ["configs/c.txt"]
    assert ask("clf train --config ~/x") == []


def test_extensions_of_others(ask: Ask, install: Install) -> None:
    for name in ("foo", "bar"):
        install(f"clf-{name}", plugins={name: f"clf_{name}"}, modules={f"clf_{name}": "raise SystemExit"})
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if "site-clf-" in path)}
    assert ask("clf evaluate a-run --evaluator ", env=env) == ["bar", "foo"]
    assert ask("clf evaluate a-run --evaluator foo,", env=env) == ["foo,bar"]
    assert ask("clf train monitor.callbacks=foo,", env=env) == ["foo,bar"]
    assert ask("clf train data.name=f", env=env) == ["folder", "fashion_mnist", "foo"]


def test_checks(ask: Ask) -> None:
    from clf.testing.suite import CHECKS

    names = [check.name for check in CHECKS]
    assert ask("clf plugins check simclr --only ") == [name.replace(" ", r"\ ") for name in names]
    head, *rest = names
    assert ask(f"clf plugins check simclr --only {head},", shell="zsh") != []
    offered = ask(f"clf plugins check simclr --only {head},")
    assert offered == [f"{head},{name}".replace(" ", r"\ ") for name in rest]


def test_in_zsh_and_fish_words_are_whole_and_explained(ask: Ask) -> None:
    assert ask("clf train optimizer.name=sg", shell="zsh") == ["""_arguments '*: :(("optimizer.name=sgd"))'"""]
    (epochs, hundred) = ask("clf train monitor.log", shell="fish")
    assert epochs.startswith("monitor.log_every=\toptimiser steps between records")
    assert hundred == "monitor.log_every=10\tthe default"
    assert ask("clf train --plugin simc", shell="fish")[0].startswith("simclr\tclf-vision ")


SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        'eval "$(_CLF_COMPLETE=source_bash clf)"; bind "set bell-style none"; '
        'bind -x \'"\\C-g": printf "<%s>\\n" "[$READLINE_LINE]"\'; PS1=; echo "<rea""dy>"',
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "autoload -Uz compinit; compinit -u -D; _CLF_COMPLETE=source_zsh clf > script; source ./script; "
        'told() { print -r -- "<[$BUFFER]>" }; zle -N told; bindkey "^G" told; unsetopt beep; PS1=; echo "<rea""dy>"',
    ),
}


class Terminal:
    """A shell at a terminal, with ``clf`` and its completion."""

    def __init__(self, end: int) -> None:
        self._end = end
        self._seen = ""

    def until(self, pattern: str) -> str:
        """What matched the pattern, once it is printed."""
        deadline = time.monotonic() + 120
        while not (found := re.search(pattern, self._seen)):
            ready, _, _ = select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern} did not come: {self._seen!r}"
            self._seen += os.read(self._end, 65536).decode(errors="replace")
        self._seen = self._seen[found.end() :]
        return found[1]

    def send(self, text: str) -> None:
        os.write(self._end, text.encode())

    def after_tab(self, line: str) -> str:
        """The line as it is after TAB."""
        self.send(f"{line}\t\x07")
        completed = self.until(r"<\[(.*?)\]>")
        self.send("\x15")
        return completed


@contextmanager
def terminal(shell: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    command, start = SHELLS[shell]
    (folder / "bin").mkdir()
    script = folder / "bin" / "clf"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m clf "$@"\n')
    script.chmod(0o755)
    ours, theirs = pty.openpty()
    env = {
        **os.environ,
        "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}",
        "TERM": "xterm",
        "HOME": str(folder),
    }
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=folder, start_new_session=True
    )
    os.close(theirs)
    try:
        made = Terminal(ours)
        made.send(start + "\n")
        made.until("<(ready)>")
        yield made
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def at_the_terminal(lines: Sequence[tuple[str, str]], shell: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (folder / "my.yaml").write_text("")
    with terminal(shell, folder, patch) as typing:
        assert [typing.after_tab(before) for before, _ in lines] == [after for _, after in lines]


COMPLETED = [
    ("clf train --plugin simc", "clf train --plugin simclr "),
    ("clf train train.ep", "clf train train.epochs="),
    ("clf train optimizer.name=sg", "clf train optimizer.name=sgd "),
    ("clf train schedule.name=linear optimizer.n", "clf train schedule.name=linear optimizer.name="),
    ("clf train --config m", "clf train --config my.yaml "),
    ("clf train backbone.pretr", "clf train backbone.pretrained="),  # its help has an apostrophe
    ("clf train monitor.knn_e", "clf train monitor.knn_every="),  # a semicolon and a percent sign
    ("clf train optimizer.be", "clf train optimizer.betas="),  # brackets in the default
    ("clf train backbone.s", "clf train backbone.stem="),
]


@pytest.mark.slow
def test_in_a_real_bash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_bash = [
        ("clf train --plugin=simc", "clf train --plugin=simclr "),
        ("clf train data.root=m", "clf train data.root=my.yaml "),
    ]
    at_the_terminal([*COMPLETED, *only_bash], "bash", tmp_path, monkeypatch)


def test_in_a_real_zsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_the_terminal(COMPLETED, "zsh", tmp_path, monkeypatch)


def test_in_a_real_fish(tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    script = tmp_path / "clf"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m clf "$@"\n')
    script.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    for line, offered in (("clf train optimizer.name=sg", "optimizer.name=sgd"), ("clf train --plugin simc", "simclr")):
        program = f"_CLF_COMPLETE=source_fish clf | source; complete -C'{line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", program], env=env, capture_output=True, text=True, timeout=120
        )
        assert [row.split("\t")[0] for row in done.stdout.splitlines()] == [offered], done.stderr


def test_it_is_installed_for_the_shell_in_use(tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    program = f"'{sys.executable}' -m clf --install-completion; true"
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", program], env=env, capture_output=True, text=True, timeout=120, check=True)
    assert "bash completion installed" in done.stdout
    assert "_clf_completion" in (tmp_path / ".bash_completions" / "clf.sh").read_text()
