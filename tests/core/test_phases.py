"""The stopwatch: time goes to the innermost open phase, and to nothing twice."""

from __future__ import annotations

import pytest
import torch

from clf import phases
from clf.phases import Stopwatch, unmeasured


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(phases.time, "perf_counter", clock)
    return clock


def test_a_phase_inside_another_is_taken_out_of_it(clock: Clock) -> None:
    watch = Stopwatch(torch.device("cpu"))
    clock.now += 1
    with watch("method"):
        clock.now += 2
        with watch("augment"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    with watch("forward"):
        pass
    assert watch.seconds["augment"] == 4
    assert watch.seconds["method"] == 10
    assert watch.seconds["other"] == 17
    assert sum(watch.seconds.values()) == 31


def test_a_phase_that_fails_is_closed(clock: Clock) -> None:
    watch = Stopwatch(torch.device("cpu"))
    with pytest.raises(ValueError, match="broken"), watch("forward"):
        clock.now += 1
        raise ValueError("broken")
    clock.now += 2
    with watch("backward"):
        clock.now += 4
    assert (watch.seconds["forward"], watch.seconds["other"], watch.seconds["backward"]) == (1, 2, 4)


def test_a_reset_forgets_the_warm_up(clock: Clock) -> None:
    watch = Stopwatch(torch.device("cpu"))
    with watch("forward"):
        clock.now += 5
    watch.reset()
    with watch("forward"):
        clock.now += 1
    assert watch.seconds["forward"] == 1
    assert sum(watch.seconds.values()) == 1


def test_unmeasured_phases_may_be_nested() -> None:
    with unmeasured("method"), unmeasured("data"):
        pass
