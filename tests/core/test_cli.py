from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import clf
from clf import training
from clf.cli import main
from clf.manifest import Manifest, Parity, sha256_file, write_manifest
from clf.runs import Run

Outcome = Any
Cli = Callable[..., Outcome]
Install = Callable[..., Path]

SMALL = (
    "data.name=shapes",
    "data.image_size=16",
    "data.options.train_images=96",
    "data.options.test_images=48",
    "backbone.name=test_resnet",
    "train.epochs=2",
    "train.batch_size=16",
    "train.threads=1",
    "train.device=cpu",
    "monitor.knn_every=0",
)
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def assert_refused(outcome: Outcome, *parts: str) -> None:
    """Exit code 2, one sentence on standard error, nothing on standard output, no traceback."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err


def table(out: str) -> dict[str, list[str]]:
    """First column -> the other cells of a plain table."""
    return {line.split("  ")[0]: [cell.strip() for cell in line.split("  ")[1:] if cell] for line in out.splitlines()}


@pytest.mark.parametrize("words", [("--help",), ("plugins", "list"), ("runs", "list"), ("--version",)])
def test_commands_that_only_look_load_no_torch(run_cli_process: Cli, words: tuple[str, ...]) -> None:
    heavy = ["torch", "timm", "onnxruntime", "faiss", "gradio", "fastapi"]
    report = f"import atexit, sys; atexit.register(lambda: print('LOADED', sorted(set(sys.modules) & {set(heavy)!r})))"
    done = run_cli_process(*words, before=report)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "LOADED []"


def test_help_lists_our_commands_and_those_of_the_server(run_cli: Cli) -> None:
    out = run_cli("--help").out
    for name in ("quickstart", "train", "evaluate", "export", "report", "runs", "plugins"):
        assert f" {name} " in out
    for name in ("embed", "index", "search", "serve"):
        assert f" {name} " in out
    assert "Unavailable" not in out


def test_every_command_has_help(run_cli: Cli) -> None:
    for words in (["train"], ["evaluate"], ["export"], ["report"], ["runs", "show"], ["plugins", "show"], ["serve"]):
        done = run_cli(*words, "--help")
        assert done.code == 0
        assert "Usage: clf " + " ".join(words) in done.out


def test_version(run_cli: Cli) -> None:
    assert run_cli("--version").out == f"clf {clf.__version__}\n"


def test_module_and_script_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "clf", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"clf {clf.__version__}\n"


@pytest.mark.parametrize("words", [("trian",), ("train", "--plugn", "x"), ("serve",), ("plugins", "show")])
def test_usage_errors_exit_with_2(run_cli: Cli, words: tuple[str, ...]) -> None:
    done = run_cli(*words)
    assert done.code == 2
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--plugin", "simclir"], ["unknown plugin 'simclir'", "Did you mean 'simclr'?", "Available: "]),
        ([], ["no plugin is given", "--plugin NAME", "simclr"]),
        (["plugin=7"], ["plugin = 7 is not a name"]),
        (["--plugin", "simclr", "plugin=other"], ["given twice"]),
        (["--plugin", "./gone.py"], ["plugin file ./gone.py does not exist"]),
        (["--plugin", "simclr", "train.epoch=3"], ["'train.epoch'", "command line", "'train.epochs'", "at least 1"]),
        (["--plugin", "simclr", "method.temprature=1"], ["'method.temperature'", "float, above 0"]),
        (["--plugin", "simclr", "train.epochs=many"], ["train.epochs = 'many'", "command line", "int, at least 1"]),
        (["--plugin", "simclr", "optimizer.name=rmsprop"], ["one of adamw, adam, sgd, lars"]),
        (["--plugin", "simclr", "train.epochs=[1"], ["value of train.epochs is not valid YAML"]),
        (["--plugin", "simclr", "train.epochs=3", "more"], ["'more' is not of the form key=value"]),
        (["--plugin", "simclr", "no_such_folder"], ["'no_such_folder' is neither a folder"]),
        (["--plugin", "simclr", "--config", "gone.yaml"], ["gone.yaml does not exist"]),
        (["--resume", "quikstart"], ["there is no run 'quikstart'"]),
        (["--resume", "auto"], ["no unfinished run"]),
    ],
)
def test_mistakes_of_train(
    run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run_cli("train", *words), *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_yaml(run_cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("train: [1\n")
    assert_refused(run_cli("train", "--config", str(path)), "bad.yaml is not valid YAML")


def test_brackets_in_a_message_are_not_markup(run_cli: Cli) -> None:
    assert_refused(run_cli("train", "--plugin", "[bold]x"), "unknown plugin '[bold]x'")


def test_a_broken_plugin_is_refused_by_name_and_hurts_no_other(run_cli: Cli, install: Install) -> None:
    install("clf-foo", plugins={"foo": "clf_foo"}, modules={"clf_foo": "raise SystemExit(0)"})
    assert_refused(run_cli("train", "--plugin", "foo"), "'foo'", "clf-foo 1.0", "stage import", "SystemExit: 0")
    shown = run_cli("plugins", "show", "foo")
    assert shown.code == 2 and "clf-foo" in shown.out
    assert_refused(replace(shown, out=""), "'foo'", "clf-foo 1.0", "stage import")
    assert run_cli("plugins", "show", "simclr").code == 0
    assert table(run_cli("plugins", "list").out)["foo"][0] == "available"


@pytest.mark.slow
def test_without_torch_training_says_what_to_install(run_cli_process: Cli) -> None:
    blocked = BLOCKER.format(blocked={"torch", "timm", "torchvision"})
    for words in (["train", "--plugin", "simclr"], ["plugins", "show", "simclr"]):
        done = run_cli_process(*words, before=blocked)
        assert_refused(done, "'torch'", "pip install 'clf-vision[train]'")
    assert run_cli_process("plugins", "list", before=blocked).code == 0
    assert run_cli_process("--help", before=blocked).code == 0


def test_without_the_server_packages_embedding_says_what_to_install(run_cli_process: Cli, tmp_path: Path) -> None:
    blocked = BLOCKER.format(blocked={"onnxruntime", "faiss", "fastapi", "gradio", "uvicorn"})
    (tmp_path / "encoder.onnx").write_bytes(b"not read")
    parity = Parity(images=1, min_cosine=1, max_abs_error=0)
    digest = sha256_file(tmp_path / "encoder.onnx")
    about = Manifest(name="m", image_size=8, dim=2, channels=3, sha256=digest, plugin="simclr", parity=parity)
    write_manifest(tmp_path, about)
    done = run_cli_process("embed", str(tmp_path), str(tmp_path), "-o", "x.npz", before=blocked)
    assert_refused(done, "pip install 'clf-vision[serve]'")


def test_a_missing_package_that_is_not_ours_is_a_bug_and_keeps_its_traceback(run_cli: Cli, install: Install) -> None:
    install("clf-more", commands={"more": "clf_more:f"}, modules={"clf_more": "def f():\n    import nobody_has_this\n"})
    with pytest.raises(ModuleNotFoundError, match="nobody_has_this"):
        main(["more"])


def test_commands_come_by_entry_point(run_cli: Cli, install: Install) -> None:
    source = 'import typer\ndef greet(name: str, loud: bool = False) -> None:\n    """Say hello."""\n    print(name)\n'
    install("clf-more", commands={"greet": "clf_more:greet"}, modules={"clf_more": source})
    assert "Say hello." in run_cli("--help").out
    assert run_cli("greet", "you").out == "you\n"
    assert run_cli("greet").code == 2


def test_a_group_of_commands_comes_by_one_entry_point(run_cli: Cli, install: Install) -> None:
    source = (
        "import typer\n"
        "greet = typer.Typer(no_args_is_help=True, help='Say things.')\n"
        "@greet.command()\n"
        "def hello(name: str) -> None:\n"
        '    """Say hello."""\n'
        "    print('hello', name)\n"
        "@greet.command('good-bye')\n"
        "def bye(name: str) -> None:\n"
        "    print('bye', name)\n"
    )
    install("clf-more", commands={"greet": "clf_more:greet"}, modules={"clf_more": source})
    assert "Say things." in run_cli("--help").out
    assert "Say hello." in run_cli("greet", "--help").out and "good-bye" in run_cli("greet", "--help").out
    assert run_cli("greet", "hello", "you").out == "hello you\n"
    assert run_cli("greet", "good-bye", "you").out == "bye you\n"
    assert run_cli("greet", "hello").code == 2


@pytest.mark.parametrize(
    ("value", "source", "reason"),
    [
        ("clf_more:greet", "raise SystemExit(0)", "SystemExit: 0"),
        ("clf_more:greet", "import typer\ngreet = typer.Typer()\n@greet.command()\ndef f(x: 'no'): pass", "signature"),
        ("clf_more:greet", "x = 1", "has no attribute 'greet'"),
        ("clf_more:greet", "greet = 3", "is a int, not a function"),
        ("clf_gone:greet", "", "No module named 'clf_gone'"),
        ("clf_more:greet", "def greet(x: 'nothing'): pass", "signature"),
        ("clf_more:greet", "raise ModuleNotFoundError(name='faiss')", "clf-vision[serve]"),
    ],
)
def test_a_command_that_cannot_be_loaded_is_a_row_with_its_reason(
    run_cli: Cli, install: Install, value: str, source: str, reason: str
) -> None:
    install("clf-more", commands={"greet": value}, modules={"clf_more": source})
    listing = run_cli("--help")
    assert listing.code == 0
    assert "Unavailable" in listing.out
    assert_refused(run_cli("greet", "you", "--loud"), reason)
    assert run_cli("plugins", "list").code == 0


def test_a_command_of_ours_cannot_be_taken(run_cli: Cli, install: Install) -> None:
    thief = {"clf_thief": "raise SystemExit"}
    install("clf-thief", commands={"train": "clf_thief:f", "serve": "clf_thief:f"}, modules=thief)
    assert "Usage: clf train" in run_cli("train", "--help").out
    assert "Usage: clf serve" in run_cli("serve", "--help").out
    assert run_cli("--help").out.count("│ serve ") == 1


def test_two_claims_on_one_command(run_cli: Cli, install: Install) -> None:
    for name in ("clf-one", "clf-two"):
        install(name, commands={"greet": "clf_more:greet"}, modules={"clf_more": "def greet(): pass"})
    assert_refused(run_cli("greet"), "'greet'", "clf-one", "also claimed by clf-two")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CLF_DISABLE_PLUGINS", "clf-one")
        assert run_cli("greet").code == 0


def test_print_config_shows_each_key_with_value_and_origin(run_cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("plugin: simclr\ntrain:\n  epochs: 30\n  batch_size: 64\n")
    done = run_cli("train", "--config", str(path), "train.epochs=40", "augment.crop_area=[0.2, 1]", "--print-config")
    assert done.code == 0, done.err
    rows = table(done.out)
    assert rows["key"] == ["value", "origin"]
    assert rows["train.epochs"] == ["40", "command line"]
    assert rows["train.batch_size"] == ["64", str(path)]
    assert rows["augment.crop_area"] == ["[0.2, 1.0]", "command line"]
    assert rows["data.name"] == ["shapes", "default"]
    assert rows["data.root"] == ["null", "default"]
    assert rows["optimizer.lr"] == ["0.001", "derived: AdamW"]
    assert rows["schedule.warmup_epochs"][0] == "4.0"
    assert rows["method.temperature"] == ["0.5", "default"]


def test_the_recommendations_of_a_plugin_are_the_weakest_layer(run_cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import clf\n"
        "class Mine(clf.Method[clf.MethodConfig]):\n"
        "    name = 'mine'\n"
        "    Config = clf.MethodConfig\n"
        "    defaults = {'optimizer.name': 'sgd', 'train.epochs': 7}\n"
        "    def training_step(self, batch, ctx):\n"
        "        return self.backbone(batch.views[0]).mean()\n"
    )
    rows = table(run_cli("train", "--plugin", str(path), "train.epochs=8", "--print-config").out)
    assert rows["optimizer.name"] == ["sgd", f"plugin {path}"]
    assert rows["train.epochs"] == ["8", "command line"]
    path.write_text(path.read_text().replace("'train.epochs'", "'train.epoks'"))
    assert_refused(run_cli("train", "--plugin", str(path)), f"'train.epoks' (plugin {path})", "'train.epochs'")


def test_a_folder_as_first_argument_is_the_data(run_cli: Cli, tmp_path: Path) -> None:
    for folder in (tmp_path / "photos", tmp_path / "a=b"):
        folder.mkdir()
        rows = table(run_cli("train", str(folder), "--plugin", "simclr", "--print-config").out)
        assert rows["data.name"] == ["folder", "command line"]
        assert rows["data.root"] == [str(folder), "command line"]


def test_plugins_list_and_show_as_json(run_cli: Cli, install: Install) -> None:
    noisy = "print('noise')\n"
    install("clf-foo", plugins={"foo": "clf_foo"}, modules={"clf_foo": noisy + "import clf_simclr, clf\n" + NOISY})
    rows = {row["name"]: row for row in json.loads(run_cli("plugins", "list", "--json").out)}
    assert rows["simclr"]["builtin"] is True
    assert rows["foo"]["state"] == "available"
    shown = json.loads(run_cli("plugins", "show", "foo", "--json").out)
    assert shown["methods"][0]["settings"][0]["key"] == "method.temperature"


NOISY = """
class Foo(clf_simclr.SimCLR):
    name = "foo"

