"""What is logged between two records: which bits it keeps, where it waits, and what is no scalar."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from clf.distributed import Ranks
from clf.errors import PluginError
from clf.window import Window


def mean_of(*values: Any) -> float:
    window = Window()
    for value in values:
        window.add({"x": value})
    return window.flush(Ranks())["x"]


def test_a_float_keeps_all_its_digits() -> None:
    assert mean_of(0.1) == 0.1
    assert mean_of(2**53 - 1) == 2**53 - 1
    assert mean_of(0.1, 0.2) == (0.1 + 0.2) / 2


def test_sums_are_in_float64_whatever_is_logged() -> None:
    small = torch.tensor(2.0**-40)
    assert mean_of(torch.tensor(1.0), small) == (1 + 2.0**-40) / 2  # float32 would lose it
    assert mean_of(1, small.requires_grad_(), np.float64(0.5), True) == (2.5 + 2.0**-40) / 4


@pytest.mark.parametrize("value", [torch.tensor([0.5]), torch.tensor([[0.5]]), np.array([0.5]), [0.5]])
def test_one_number_in_any_shape_is_a_scalar(value: Any) -> None:
    assert mean_of(0.25, value) == 0.375


@pytest.mark.parametrize(
    ("value", "shape"), [(torch.ones(2), r"\(2,\)"), (torch.ones(0), r"\(0,\)"), (np.ones((2, 3)), r"\(2, 3\)")]
)
def test_anything_with_another_number_of_elements_is_refused_by_name(value: Any, shape: str) -> None:
    with pytest.raises(PluginError, match=f"the scalar 'similarity' has the shape {shape}: log one number"):
        Window().add({"similarity": value})


@pytest.mark.parametrize("value", ["high", None, [[1.0], [1.0, 2.0]]])
def test_what_is_no_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(PluginError, match=f"the scalar 'similarity' is no number but {type(value).__name__}"):
        Window().add({"similarity": value})


def test_adding_reads_nothing_from_a_device() -> None:
    """A tensor on the device "meta" has no content, so reading it fails."""
    window = Window()
    for _ in range(2):
        window.add({"loss": torch.tensor([1.0], device="meta"), "both": 0.1, "float": 0.1})
        window.add({"both": torch.tensor(1.0, device="meta")})
    assert isinstance(window._sums["float"], float)
    for name in ("loss", "both"):
        value = window._sums[name]
        assert isinstance(value, torch.Tensor)
        assert (value.device.type, value.dtype, value.shape) == ("meta", torch.float64, ())


@pytest.mark.parametrize("name", ["kind", "step", "epoch", "prepared", "lr", "images", "seconds"])
def test_a_name_that_every_record_has_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match=f"'{name}' is a field of every record"):
        Window().add({"loss": 1.0, name: 0.5})


def test_one_bad_loss_is_seen_until_the_record() -> None:
    window = Window()
    assert window.finite()
    window.add({"loss": torch.tensor(1.0), "other": math.nan})
    assert window.finite()
    for value in (math.inf, -math.inf, 1.0):
        window.add({"loss": value})
        assert not window.finite()
    window.flush(Ranks())
    assert window.finite()


def test_a_stored_window_goes_on_with_the_same_bits() -> None:
    windows = [Window(), Window()]
    for window in windows:
        window.add({"loss": 0.1, "float32": torch.tensor(0.1)})
    windows[1].restore(windows[0].state(Ranks()), Ranks())
    for window in windows:
        window.add({"loss": torch.tensor(0.2, dtype=torch.float64), "float32": 0.7})
    assert windows[0].flush(Ranks()) == windows[1].flush(Ranks())


def test_what_another_number_of_ranks_stored_is_taken_up_as_its_mean() -> None:
    window = Window()
    window.restore({"sums": {"loss": torch.tensor([1.0, 2.0, 6.0]).double()}, "counts": {"loss": 2}}, Ranks())
    assert window.flush(Ranks()) == {"loss": 1.5}
