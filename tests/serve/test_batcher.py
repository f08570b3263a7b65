"""The batcher on a simulated clock: what it owes to every image, whatever comes in whatever order."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from batcher_simulation import CPU, GPU, Model, batcher_of, simulated
from hypothesis import given, settings
from hypothesis import strategies as st

from clf_serve.batching.batcher import Batcher
from clf_serve.engine import Pixels, Vectors
from clf_serve.metrics import Metrics
from clf_serve.problems import Problem

BAD = 255  # an image of this value fails its batch
VOID = 254  # this one has no finite vector


def image(value: int) -> Pixels:
    return np.full((2, 2, 3), value, np.uint8)


class Recorder:
    """A model whose vector is the image's value, and which remembers its batches (blanks are zeros)."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, pixels: Pixels) -> Vectors:
        values = pixels[:, 0, 0, 0]
        self.batches.append(values.tolist())
        if (values == BAD).any():
            raise RuntimeError("the model chokes")
        rows = np.repeat(values[:, None], 4, 1).astype(np.float32)
        rows[values == VOID] = np.nan
        return rows

    @property
    def computed(self) -> list[int]:
        return [value for batch in self.batches for value in batch if value]


def metric(batcher: Batcher, name: str) -> float:
    for line in batcher._metrics.text().decode().splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    return 0.0


async def ask(batcher: Batcher, values: list[int], deadline: float = math.inf) -> list[int]:
    with batcher.admitted(len(values), deadline):
        vectors, _ = await batcher.embed([image(value) for value in values], deadline)
    return [int(vector[0]) for vector in vectors]


async def refusal(work: Awaitable[Any]) -> Problem:
    with pytest.raises(Problem) as caught:
        await work
    return caught.value


requests = st.lists(
    st.tuples(
        st.floats(0, 0.3),  # seconds since the one before
        st.lists(st.sampled_from([*range(1, 50), BAD, VOID]), min_size=1, max_size=24),
        st.one_of(st.just(math.inf), st.floats(0.001, 0.5)),  # seconds to the deadline
        st.one_of(st.just(math.inf), st.floats(0.001, 0.5)),  # seconds to the client's going away
    ),
    min_size=1,
    max_size=12,
)


@given(requests, st.sampled_from([CPU, GPU, Model("odd", 0.003, 0.001, (1, 3, 5))]), st.integers(8, 60))
@settings(max_examples=60, deadline=None)
def test_every_request_has_one_right_answer(
    traffic: list[tuple[float, list[int], float, float]], model: Model, capacity: int
) -> None:
    recorder = Recorder()

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        batcher = batcher_of(model, capacity, recorder)
        batcher.start()
        tasks = []
        for pause, values, deadline, leaves in traffic:
            await asyncio.sleep(pause)
            task = asyncio.create_task(ask(batcher, values, loop.time() + deadline))
            if leaves < math.inf:
                loop.call_later(leaves, task.cancel)
            tasks.append(task)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert len(batcher._waiting) == 0 and batcher._inside == 0 and batcher.alive
        await batcher.stop()
        return answers

    answers = simulated(main)

    assert all(len(batch) in model.sizes for batch in recorder.batches)
    for (_, values, deadline, leaves), answer in zip(traffic, answers, strict=True):
        if isinstance(answer, list):
            assert answer == values and not {BAD, VOID} & set(values)
        elif isinstance(answer, Problem):
            if answer.code == "no_embedding":
                assert answer.param is not None and values[int(answer.param[6:-1])] == VOID
            elif answer.code == "deadline_exceeded":
                assert deadline < math.inf
            elif answer.code == "too_many_images":
                assert len(values) > capacity
            else:
                assert answer.code == "overloaded" and answer.retry_after is not None and answer.retry_after >= 1
        elif isinstance(answer, RuntimeError):
            assert BAD in values
        else:
            assert isinstance(answer, asyncio.CancelledError) and leaves < math.inf


def run(main: Callable[[Batcher, Recorder], Awaitable[None]], model: Model = CPU, capacity: int = 1000) -> Recorder:
    """``main`` with a batcher that has started and a recorder of its batches."""
    recorder = Recorder()

    async def body() -> None:
        batcher = batcher_of(model, capacity, recorder)
        batcher.start()
        try:
            await main(batcher, recorder)
        finally:
            await batcher.stop()

    simulated(body)
    return recorder


async def learn(batcher: Batcher, model: Model) -> None:
    """Teaches the pace all sizes, so that a test does not depend on first tries."""
    for size in model.sizes * 4:
        batcher.pace.observe(size, model.seconds(size))


