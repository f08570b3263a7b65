"""Mean and spread over seeds, differences paired by seed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clf.spread import Spread, paired, spread, t_975


def test_spread_of_three_values() -> None:
    found = spread([0.80, 0.82, 0.87])
    assert found.n == 3
    assert found.mean == pytest.approx(0.83)
    assert found.std == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))


def test_one_value_has_no_spread_and_tells_no_difference() -> None:
    found = spread([0.5])
    assert (found.std, found.interval, found.sign) == (None, None, 0)
    assert found.text() == "50.0"


def test_no_values() -> None:
    with pytest.raises(ValueError, match="no values"):
        spread([])


@pytest.mark.parametrize("freedom", [*range(1, 31), 31, 40, 60, 120, 1000])
def test_quantiles_are_those_of_scipy(freedom: int) -> None:
    assert t_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=3e-4)


def test_no_freedom() -> None:
    with pytest.raises(ValueError, match="degree of freedom"):
        t_975(0)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_the_interval_is_that_of_scipy(values: list[float]) -> None:
    found = spread(values)
    error = stats.sem(values)
    if error < 1e-6:  # neither has an interval for equal values
        return
    assert found.interval is not None
    expected = stats.t.interval(0.95, len(values) - 1, loc=found.mean, scale=error)
    assert found.interval == pytest.approx(expected, rel=0, abs=5e-3 * error)


def test_differences_are_taken_by_seed() -> None:
    """Seeds move both sides by far more than the difference, which is the same at each."""
    ours = {0: 0.50, 1: 0.70, 2: 0.90001, 7: 0.1}
    theirs = {2: 0.88, 0: 0.48, 1: 0.68, 9: 0.2}
    found = paired(ours, theirs)
    assert found is not None
    assert found.n == 3
    assert found.mean == pytest.approx(0.02, abs=1e-5)
    assert found.std == pytest.approx(0, abs=1e-5)
    assert found.sign == 1
    assert paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("mean", "std", "n", "sign"),
    [(0.5, 0.4, 3, 0), (0.5, 0.1, 3, 1), (-0.5, 0.1, 3, -1), (0.5, 0.4, 9, 1), (0.0, 0.0, 3, 0), (0.5, 0.0, 3, 0)],
)
def test_a_sign_needs_an_interval_without_zero(mean: float, std: float, n: int, sign: int) -> None:
    assert Spread(mean, std, n).sign == sign


def test_values_that_are_all_the_same_have_no_interval() -> None:
    """Two seeds that gained the very same number of test images say nothing of how much gains vary."""
    found = paired({0: 0.3, 1: 0.5}, {0: 0.1, 1: 0.3})
    assert found is not None and found.interval is None and found.sign == 0


def test_text() -> None:
    assert Spread(-0.0001, None, 1).text(signed=True) == "+0.0"
    assert Spread(0.0049, 0.0031, 3).text(signed=True) == "+0.5 ± 0.3"
    assert Spread(12.346, 0.5, 3).text(scale=1, digits=2) == "12.35 ± 0.50"
