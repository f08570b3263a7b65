"""``clf verify``: it holds for a method that uses the whole contract, and names what is wrong with wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plugins_to_verify as methods
import pytest
import torch
import torch.nn.functional as F
from plugins_to_verify import plugin_file

from clf import training, verify
from clf.errors import ConfigError, PluginError
from clf.verify import killing
from clf.verify.batchnorm import of_all_rows
from clf.verify.child import Job
from clf.verify.compare import End, differences, largest_difference
from clf.verify.tiny import tiny


@pytest.mark.slow
def test_a_rich_method_is_killed_at_every_place_and_keeps_its_bits(tmp_path: Path) -> None:
    report = verify.resume(plugin_file(tmp_path, methods.RICH), kills=8)
    assert report.holds, str(report)
    facts = dict(report.facts)
    assert facts["killed"].startswith("8 times")
    assert [facts[f"  {place}"] for place in verify.PLACES] == ["4", "1", "1", "1", "1"]
    assert facts["newest checkpoint cut short"] == "1 times"
    assert facts["SHA-256 of state, left alone"] == facts["SHA-256 of state, killed and resumed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "blame"),
    [(methods.COUNTS_IN_PYTHON, "outside its parameters and buffers"), (methods.DRAWS_FROM_NUMPY, "differ too")],
)
def test_a_method_whose_state_is_not_in_the_checkpoint_is_caught(tmp_path: Path, body: str, blame: str) -> None:
    report = verify.resume(plugin_file(tmp_path, body), {"train.epochs": 2}, kills=2)
    assert not report.holds
    first, state, reason = report.differences
    assert first.startswith("Metrics at step ") and "loss is" in first
    assert "the optimizer state 'exp_avg' of parameter 'backbone.model." in state or "the weight or buffer" in state
    assert blame in reason


class NeverThere:
    """Does a job in this process; it has always ended before it is killed."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def join(self) -> None:
        if self.job.resume:
            training.resume(self.job.run, self.job.config, callbacks=[])
        else:
            training.train(self.job.config, callbacks=[])

    def kill_there(self, delay: float = 0.0) -> bool:
        self.join()
        return False


def test_a_method_says_what_makes_it_small_and_the_user_has_the_last_word(tmp_path: Path) -> None:
    body = methods.DOES_NOT_GATHER.replace(
        "class Mine(Base):", "class Mine(Base):\n    tiny = {'train.batch_size': 8, 'train.epochs': 3}"
    )
    plugin = plugin_file(tmp_path, body)
    made = tiny(plugin, tmp_path, {"train.epochs": 5}, {"train.max_steps": 2})
    assert (made.train.batch_size, made.train.epochs, made.train.max_steps) == (8, 5, 2)
    assert made.backbone.name == "test_resnet"


def test_a_run_that_ended_before_it_was_killed_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killing, "Child", NeverThere)
    report = verify.resume("simclr", {"train.max_steps": 2}, kills=3)
    assert not report.holds
    (sentence,) = report.differences
    assert sentence.startswith("The run was killed 0 of 3 times, ")
    assert dict(report.facts)["killed"] == "0 times, after steps none"


@pytest.mark.slow
def test_two_ranks_equal_one_process_for_a_rich_method(tmp_path: Path) -> None:
    report = verify.ranks(plugin_file(tmp_path, methods.RICH), counts=[2])
    assert report.holds, str(report)
    facts = dict(report.facts)
    assert float(facts["2 ranks, largest relative difference of the state"]) < 1e-10
    assert facts["2 ranks, weights and buffers"] == "the same bits on every rank"


@pytest.mark.slow
def test_four_and_three_ranks_equal_one_process(tmp_path: Path) -> None:
    assert verify.ranks(plugin_file(tmp_path, methods.RICH), counts=[4, 3]).holds


def test_a_method_that_does_not_gather_is_caught(tmp_path: Path) -> None:
    report = verify.ranks(plugin_file(tmp_path, methods.DOES_NOT_GATHER), counts=[2])
    assert report.differences[0].startswith("Metrics at step 1: loss is ")
    assert "with one process" in report.differences[0] and "with 2 ranks" in report.differences[0]