def test_a_lone_image_is_computed_at_once() -> None:
    async def main(batcher: Batcher, _: Recorder) -> None:
        loop = asyncio.get_running_loop()
        for _i in range(20):
            start = loop.time()
            assert await ask(batcher, [7]) == [7]
            assert loop.time() - start == pytest.approx(GPU.seconds(1))
            await asyncio.sleep(0.05)

    run(main, GPU)


def test_the_order_within_a_request_is_kept() -> None:
    async def main(batcher: Batcher, recorder: Recorder) -> None:
        values = list(range(1, 101))
        assert await ask(batcher, values) == values
        assert recorder.computed == values

    run(main)


def test_a_bad_image_fails_alone_and_in_few_tries() -> None:
    async def main(batcher: Batcher, recorder: Recorder) -> None:
        await learn(batcher, GPU)
        hold = asyncio.create_task(ask(batcher, [1]))
        await asyncio.sleep(0)
        values = [*range(2, 17), BAD]
        answers = await asyncio.gather(*(ask(batcher, [value]) for value in values), return_exceptions=True)
        assert answers[:-1] == [[value] for value in values[:-1]]
        assert isinstance(answers[-1], RuntimeError) and await hold == [1]
        assert len(recorder.batches) <= 1 + 2 * 5 + 1  # halves of 16: two for each power of two
        assert batcher.alive and await ask(batcher, [9]) == [9]

    run(main, GPU)


def test_a_problem_names_the_image() -> None:
    async def main(batcher: Batcher, _: Recorder) -> None:
        problem = await refusal(ask(batcher, [1, 2, VOID, 3]))
        assert (problem.status, problem.code, problem.param) == (422, "no_embedding", "input[2]")

    run(main)


def test_who_has_gone_is_not_computed() -> None:
    async def main(batcher: Batcher, recorder: Recorder) -> None:
        first = asyncio.create_task(ask(batcher, [1]))
        await asyncio.sleep(0.001)
        gone = asyncio.create_task(ask(batcher, [2, 3, 4]))
        await asyncio.sleep(0.001)
        gone.cancel()
        assert await first == [1] and await ask(batcher, [5]) == [5]
        assert recorder.computed == [1, 5]
        assert metric(batcher, 'clf_not_computed_total{reason="gone"}') == 3

    run(main)


def test_who_is_late_is_told_in_time_and_not_computed() -> None:
    async def main(batcher: Batcher, recorder: Recorder) -> None:
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(ask(batcher, [1]))
        await asyncio.sleep(0.001)
        start = loop.time()
        problem = await refusal(ask(batcher, [2, 3], start + 0.005))  # the model is busy for 19 ms
        assert problem.code == "deadline_exceeded" and loop.time() - start == pytest.approx(0.005)
        assert await first == [1] and await ask(batcher, [4]) == [4]
        assert recorder.computed == [1, 4]
        assert metric(batcher, 'clf_not_computed_total{reason="late"}') == 2

    run(main)


def test_who_cannot_be_answered_in_time_is_refused_at_the_door() -> None:
    async def main(batcher: Batcher, recorder: Recorder) -> None:
        loop = asyncio.get_running_loop()
        await learn(batcher, CPU)
        crowd = [asyncio.create_task(ask(batcher, [1])) for _ in range(100)]  # two seconds of work
        await asyncio.sleep(0.001)
        problem = await refusal(ask(batcher, [2], loop.time() + 1))
        assert (problem.status, problem.code) == (429, "overloaded")
        with pytest.raises(Problem, match="busy"):
            batcher.check_room(1, loop.time() + 1)
        batcher.check_room(1, loop.time() + 10)
        assert problem.retry_after is not None
        await asyncio.sleep(problem.retry_after)
        assert await ask(batcher, [3], loop.time() + 1) == [3]  # Retry-After was right
        await asyncio.gather(*crowd)
        assert 2 not in recorder.computed

    run(main)


def test_a_full_server_says_when_there_will_be_room() -> None:
    async def main(batcher: Batcher, recorder: Recorder) -> None:
        await learn(batcher, CPU)
        crowd = [asyncio.create_task(ask(batcher, [1] * 50)) for _ in range(4)]  # four seconds of work, 200 places
        await asyncio.sleep(0.001)
        problem = await refusal(ask(batcher, [2] * 100))
        assert problem.retry_after in (2, 3)
        await asyncio.sleep(0.1)
        with pytest.raises(Problem, match="busy"):
            batcher.check_room(100)
        await asyncio.gather(*crowd)
        batcher.check_room(200)
        never = await refusal(ask(batcher, [1] * 201))
        assert (never.status, never.code) == (413, "too_many_images")

    run(main, capacity=200)