@clf.hookimpl
def clf_methods():
    print("more noise")
    return [Foo]
"""


def test_plugins_show_prints_the_table_of_settings(run_cli: Cli) -> None:
    out = run_cli("plugins", "show", "simclr").out
    assert "2002.05709" in out
    assert table(out)["method.projection_dim"][:2] == ["int, at least 1", "128"]
    assert "clf train --plugin simclr" in out


def test_the_runs_of_an_empty_folder(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("runs", "list", "--runs", str(tmp_path))
    assert (done.code, done.out) == (0, "")
    assert "no runs" in done.err
    assert json.loads(run_cli("runs", "list", "--runs", str(tmp_path), "--json").out) == []


def test_runs_list_and_show(run_cli: Cli, tiny_run: Run) -> None:
    folder = str(tiny_run.path.parent)
    (row,) = json.loads(run_cli("runs", "list", "--runs", folder, "--json").out)
    assert (row["name"], row["state"], row["plugin"], row["data"], row["step"]) == (
        "tiny",
        "complete",
        "simclr",
        "shapes",
        12,
    )
    assert table(run_cli("runs", "list", "--runs", folder).out)["tiny"][0] == "complete"
    shown = json.loads(run_cli("runs", "show", "tiny", "--runs", folder, "--json").out)
    assert shown["config"]["train"]["batch_size"] == 16
    assert shown["manifest"]["seed"] == 0
    assert table(run_cli("runs", "show", str(tiny_run.path)).out)["state"] == ["complete"]


def test_a_damaged_run_is_a_row(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "hurt").mkdir()
    (tmp_path / "hurt" / "config.yaml").write_text("plugin: simclr\n")
    (tmp_path / "hurt" / "manifest.json").write_text("{")
    assert table(run_cli("runs", "list", "--runs", str(tmp_path)).out)["hurt"][0] == "damaged"
    assert_refused(run_cli("runs", "show", "hurt", "--runs", str(tmp_path)), "manifest.json is damaged")


@pytest.mark.parametrize("command", ["evaluate", "export", "report"])
def test_commands_on_a_run_that_does_not_exist(run_cli: Cli, tiny_run: Run, command: str) -> None:
    done = run_cli(command, "tinny", "--runs", str(tiny_run.path.parent))
    assert_refused(done, "there is no run 'tinny'", "Did you mean 'tiny'?")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train.epochs=3"], ["'train.epochs' cannot be set here", "data."]),
        (["data.rot=x"], ["'data.root'"]),
        (["--on", "cifar11"], ["cifar11"]),
        (["photos"], ["'photos' is not of the form key=value"]),
    ],
)
def test_mistakes_of_evaluate(run_cli: Cli, tiny_run: Run, words: list[str], parts: list[str]) -> None:
    assert_refused(run_cli("evaluate", str(tiny_run.path), *words), *parts)


@pytest.mark.slow
def test_train_interrupt_resume(run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process, interrupted as Ctrl-C does, says how to go on; going on as it says ends the run."""
    command = [
        sys.executable,
        "-m",
        "clf",
        "train",
        "--plugin",
        "simclr",
        *SMALL,
        "train.epochs=30",
        "train.checkpoint_every=30",
        "monitor.log_every=1",
    ]
    child = subprocess.Popen(
        [*command, "run.name=one"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "runs" / "one" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert f"clf train --resume runs{os.sep}one" in err.splitlines()[-1]
    monkeypatch.chdir(tmp_path)
    assert run_cli("runs", "list").out.splitlines()[1].split()[:2] == ["one", "interrupted"]
    assert run_cli("train", "--resume", "auto").code == 0
    (row,) = json.loads(run_cli("runs", "list", "--json").out)
    assert (row["state"], row["step"]) == ("complete", 180)
    assert_refused(run_cli("train", "--resume", "auto"), "no unfinished run")


def test_one_command_starts_a_named_run_and_continues_it(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("data.options.train_images=32", "data.options.test_images=16", "data.image_size=16", "train.batch_size=16")
    job = ("train", "--plugin", "simclr", *small, "backbone.name=test_resnet", "train.epochs=1", "train.threads=1")
    assert run_cli(*job, "run.name=job", "--resume", "auto").code == 0
    again = run_cli(*job, "run.name=job", "--resume", "auto")
    assert again.code == 0
    assert "run 'job' is complete: all 2 steps are done" in again.err
    (row,) = json.loads(run_cli("runs", "list", "--json").out)
    assert (row["name"], row["step"]) == ("job", 2)


def test_resume_refuses_another_plugin_and_another_configuration(run_cli: Cli, tiny_run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("import clf_simclr\nclass Other(clf_simclr.SimCLR):\n    name = 'other'\n", encoding="utf-8")
    path = str(tiny_run.path)
    assert_refused(run_cli("train", "--resume", path, "--plugin", str(other)), "was trained with 'simclr'")
    assert_refused(run_cli("train", "--resume", path, "train.epochs=9"), "train.epochs: 2 -> 9")
    rows = table(run_cli("train", "--resume", path, "--print-config").out)
    assert rows["train.batch_size"] == ["16", "run tiny"]


def test_train_calls_the_trainer_with_the_configuration(
    run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(training, "train", lambda config: seen.append(config) or Run(tmp_path / "runs" / "x"))
    done = run_cli("train", "--plugin", "simclr", *SMALL)
    assert done.code == 0
    (config,) = seen
    assert (config.plugin, config.train.batch_size, config.method["temperature"]) == ("simclr", 16, 0.5)
    assert f"clf evaluate {tmp_path / 'runs' / 'x'}" in done.out
    monkeypatch.setenv("RANK", "1")
    assert run_cli("train", "--plugin", "simclr", *SMALL).out == ""


def test_a_reader_that_goes_away_is_no_error(run_cli_process: Cli) -> None:
    early = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1)"
    done = run_cli_process("plugins", "list", before=early)
    assert done.err == ""
    assert done.code in (0, 1)