def test_a_queue_that_differs_between_ranks_is_caught(tmp_path: Path) -> None:
    report = verify.ranks(plugin_file(tmp_path, methods.QUEUES_ITS_OWN_ROWS), counts=[2])
    assert any("'queue' on rank 1 differs from that on rank 0" in sentence for sentence in report.differences)


@pytest.mark.slow
def test_the_command_prints_facts_and_says_whether_they_hold(run_cli: Callable[..., Any]) -> None:
    done = run_cli("verify", "export", "--plugin", "simclr", "--json")
    assert done.code == 0
    told = json.loads(done.out)
    assert told["holds"] and float(told["facts"]["least cosine"].split()[0]) >= 0.9999


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("resume", "--plugin", "nothing"), "nothing"),
        (("resume", "--plugin", "simclr", "train.epoch=2"), "Did you mean 'train.epochs'"),
        (("export", "--plugin", "simclr", "run.dir=elsewhere"), "run.dir cannot be set here"),
        (("ranks", "--plugin", "simclr", "--ranks", "two"), "--ranks two is no list of numbers"),
        (("ranks", "--plugin", "simclr", "--ranks", "1"), "must be 2 or more"),
        (("ranks", "--plugin", "simclr", "train.chunk_size=8"), "train.chunk_size = 8 cannot be set for clf verify"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(run_cli: Callable[..., Any], words: tuple[str, ...], sentence: str) -> None:
    done = run_cli("verify", *words)
    assert done.code == 2
    assert sentence in done.err


def test_a_bug_of_one_rank_is_told_and_not_that_another_lost_it(tmp_path: Path) -> None:
    told = r"mine\.py failed in training_step at step 0: KeyError: 'a bug of rank 1' \(mine\.py, line \d+\)\. Mend"
    with pytest.raises(PluginError, match=told):
        verify.ranks(plugin_file(tmp_path, methods.HAS_A_BUG), counts=[2])


def test_an_error_in_the_training_is_the_users_to_mend() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size 15 cannot be divided among 2"):
        verify.ranks("simclr", {"train.batch_size": 15}, counts=[2])


def end(weight: float, loss: float) -> End:
    state = {"step": 1, "method": {"w": torch.tensor([1.0, weight], dtype=torch.float64)}}
    return End(state, [{"step": 1, "loss": loss}])


def test_differences_are_by_the_largest_value_and_by_bits() -> None:
    """Of 4 and 4.4 the difference is 0.1 of the second; one unit in the last place is a difference of bits."""
    assert largest_difference(end(4.0, 0.5), end(4.4, 0.5)) == (pytest.approx(0.4 / 4.4), 0.0)
    names = ("here", "there")
    assert differences(end(4.0, 0.5), end(4.0, 0.5), names) == []
    assert differences(end(4.0, 0.5), end(4.0 + 2**-50, 0.5), names, 1e-10) == []
    (sentence,) = differences(end(4.0, 0.5), end(4.0 + 2**-50, 0.5), names)
    assert "the weight or buffer 'w', differs by" in sentence
    (sentence,) = differences(end(4.0, 0.5), end(4.0, 0.25), names)
    assert sentence == "Metrics at step 1: loss is 0.5 here and 0.25 there."
    assert end(4.0, 0.5).state_sha256 != end(-4.0, 0.5).state_sha256
    assert differences(end(0.0, 0.5), end(-0.0, 0.5), names) != []


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_over_all_rows_is_torchs_own_for_one_process(training: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    norms = [torch.nn.BatchNorm2d(3).double().train(training) for _ in range(2)]
    expected = norms[0](x)
    (gradient,) = torch.autograd.grad(expected.pow(3).sum(), x)
    with of_all_rows():
        found = norms[1](x)
        assert torch.equal(F.dropout(x, 0.5), x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.pow(3).sum(), x)[0], gradient)
    torch.testing.assert_close(norms[1].state_dict(), norms[0].state_dict())
