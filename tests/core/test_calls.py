"""Errors in a method's own code are told as the plugin's, with stage, step and place; those of the engine are not."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clf import config, endings, experiment, single, training
from clf.config import Config
from clf.data import DataSource
from clf.data.stream import Stream
from clf.distributed import Ranks
from clf.errors import LONGEST, ConfigError, MissingExtraError, PluginError
from clf.experiment import Experiment
from clf.runs import Run
from clf.signals import Stopped, StopRequest
from clf.trainer import Trainer

Make = Callable[..., Config]

METHOD = """
import clf
import torch
from clf import losses

class Mute(RuntimeError):
    def __str__(self):
        raise KeyError

class Mine(clf.Method[clf.MethodConfig]):
    name = "mine"
    Config = clf.MethodConfig

    def training_step(self, batch, ctx):
        return self.backbone(batch.views[0]).square().mean()
"""
LONG = "x " * (LONGEST // 2) + " [...] (mine.py"
LINE = 1 + METHOD.count("\n")
"""Of what is appended to METHOD."""


@pytest.fixture(autouse=True)
def _forget_files() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.startswith(single.PREFIX)]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def data(tiny: Make) -> DataSource:
    return experiment.load_data(tiny(Path("runs")).data, 0)


@pytest.fixture
def build(tmp_path: Path, tiny: Make, data: DataSource) -> Callable[[str], Experiment]:
    """``build(more)``: the experiment of METHOD with more code in the class."""

    def make(more: str) -> Experiment:
        path = tmp_path / "mine.py"
        path.write_text(METHOD + more)
        made, _ = config.derive(tiny(tmp_path, {"plugin": str(path)}).model_copy(update={"method": {}}))
        return experiment.build(made, data)

    return make


def one_step(what: Experiment, folder: Path) -> None:
    Trainer(what, Run(folder / "nowhere"), Ranks()).one_step()


def told(work: Callable[[], object]) -> PluginError:
    with pytest.raises(PluginError) as error:
        work()
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("more", "stage", "reason"),
    [
        ("    def __init__(self, *all): 1 / 0", "__init__", "ZeroDivisionError: division by zero"),
        ("    def __init__(self): pass", "build", "TypeError: Mine.__init__() takes 1 positional argument"),
        ("    @classmethod\n    def build(cls, *all): raise SystemExit(3)", "build", "SystemExit: 3"),
        ("    def views(self): return self.nothing", "views", "AttributeError: 'Mine' object has no attribute"),
    ],
)
def test_what_fails_while_a_method_is_made(
    build: Callable[[str], Experiment], more: str, stage: str, reason: str
) -> None:
    error = told(lambda: build(more))
    assert f"mine.py failed in {stage}: {reason}" in str(error)
    assert str(error).endswith("Mend the file.")


@pytest.mark.parametrize(
    ("more", "stage", "reason"),
    [
        ("    def training_step(self, batch, ctx): 1 / 0", "training_step", "ZeroDivisionError: division by zero"),
        ("    def training_step(self, batch): pass", "training_step", "TypeError: Mine.training_step() takes 2"),
        ("    def training_step(self, batch, ctx): raise SystemExit", "training_step", "SystemExit: no message"),
        ("    def training_step(self, batch, ctx): losses.nt_xent(1)", "training_step", "TypeError: nt_xent() missing"),
        ("    def next_batch(self, stream, ctx): return stream.nothing()", "next_batch", "AttributeError: "),
        ("    def after_step(self, ctx): {}['x']", "after_step", "KeyError: 'x'"),
        ("    def parameter_groups(self): return {}['x']", "parameter_groups", "KeyError: 'x'"),
        ("    @property\n    def preparation_steps(self): return 1 // 0", "preparation_steps", "ZeroDivisionError"),
        ("    def training_step(self, batch, ctx): raise Mute", "training_step", "Mute: no message"),
        ("    def training_step(self, batch, ctx): raise OSError('x ' * 5000)", "training_step", f"OSError: {LONG}"),
    ],
)
def test_what_fails_in_a_step(
    build: Callable[[str], Experiment], tmp_path: Path, more: str, stage: str, reason: str
) -> None:
    what = build(more)
    error = told(lambda: one_step(what, tmp_path))
    assert f"mine.py failed in {stage}" in str(error) and f": {reason}" in str(error)
    assert str(error).endswith("Mend the file.")
    if "takes 2" in reason:  # the call itself failed, so there is no place in the file
        assert error.details == ""
    else:
        line = LINE + more.count("\n")
        assert f"(mine.py, line {line}). " in str(error)
        first = error.details.splitlines()[1]
        assert f'mine.py", line {line}, in {stage}' in first
        assert "trainer.py" not in error.details


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        ("None", "nothing"),
        ("3.5", "a float"),
        ("torch.ones(())", "a loss without a gradient"),
        ("self.backbone(batch.views[0])[:, 0]", "a tensor of the shape (16,)"),
        ("clf.StepOutput(None)", "nothing"),
    ],
)
def test_what_is_no_loss_is_refused(
    build: Callable[[str], Experiment], tmp_path: Path, returned: str, found: str
) -> None:
    what = build(f"    def training_step(self, batch, ctx): return {returned}")
    assert f"training_step returned {found}; a tensor with one value" in str(told(lambda: one_step(what, tmp_path)))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("    def parameter_groups(self): return [self]", "parameter_groups returned a list, not a dictionary"),
        (
            "    def parameter_groups(self): return {'main': self.named_parameters()}",
            "parameter group 'main' has a tuple among its parameters; give the parameters of a module",
        ),
        (
            "    def parameter_groups(self): return {'main': self.parameters(), 'x': None}",
            "parameter group 'x' has a NoneType among its parameters",
        ),
        (
            "    @property\n    def preparation_steps(self): return 2.5",
            "failed in preparation_steps: TypeError: 'float' object cannot be interpreted as an integer",
        ),
        (
            "    def training_step(self, batch, ctx): return clf.StepOutput(self.backbone(batch.views[0]).mean(), 0.5)",
            "training_step returned a clf.StepOutput whose metrics are a float, not a dictionary",
        ),
    ],
)
def test_answers_of_the_wrong_kind_are_refused(
    build: Callable[[str], Experiment], tmp_path: Path, more: str, reason: str
) -> None:
    what = build(more)
    assert reason in str(told(lambda: one_step(what, tmp_path)))


def test_views_that_are_no_recipes_are_refused(build: Callable[[str], Experiment]) -> None:
    assert "views gave a int that is no clf.Recipe" in str(told(lambda: build("    def views(self): return [2]")))


def test_an_interrupt_between_the_calls_is_told_as_ctrl_c(build: Callable[[str], Experiment], tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    trainer = Trainer(build(""), Run(folder), Ranks())
    said = str(endings.at_once(trainer, KeyboardInterrupt()))
    assert said.startswith("stopped by Ctrl-C at step 0 (epoch 0.00), which is not finished and not saved: there is no")


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        ("torch.OutOfMemoryError('CUDA out of memory')", torch.OutOfMemoryError),
        ("MemoryError()", MemoryError),
        ("RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling')", RuntimeError),
        ('RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried")', RuntimeError),
        ("clf.ConfigError('set another temperature')", ConfigError),
        ("RuntimeError('[gloo/transport/tcp/pair.cc:534] Connection closed by peer')", RuntimeError),
        ("ModuleNotFoundError(name='sklearn')", MissingExtraError),
    ],
)
def test_errors_that_have_words_of_their_own_keep_them(
    build: Callable[[str], Experiment], tmp_path: Path, raised: str, kind: type[BaseException]
) -> None:
    what = build(f"    def training_step(self, batch, ctx): raise {raised}")
    with pytest.raises(kind) as error:
        one_step(what, tmp_path)
    assert type(error.value) is kind


def test_a_bug_of_the_engine_in_a_call_of_the_method_keeps_its_traceback(
    build: Callable[[str], Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(stream: Stream) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(Stream, "next", broken)
    with pytest.raises(ZeroDivisionError, match="a bug of ours"):
        one_step(build(""), tmp_path)


def test_an_error_in_a_backward_of_the_methods_own_is_the_methods(tmp_path: Path, tiny: Make, data: DataSource) -> None:
    """The engine calls backward, and that calls the method's code."""
    path = tmp_path / "mine.py"
    path.write_text(
        METHOD.replace("self.backbone(batch.views[0])", "Odd.apply(self.backbone(batch.views[0]))")
        + """
class Odd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise ValueError("no gradient here")
"""
    )
    changes = {"plugin": str(path), "run.name": "odd"}
    made = tiny(tmp_path, changes).model_copy(update={"method": {}})
    error = told(lambda: training.train(made, callbacks=[]))
    assert "mine.py failed in backward at step 0: ValueError: no gradient here (mine.py, line" in str(error)
    assert not (tmp_path / "odd").exists()


