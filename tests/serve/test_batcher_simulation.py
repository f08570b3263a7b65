"""The learned batcher beside fixed ones, on a simulated clock, and what it learns from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from batcher_simulation import CPU, GPU, Model, fixed, learned, poisson

from clf_serve.batching.pace import Pace
from clf_serve.batching.scheduling import WAIT, Facts, Scheduler, solve

SMALL_GPU = Model("GPU-like", GPU.fixed, GPU.each, GPU.sizes[:6])
WINDOWS = (0.0, 0.002, 0.005, 0.02)


@pytest.mark.parametrize(
    ("model", "load", "images"),
    [
        (CPU, 0.05, 1000),
        (CPU, 0.9, 2500),
        (CPU, 1.5, 2000),
        (SMALL_GPU, 0.02, 1000),
        (SMALL_GPU, 0.6, 6000),
        (SMALL_GPU, 1.5, 8000),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_learned_is_no_worse_than_the_best_fixed_pair(model: Model, load: float, images: int) -> None:
    arrivals = poisson(load * model.capacity, images)
    mine = learned(model, arrivals)
    grid = [fixed(model, arrivals, size, window) for size in model.sizes for window in WINDOWS]

    assert mine.latency <= 1.05 * min(outcome.latency for outcome in grid)
    assert mine.throughput >= 0.97 * max(outcome.throughput for outcome in grid)


def test_the_fixed_batcher_beside_is_what_it_says() -> None:
    """By hand: three images at 0, 1 and 10 ms; pairs of them within 5 ms; then one alone, after its window."""
    outcome = fixed(Model("m", 0.002, 0.001, (1, 2)), [0.0, 0.001, 0.010, 0.010], 2, 0.005)
    assert outcome.latency == pytest.approx(0.004)
    lone = fixed(Model("m", 0.002, 0.001, (1, 2)), [0.0, 1.0], 2, 0.005)
    assert lone.latency == pytest.approx(0.005 + 0.003)


def facts(model: Model, load: float, together: int = 1) -> Facts:
    seconds = tuple(model.seconds(size) for size in model.sizes)
    return Facts(model.sizes, seconds, load * model.capacity / together, together)


@pytest.mark.parametrize("load", [0.01, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("fixed_cost", [0.0, 0.0003])
def test_where_batches_do_not_pay_nothing_waits(load: float, fixed_cost: float) -> None:
    assert WAIT not in solve(facts(Model("cpu", fixed_cost, 0.02, (1, 2, 4, 8, 16)), load))[1:]


def test_a_crowd_is_cut_or_filled_up_as_its_pace_asks() -> None:
    """Nine images: eight and one where the time is all arithmetic, nine in sixteen where it is nearly all fixed."""
    sizes = (1, 2, 4, 8, 16)
    assert solve(facts(Model("calculating", 0.004, 0.0005, sizes), 0.01))[9] == 8
    assert solve(facts(Model("starting", 0.050, 0.0001, sizes), 0.01))[9] == 16


def test_on_a_gpu_a_lone_image_waits_only_in_dense_traffic() -> None:
    assert solve(facts(GPU, 0.01))[1] == 1
    rule = solve(facts(GPU, 0.6))
    assert rule[1] == WAIT and rule[-1] == 128
    waits = [n for n, size in enumerate(rule) if size == WAIT]
    assert max(waits) < 64


def test_the_rule_is_the_best_of_all_thresholds() -> None:
    """An oracle: no rule of the kind "start when n wait" does better in a long simulation of one seed."""
    model = Model("small", 0.005, 0.0005, (1, 2, 4, 8))
    arrivals = poisson(0.6 * model.capacity, 20_000)

    def mean(rule: list[int]) -> float:
        n, free, index, total, waiting = 0, 0.0, 0, 0.0, list[float]()
        while n < len(arrivals):
            while index < len(arrivals) and arrivals[index] <= free:
                waiting.append(arrivals[index])
                index += 1
            size = rule[min(len(waiting), len(rule) - 1)]
            if size == WAIT and index < len(arrivals):
                free = arrivals[index]
                continue
            size = size or model.sizes[-1]
            batch, waiting = waiting[:size], waiting[size:]
            free += model.seconds(size)
            total += sum(free - moment for moment in batch)
            n += len(batch)
        return total / n

    def threshold(least: int) -> list[int]:
        return [WAIT if n < least else next((s for s in model.sizes if s >= n), 8) for n in range(9)]

    best = min(mean(threshold(least)) for least in range(1, 9))
    assert mean(solve(facts(model, 0.6))) <= 1.01 * best


def test_waiting_ends_when_nothing_comes() -> None:
    pace = Pace()
    for size in GPU.sizes * 3:
        pace.observe(size, GPU.seconds(size))
    for index in range(200):
        pace.arrived(index / 2000)
    scheduler = Scheduler(pace)
    learned_facts = scheduler.stale(GPU.sizes, 0.1)
    assert learned_facts is not None
    scheduler.adopt(learned_facts, solve(learned_facts))
    assert scheduler.stale(GPU.sizes, 0.1) is None

    choice = scheduler.choose(1, GPU.sizes, 0.1)
    assert choice.size == WAIT and choice.patience == pytest.approx(3 / 2000, rel=0.05)
    assert scheduler.choose(1, GPU.sizes, 5.0).size == 1  # silence says that nobody comes
    assert scheduler.choose(1, (1, 2), 0.1).size == 1  # other sizes: no rule yet


@pytest.mark.parametrize("model", [CPU, GPU, Model("odd", 0.1, 0.01, (1, 3, 9))])
def test_the_pace_is_learned_through_noise_and_pauses(model: Model) -> None:
    rng = np.random.default_rng(0)
    pace = Pace()
    for index in range(400):
        size = int(rng.choice(model.sizes))
        pause = 30 if index % 50 == 3 else 1  # a pause of thirty times the duration
        pace.observe(size, model.seconds(size) * rng.uniform(0.95, 1.05) * pause)
    for size in model.sizes:
        assert pace.seconds(size) == pytest.approx(model.seconds(size), rel=0.1)


def test_the_pace_follows_a_change() -> None:
    pace = Pace()
    for _ in range(300):
        pace.observe(1, 0.01)
    for _ in range(60):
        pace.observe(1, 0.03)
    assert pace.seconds(1) == pytest.approx(0.03, rel=0.15)


def test_a_size_that_breaks_the_line_is_known_by_itself() -> None:
    pace = Pace()
    for _ in range(50):
        for size, seconds in ((1, 0.01), (2, 0.02), (4, 0.08), (8, 0.08)):
            pace.observe(size, seconds)
    assert pace.seconds(4) == pytest.approx(0.08, rel=0.1) and pace.seconds(8) == pytest.approx(0.08, rel=0.1)


def test_before_anything_is_known() -> None:
    pace = Pace()
    assert pace.seconds(4) == 0 and math.isinf(pace.throughput((1, 4))) and pace.requests_per_second(3.0) == 0
    pace.observe(1, 0.01)
    assert pace.seconds(1) == pytest.approx(0.01) and 0.01 < pace.seconds(8) < 0.08  # worth a try
    choice = Scheduler(Pace()).choose(10, (1, 2, 4, 8), 0.0)
    assert choice.size == 8


def test_rates() -> None:
    pace = Pace()
    for index in range(1000):
        pace.arrived(index * 0.01, 3)
    assert pace.requests_per_second(9.99) == pytest.approx(100, rel=0.01)
    assert pace.images_per_request == pytest.approx(3)
    assert pace.requests_per_second(20.0) < 10

    pace.observe(1, 0.01)
    assert pace.throughput((1,)) == pytest.approx(100)
    for _ in range(200):
        pace.finished(4, 0.1)  # decoding takes its share
    assert pace.throughput((1,)) == pytest.approx(40, rel=0.05)