def test_an_empty_server_tries_whatever_the_forecast() -> None:
    async def main(batcher: Batcher, _: Recorder) -> None:
        for size in CPU.sizes * 3:
            batcher.pace.observe(size, 100.0)
        assert await ask(batcher, [1], asyncio.get_running_loop().time() + 1) == [1]

    run(main)


def test_a_large_request_starves_nobody_and_is_not_starved() -> None:
    async def main(batcher: Batcher, _: Recorder) -> None:
        loop = asyncio.get_running_loop()
        await learn(batcher, CPU)
        start = loop.time()
        large = asyncio.create_task(ask(batcher, [1] * 256))
        await asyncio.sleep(0.001)
        for _i in range(20):
            begun = loop.time()
            await ask(batcher, [2])
            assert loop.time() - begun <= 4 * CPU.seconds(1) + 1e-6  # the running one, two of the large one, its own

        async def small() -> None:
            while not large.done():
                await ask(batcher, [3])

        await asyncio.gather(large, *(small() for _ in range(50)))
        assert loop.time() - start <= 2 * 256 * CPU.seconds(1) + 3  # half of the model is its own

    run(main)


def test_the_end_of_the_loop_is_loud(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(batcher: Batcher, _: Recorder) -> None:
        first = asyncio.create_task(ask(batcher, [1]))
        await asyncio.sleep(0.001)
        second = asyncio.create_task(ask(batcher, [2]))
        await asyncio.sleep(0.001)
        monkeypatch.setattr(batcher._metrics, "batch_size", None)
        for task in (first, second):
            assert (await refusal(task)).code == "model_stopped"
        assert not batcher.alive
        assert (await refusal(ask(batcher, [3]))).status == 503
        with pytest.raises(Problem, match="restarted"):
            batcher.check_room()

    with caplog.at_level(logging.CRITICAL):
        run(main)
    assert "the batcher has ended" in caplog.text


def test_a_stop_answers_what_is_inside() -> None:
    async def main(batcher: Batcher, _: Recorder) -> None:
        crowd = [asyncio.create_task(ask(batcher, [value])) for value in range(1, 30)]
        await asyncio.sleep(0.001)
        await batcher.stop()
        assert await asyncio.gather(*crowd) == [[value] for value in range(1, 30)]
        assert (await refusal(ask(batcher, [1]))).code == "shutting_down"

    run(main)


def test_a_stop_is_bounded() -> None:
    async def main(batcher: Batcher, _: Recorder) -> None:
        loop = asyncio.get_running_loop()
        crowd = [asyncio.create_task(ask(batcher, [1])) for _ in range(100)]
        await asyncio.sleep(0.001)
        await batcher.stop(within=0.5)
        assert loop.time() < 0.6
        answers = await asyncio.gather(*crowd, return_exceptions=True)
        told = [answer for answer in answers if isinstance(answer, Problem)]
        assert (
            told and len(told) + answers.count([1]) == 100 and {problem.code for problem in told} == {"shutting_down"}
        )

    run(main)


@pytest.mark.parametrize("wrong", ["rows", "exit"])
def test_whatever_a_real_model_does_the_loop_lives(wrong: str) -> None:
    """With a thread of its own and the true clock."""

    def misbehave(pixels: Pixels) -> Vectors:
        if (pixels == BAD).any():
            if wrong == "exit":
                raise SystemExit(1)
            return np.zeros((len(pixels) + 1, 4), np.float32)
        return np.ones((len(pixels), 4), np.float32)

    async def main() -> None:
        batcher = Batcher(misbehave, lambda: (1, 2, 4), 100, Metrics())
        batcher.start()
        bad, good = await asyncio.gather(ask(batcher, [BAD]), ask(batcher, [1]), return_exceptions=True)
        assert isinstance(bad, (RuntimeError, ValueError)) and good == [1]
        assert await ask(batcher, [1, 2, 3]) == [1, 1, 1] and batcher.alive
        await batcher.stop()

    asyncio.run(main())


def test_a_model_that_hangs_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()

    def hang(pixels: Pixels) -> Vectors:
        released.wait(60)
        return np.ones((len(pixels), 4), np.float32)

    async def main() -> None:
        batcher = Batcher(hang, lambda: (1,), 100, Metrics())
        batcher.start()
        task = asyncio.create_task(ask(batcher, [1]))
        await asyncio.sleep(0.01)
        await batcher.stop(within=0.1)
        assert (await refusal(task)).code == "shutting_down"

    asyncio.run(main())
    assert "its thread is left behind" in caplog.text
    released.set()
