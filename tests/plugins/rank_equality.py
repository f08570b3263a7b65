"""Ranks of a method with memory, in threads, against one process: three steps of gradient descent in float64."""

from __future__ import annotations

import copy
from typing import Any

import torch
from fakes import FakeContext, batch, rows_of
from rank_threads import Gather, on_ranks
from torch import Tensor

import clf

IMAGES = 12


def assert_ranks_equal_one_process(one: clf.Method[Any], count: int) -> None:
    """Loss, metrics, weights and buffers; the ranks among themselves have the same bits in their buffers."""
    many = [copy.deepcopy(one) for _ in range(count)]
    for step in range(3):
        images = batch(IMAGES, seed=step)
        whole = one.training_step(images, FakeContext(step))
        assert isinstance(whole, clf.StepOutput)

        def work(rank: int, gather: Gather, images: clf.Batch = images, step: int = step) -> clf.StepOutput:
            return many[rank].training_step(rows_of(images, rank, count), FakeContext(step, rank, count, gather))

        parts = on_ranks(count, work)
        loss = torch.stack([part.loss for part in parts]).mean()
        torch.testing.assert_close(loss, whole.loss, rtol=1e-12, atol=1e-12)
        for name, value in whole.metrics.items():
            mean = torch.stack([torch.as_tensor(part.metrics[name]) for part in parts]).mean()
            torch.testing.assert_close(mean, torch.as_tensor(value), rtol=1e-6, atol=1e-9)
        descend([one], whole.loss)
        descend(many, loss)
    for method in many:
        for name, value in one.state_dict().items():
            torch.testing.assert_close(method.state_dict()[name], value, rtol=1e-12, atol=1e-12)
        assert all(torch.equal(x, y) for x, y in zip(method.buffers(), many[0].buffers(), strict=True))


def descend(copies: list[clf.Method[Any]], loss: Tensor) -> None:
    """One step of size 0.1 with the gradient summed over copies, then what the method does after a step."""
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for same in zip(*(filter(lambda p: p.requires_grad, m.parameters()) for m in copies), strict=True):
            gradient = sum(p.grad for p in same if p.grad is not None)
            for p in same:
                p -= 0.1 * gradient
                p.grad = None
    for method in copies:
        method.after_step(FakeContext())
