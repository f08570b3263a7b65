"""Freed memory stays in the process."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from clf import allocator


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_the_same_tensors_again_cost_no_page_faults() -> None:
    if not allocator.keep_freed_memory():
        pytest.skip("the C library is not glibc")
    for _ in range(3):
        tensors = [torch.ones(4 << 20, dtype=torch.uint8) for _ in range(8)]
        del tensors
    before = faults()
    for _ in range(10):
        tensors = [torch.ones(4 << 20, dtype=torch.uint8) for _ in range(8)]
        del tensors
    assert faults() - before < 10 * 8 * 1024 / 10  # each time anew it would be 1024 pages of each of the 80


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
