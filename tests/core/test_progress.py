"""What a person sees of a training, and that the training does not depend on anybody looking."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from clf import progress, training
from clf.config import Config
from clf.progress import Progress

Make = Callable[..., Config]


class Lost(io.StringIO):
    """A file that takes some writes and then fails, a terminal if so wanted."""

    def __init__(self, error: Exception, writes: int, terminal: bool) -> None:
        super().__init__()
        self.error, self.left, self.terminal = error, writes, terminal
        self.failures = 0

    def write(self, text: str) -> int:
        if self.left == 0:
            self.failures += 1
            raise self.error
        self.left -= 1
        return super().write(text)

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "Input/output error")])
def test_a_training_goes_on_when_its_output_cannot_be_written(
    tmp_path: Path, tiny: Make, error: OSError, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", crashed.append)
    file = Lost(error, writes=1, terminal=terminal)
    run = training.train(tiny(tmp_path, {"train.max_steps": 3}), callbacks=[Progress(Console(file=file))])
    assert (run.state(), run.manifest()["step"]) == ("complete", 3)
    assert file.getvalue() != ""
    assert file.failures == 1  # and then it was left alone
    assert crashed == []  # the thread that draws the bar


def test_what_a_method_has_to_say_is_told_before_the_first_step(tmp_path: Path, tiny: Make) -> None:
    said = io.StringIO()
    plugin = tmp_path / "slow.py"
    plugin.write_text(
        "import clf\nfrom clf_simclr import SimCLR\n\n"
        "class Slow(SimCLR):\n    name = 'slow'\n    def notes(self):\n        return ['This takes hours.']\n\n"
        "@clf.hookimpl\ndef clf_methods():\n    return [Slow]\n"
    )
    config = tiny(tmp_path, {"train.max_steps": 1, "plugin": str(plugin)})
    training.train(config, callbacks=[Progress(Console(file=said))])
    assert said.getvalue().index("This takes hours.") < said.getvalue().index("done: 1 step")


def test_a_reader_that_goes_away_is_no_error() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w", buffering=1) as file:
        console = progress._lenient(Console(file=file))
        console.print("nobody reads this")
        console.print("nor this")
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), theirs)  # for what the file still holds


def test_what_can_be_written_is_written(tmp_path: Path, tiny: Make) -> None:
    file = io.StringIO()
    training.train(tiny(tmp_path, {"train.max_steps": 2}), callbacks=[Progress(Console(file=file))])
    first, *_, last = file.getvalue().splitlines()
    assert first.startswith("simclr on shapes: 96 images of 16 px (with labels, used for measuring only), test_resnet")
    assert last.startswith("done: 2 steps in 0:0")
