"""Callbacks of plugins and of files in a run: which join it, that they change nothing, and what becomes of bad ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from clf import checkpoint, config, offered, plugins, trainer, training
from clf.callbacks import Training
from clf.config import Config
from clf.errors import ConfigError, PluginError, TrainingError
from clf.runs import Run

Make = Callable[..., Config]
Install = Callable[..., Path]

SHORT = {"train.epochs": 1, "monitor.log_every": 3, "monitor.knn_every": 0}
TELLS = """
import clf

class Tells(clf.Callback):
    def _note(self, trainer, event):
        with (trainer.run.path / "told.txt").open("a") as file:
            file.write(f"{event} {trainer.step} {trainer.state}\\n")

    def on_start(self, trainer):
        self._note(trainer, "start")

    def on_record(self, trainer, record):
        self._note(trainer, record["kind"])

    def on_epoch(self, trainer):
        self._note(trainer, "epoch")

    def on_end(self, trainer):
        self._note(trainer, "end")
"""
HOOK = """
@clf.hookimpl
def clf_callbacks():
    return [Tells]
"""


def file(folder: Path, source: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(dedent(source))
    return str(path)


def weights(run: Run) -> str:
    state, _ = checkpoint.load_newest(run.checkpoints)
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state["method"].values())).hexdigest()


def told(run: Run) -> list[str]:
    return (run.path / "told.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny: Make) -> Run:
    return training.train(tiny(tmp_path_factory.mktemp("plain"), SHORT))


def train(tmp_path: Path, tiny: Make, callbacks: Any, **changes: Any) -> Run:
    return training.train(tiny(tmp_path / "runs", {**SHORT, "monitor.callbacks": callbacks, **changes}))


EXPECTED = ["start 0 failed", "train 3 failed", "train 6 failed", "epoch 6 failed", "end 6 complete"]


def test_a_callback_of_an_installed_plugin_and_one_of_a_file_watch_a_run(
    tmp_path: Path, tiny: Make, install: Install, plain: Run
) -> None:
    install("clf-teller", plugins={"teller": "clf_teller"}, modules={"clf_teller": TELLS + HOOK})
    path = file(tmp_path, TELLS.replace("Tells", "Other").replace("told.txt", "other.txt"))
    run = train(tmp_path, tiny, ["teller", path])
    assert told(run) == (run.path / "other.txt").read_text().splitlines() == EXPECTED
    first, second = run.manifest()["callbacks"]
    assert first == {"name": "Tells", "plugin": "teller", "distribution": "clf-teller", "version": "1.0"}
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert second == {"name": "Other", "plugin": path, "file": "mine.py", "sha256": digest}
    assert weights(run) == weights(plain)
    assert plain.manifest()["callbacks"] == []


def test_the_promised_view_of_a_training_is_there(tmp_path: Path, tiny: Make) -> None:
    names = sorted(name for name in vars(Training) if not name.startswith("_"))
    source = f"""
    import clf, json

    class Looks(clf.Callback):
        def on_epoch(self, trainer):
            names = {names}
            assert all(getattr(trainer, name) is not None for name in names)
            with trainer.clock_stopped():
                trainer.record("mine", batch=trainer.config.train.batch_size, images=len(trainer.data.train))
            figures = [trainer.step, trainer.total_steps, trainer.epoch, trainer.prepared, trainer.steps_per_epoch]
            trainer.record("more", **dict(zip("abcde", figures)), lr=trainer.lr(), side=trainer.data.image_size)
            trainer.say("half-way on " + trainer.device.type + " in " + trainer.run.name)
            trainer.end("enough")
    """
    with pytest.raises(TrainingError, match="enough"):
        train(tmp_path, tiny, file(tmp_path, source), **{"run.name": "looked", "train.epochs": 2})
    mine, more = [each for each in Run(tmp_path / "runs" / "looked").metrics() if each["kind"] in ("mine", "more")]
    assert (mine["batch"], mine["images"]) == (16, 96)
    assert [more[letter] for letter in "abcde"] == [6, 12, 1.0, 0, 6.0]
    assert 0 < more["lr"] < 1e-3


def test_no_callback_comes_twice(tmp_path: Path, tiny: Make) -> None:
    """One plugin gives the method and the callback, and is named in two ways."""
    method = """
    class Own(clf.MethodConfig):
        pass

    class Mine(clf.Method[Own]):
        name = "mine"
        Config = Own

        def training_step(self, batch, ctx):
            return self.backbone(batch.views[0]).square().mean()
    """
    path = file(tmp_path, TELLS + dedent(method))
    own = {"plugin": path, "method.projection_dim": None}
    values = {key: value for key, value in own.items() if value}
    made = tiny(tmp_path / "runs", {**SHORT, "monitor.callbacks": [path, path]})
    run = training.train(made.model_copy(update={**values, "method": {}}))
    assert told(run) == EXPECTED
    assert len(run.manifest()["callbacks"]) == 1
    kept = file(tmp_path / "runs", Path(path).read_text())  # as a resumed run has it
    assert len(offered.callbacks([path, path], plugins.load_plugin(kept))) == 1


@pytest.mark.parametrize(
    "body",
    [
        "import random, numpy, torch; torch.rand(9); torch.manual_seed(7); random.random(); numpy.random.rand()",
        "trainer.method.eval()",
        "import torch; torch.set_grad_enabled(False)",
        "record = trainer.run.metrics(); record.clear()",
        "1 / 0",
        "raise SystemExit(3)",
    ],
)
def test_no_callback_changes_the_run(tmp_path: Path, tiny: Make, plain: Run, body: str) -> None:
    events = [
        f"    def {event}(self, trainer, *more):\n        {body}\n" for event in ("on_start", "on_step", "on_epoch")
    ]
    path = file(tmp_path, "import clf\nclass Bad(clf.Callback):\n" + "".join(events))
    run = train(tmp_path, tiny, path)
    assert weights(run) == weights(plain)
    assert run.manifest()["state"] == "complete"


def test_one_that_raises_is_told_of_once_and_only_asked_to_end(
    tmp_path: Path, tiny: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    source = TELLS.replace('self._note(trainer, "epoch")', "pass") + dedent(
        """
        class Bad(clf.Callback):
            def on_record(self, trainer, record):
                try:
                    {}["the address"]
                except KeyError as error:
                    raise ValueError("the server\\nis gone.") from error

            def on_end(self, trainer):
                print("closing")
                raise RuntimeError("again")
        """
    )
    path = file(tmp_path, source)
    run = train(tmp_path, tiny, path)
    captured = capfd.readouterr()
    line = source.splitlines().index('            raise ValueError("the server\\nis gone.") from error') + 1
    wanted = (
        f"callback 'Bad' of plugin {path} failed in on_record at step 3: ValueError: the server is gone "
        f"(mine.py, line {line}). It is left out from here on; the training goes on."
    )
    assert wanted in captured.err.splitlines()
    assert captured.err.count("failed in") == 1
    assert captured.err.count("Traceback") == 2  # with that of the cause
    assert "KeyError: 'the address'" in captured.err
    assert "trainer.py" not in captured.err
    assert "closing" in captured.out
    assert told(run)[-1] == "end 6 complete"


def test_one_may_record_without_being_told_of_it(tmp_path: Path, tiny: Make) -> None:
    source = """
    import clf

    class Echo(clf.Callback):
        def on_record(self, trainer, record):
            trainer.record("echo", of=record["step"])
            record.clear()
    """
    run = train(tmp_path, tiny, file(tmp_path, source))
    assert [(each["kind"], each["step"]) for each in run.metrics()] == [
        ("train", 3),
        ("echo", 3),
        ("train", 6),
        ("echo", 6),
    ]


def test_one_that_cannot_be_made_ends_it_before_the_first_step(tmp_path: Path, tiny: Make) -> None:
    source = "import clf\nclass Needs(clf.Callback):\n    def __init__(self):\n        import no_such_logger\n"
    path = file(tmp_path, source)
    with pytest.raises(PluginError) as caught:
        train(tmp_path, tiny, path)
    message = str(caught.value)
    assert "callback 'Needs' of plugin" in message
    assert "No module named 'no_such_logger' (mine.py, line 4)" in message
    assert "Nothing was trained" in message
    assert not list((tmp_path / "runs").glob("*"))


def test_a_file_without_a_callback_is_told_what_it_lacks(tmp_path: Path, tiny: Make) -> None:
    source = "import clf\n\nclass Other(clf.Evaluator):\n    name = 'other'\n    def measure(self, of): return {}\n"
    with pytest.raises(PluginError, match=r"offers no callback\. It needs to define a subclass of clf\.Callback; "):
        train(tmp_path, tiny, file(tmp_path, source))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simclp", "^monitor.callbacks: .*Did you mean 'simclr'"),
        ("simclr", "^monitor.callbacks: .*'simclr'.* offers no callback"),
        ("./gone.py", "^monitor.callbacks: .*does not exist"),
    ],
)
def test_a_name_that_is_none_ends_it_before_the_first_step(tmp_path: Path, tiny: Make, name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        train(tmp_path, tiny, [name])
    assert not list((tmp_path / "runs").glob("*"))


def test_ctrl_c_in_a_callback_ends_the_run_and_every_callback_is_told(tmp_path: Path, tiny: Make) -> None:
    source = TELLS + dedent(
        """
        class Pressed(clf.Callback):
            def on_step(self, trainer):
                if trainer.step == 2:
                    raise KeyboardInterrupt
        """
    )
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tiny, file(tmp_path, source), **{"run.name": "pressed"})
    run = Run(tmp_path / "runs" / "pressed")
    assert told(run)[-1] == "end 2 interrupted"
    assert run.manifest()["state"] == "interrupted"


def test_a_resumed_run_may_have_others_and_ends_with_the_same_bits(tmp_path: Path, tiny: Make, plain: Run) -> None:
    stops = """
    import os, signal
    import clf

    class Stops(clf.Callback):
        def on_step(self, trainer):
            if trainer.step == 4:
                os.kill(os.getpid(), signal.SIGINT)
    """
    first = file(tmp_path, stops, "stops.py")
    with pytest.raises(trainer.Interrupted) as stopped:
        train(tmp_path, tiny, first)
    run = stopped.value.run
    Path(first).unlink()
    with pytest.raises(PluginError, match=r"stops\.py does not exist"):
        training.resume(run)
    assert run.manifest()["state"] == "interrupted"
    other = file(tmp_path, TELLS)
    section = run.config().monitor.model_copy(update={"callbacks": (other,)})
    training.resume(run, run.config().model_copy(update={"monitor": section}))
    assert told(run) == ["start 4 failed", *EXPECTED[2:]]
    assert [each["name"] for each in run.manifest()["callbacks"]] == ["Tells"]
    assert weights(run) == weights(plain)


def test_the_key_takes_one_name_or_several() -> None:
    def read(value: Any) -> tuple[str, ...]:
        layer = config.Layer("test", {"plugin": "simclr", "monitor.callbacks": value})
        return config.build([layer])[0].monitor.callbacks

    assert read("wandb") == ("wandb",)
    assert read("wandb, ./mine.py") == ("wandb", "./mine.py") == read(["wandb", "./mine.py"])
    assert read([]) == () == read("")
    assert read("./two words.py,wandb") == ("./two words.py", "wandb")
    with pytest.raises(ConfigError, match=r"monitor.callbacks = 3 .*\[text, \.\.\.\]"):
        read(3)


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, run_cli_process: Callable[..., Any]) -> None:
    file(tmp_path, TELLS)
    words = ["data.name=shapes", "data.image_size=16", "data.options.train_images=64", "data.options.test_images=32"]
    words += ["backbone.name=test_resnet", "train.batch_size=16", "train.max_steps=2", "train.device=cpu"]
    done = run_cli_process("train", *words, "--plugin", "simclr", "monitor.callbacks=./mine.py", "run.name=watched")
    assert done.code == 0, done.err
    run = Run(tmp_path / "runs" / "watched")
    assert told(run)[-1] == "end 2 complete"
    assert json.loads((run.path / "manifest.json").read_text())["callbacks"][0]["plugin"] == "./mine.py"
    done = run_cli_process("train", *words, "--plugin", "simclr", "monitor.callbacks=./nine.py", "run.name=other")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert not (tmp_path / "runs" / "other").exists()