@pytest.mark.parametrize(
    ("step", "at", "words", "remedy"),
    [
        ("x = x.exp()\n        x *= 2\n        return x.mean()", 0, "modified by an inplace operation", "x = x * 2"),
        ("self.kept = getattr(self, 'kept', 0) + x.mean()\n        return self.kept", 1, "second time", ".detach()"),
    ],
)
def test_a_loss_that_torch_cannot_go_back_through_is_the_methods(
    tmp_path: Path, tiny: Make, step: str, at: int, words: str, remedy: str
) -> None:
    """No code of the method's is running then, so torch's words tell."""
    path = tmp_path / "mine.py"
    start = METHOD.partition("        return")[0]
    path.write_text(f"{start}        x = self.backbone(batch.views[0])\n        {step}\n")
    made = tiny(tmp_path, {"plugin": str(path), "run.name": "back"}).model_copy(update={"method": {}})
    error = str(told(lambda: training.train(made, callbacks=[])))
    assert f"mine.py failed in backward at step {at}: RuntimeError: " in error
    assert words in error
    assert remedy in error
    assert "Mend the file" in error


def test_a_method_that_fails_later_leaves_its_checkpoint_and_says_how_to_go_on(tmp_path: Path, tiny: Make) -> None:
    path = tmp_path / "mine.py"
    path.write_text(METHOD + "    def after_step(self, ctx):\n        if ctx.step == 8: raise ValueError('enough')\n")
    made = tiny(tmp_path, {"plugin": str(path), "run.name": "late"}).model_copy(update={"method": {}})
    error = told(lambda: training.train(made, callbacks=[]))
    last = tmp_path / "late" / "checkpoints" / "step-000000006.pt"
    assert last.is_file()
    assert str(error).endswith(
        f"failed in after_step at step 8: ValueError: enough (mine.py, line {LINE + 1}). The last checkpoint is "
        f"{last}. Mend the file and train a new run: this one goes on only with the source it was trained with"
    )
    assert Run(tmp_path / "late").state() == "failed"


def test_control_c_while_a_method_is_made_names_the_stage(build: Callable[[str], Experiment]) -> None:
    with pytest.raises(Stopped, match=r"^stopped by Ctrl-C in views of plugin .*mine\.py$"):
        build("    def views(self): raise KeyboardInterrupt")


def test_the_first_signal_asks_the_second_interrupts_and_the_third_is_the_systems(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest("finishing") as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested and stop.number == signal.SIGINT
        assert capsys.readouterr().err == "finishing\n"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == ""


def test_nothing_is_told_of_a_sigterm(capsys: pytest.CaptureFixture[Any]) -> None:
    with StopRequest("finishing") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    assert capsys.readouterr().err == ""
